"""Nodes for ComfyUI, over the same jobs as the command line. Only `nodes` and `server` import ComfyUI."""
