"""Blocks on long clips of the built-in world, beside windows and full attention.

    python benchmarks/blocks.py x0      [--frames 17 33 65] [--seeds 8] [--motion hop]
    python benchmarks/blocks.py edits   [--frames 129] [--seeds 10] [--ways truth windows blocks …] [--keep FOLDER]
    python benchmarks/blocks.py memory  [--frames 129 257 513 1025]
    python benchmarks/blocks.py kill    [--frames 65] [--kills 20]

x0: how well clips longer than the nine frames that the model was trained on are denoised with a true prompt: the PSNR
of x0 against the clip's latents, whose deviation is 1, over several noise levels.

edits: clips whose camera swings, so that all stays in the picture, edited (recolour or reshape) by each way. Against
the true edited clip, and against the same measures of windows:
  PSNR over all pixels, and of the worst tenth of frames;
  right: of the frames around which the classifier reads the shapes and colours of the true edit off the true clip,
  the share where it reads them off the edited one, too; kept: the same of those that the autoencoder leaves legible;
  edited: that share of the edited object alone;
  joint: the step of the error (edit less truth) from frame to frame, where a block begins or ends, over the median;
  drift: the largest difference of the mean error's colour between parts of 32 frames that show the same view, a swing
  of the camera apart, in levels of 255.
The way "truth" is the true edited clip, coded and decoded: what no edit can be better than.

kill: whether edits whose processes are killed again and again, at any moment, have the bytes of one that is not.

memory: the peak memory of a process that edits so many frames in blocks, and its seconds a frame.

Measured in November 2026, x0 with 4 seeds at 17, 33 and 65 frames: full attention 18.63, 17.94, 16.04 dB; windows
19.97, 19.24, 18.84; blocks 20.85, 20.65, 20.15, but 20.43, 20.02, 19.90 where a later block's first latent frame
weighed as much as its last one (lead 1), and 20.28, 18.96, 18.37 where those of every other step also began between two
of the autoencoder's groups, which they no longer do. Where all objects hop, with 2 seeds at 65 frames: blocks 18.91
(lead 0 18.83, lead 1 18.10), windows 16.19, full attention 13.77. Edits of 65 frames, 8 steps, 3 seeds: blocks PSNR
29.27, worst tenth 26.88, right 0.93, edited 0.97; windows 28.99, 26.50, 0.63, 0.67; full attention 26.54, 23.06, 0.80,
0.83; the coded truth 32.07, 29.46, 0.82, 0.88. Edits of 129 frames in blocks, 8 steps, 10 seeds: PSNR 30.34 (30.25 with
lead 1), worst tenth 28.20 (27.87), right 0.969 (from 0.86 on), kept 0.989 (0.89), edited 0.994 (0.94), joints 1.012
(1.21 at most), drift 0.14 (0.25); the coded truth's right is 0.955 (0.75), edited 0.969 (0.75), joints 1.015 (1.31 at
most). The joints beyond 1.1 are of objects that land from a hop, every eighth frame, as blocks begin: 1.21 and 1.14,
where those of the coded truth are 1.31 and 1.16. In longer blocks with windows within (9 1/2) the joints are as far,
and an object is lost. Memory at 2 steps: 0.70 GiB at 129 frames, 0.87 at 1,025, with 0.090 and 0.093 s of the processor
a frame. Blocks of the built-in model are 3 latent frames and overlap in one, so that only `lead` tells shapes of
weights apart.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
import torch

from v2edit import backbones, video
from v2edit.backbones import Backbone
from v2edit.editing import EditConfig, Editor
from v2edit.editing.blocks import BlendedFrames, Blocks, BlockSettings, plan_blocks
from v2edit.primitives.captions import caption
from v2edit.primitives.classifier import QUESTIONS, SceneClassifier, preprocess
from v2edit.primitives.render import HEIGHT, orbit_cameras, render_clip
from v2edit.primitives.scene import COLOURS, SHAPES, Scene, sample_scene
from v2edit.prompts import PromptPair
from v2edit.runs.manifest import REQUEST_FILE, STATE_DIR
from v2edit.video.stream import as_stream

FIRST_SEED = 2_000_100_000  # no training or tuning uses what follows
SWING, PERIOD = math.radians(18.0), 64  # how far the camera turns to either side, and the frames of a swing
STEPS = (2, 5, 8, 11, 14)  # of 20
FIGURES = ("PSNR", "worst", "right", "kept", "edited", "joint", "drift")
PART = 32  # frames whose colours are compared
WAYS: dict[str, BlockSettings | str] = {
    "truth": "truth",
    "full": "full",
    "windows": "windows",
    "blocks": BlockSettings(),
    "lead 1": BlockSettings(lead=1.0),
    "lead 1/2": BlockSettings(lead=0.5),
    "lead 0": BlockSettings(lead=2.0**-20),
    "fixed": BlockSettings(shifted=False),
    "1/3": BlockSettings(overlap=1 / 3),
    "1/3 fixed": BlockSettings(overlap=1 / 3, shifted=False),
    "2/3": BlockSettings(overlap=2 / 3),
    "triangle": BlockSettings(weights="triangle"),
    "flat": BlockSettings(weights="flat"),
    "5 1/2": BlockSettings(length=5),
    "9 1/4": BlockSettings(length=9, overlap=0.25),
    "9 1/2": BlockSettings(length=9),
    "9 3/4": BlockSettings(length=9, overlap=0.75),
    "9 1/2 fixed": BlockSettings(length=9, shifted=False),
    "9 1/2 flat": BlockSettings(length=9, weights="flat"),
    "9 1/2 triangle": BlockSettings(length=9, weights="triangle"),
    "13 1/4": BlockSettings(length=13, overlap=0.25),
    "17 1/4": BlockSettings(length=17, overlap=0.25),
}


@dataclass(frozen=True)
class Swing(Scene):
    """A scene before which the camera swings."""

    def render(self, frames: int) -> np.ndarray:
        """Return a clip, uint8 [T, H, W, 3]."""
        turns = (SWING * math.sin(2 * math.pi * frame / PERIOD) for frame in range(frames))
        cameras = orbit_cameras([(self.azimuth + turn, HEIGHT) for turn in turns], 64, 96)
        return render_clip(self, frames, cameras=cameras).frames


def sample_swing(seed: int, motion: str | None = None) -> tuple[Swing, Swing, int]:
    """Sample a scene whose objects stay or hop, or move so, what an edit makes of it, and the object that is edited."""
    rng = Random(seed)
    scene = sample_scene(rng)
    sampled = [rng.choice(("stay", "hop")) for _ in scene.objects]
    objects = tuple(replace(one, motion=motion or own) for one, own in zip(scene.objects, sampled, strict=True))
    source = Swing(**vars(scene) | {"objects": objects, "camera": "orbit right"})
    subject = rng.randrange(len(objects))
    if seed % 2:
        free = [name for name in COLOURS if all(name != one.colour for one in objects)]
        return source, source.with_object(subject, colour=rng.choice(free)), subject  # pyright: ignore[reportReturnType]
    shape = rng.choice([name for name in SHAPES if name != objects[subject].shape])
    return source, source.with_object(subject, shape=shape), subject  # pyright: ignore[reportReturnType]


def use(backbone: Backbone, way: BlockSettings | str) -> Editor:
    """Return an editor that goes a way; windows of any length are full attention."""
    backbone.native_size = replace(backbone.native_size, frames=10**6 if way == "full" else 9)
    return Editor(backbone, blocks=way if isinstance(way, BlockSettings) else BlockSettings())


def psnr_of_x0(backbone: Backbone, frames: int, seeds: int, way: BlockSettings | str, motion: str | None) -> float:
    use(backbone, way)
    schedule, errors = backbone.schedule(20), []
    for number in range(seeds):
        source, _, _ = sample_swing(FIRST_SEED + number, motion)
        x0, text = backbone.encode(source.render(frames)), backbone.encode_text([caption(source)])
        draw = torch.Generator().manual_seed(number)
        for step in STEPS:
            v = schedule.add_noise(x0, torch.randn(x0.shape, generator=draw), step)
            blocks = plan_blocks(way, backbone, x0.shape[1]) if isinstance(way, BlockSettings) else None
            if blocks is None:
                got = backbone.denoise(v, step, schedule, text)
            else:
                got, placed = torch.zeros_like(x0), blocks.of_step(step)
                blend = BlendedFrames.of(placed, blocks.frames)
                for block in placed:
                    own = backbone.denoise(v[:, list(block.frames)], step, schedule, text)[0]
                    for rows, values in blend.add(block, own):
                        got[0, rows] = values
            errors.append(float((got - x0).square().mean() / x0.square().mean()))
    return -10 * math.log10(statistics.mean(errors))


def windows_of(frames: np.ndarray) -> Iterator[torch.Tensor]:
    """Yield nine frames around every other one, as the classifier takes them, in batches."""
    picks = [np.clip(np.arange(k - 4, k + 5), 0, len(frames) - 1) for k in range(0, len(frames), 2)]
    for first in range(0, len(picks), 16):
        yield torch.stack([preprocess(frames[pick]) for pick in picks[first : first + 16]])


@torch.no_grad()
def find_right(frames: np.ndarray, target: Scene) -> np.ndarray:
    """Return around which frames each object is read to have the target's shape and colour, bool [T / 2, objects]."""
    right = []
    for clips in windows_of(frames):
        logits = SceneClassifier.load()(clips)
        ok = torch.ones(len(clips), len(target.objects), dtype=torch.bool)
        for number, one in enumerate(target.objects):
            for about in ("shape", "colour"):
                question = one.place, one.row, about
                ok[:, number] &= logits[question].argmax(1) == QUESTIONS[question].index(getattr(one, about))
        right += ok.tolist()
    return np.array(right)


