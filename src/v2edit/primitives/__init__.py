"""The built-in world: solid primitives on a floor under a sky, with edits whose true result can be rendered."""
