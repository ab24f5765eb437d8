"""Attention as pure functions on q, k, v; the obvious version of each stands beside the fast one."""

from v2edit.attention.replacement import (
    Replacement,
    attend,
    attend_reference,
    merge,
    replace_maps,
    replaced_attention,
    replaced_attention_reference,
)

__all__ = [
    "Replacement",
    "attend",
    "attend_reference",
    "merge",
    "replace_maps",
    "replaced_attention",
    "replaced_attention_reference",
]