def joints_of(blocks: Blocks | None, backbone: Backbone, frames: int) -> list[int]:
    """Return the frames with which a block begins, or after which one ends, at some step."""
    if blocks is None:
        return []
    edges = {edge for k in range(2) for block in blocks.of_step(k) for edge in (block.frames[0], block.frames[-1] + 1)}
    latent = backbone.latent_frame_of(frames)
    return [t for t in range(1, frames) if latent[t] != latent[t - 1] and latent[t] in edges]


def edit_clip(
    backbone: Backbone, frames: int, seed: int, way: BlockSettings | str, steps: int, keep: Path | None
) -> np.ndarray:
    """Return a clip's edit, uint8 [T, H, W, 3]: the one in the file `keep`, where there is one, else it goes there.
    That of the way "truth" is the true edited clip, coded and decoded."""
    if keep is not None and keep.exists():
        return np.load(keep)
    source, target, _ = sample_swing(seed)
    editor = use(backbone, way)
    if way == "truth":
        edited = backbone.decode(backbone.encode(target.render(frames)))
    else:
        config = EditConfig(steps=steps, seed=seed, long="blocks" if isinstance(way, BlockSettings) else "windows")
        clip, prompts = source.render(frames), PromptPair(caption(source), caption(target))
        edited = editor.edit(clip, prompts, config).frames
    edited = np.asarray(edited)
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
        np.save(keep, edited)
    return edited


