"""A FakeTensor model: a model's own code runs on tensors with shapes and no data, and its FLOPs and memory are counted.

It needs no weights and next to no memory, and counts what the code does rather than what it should do."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from v2edit.attention import Replacement
from v2edit.backbones.base import Size
from v2edit.backbones.cogvideox import CogVideoX, fake_pipeline
from v2edit.backbones.cogvideox_attention import RowwiseBlock
from v2edit.backbones.families import PUBLISHED_DEFAULTS, Defaults

# Attention on the CPU, which torch's counter does not know: counted like the other kernels.
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Cost:
    """The FLOPs of a piece of work, and the peak in bytes of what it allocates, beyond the weights and its inputs."""

    flops: float
    peak: int


class FakeModel:
    """A `CogVideoX` on fake tensors: shapes without data."""

    def __init__(self, folder: Path, dtype: torch.dtype, defaults: Defaults = PUBLISHED_DEFAULTS) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.backbone = CogVideoX(fake_pipeline(folder, dtype, self._mode), folder.name, defaults)
        self.dtype = dtype
        self._cache: dict[Any, Cost] = {}

    @property
    def weights(self) -> dict[str, int]:
        """The bytes of each part's parameters and buffers."""
        components: dict[str, Any] = self.backbone.pipeline.components
        return {
            name: sum(tensor.numel() * tensor.element_size() for tensor in [*part.parameters(), *part.buffers()])
            for name, part in components.items()
            if isinstance(part, torch.nn.Module)
        }

    @property
    def largest_layer(self) -> int:
        """The bytes of the largest layer that is moved to a device by itself (`--offload group`)."""
        return max(
            sum(tensor.numel() * tensor.element_size() for tensor in leaf.parameters())
            for part in (self.backbone.transformer, self.backbone.vae, self.backbone.pipeline.text_encoder)
            for leaf in part.modules()
            if not list(leaf.children())
        )

    def forward(
        self, rows: int, size: Size, loop: bool = False, maps: Replacement | None = None, row_by_row: bool = False
    ) -> Cost:
        """Count a network call of some rows of a clip of a valid size, from one and two layers, which are all alike."""
        key = rows, size, loop, maps and (maps.shared, maps.sources), row_by_row, self.backbone.native_size
        if key not in self._cache:
            self._cache[key] = self._forward(rows, size, loop, maps, row_by_row)
        return self._cache[key]

    def _forward(self, rows: int, size: Size, loop: bool, maps: Replacement | None, row_by_row: bool) -> Cost:
        transformer = self.backbone.transformer
        layers = transformer.transformer_blocks
        kind = type(layers[0])
        with self._mode:
            latents = torch.empty(rows, *self._latents(size, loop))
            text = torch.empty(rows, self.backbone.text_length, transformer.config.text_embed_dim, dtype=self.dtype)
        schedule = self.backbone.schedule(50)
        costs = []
        try:
            for few_layers in (layers[:1], layers[:2]):
                for layer in few_layers:
                    layer.__class__ = RowwiseBlock if row_by_row else kind
                transformer.transformer_blocks = few_layers
                costs.append(count(lambda: self.backbone.denoise(latents, 0, schedule, text, maps, loop)))
        finally:
            transformer.transformer_blocks = layers
            for layer in layers:
                layer.__class__ = kind
        one, two = costs
        return Cost(one.flops + (len(layers) - 1) * (two.flops - one.flops), two.peak)

    def encoding(self, size: Size, loop: bool = False, tiling: bool = False) -> Cost:
        """Count encoding a clip."""
        return self._tiled(self._encode, size, loop) if tiling else self._by_length(self._encode, size, loop)

    def decoding(self, size: Size, loop: bool = False, tiling: bool = False) -> Cost:
        """Count decoding a clip, without its frames; those of tiles stay on the device until they are blended."""
        if not tiling:
            return self._by_length(self._decode, size, loop)
        tiles = self._tiled(self._decode, size, loop)
        blended = 2 * size.frames * size.height * size.width * 3 * self.dtype.itemsize
        return replace(tiles, peak=tiles.peak + blended)

    def tokens(self, size: Size, loop: bool = False) -> int:
        """Return the number of video tokens of a row."""
        frames, _, height, width = self._latents(size, loop)
        return frames * height * width // self.backbone.transformer.config.patch_size**2

    def _tiled(self, work: Callable[[int, Size], Cost], size: Size, loop: bool) -> Cost:
        """Count coding in tiles, which are all alike: one is run."""
        vae = self.backbone.vae
        height, width = min(size.height, vae.tile_sample_min_height), min(size.width, vae.tile_sample_min_width)
        if (height, width) == (size.height, size.width):
            return self._by_length(work, size, loop)
        strides = height * (1 - vae.tile_overlap_factor_height), width * (1 - vae.tile_overlap_factor_width)
        tiles = math.ceil(size.height / strides[0]) * math.ceil(size.width / strides[1])
        one = self._by_length(work, Size(size.frames, height, width), loop)
        return replace(one, flops=one.flops * tiles)

    def _by_length(self, work: Callable[[int, Size], Cost], size: Size, loop: bool) -> Cost:
        """Count coding a clip in groups of frames, which are all alike but the first: two lengths are run."""

        def count_groups(groups: int) -> Cost:
            frames = groups * group + 1
            key = work.__name__, frames, size.height, size.width
            if key not in self._cache:
                self._cache[key] = work(frames, size)
            return self._cache[key]

        group = 2 * self.backbone.temporal
        groups = (size.frames + (self.backbone._lead()[0] if loop else 0) - 1) // group
        if groups <= 2:
            return count_groups(groups)
        one, two = count_groups(1), count_groups(2)
        return Cost(one.flops + (groups - 1) * (two.flops - one.flops), two.peak)

    def _encode(self, frames: int, size: Size) -> Cost:
        with self._mode:
            video = torch.empty(1, 3, frames, size.height, size.width, dtype=self.dtype)
        return count(lambda: self.backbone.vae.encode(video))

    def _decode(self, frames: int, size: Size) -> Cost:
        with self._mode:
            latents = torch.empty(1, *self._latents(Size(frames, size.height, size.width)), dtype=self.dtype)
        return count(lambda: self.backbone.vae.decode(latents.transpose(1, 2)))

    def _latents(self, size: Size, loop: bool = False) -> Sequence[int]:
        backbone = self.backbone
        frames = size.frames // backbone.temporal if loop else (size.frames - 1) // backbone.temporal + 1
        channels = backbone.transformer.config.in_channels
        return frames, channels, size.height // backbone.spatial, size.width // backbone.spatial


def count(work: Callable[[], Any]) -> Cost:
    """Count the FLOPs and the peak memory of a piece of work, usually on tensors without data."""
    memory = PeakMemory()
    flops = FlopCounterMode(display=False, custom_mapping={CPU_ATTENTION: count_attention})
    with torch.no_grad(), memory, flops:
        work()
    return Cost(float(flops.get_total_flops()), memory.peak)


def count_attention(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **options: Any) -> int:
    """Return the floating-point operations of attention, from shapes."""
    return sdpa_flop_count(q, k, v)


class PeakMemory(TorchDispatchMode):
    """Adds up the bytes of storages that are allocated, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor, inputs)
        return out

    def _add(self, tensor: Tensor, inputs: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in inputs:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed() -> None:
            self._known.discard(key)
            self.now -= size

        weakref.finalize(storage, freed)
