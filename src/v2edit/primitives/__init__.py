"""The built-in world of primitives: solids on a floor under a sky, and edits whose true result can be rendered."""
