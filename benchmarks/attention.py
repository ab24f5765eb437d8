"""The cost of attention control: map replacement against plain attention and explicit maps, and windows.

    python benchmarks/attention.py                    (CPU: a few minutes, 6 GB)
    python benchmarks/attention.py --device cuda      (at CogVideoX-5b's sizes: 226 text + 17,550 video tokens)

A batch is a source and an edit that takes its maps of 200 of the 226 text tokens. Times are medians of runs taken in
turn; memory is what is added to the inputs at the peak, output included. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from measure import peak_bytes
from torch import Tensor
from torch.nn.attention import SDPBackend

from v2edit.attention import (
    Replacement,
    Window,
    replaced_attention,
    replaced_attention_reference,
    windowed_attention,
)

TEXT, SHARED, ROWS, CHANNELS = 226, 200, 2, 64
REPLACEMENT = Replacement(SHARED, (((0, 1.0),), ((0, 1.0),)))
SPAN = 13  # latent frames that CogVideoX is trained on
FRAMES = (19, 37, 73)  # latent frames of 73, 145 and 289 frames


@dataclass(frozen=True)
class Sizes:
    """Sizes for a device: `tokens` of the first table, `frame` the tokens of a latent frame in the second."""

    heads: int
    dtype: torch.dtype
    tokens: tuple[int, ...]
    frame: int
    explicit_bytes: float  # explicit maps are built for as many heads at a time as fit


SIZES = {
    "cpu": Sizes(8, torch.float32, (1024, 2048, 4096, 8192), 135, 4e9),
    "cuda": Sizes(48, torch.bfloat16, (4096, 8192, 17550, 25650), 1350, 32e9),
}


def inputs(sizes: Sizes, tokens: int, device: str) -> list[Tensor]:
    """Draw q, k, v of [text | video], laid out as projections give them."""
    draw = torch.Generator().manual_seed(0)
    shape = (ROWS, TEXT + tokens, sizes.heads, CHANNELS)
    return [torch.randn(shape, generator=draw).to(device, sizes.dtype).transpose(1, 2) for _ in range(3)]


def explicit(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Run map replacement with explicit maps, for so many heads at a time."""
    parts = zip(*(x.split(heads, dim=1) for x in (q, k, v)), strict=True)
    return torch.cat([replaced_attention_reference(q, k, v, REPLACEMENT, TEXT) for q, k, v in parts], dim=1)


def windowed(q: Tensor, k: Tensor, v: Tensor, window: Window, replacement: Replacement | None) -> Tensor:
    """Run windowed attention with one set of positions."""
    queries, keys, values = (x[:, :, TEXT:] for x in (q, k, v))
    return windowed_attention(
        q, k, v, (queries, window.with_halo(keys), window.with_halo(values)), window, TEXT, replacement
    )


def added_mib(run: Callable[[], object], device: str) -> float:
    before, peak = peak_bytes(run, device)
    return (peak - before) / 2**20


def seconds(runs: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Return the median time of each, all run in turn, after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name, run in runs.items():
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def replacement_table(sizes: Sizes, device: str, repeats: int) -> None:
    print("| video tokens | plain | explicit maps | replaced | replaced / plain | explicit / replaced |", end="")
    print(" memory: plain | explicit | replaced |\n|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for tokens in sizes.tokens:
        q, k, v = inputs(sizes, tokens, device)
        # Logits, maps, one row's changed logits and what softmax makes of them, in float32.
        heads = min(sizes.heads, int(sizes.explicit_bytes / (4 * 4 * ROWS * (TEXT + tokens) ** 2)))
        runs: dict[str, Callable[[], object]] = {
            "plain": lambda: F.scaled_dot_product_attention(q, k, v),  # noqa: B023 (called here)
            "replaced": lambda: replaced_attention(q, k, v, REPLACEMENT, TEXT),  # noqa: B023
        }
        built: dict[str, Callable[[], object]] = {"explicit": lambda: explicit(q, k, v, heads)}  # noqa: B023
        times = seconds(runs, repeats, device) | seconds(built, max(1, repeats // 3), device)
        added = {name: added_mib(run, device) for name, run in (runs | built).items()}
        if heads < sizes.heads:
            added["explicit"] *= sizes.heads / heads
        print(
            f"| {tokens:,} | {1e3 * times['plain']:.1f} ms | {1e3 * times['explicit']:.1f} ms |"
            f" {1e3 * times['replaced']:.1f} ms | {times['replaced'] / times['plain']:.2f} |"
            f" {times['explicit'] / times['replaced']:.1f} | {added['plain']:.0f} MiB |"
            f" {added['explicit']:.0f} MiB{'' if heads == sizes.heads else '*'} | {added['replaced']:.0f} MiB |",
            flush=True,
        )
    print("\n\\* built for some heads at a time, and scaled to all\n")


def window_table(sizes: Sizes, device: str, repeats: int) -> None:
    print("| latent frames | full | full, replaced | windows | windows, replaced | loop, replaced |", end="")
    print(" windows / full | a latent frame's share | memory: full | loop, replaced |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for frames in FRAMES:
        q, k, v = inputs(sizes, frames * sizes.frame, device)
        clip, loop = Window(frames, SPAN), Window(frames, SPAN, loop=True)
        runs: dict[str, Callable[[], object]] = {
            "full": lambda: F.scaled_dot_product_attention(q, k, v),  # noqa: B023
            "full, replaced": lambda: replaced_attention(q, k, v, REPLACEMENT, TEXT),  # noqa: B023
            "windows": lambda: windowed(q, k, v, clip, None),  # noqa: B023
            "windows, replaced": lambda: windowed(q, k, v, clip, REPLACEMENT),  # noqa: B023
            "loop, replaced": lambda: windowed(q, k, v, loop, REPLACEMENT),  # noqa: B023
        }
        times = seconds(runs, repeats, device)
        added = {name: added_mib(runs[name], device) for name in ("full", "loop, replaced")}
        cells = " | ".join(f"{1e3 * times[name]:.1f} ms" for name in runs)
        per_frame = 1e3 * times["windows"] / frames
        print(
            f"| {frames} | {cells} | {times['windows'] / times['full']:.2f} | {per_frame:.2f} ms |"
            f" {added['full']:.0f} MiB | {added['loop, replaced']:.0f} MiB |",
            flush=True,
        )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=SIZES, default="cpu")
    parser.add_argument("--tokens", type=int, nargs="+", help="video tokens of the first table")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-windows", action="store_true", help="the first table alone")
    options = parser.parse_args()
    sizes, device = SIZES[options.device], options.device
    if options.tokens:
        sizes = Sizes(sizes.heads, sizes.dtype, tuple(options.tokens), sizes.frame, sizes.explicit_bytes)
    if device == "cuda":
        q, k, v = inputs(sizes, 1024, device)
        kernel = SDPBackend(torch._fused_sdp_choice(q, k, v)).name
        print(f"{torch.cuda.get_device_name()}, plain attention by {kernel}, ", end="")
    else:
        print(f"CPU, {torch.get_num_threads()} threads, ", end="")
    print(f"torch {torch.__version__}, {str(sizes.dtype).removeprefix('torch.')}: ", end="")
    print(f"{ROWS} rows, {sizes.heads} heads of {CHANNELS}, {TEXT} text tokens")
    print("\nMap replacement:\n")
    replacement_table(sizes, device, options.repeats)
    if options.no_windows:
        return
    print(f"Windows of {SPAN} latent frames of {sizes.frame:,} tokens:\n")
    window_table(sizes, device, options.repeats)


if __name__ == "__main__":
    main()
