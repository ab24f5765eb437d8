"""A copy of a backbone's networks on another device, so that rows which exchange no maps are computed side by side."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from v2edit.backbones.core import PipelineBackbone


def replicate(backbone: PipelineBackbone, device: torch.device) -> PipelineBackbone:
    """Return a backbone that denoises like this one, with copies of its networks on a device; all other parts are
    shared. Take the copy before the networks have hooks of an offload."""
    pipeline = copy.copy(backbone.pipeline)
    for name, part in backbone.pipeline.components.items():
        if any(part is network for network in backbone.networks):
            setattr(pipeline, name, _copy_to(part, device))
    replica = type(backbone)(pipeline, backbone.name, backbone.defaults)
    replica.native_size, replica.own_device = backbone.native_size, device
    replica.set_frame_rate(backbone.frame_rate)
    replica.call.kernel = backbone.call.kernel
    return replica


def _copy_to(network: nn.Module, device: torch.device) -> nn.Module:
    """Copy a network to a device, never holding it twice on its own."""
    there: dict[int, Any] = {id(p): nn.Parameter(p.to(device), requires_grad=False) for p in network.parameters()}
    there |= {id(buffer): buffer.to(device) for buffer in network.buffers()}
    return copy.deepcopy(network, there)
