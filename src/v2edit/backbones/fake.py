"""A FakeTensor model: a model's own code runs on tensors with shapes and no data, and its FLOPs and memory are counted.

It needs no weights and next to no memory, and counts what the code does rather than what it should do."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from v2edit.backbones.caching import StepCache
from v2edit.backbones.families import Defaults, Family, Quantise
from v2edit.backbones.folder import fake_backbone
from v2edit.backbones.placement import Placement, tensor_bytes
from v2edit.backbones.quantisation import stored_bytes
from v2edit.backbones.rowwise import rowwise_class

# Attention on the CPU, which torch's counter does not know: counted like the other kernels.
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Cost:
    """The FLOPs of a piece of work, and the peak in bytes of what it allocates, beyond the weights and its inputs."""

    flops: float
    peak: int


class FakeModel:
    """A backbone on fake tensors: shapes without data."""

    def __init__(
        self, folder: Path, family: Family, dtype: torch.dtype, defaults: Defaults, name: str | None = None
    ) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.backbone = fake_backbone(folder, family, dtype, self.mode, name or folder.name, defaults)
        self.dtype = dtype
        # How the weights of parts are stored, and the bytes of those that are files of their own.
        self.schemes: Mapping[str, Quantise] = {}
        self.file_bytes: Mapping[str, int] = {}
        self._cache: dict[Any, Cost] = {}
        self._skipped: dict[Any, tuple[Cost, int]] = {}

    @property
    def weights(self) -> dict[str, int]:
        """The bytes of each part's parameters and buffers."""
        components: dict[str, Any] = self.backbone.pipeline.components
        return {
            name: self.stored_bytes(name, part)
            for name, part in components.items()
            if isinstance(part, torch.nn.Module)
        }

    def stored_bytes(self, name: str, module: torch.nn.Module) -> int:
        """Return the bytes of a module of a part, as the part is stored."""
        if file := self.file_bytes.get(name):
            return round(file * tensor_bytes(module) / tensor_bytes(self.backbone.pipeline.components[name]))
        return round(stored_bytes(module, self.schemes.get(name, "none")))

    @property
    def placement(self) -> Placement:
        """The parts of the model."""
        self.backbone.placement.stored_bytes = self.stored_bytes
        return self.backbone.placement

    def text_encoding(self, prompts: int) -> Cost:
        """Count encoding some prompts; without their embeddings, which are small."""
        key = "text", prompts
        if key not in self._cache:
            self._cache[key] = count(lambda: self.backbone.encode_text(["a"] * prompts))
        return self._cache[key]

    def forward(
        self, rows: int, size: Size, loop: bool = False, maps: Replacement | None = None, row_by_row: bool = False
    ) -> Cost:
        """Count a network call of some rows of a clip of a valid size, from one and two layers of each stack, which are
        all alike."""
        key = rows, size, loop, maps and (maps.shared, maps.sources), row_by_row, self.backbone.native_size
        if key not in self._cache:
            self._cache[key] = self._forward(rows, size, loop, maps, row_by_row)
        return self._cache[key]

    def _forward(self, rows: int, size: Size, loop: bool, maps: Replacement | None, row_by_row: bool) -> Cost:
        backbone = self.backbone
        network, shape = backbone.networks[0], backbone.latent_shape(size, loop)
        with self.mode:
            latents, text = torch.empty(rows, *shape), [backbone.blank_text()] * rows
        schedule = backbone.schedule(50, shape)
        stacks = backbone.stacks(network)

        def cost(layers: Sequence[int]) -> Cost:
            """Count a call of so many layers of each stack."""
            with ExitStack() as shortened:
                for stack, count_of in zip(stacks, layers, strict=True):
                    shortened.enter_context(_shortened(stack, count_of, row_by_row))
                return count(lambda: backbone.denoise(latents, 0, schedule, text, maps, loop))

        base = [1] * len(stacks)
        one, flops, peak = cost(base), 0.0, 0
        for k, stack in enumerate(stacks):
            two = cost([*base[:k], 2, *base[k + 1 :]])
            flops += (len(stack) - 1) * (two.flops - one.flops)
            peak = max(peak, two.peak)
        return Cost(one.flops + flops, peak)

    def skipped(self, rows: int, size: Size, loop: bool = False) -> tuple[Cost, int]:
        """Count a network call of some rows that runs no layers (step caching), and the bytes that are kept for it."""
        key = "skipped", rows, size, loop, self.backbone.native_size
        if key not in self._skipped:
            backbone, shape = self.backbone, self.backbone.latent_shape(size, loop)
            with self.mode:
                latents, text = torch.empty(rows, *shape), [backbone.blank_text()] * rows
            schedule, cache = backbone.schedule(50, shape), StepCache()

            def denoise() -> None:
                backbone.denoise(latents, 0, schedule, text, loop=loop, cached=cache.of_rows(range(rows)))

            with ExitStack() as shortened, torch.no_grad():
                for stack in backbone.stacks(backbone.networks[0]):
                    shortened.enter_context(_shortened(stack, 1, False))
                denoise()
                cache.scale = 1.0
                self._skipped[key] = count(denoise), cache.nbytes
        return self._skipped[key]

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
        frames, _, height, width = self.backbone.latent_shape(size, loop)
        patch = self.backbone.side // self.backbone.spatial
        return frames // self.backbone.unit * (height // patch) * (width // patch)

    def _tiled(self, work: Callable[[int, Size], Cost], size: Size, loop: bool) -> Cost:
        """Count coding in tiles, which are all alike: one is run."""
        vae = self.backbone.vae
        height, width = min(size.height, vae.tile_sample_min_height), min(size.width, vae.tile_sample_min_width)
        if (height, width) == (size.height, size.width):
            return self._by_length(work, size, loop)
        strides = [_tile_stride(vae, "height", height), _tile_stride(vae, "width", width)]
        tiles = math.ceil(size.height / strides[0]) * math.ceil(size.width / strides[1])
        one = self._by_length(work, Size(size.frames, height, width), loop)
        return replace(one, flops=one.flops * tiles)

    def _by_length(self, work: Callable[[int, Size], Cost], size: Size, loop: bool) -> Cost:
        """Count coding a clip, whose work repeats after some frames: for a longer clip two lengths are run."""

        def count_frames(frames: int) -> Cost:
            key = work.__name__, frames, size.height, size.width
            if key not in self._cache:
                self._cache[key] = work(frames, size)
            return self._cache[key]

        period = self.backbone.coding_period
        frames = size.frames + self.backbone.loop_lead()[0] if loop else size.frames
        if loop and work == self._decode:
            frames += self.backbone.trail_groups * self.backbone.group
        if frames <= 2 * period + 1:
            return count_frames(frames)
        one, two = count_frames(int(period) + 1), count_frames(2 * int(period) + 1)
        return Cost(one.flops + ((frames - 1) / period - 1) * (two.flops - one.flops), two.peak)

    def _encode(self, frames: int, size: Size) -> Cost:
        with self.mode:  # also for the work: masks of all tokens that it makes have no data either
            video = torch.empty(1, 3, frames, size.height, size.width, dtype=self.backbone.vae.dtype)
            return count(lambda: self.backbone.vae.encode(video))

    def _decode(self, frames: int, size: Size) -> Cost:
        frames, channels, *sides = self.backbone.latent_shape(Size(frames, size.height, size.width))
        frames -= self.backbone.unit - 1  # the repeated ones are not decoded
        with self.mode:
            latents = torch.empty(1, channels, frames, *sides, dtype=self.backbone.vae.dtype)
            return count(lambda: self.backbone.decode_latents(latents))


def _tile_stride(vae: Any, side: str, tile: int) -> float:
    """Return the pixels between two tiles of an autoencoder, by one of diffusers' ways of saying it."""
    if stride := getattr(vae, f"tile_sample_stride_{side}", None):
        return stride
    return tile * (1 - getattr(vae, f"tile_overlap_factor_{side}", getattr(vae, "tile_overlap_factor", 0)))


@contextmanager
def _shortened(stack: torch.nn.ModuleList, layers: int, row_by_row: bool) -> Iterator[None]:
    """Leave a stack its first layers alone, which take rows one at a time if `row_by_row`."""
    whole, kinds = stack._modules.copy(), [type(layer) for layer in stack]
    try:
        for name in list(whole)[layers:]:
            del stack._modules[name]
        for layer in stack:
            layer.__class__ = rowwise_class(type(layer)) if row_by_row else type(layer)
        yield
    finally:
        stack._modules.update(whole)
        for layer, kind in zip(stack, kinds, strict=True):
            layer.__class__ = kind


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
