"""Other programs that train a scene: nerfstudio's methods, and any command."""
