"""The file formats of scenes: nerfstudio, COLMAP, PLY."""
