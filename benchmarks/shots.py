"""Clips of several shots: are cuts found, does anything bleed over them, and can a model tell shots of its subject?

    python benchmarks/shots.py cuts --data DATA           (DATA has `videos`)
    python benchmarks/shots.py clip --data DATA --out FOLDER
    python benchmarks/shots.py subject --count 3

cuts: of each of PySceneDetect's detectors, and of `find_cuts`, which adds a filter of flashes to one of them, the cuts
found of those there are and the false ones: in real clips by themselves, at two and three times their speed, joined by
fives, with flashes, dissolves and fades, and joined with each frame held for two or three; and in the built-in world,
whose cameras turn.

clip: five shots joined, three of the built-in world, of which one has no subject, and a real one twice; edited as one
clip. Whether each edited shot is equal to the edit of that shot alone, and each other one to its source, bit for bit.

subject: how much larger the error of x0 is with the target prompt in place of the source prompt, at three levels of
noise, in shots of the built-in world that show the subject (its own clip, and its objects elsewhere) and in those that
do not: what a rule by it would miss, and what it would leave out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import cv2
import numpy as np
import torch
from PIL import Image

import v2edit
from v2edit import backbones, video
from v2edit.bench.tasks import BenchTask, primitives_tasks
from v2edit.editing.progression import aligned_text
from v2edit.files import read_json
from v2edit.jobs.shot_edits import shot_seed
from v2edit.jobs.shots import read_shots
from v2edit.primitives.edits import Edit
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import Object, Scene, sample_scene
from v2edit.video.shots import find_cuts

FPS, SIZE = 10, (256, 144)
Sets = dict[str, list[tuple[np.ndarray, list[int]]]]


def read_small(folder: Path) -> dict[str, np.ndarray]:
    """Read the clips in a folder, and folders of images, small."""
    clips = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".mp4" or (path.is_dir() and not path.name.endswith("-masks") and path.name != "LICENSES"):
            frames = video.read(path, max_frames=240).frames
            clips[path.stem] = np.stack([cv2.resize(one, SIZE, interpolation=cv2.INTER_AREA) for one in frames])
    return clips


def flash(clip: np.ndarray, length: int) -> np.ndarray:
    lit, k = clip.copy(), len(clip) // 2
    lit[k : k + length] = np.clip(lit[k : k + length].astype(int) + 150, 0, 255)
    return lit


def dissolve(one: np.ndarray, other: np.ndarray, length: int) -> np.ndarray:
    weight = np.linspace(0, 1, length + 2)[1:-1, None, None, None]
    middle = (one[-length:] * (1 - weight) + other[:length] * weight).astype(np.uint8)
    return np.concatenate([one[:-length], middle, other[length:]])


def fade(clip: np.ndarray, length: int) -> np.ndarray:
    light = np.ones(len(clip))
    light[:length], light[-length:] = np.linspace(0, 1, length), np.linspace(1, 0, length)
    return (clip * light[:, None, None, None]).astype(np.uint8)


def join(parts: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    return np.concatenate(parts), np.cumsum([len(one) for one in parts])[:-1].tolist()


def build_sets(clips: dict[str, np.ndarray]) -> Sets:
    """Return clips with the cuts that are in them, by kind."""
    names, rng = list(clips), Random(1)
    real = list(clips.values())

    def piece(clip: np.ndarray) -> np.ndarray:
        length = rng.randint(4, min(30, len(clip)))
        first = rng.randint(0, len(clip) - length)
        return clip[first : first + length]

    pairs = [(one, clips[names[(k + 7) % len(names)]]) for k, one in enumerate(real)]
    world = [replace(sample_scene(Random(k)), camera=("orbit left", "orbit right", "still")[k % 3]) for k in range(24)]
    shots = [[render_clip(sample_scene(Random(100 + 3 * k + n)), 9).frames for n in range(3)] for k in range(24)]
    sets: Sets = {
        "real": [(clip, []) for clip in real],
        "speed 2": [(clip[::2], []) for clip in real if len(clip) >= 30],
        "speed 3": [(clip[::3], []) for clip in real if len(clip) >= 45],
        "joined": [join([piece(clips[name]) for name in rng.sample(names, 5)]) for _ in range(60)],
        "world": [(render_clip(scene, frames).frames, []) for scene in world for frames in (9, 33)],
        "world joined": [join(parts) for parts in shots],
        "fade 8": [(fade(clip, 8), []) for clip in real if len(clip) >= 16],
    }
    for length in (1, 2):
        sets[f"flash {length}"] = [(flash(clip, length), []) for clip in real]
    for length in (4, 8):
        long = [pair for pair in pairs if min(map(len, pair)) > length]
        sets[f"dissolve {length}"] = [(dissolve(*pair, length), []) for pair in long]
    for times in (2, 3):  # on a timeline of more frames a second
        held = [(np.repeat(clip, times, 0), [times * cut for cut in cuts]) for clip, cuts in sets["joined"]]
        sets[f"held {times}"] = [(with_noise(clip), cuts) for clip, cuts in held]
    return sets


def with_noise(clip: np.ndarray) -> np.ndarray:
    """Return a clip as an encoder leaves it: no frame is quite equal to another."""
    noise = np.random.default_rng(0).normal(0, 0.8, clip.shape)
    return np.rint(clip + noise).clip(0, 255).astype(np.uint8)


def detect(frames: np.ndarray, name: str) -> list[int]:
    """Find cuts by one of PySceneDetect's detectors at its own settings, but for the least length of a shot."""
    from scenedetect import FrameTimecode, detectors

    detector = getattr(detectors, f"{name}Detector")(min_scene_len=0)
    found = []
    for number, frame in enumerate(frames):
        found += detector.process_frame(FrameTimecode(number, fps=25.0), np.ascontiguousarray(frame[..., ::-1]))
    return [one.frame_num for one in found]


