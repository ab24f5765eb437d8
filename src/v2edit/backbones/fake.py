"""A model without its numbers: its own code runs on tensors that have shapes and no data, and what it would compute and
hold is counted. So it needs no weights, next to no memory, and knows what the code does rather than what it should."""

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
from v2edit.backbones.cogvideox import CogVideoX, RowwiseBlock, fake_pipeline
from v2edit.backbones.families import PUBLISHED_DEFAULTS, Defaults

# The operator of main memory, which torch's counter does not know: it counts as the others do.
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Cost:
    """What a piece of work costs: floating-point operations, and at most so many bytes of tensors at a time, beyond
    the weights and what it was given."""

    flops: float
    peak: int


class FakeModel:
    """A `CogVideoX` of which everything but the numbers is there."""

    def __init__(self, folder: Path, dtype: torch.dtype, defaults: Defaults = PUBLISHED_DEFAULTS) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.backbone = CogVideoX(fake_pipeline(folder, dtype, self._mode), folder.name, defaults)
        self.dtype = dtype
        self._counted: dict[Any, Cost] = {}  # what was counted before

    @property
    def weights(self) -> dict[str, int]:
        """The bytes of each part's parameters."""
        parts = {name: part for name, part in self.backbone.pipeline.components.items() if _is_module(part)}
        return {
            name: sum(one.numel() * one.element_size() for one in [*part.parameters(), *part.buffers()])
            for name, part in parts.items()
        }

    @property
    def largest_layer(self) -> int:
        """The bytes of the largest layer that is brought to a device by itself (`--offload group`)."""
        return max(
            sum(one.numel() * one.element_size() for one in leaf.parameters())
            for part in (self.backbone.transformer, self.backbone.vae, self.backbone.pipeline.text_encoder)
            for leaf in part.modules()
            if not list(leaf.children())
        )

    def forward(
        self, rows: int, size: Size, loop: bool = False, maps: Replacement | None = None, row_by_row: bool = False
    ) -> Cost:
        """One call of the network, of so many rows of a clip of a valid size. Its layers are all alike: one and two of
        them tell of all."""
        key = rows, size, loop, maps and (maps.shared, maps.sources), row_by_row, self.backbone.native_size
        if key not in self._counted:
            self._counted[key] = self._forward(rows, size, loop, maps, row_by_row)
        return self._counted[key]

    def _forward(self, rows: int, size: Size, loop: bool, maps: Replacement | None, row_by_row: bool) -> Cost:
        transformer = self.backbone.transformer
        layers = transformer.transformer_blocks
        kind = type(layers[0])
        with self._mode:
            latents = torch.empty(rows, *self._latents(size, loop))
            text = torch.empty(rows, self.backbone.text_length, transformer.config.text_embed_dim, dtype=self.dtype)
        schedule = self.backbone.schedule(50)
        counted = []
        try:
            for some in (layers[:1], layers[:2]):
                for layer in some:
                    layer.__class__ = RowwiseBlock if row_by_row else kind
                transformer.transformer_blocks = some
                counted.append(count(lambda: self.backbone.denoise(latents, 0, schedule, text, maps, loop)))
        finally:
            transformer.transformer_blocks = layers
            for layer in layers:
                layer.__class__ = kind
        one, two = counted
        return Cost(one.flops + (len(layers) - 1) * (two.flops - one.flops), two.peak)

    def encoding(self, size: Size, loop: bool = False, tiling: bool = False) -> Cost:
        """The autoencoder on a clip's frames."""
        return self._tiled(self._encoding, size, loop) if tiling else self._of_length(self._encoding, size, loop)

    def decoding(self, size: Size, loop: bool = False, tiling: bool = False) -> Cost:
        """And back; without the frames that come of it, but those of tiles, which stay on the device until they are
        blended."""
        if not tiling:
            return self._of_length(self._decoding, size, loop)
        tiles = self._tiled(self._decoding, size, loop)
        blended = 2 * size.frames * size.height * size.width * 3 * self.dtype.itemsize
        return replace(tiles, peak=tiles.peak + blended)

    def tokens(self, size: Size, loop: bool = False) -> int:
        """The video tokens of a row."""
        frames, _, height, width = self._latents(size, loop)
        return frames * height * width // self.backbone.transformer.config.patch_size**2

    def _tiled(self, of: Callable[[int, Size], Cost], size: Size, loop: bool) -> Cost:
        """In tiles, which are all alike: one tells of all."""
        vae = self.backbone.vae
        height, width = min(size.height, vae.tile_sample_min_height), min(size.width, vae.tile_sample_min_width)
        if (height, width) == (size.height, size.width):
            return self._of_length(of, size, loop)
        strides = height * (1 - vae.tile_overlap_factor_height), width * (1 - vae.tile_overlap_factor_width)
        tiles = math.ceil(size.height / strides[0]) * math.ceil(size.width / strides[1])
        one = self._of_length(of, Size(size.frames, height, width), loop)
        return replace(one, flops=one.flops * tiles)

    def _of_length(self, of: Callable[[int, Size], Cost], size: Size, loop: bool) -> Cost:
        """The autoencoder takes group after group, all alike but the first: two lengths tell of all."""

        def of_groups(groups: int) -> Cost:
            frames = groups * group + 1
            key = of.__name__, frames, size.height, size.width
            if key not in self._counted:
                self._counted[key] = of(frames, size)
            return self._counted[key]

        group = 2 * self.backbone.temporal
        groups = (size.frames + (self.backbone._lead()[0] if loop else 0) - 1) // group
        if groups <= 2:
            return of_groups(groups)
        one, two = of_groups(1), of_groups(2)
        return Cost(one.flops + (groups - 1) * (two.flops - one.flops), two.peak)

    def _encoding(self, frames: int, size: Size) -> Cost:
        with self._mode:
            video = torch.empty(1, 3, frames, size.height, size.width, dtype=self.dtype)
        return count(lambda: self.backbone.vae.encode(video))

    def _decoding(self, frames: int, size: Size) -> Cost:
        with self._mode:
            latents = torch.empty(1, *self._latents(Size(frames, size.height, size.width)), dtype=self.dtype)
        return count(lambda: self.backbone.vae.decode(latents.transpose(1, 2)))

    def _latents(self, size: Size, loop: bool = False) -> Sequence[int]:
        backbone = self.backbone
        frames = size.frames // backbone.temporal if loop else (size.frames - 1) // backbone.temporal + 1
        channels = backbone.transformer.config.in_channels
        return frames, channels, size.height // backbone.spatial, size.width // backbone.spatial


def count(work: Callable[[], Any]) -> Cost:
    """What a piece of work on tensors without data would compute and hold at most."""
    held = Held()
    flops = FlopCounterMode(display=False, custom_mapping={ATTENTION: of_attention})
    with torch.no_grad(), held, flops:
        work()
    return Cost(float(flops.get_total_flops()), held.peak)


def of_attention(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **options: Any) -> int:
    """Its floating-point operations, from shapes."""
    return sdpa_flop_count(q, k, v)


class Held(TorchDispatchMode):
    """Adds up the storages that come into being, as long as anything holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                self._add(one, given)
        return out

    def _add(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in given:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._known.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


def _is_module(part: Any) -> bool:
    return isinstance(part, torch.nn.Module)
