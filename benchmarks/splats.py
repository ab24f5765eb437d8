"""How much memory and time the conversion of a large splat takes.

    python benchmarks/splats.py --count 10000000 --degree 3 --to ply spz splat compressed.ply

Each conversion is `v2edit convert` in a process of its own, of a made-up `.ply`. `memory` is its peak, above that of
one of a single Gaussian, in sizes of that file; `seconds` are wall clock, for a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from v2edit.scenes.formats import rows
from v2edit.scenes.formats.splats import write_splat
from v2edit.scenes.initialise import isotropic_gaussians

RUN = "import sys, resource; from v2edit.cli.app import main; code = main(sys.argv[1:]); "
RUN += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024); sys.exit(code)"


def write_large(path: Path, count: int, degree: int) -> None:
    """Write a splat of random Gaussians, of which one chunk is in memory: its rows are repeated."""
    import torch

    draw = torch.Generator().manual_seed(0)
    size = min(count, rows.CHUNK)
    means, colours = torch.randn(size, 3, generator=draw), torch.rand(size, 3, generator=draw)
    one = isotropic_gaussians(means, colours, torch.rand(size, generator=draw) + 0.01).with_degree(degree)
    one.sh[:, 1:] = torch.randn(one.sh[:, 1:].shape, generator=draw) * 0.2
    head, body = write_splat(path, one).read_bytes().split(b"end_header\n", 1)
    record = len(body) // size
    with path.open("wb") as file:
        file.write(head.replace(f"element vertex {size}\n".encode(), f"element vertex {count}\n".encode()))
        file.write(b"end_header\n")
        for start in range(0, count, size):
            file.write(body[: min(size, count - start) * record])


def convert(source: Path, out: Path) -> tuple[int, float]:
    """Convert a splat; return the peak of memory in bytes and the seconds."""
    began = time.time()
    ran = subprocess.run([sys.executable, "-c", RUN, "convert", str(source), str(out)], capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return int(ran.stdout.split()[-1]), time.time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--degree", type=int, default=3)
    parser.add_argument("--to", nargs="+", default=["ply", "spz", "splat", "compressed.ply", "sog"])
    parser.add_argument("--folder", type=Path, help="where the files are made, and removed (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_large(folder / "one.ply", 1, options.degree)
        write_large(folder / "large.ply", options.count, options.degree)
        size = (folder / "large.ply").stat().st_size
        print(json.dumps({"gaussians": options.count, "degree": options.degree, "bytes": size}))
        for suffix in options.to:
            base, _ = convert(folder / "one.ply", folder / f"one-out.{suffix}")
            peak, seconds = convert(folder / "large.ply", out := folder / f"large-out.{suffix}")
            facts = {"bytes": out.stat().st_size, "memory": (peak - base) / size, "seconds": seconds}
            print(json.dumps({"to": suffix} | {key: round(value, 3) for key, value in facts.items()}), flush=True)
            out.unlink()


if __name__ == "__main__":
    main()
