"""Attention as pure functions on q, k, v; the obvious version of each stands beside the fast one."""

from v2edit.attention.replacement import (
    Replacement,
    attend,
    attend_reference,
    merge,
    own_maps,
    replace_maps,
    replaced_attention,
    replaced_attention_reference,
)
from v2edit.attention.window import Window, windowed_attention, windowed_attention_reference

__all__ = [
    "Replacement",
    "Window",
    "attend",
    "attend_reference",
    "merge",
    "own_maps",
    "replace_maps",
    "replaced_attention",
    "replaced_attention_reference",
    "windowed_attention",
    "windowed_attention_reference",
]
