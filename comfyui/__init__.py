"""V2Edit's nodes for ComfyUI: this folder goes into custom_nodes, and the v2edit package into ComfyUI's Python."""

try:
    from v2edit.comfyui.nodes import comfy_entrypoint
except ModuleNotFoundError as error:
    if error.name not in ("v2edit", "v2edit.comfyui"):
        raise
    raise ImportError(
        "V2Edit's nodes need the v2edit package in ComfyUI's Python: in a clone of V2Edit, PYTHON -m pip install ."
    ) from error

__all__ = ["comfy_entrypoint"]
