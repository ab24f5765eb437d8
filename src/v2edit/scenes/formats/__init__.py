"""The file formats of scenes: nerfstudio, COLMAP, PLY, and those of splats."""
