"""Measure the main memory that a long clip takes from file to file, and what becomes of its frames, times and sound.

    python benchmarks/streams.py -o OUT [--minutes 1 10] [--size 1920x1080] [--model-side 480] [--autoencode]

For each length a clip with sound is made and passed, in a process of its own, through all that an edit does but
denoising: read, mask, fit to the model's size, (--autoencode: encoded and decoded by the built-in model in stretches,
else left as it is,) kept in a file, brought back to the source's size, held to its colours, composited and written,
with the comparison, the mask and the sheet. Told are the peak of the process's memory beyond what it held with the
model loaded, the seconds of processor time that a frame takes, in how many frames a pixel outside the mask differs
(before encoding), and whether the file's count, times and sound are the source's. The peak after each stage, and after
each minute that is written, goes to the error output.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

FPS, RATE = 30, 48_000
STRETCH = 33  # frames that the autoencoder is given at a time: 8k + 1


def make_clip(path: Path, minutes: float, width: int, height: int) -> None:
    """Write a clip of a moving picture, smooth shapes with a little grain, with sound, fast."""
    import av
    from PIL import Image

    rng, size = np.random.default_rng(0), (width + 400, height + 400)
    shapes, grain = (
        np.asarray(Image.fromarray(rng.integers(0, 256, (9 * n, 16 * n, 3), np.uint8)).resize(size), np.float32)
        for n in (3, 60)
    )
    picture = np.rint(0.85 * shapes + 0.15 * grain).astype(np.uint8)
    with av.open(str(path), "w") as out:
        pictures = out.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "20", "g": "60"})
        assert isinstance(pictures, av.VideoStream)
        pictures.width, pictures.height, pictures.pix_fmt = width, height, "yuv420p"
        sound = out.add_stream("aac", rate=RATE, layout="stereo")
        assert isinstance(sound, av.AudioStream)
        for k in range(round(minutes * 60 * FPS)):
            x, y = (round(200 + 200 * f(k / 40)) for f in (np.sin, np.cos))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[y : y + height, x : x + width]), "rgb24")
            frame.pts, frame.time_base = k, Fraction(1, FPS)
            out.mux(pictures.encode(frame))
            samples = np.sin(np.arange(RATE // FPS) * (0.02 + k % 30 / 500)).astype(np.float32)[None].repeat(2, 0)
            heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", "stereo")
            heard.sample_rate, heard.pts = RATE, k * (RATE // FPS)
            out.mux(sound.encode(heard))
        out.mux(pictures.encode(None))
        out.mux(sound.encode(None))


def pass_through(path: Path, out: Path, model_side: int, autoencode: bool) -> dict[str, Any]:
    """Pass a clip through all stages; return the figures."""
    from v2edit import backbones, video
    from v2edit.backbones import Size
    from v2edit.editing.editor import EditResult
    from v2edit.editing.latents import LatentStore, release_pages, stream_file
    from v2edit.editing.resize import resize_clip
    from v2edit.host import process_memory
    from v2edit.jobs.clip import FormatOptions
    from v2edit.jobs.masks import MaskOptions
    from v2edit.jobs.results import write_results
    from v2edit.metrics.drift import measure_drift
    from v2edit.video import stream
    from v2edit.video.colour_hold import estimate_drift, hold_colours
    from v2edit.video.composite import composite
    from v2edit.video.stream import Frames, FrameStream, clip_size, in_chunks, map_frames

    stream.STREAM_LIMIT = 0  # of small clips, too
    backbone = backbones.load("primitives")
    base, start, peaks = process_memory(), time.process_time(), {}
    whole: dict[str, Any] = {"loaded": base}

    def note(stage: str) -> None:
        peaks[stage] = round((process_memory("VmHWM") - base) / 2**20)
        print(f"{stage}: {peaks[stage]} MiB, {time.process_time() - start:.0f} s", file=sys.stderr, flush=True)

    clip = video.read(path, streamed=True)
    note("read")
    count, height, width = clip_size(clip.frames)
    part = slice(0, count)
    box = f"{width // 3},{height // 3},{width // 4},{height // 4}"
    local = MaskOptions(box=box, time=f"0-{float(clip.duration) * 2 / 3}").build(clip, part)
    assert local.share is not None
    note("mask")
    scale = model_side / min(height, width)
    size = [max(16, round(side * scale / 16) * 16) for side in (height, width)]

    def resize(frames: Frames, height: int, width: int) -> Frames:
        one = Size(1, height, width)
        return map_frames(lambda _, frame: resize_clip(frame[None], one)[0], [frames], (height, width, 3))

    fitted = resize(clip.frames, *size)

    def autoencoded(first: int, stop: int) -> Iterator[np.ndarray]:
        for _, chunk in in_chunks(fitted[first:stop], STRETCH):
            padded = resize_clip(chunk, backbone.nearest_size(clip_to_size(chunk)))
            yield from resize_clip(backbone.decode(backbone.encode(padded)), clip_to_size(chunk))

    def clip_to_size(frames: np.ndarray) -> Size:
        return Size(*frames.shape[:3])

    store = LatentStore(out)
    out.mkdir(parents=True)
    decoded = store.open_frames("decoded", fitted.shape)
    for k, frame in enumerate(FrameStream(autoencoded, fitted.shape) if autoencode else fitted):
        decoded[k] = frame
        if k % STRETCH == 0:
            release_pages(decoded)
    note("coded")
    back = resize(stream_file(decoded), height, width)
    drift = estimate_drift(clip.frames, back, local.share)
    note("drift")
    edited, differing = composite(clip.frames, hold_colours(back, drift), local.share), 0

    def check(_: int, after: np.ndarray, before: np.ndarray, share: np.ndarray) -> np.ndarray:
        nonlocal differing
        unlike = after != before
        unlike[share > 0] = False
        differing += bool(unlike.any())
        return after

    def on_frame(done: int, total: int) -> None:
        if done and done % (60 * FPS) == 0:
            note(f"minute {done // (60 * FPS)}")

    checked = map_frames(check, [edited, clip.frames, local.share])
    result = EditResult([checked], local.share, drift, change=1.0)  # pyright: ignore[reportArgumentType]
    write_results(out, clip, part, result, "identity", FormatOptions(), False, False, on_frame)
    note("written")
    whole |= {"peaks": peaks, "seconds": (time.process_time() - start) / count, "frames": count, "differing": differing}
    again = video.read(out / "edited.mp4", streamed=True)
    whole["same_count"], whole["same_times"] = len(again.frames) == count, bool(np.allclose(again.times, clip.times))
    whole["same_sound"] = packets_of(path) == packets_of(out / "edited.mp4")
    return whole | {"drift": measure_drift(drift)["colour"]}


def packets_of(path: Path) -> list[bytes]:
    """Return the packets of a file's sound."""
    import av

    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", dest="out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--model-side", type=int, default=480)
    parser.add_argument("--autoencode", action="store_true")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(pass_through(options.one, options.out, options.model_side, options.autoencode)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    width, height = map(int, options.size.split("x"))
    print(
        "| minutes | frames | peak, MiB | s a frame | frames that differ outside | count, times, sound |\n|"
        + " ---: |" * 6
    )
    for minutes in options.minutes:
        clip = options.out / f"{minutes:g}.mp4"
        if not clip.exists():
            make_clip(clip, minutes, width, height)
        words = [sys.executable, __file__, "--one", str(clip), "-o", str(options.out / f"{minutes:g}")]
        words += ["--model-side", str(options.model_side), *(["--autoencode"] if options.autoencode else [])]
        found = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
        same = ", ".join(str(found[f"same_{name}"]) for name in ("count", "times", "sound"))
        rate = f"{found['seconds']:.3f}"
        row = [f"{minutes:g}", found["frames"], max(found["peaks"].values()), rate]
        print("|", " | ".join(map(str, [*row, found["differing"], same])), "|", flush=True)


if __name__ == "__main__":
    main()