def print_cuts(data: Path) -> None:
    sets = build_sets(read_small(data / "videos"))
    ways: dict[str, Callable[[np.ndarray, int], list[int]]] = {
        name: lambda frames, _fps, name=name: detect(frames, name)
        for name in ("Content", "Adaptive", "Histogram", "Hash")
    }
    ways["find_cuts"] = find_cuts
    print(f"| found of all, + false | {' | '.join(sets)} |\n|---|{'---:|' * len(sets)}")
    for name, find in ways.items():
        cells = []
        for kind, clips in sets.items():
            fps = FPS * int(kind.removeprefix("held")) if kind.startswith("held") else FPS
            found = [(set(find(frames, fps)), set(true)) for frames, true in clips]
            right, false = (
                sum(len(one) for one in some) for some in ([f & t for f, t in found], [f - t for f, t in found])
            )
            cells.append(f"{right}/{sum(len(true) for _, true in found)} +{false}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def write_images(frames: np.ndarray, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:03}.png")
    return folder


def read_images(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def print_clip(data: Path, out: Path, steps: int) -> None:
    def world(colour: str, shape: str, floor: str, sky: str) -> np.ndarray:
        return render_clip(Scene((Object(shape, colour, "big", "middle", "hop"),), floor, sky), 9).frames

    real = video.read(data / "videos" / "cog-horse.mp4", max_frames=20).frames
    small = np.stack([cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA) for frame in real])
    parts = [
        world("red", "ball", "gray", "blue"), small[:9], world("green", "cube", "brown", "pink"),
        world("red", "ball", "teal", "golden"), small[10:18],
    ]  # fmt: skip
    instruction, options = "make the red ball blue", {"steps": steps, "show_progress": False}
    whole = v2edit.edit_video(
        write_images(np.concatenate(parts), out / "clip"), instruction, out=out / "run", **options
    )
    edited, shots = read_images(whole.folder / "edited"), read_shots(read_json(whole.folder / "run.json"))
    print("| shot | frames | | of its bytes, equal |\n|---:|---|---|---:|")
    for number, (one, part) in enumerate(zip(shots, parts, strict=True), start=1):
        if one.edited:
            alone = write_images(part, out / f"shot-{number}")
            run = v2edit.edit_video(
                alone, instruction, out=out / f"run-{number}", seed=shot_seed(0, number - 1), **options
            )
            expected, what = read_images(run.folder / "edited"), "the edit of it alone"
        else:
            expected, what = part, "the source"
        same = (edited[one.frames] == expected).mean()
        print(f"| {number} | {one.first} to {one.stop - 1} | {what} | {100 * same:.6g} % |", flush=True)


def with_subject(edit: Edit, rng: Random) -> list[Scene]:
    """Return scenes that show what an edit is about: its own, and its objects elsewhere."""
    other = sample_scene(rng)
    changes = {name: getattr(other, name) for name in ("camera", "azimuth", "floor_phase")}
    changes |= {name: getattr(other, name) for name in ("floor", "sky") if name != edit.kind}
    return [edit.source, replace(edit.source, **changes)]


def without_subject(edit: Edit, rng: Random) -> Scene:
    """Return a scene that has none of an edit's objects, or not its floor or sky."""
    while True:
        scene = sample_scene(rng)
        if edit.kind in ("floor", "sky"):
            known = {getattr(one, edit.kind) for one in (edit.source, edit.target)}
            if getattr(scene, edit.kind) not in known:
                return scene
        else:
            known = {(one.colour, one.shape) for one in (*edit.source.objects, *edit.target.objects)}
            if not known & {(one.colour, one.shape) for one in scene.objects}:
                return scene


def print_subject(count: int) -> None:
    backbone = backbones.load()
    schedule = backbone.schedule(20)

    def excess(scene: Scene, task: BenchTask, seed: int) -> float:
        """Return the relative excess of the error of x0 with the target prompt over that with the source prompt."""
        x0 = backbone.encode(render_clip(scene, 9).frames)
        text, draw, ratios = aligned_text(backbone, task.prompts), torch.Generator().manual_seed(seed), []
        for k in (4, 9, 14):
            v = schedule.add_noise(x0, torch.randn(x0.shape, generator=draw), k)
            both = backbone.denoise(v.repeat(2, 1, 1, 1, 1), k, schedule, [text.source, text.target])
            source, target = (float((one - x0[0]).square().sum()) for one in both)
            ratios.append(target / source - 1)
        return float(np.mean(ratios))

    shown, others = [], []
    for task in primitives_tasks("tuning", count):
        rng = Random(task.seed)
        shown += [excess(scene, task, 1) for scene in with_subject(task.edit, rng)]
        others += [excess(without_subject(task.edit, rng), task, 1) for _ in range(2)]
        print(f"{task.name} done", flush=True)
    ranks = (np.array(shown)[:, None] > np.array(others)).mean()
    print(f"{len(shown)} shots with the subject, {len(others)} without: AUC {ranks:.3f}")
    print("| least excess | with the subject, missed | without it, left out |\n|---:|---:|---:|")
    for least in (0.02, 0.04, 0.06, 0.1, 0.2):
        print(f"| {least} | {np.less(shown, least).mean():.1%} | {np.less(others, least).mean():.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cuts", "clip", "subject"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", type=int, default=3, help="tasks of each kind")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    if options.what == "subject":
        print_subject(options.count)
    elif options.what == "cuts":
        print_cuts(options.data)
    else:
        print_clip(options.data, options.out, options.steps)


if __name__ == "__main__":
    main()