@lru_cache(maxsize=16)
def read_truth(backbone: Backbone, frames: int, seed: int, keep: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return around which frames each object of the true edited clip is read right, and where it still is once it has
    been coded, bool [T / 2, objects]. The classifier knows clips of nine frames, and cannot read all of slow hops."""
    _, target, _ = sample_swing(seed)
    legible = find_right(target.render(frames), target)
    return legible, legible & find_right(edit_clip(backbone, frames, seed, "truth", 0, keep), target)


def measure_edit(
    backbone: Backbone, edited: np.ndarray, seed: int, way: BlockSettings | str, keep: Path | None
) -> list[float]:
    """Return the FIGURES of an edit."""
    _, target, subject = sample_swing(seed)
    frames, truth = len(edited), target.render(len(edited))
    error = edited.astype(np.float32) - truth
    mse = np.square(error).mean((1, 2, 3))
    worst = np.sort(mse)[-max(1, frames // 10) :]
    step = np.sqrt(np.square(np.diff(error, axis=0)).mean((1, 2, 3)))
    use(backbone, "windows")
    latents = backbone.latent_frame_of(frames)[-1] + 1
    blocks = plan_blocks(way, backbone, latents) if isinstance(way, BlockSettings) else None
    joints = joints_of(blocks or plan_blocks(BlockSettings(), backbone, latents), backbone, frames)
    joint = statistics.mean(step[t - 1] for t in joints) / np.median(step)
    # An object that is not as the true one errs with the view: parts are compared with those that show the same one.
    means = error.mean((1, 2))
    firsts = range(0, frames - PERIOD - PART + 1, PART)
    parts = [np.abs(means[k + PERIOD :][:PART].mean(0) - means[k:][:PART].mean(0)).max() for k in firsts]
    decibels = [10 * math.log10(255**2 / float(np.mean(one))) for one in (mse, worst)]
    read, (legible, coded) = find_right(edited, target), read_truth(backbone, frames, seed, keep)
    every = np.all(read, axis=1)
    pairs = (every, np.all(legible, axis=1)), (every, np.all(coded, axis=1)), (read[:, subject], legible[:, subject])
    shares = [float(np.mean(one[where])) if where.any() else math.nan for one, where in pairs]
    return [*decibels, *shares, joint, float(max(parts, default=0.0))]


def render_frames(scene: Swing, frames: int) -> np.ndarray:
    return scene.render(frames)


def edit_once(frames: int, steps: int) -> None:
    """Edit a clip in blocks, and print the seconds a frame, those of the processor, and the peak memory in bytes."""
    source, target, _ = sample_swing(FIRST_SEED)
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # whose memory is not counted
        clip = pool.apply(render_frames, (source, frames))
    backbone, begun, before = backbones.load(), time.perf_counter(), time.process_time()
    config = EditConfig(steps=steps, long="blocks")
    edited = Editor(backbone).edit(as_stream(clip), PromptPair(caption(source), caption(target)), config).frames
    for _ in edited:  # a stream, too
        pass
    seconds = time.perf_counter() - begun
    cpu, peak = time.process_time() - before, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(seconds / frames, cpu / frames, peak)


def kill(frames: int, steps: int, kills: int) -> None:
    """Edit a clip in blocks in processes that are killed so often in all, and resumed until the edit is done; compare
    each such edit with one that nothing has ended."""
    source, target, _ = sample_swing(FIRST_SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video.write(source.render(frames), folder / "clip.mp4", fps=8)
        v2edit = [sys.executable, "-m", "v2edit"]
        edit = [*v2edit, "edit", str(folder / "clip.mp4"), "--long", "blocks", "--steps", str(steps), "--quiet"]
        edit += ["--source-prompt", caption(source), "--target-prompt", caption(target), "-o"]
        begun = time.perf_counter()
        subprocess.run([*edit, str(folder / "whole")], check=True)
        seconds, rng, killed, resumed, same = time.perf_counter() - begun, Random(0), 0, 0, []
        while killed < kills:
            run = folder / f"killed-{len(same)}"
            words, before, begun = [*edit, str(run)], killed, time.perf_counter()
            while True:
                process = subprocess.Popen(words)
                try:
                    code = process.wait(rng.uniform(0.1, 1.0) * seconds if killed < kills else None)
                    break
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    killed += 1
                if (run / STATE_DIR / REQUEST_FILE).is_file():  # else the run had not begun, or was done
                    words = [*v2edit, "resume", str(run), "--quiet"]
                    resumed += 1
                else:
                    words = [*edit, str(run)]
                    shutil.rmtree(run, ignore_errors=True)
            if code:
                raise SystemExit(f"after {killed} kills {' '.join(words)} ended with {code}")
            if killed == before:  # the machine is quicker than it was
                seconds = time.perf_counter() - begun
            same.append((run / "edited.mp4").read_bytes() == (folder / "whole" / "edited.mp4").read_bytes())
            print(
                f"killed {killed} times, resumed {resumed}: {sum(same)} of {len(same)} edits have its bytes", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["x0", "edits", "memory", "once", "kill"])
    parser.add_argument("--frames", type=int, nargs="+")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--ways", nargs="+", default=["full", "windows", "blocks"], choices=WAYS)
    parser.add_argument("--steps", type=int, default=20, help="of the edits")
    parser.add_argument("--motion", choices=("stay", "hop"), help="of all objects of x0")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the clips of edits")
    parser.add_argument("--keep", type=Path, help="folder in which edits are kept, and not made again")
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    if options.what == "once":
        return edit_once(options.frames[0], options.steps)
    if options.what == "kill":
        return kill((options.frames or [65])[0], options.steps, options.kills)
    if options.what == "memory":
        print("| frames | seconds a frame | of the processor | peak, GiB |\n|---:|---:|---:|---:|")
        for frames in options.frames or (129, 257, 513, 1025):
            words = [sys.executable, __file__, "once", "--frames", str(frames), "--steps", str(options.steps)]
            printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            seconds, cpu, peak = map(float, printed.split())
            print(f"| {frames} | {seconds:.3f} | {cpu:.3f} | {peak / 2**30:.2f} |", flush=True)
        return None
    backbone = backbones.load()
    if options.what == "x0":
        lengths = options.frames or (17, 33, 65)
        print(f"| PSNR of x0 | {' | '.join(map(str, lengths))} |\n|---|{'---:|' * len(lengths)}")
        for way in options.ways:
            row = [psnr_of_x0(backbone, frames, options.seeds, WAYS[way], options.motion) for frames in lengths]
            print(f"| {way} | {' | '.join(f'{value:.2f}' for value in row)} |", flush=True)
        return None
    for frames in options.frames or (129,):
        print(f"\n| {frames} frames | {' | '.join(FIGURES)} | s/frame |\n|---|{'---:|' * (len(FIGURES) + 1)}")
        for way in options.ways:
            rows, begun = [], time.process_time()
            for seed in options.only or range(options.seeds):
                kept = {
                    name: options.keep
                    and options.keep / f"{name.replace('/', '-')}-{frames}-{options.steps}-{seed}.npy"
                    for name in (way, "truth")
                }
                edited = edit_clip(backbone, frames, FIRST_SEED + seed, WAYS[way], options.steps, kept[way])
                rows.append(measure_edit(backbone, edited, FIRST_SEED + seed, WAYS[way], kept["truth"]))
                print(f"  {way} {seed}: {' '.join(f'{value:.3f}' for value in rows[-1])}", file=sys.stderr, flush=True)
            seconds = (time.process_time() - begun) / frames / len(rows)
            worst = zip(FIGURES, np.nanmin(rows, axis=0), np.nanmax(rows, axis=0), strict=True)
            extremes = ", ".join(f"{name} {least:.2f} to {most:.2f}" for name, least, most in worst)
            means = [*np.nanmean(rows, axis=0), seconds]
            print(f"| {way} | {' | '.join(f'{value:.3f}' for value in means)} | {extremes}", flush=True)
    return None


if __name__ == "__main__":
    main()
