"""One edit by several processes (torchrun), each with a device and a copy of the model: the first one edits, and the
others compute their share of each of its network calls."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from v2edit.attention import Replacement
from v2edit.attention.head_parallel import HeadParallel
from v2edit.backbones.base import Text
from v2edit.backbones.caching import CachedRows
from v2edit.backbones.core import PipelineBackbone
from v2edit.backbones.memory import MemoryMode
from v2edit.errors import UserError
from v2edit.host import is_out_of_memory, launched_processes
from v2edit.sampling import Schedule

MAIN = torch.device("cpu")
PATIENCE = timedelta(days=1)  # of the others, while the first one decodes, writes or waits for a language model


def join() -> HeadParallel:
    """Join the group of the processes that torchrun launched; each takes the GPU of its number on its machine."""
    rank, processes = launched_processes()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    return HeadParallel(rank, processes)


def split(backbone: PipelineBackbone, heads: HeadParallel) -> None:
    """Let a backbone's networks compute this process's share of each call. Raises `UserError` for a model whose layers
    or heads cannot be shared."""
    if not backbone.shares_tokens:
        raise UserError(f"{backbone.name} cannot be shared by several processes; CogVideoX and Wan can")
    for network in backbone.networks:
        count = network.config["num_attention_heads"]
        if count % heads.processes:
            raise UserError(f"{backbone.name} has {count} heads, which {heads.processes} processes cannot share evenly")
        layers = backbone.layers(network)
        layers[0].register_forward_pre_hook(lambda _, *inputs: _split_tokens(heads, *inputs), with_kwargs=True)
        layers[-1].register_forward_hook(lambda _, inputs, out: _join_tokens(heads, out))
    backbone.call.heads = heads


def _split_tokens(heads: HeadParallel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    if "hidden_states" in kwargs:
        return args, kwargs | {"hidden_states": heads.split_tokens(kwargs["hidden_states"])}
    return (heads.split_tokens(args[0]), *args[1:]), kwargs


def _join_tokens(heads: HeadParallel, out: Any) -> Any:
    if isinstance(out, tuple):  # of video and text
        return heads.join_tokens(out[0]), *out[1:]
    return heads.join_tokens(out)


class LeadingBackbone:
    """The backbone of the process that edits, in whose calls the others take part; all else is the backbone's own."""

    def __init__(self, backbone: PipelineBackbone) -> None:
        self._backbone, self._in_call = backbone, False
        atexit.register(self.release)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def denoise(
        self,
        latents: Tensor,
        step: int,
        schedule: Schedule,
        text: Sequence[Text],
        replacement: Replacement | None = None,
        loop: bool = False,
        guidance: Sequence[float] | None = None,
        cached: CachedRows | None = None,
    ) -> Tensor:
        if cached and cached.cache.scale is not None:  # no layers run, in which alone the others take part
            return self._backbone.denoise(latents, step, schedule, text, replacement, loop, guidance, cached)
        call = step, schedule, [one.to(MAIN) for one in text], replacement, loop, guidance
        self._in_call = True
        _announce((latents.to(MAIN), *call))
        try:
            x0 = self._backbone.denoise(latents, step, schedule, text, replacement, loop, guidance, cached)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # A smaller call cannot be tried: the others wait within this one.
            raise UserError("out of memory; try more processes, --offload group, or a shorter video") from error
        self._in_call = False
        return x0

    def release(self) -> None:
        """Let the other processes end, unless a call has failed, within which they wait: torchrun ends them then."""
        atexit.unregister(self.release)
        if not self._in_call:
            _announce(None)

    @property
    def memory_mode(self) -> MemoryMode:
        return self._backbone.memory_mode

    @memory_mode.setter
    def memory_mode(self, mode: MemoryMode) -> None:
        # Layers exchange tensors: all processes take rows in the same way.
        self._backbone.memory_mode = replace(mode, row_by_row=self.memory_mode.row_by_row)

    def shrink(self) -> str | None:
        """Return None: all processes would have to go on with less together."""
        return None


def follow(backbone: PipelineBackbone) -> None:
    """Compute this process's share of the first one's calls until it is done."""
    device = backbone.device
    while (call := _announce()) is not None:
        latents, step, schedule, text, *others = call
        backbone.denoise(latents.to(device), step, schedule, [one.to(device) for one in text], *others)


def _announce(call: Any = None) -> Any:
    """Send a call from the first process, and return it in all."""
    box = [call]
    torch.distributed.broadcast_object_list(box, src=0, device=MAIN)
    return box[0]
