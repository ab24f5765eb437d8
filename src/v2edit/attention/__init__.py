"""Attention as pure functions on q, k, v; each fast one has a slow reference beside it."""

from v2edit.attention.kernels import attention_with_lse, attention_with_lse_reference  # isort: skip
from v2edit.attention.replacement import (  # isort: skip
    Replacement, identity_sources, merge_states, replaced_attention, replaced_attention_reference,
)  # fmt: skip
from v2edit.attention.sites import AttentionCall, RotaryTable, cross_attention, joint_attention, self_attention
from v2edit.attention.window import Window, windowed_attention, windowed_attention_reference

__all__ = [
    "AttentionCall", "Replacement", "RotaryTable", "Window", "attention_with_lse", "attention_with_lse_reference",
    "cross_attention", "identity_sources", "joint_attention", "merge_states", "replaced_attention",
    "replaced_attention_reference", "self_attention", "windowed_attention", "windowed_attention_reference",
]  # fmt: skip
