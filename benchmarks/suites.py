"""A suite of real clips and scenes end to end: all tables three times with the same figures, once after being killed,
once from kept scores, once measured anew; and other tools' results whose figures can be calculated by hand.

    python benchmarks/suites.py --data DATA --out FOLDER [--side 64] [--frames 9] [--steps 2] [--quick]

DATA has videos/index.json with prompts, and sequences with masks. Clips are made small first, so that two cores do it.
The tool "Shifted" is the source 8 levels brighter, as PNG frames: its PSNR is 20 log10(255 / 8) = 30.07 dB; of
scenes its renders are grey, too few, and small. The tool "Re-encoded" is the source as H.264 of twice the size.
"""

import argparse
import csv
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from v2edit import video
from v2edit.backbones import Size
from v2edit.editing.resize import resize_clip
from v2edit.errors import UserError
from v2edit.video.masks import read_mask

LEVELS = 8
GREY = 100  # of the renders of the tool "Shifted"
# What clips that have no pair of prompts in the index show, and what is to be made of it.
PAIRS = {
    "wolf": ("a gray wolf gazes at the camera", "a red fox gazes at the camera"),
    "puff": ("a cat with big eyes", "a tiger with big eyes"),
    "mallard-water": ("a mallard floats on a pond", "a swan floats on a pond"),
    "anyv2v-ballet": ("a girl dancing ballet", "a girl dancing ballet, in the style of van gogh"),
    "hiker": ("a hiker on a mountain", "a robot on a mountain"),
    "cof-office": ("an office with a beige computer", "an office without a computer"),
    "cof-woman_ballon": ("a field with a balloon", "a woman in a field with a balloon"),
    "cof-dog": ("a metallic bowl on a wooden floor", "a beagle drinks from a metallic bowl on a wooden floor"),
    "cof-sign": ("a yellow sign on a street", "a red sign on a street"),
    "cof-old_man": ("an old man with white hair", "a woman with curly brown hair"),
    "cof-bowl": ("cups on a table", "white cups on a table"),
    "cog-horse": ("a horse runs", "a zebra runs"),
    "cog-kitten": ("a kitten sits", "a puppy sits"),
    "cog-gen1": ("a video of a scene", "a video of a scene at night"),
    "stablev2v-bear": ("a bear walks over rocks", "an elephant walks over rocks"),
    "davis-kite-surf": ("a man kite surfing on the sea", "a robot kite surfing on the sea"),
    "davis-car-shadow": ("a car driving on a street", "a red truck driving on a street"),
    "davis-horsejump-high": ("a rider on a horse jumps a hurdle", "a rider on a zebra jumps a hurdle"),
}
SCENES = {
    "dinosaur": ("a statue of a dinosaur in a park", "a statue of a dinosaur in the snow"),
    "stone_horse": ("a stone horse on a lawn", "a golden horse on a lawn"),
}
FIT = ("fit.gaussians=2000", "fit.fit_steps=60", "fit.refit_steps=20")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=64, help="short side of the clips")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="3 tasks of each kind")
    parser.add_argument("--methods", nargs="*", default=["v2edit", "wo-pnc", "v2v"])
    options = parser.parse_args()
    suite = write_suite(options.data, options.out, options.side, options.frames)
    command = [
        sys.executable, "-m", "v2edit", "bench", "--suite", str(suite), "--steps", str(options.steps),
        "--methods", *options.methods, "--clip", "primitives", "--processes", "1", "-o", str(options.out / "bench"),
        "--results", f"Shifted={options.out / 'shifted'}", f"Re-encoded={options.out / 're-encoded'}",
        "--set", *FIT, *(["--quick"] if options.quick else []),
        *lpips(options.data),
    ]  # fmt: skip
    name, folder = "quick" if options.quick else "report", options.out / "bench"
    kill_on_the_way(command, folder)
    tables = []
    for run in ("after being killed", "again", "all measured again"):
        if run == "all measured again":
            shutil.rmtree(folder / "scores")
        begin = time.time()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        paper = [(folder / f"{name}{end}").read_text() for end in ("-tables.csv", ".tex")]
        tables.append((read_rows(folder / f"{name}.csv"), paper))
        print(f"{run}: {len(tables[-1][0])} rows in {time.time() - begin:.0f} s", flush=True)
    assert tables[0] == tables[1] == tables[2], "runs differ"
    check_by_hand(tables[0][0], folder)
    print((folder / f"{name}.md").read_text())
    print(*sorted(path for path in folder.glob(f"{name}*") if path.is_file()), sep="\n")


def lpips(data: Path) -> list[str]:
    weights = data / "weights/lpips_alexnet.npz"
    names = ["clip", "pixels", "lpips", "warp", "flicker", "colour"]
    return ["--metrics", *names, "--lpips", str(weights)] if weights.exists() else []


def write_suite(data: Path, out: Path, side: int, frames: int) -> Path:
    """Write small clips, their suite and the two tools' results; return the suite's folder."""
    videos, folder, lines = data / "videos", out / "suite", []
    folder.mkdir(parents=True, exist_ok=True)
    for entry in json.loads((videos / "index.json").read_text()):
        name = Path(entry["file"]).stem
        edits = [(one["source"], one["target"], one.get("type") or "edit", one.get("instruction"))
                 for one in entry.get("prompts") or [] if one.get("source") and one.get("target")]  # fmt: skip
        edits = edits or [(*PAIRS[name], "masked" if entry.get("masks") else "edit", None)]
        try:
            clip = video.read(videos / entry["file"], frames)
        except UserError as error:
            print(error)
            continue
        small = shrink(np.asarray(clip.frames), side)
        write_images(small, folder / name)
        mask = {}
        if entry.get("masks"):
            allowed = np.asarray(read_mask(videos / entry["masks"], clip)) > 0
            levels = np.repeat(allowed[..., None], 3, axis=3).astype(np.uint8) * np.uint8(255)
            write_images(shrink(levels, side) // 128 * np.uint8(255), folder / f"{name}-mask")
            mask = {"mask": f"{name}-mask"}
        for number, (source, target, kind, instruction) in enumerate(edits):
            line = {"video": name, "name": f"{name}-{number}", "kind": kind, "source_prompt": source,
                    "target_prompt": target, **mask}  # fmt: skip
            lines.append(line | ({"instruction": instruction} if instruction else {}))
            shifted = np.clip(small.astype(int) + LEVELS, 0, 255).astype(np.uint8)
            write_images(shifted, out / "shifted" / f"{name}-{number}")
            (out / "re-encoded").mkdir(exist_ok=True)
            large = resize_clip(small, Size(len(small), 2 * small.shape[1], 2 * small.shape[2]))
            video.write(large, out / "re-encoded" / f"{name}-{number}.mp4", fps=24)
    for name, (source, target) in SCENES.items():
        line = {"scene": str((data / "scenes" / name).absolute()), "name": name, "kind": "scene"}
        lines.append(line | {"source_prompt": source, "target_prompt": target})
        write_images(np.full((frames, 64, 64, 3), GREY, np.uint8), out / "shifted" / name)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "tasks.jsonl").write_text(text)
    clips = {line["video"] for line in lines if "video" in line}
    print(f"{len(lines)} tasks of {len(clips)} clips and {len(SCENES)} scenes", flush=True)
    return folder


def shrink(frames: np.ndarray, side: int) -> np.ndarray:
    """Return frames of this short side, their values 0 to 255 - LEVELS, so that nothing is clipped when shifted."""
    height, width = (round(one * side / min(frames.shape[1:3]) / 2) * 2 for one in frames.shape[1:3])
    return np.minimum(resize_clip(frames, Size(len(frames), height, width)), 255 - LEVELS)


def write_images(frames: np.ndarray, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, frame in enumerate(frames):
        video.write_still(frame, folder / f"{k:04}.png")


def kill_on_the_way(command: list[str], folder: Path) -> None:
    """Start the benchmark and kill it when some results are there."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = len(list(folder.glob("results/*/*.npz")))
    while process.poll() is None and len(list(folder.glob("results/*/*.npz"))) < before + 5:
        time.sleep(0.2)
    process.kill()
    process.wait()
    print(f"killed with {len(list(folder.glob('results/*/*.npz')))} results", flush=True)


def read_rows(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Return the figures by method and task, but for the seconds."""
    rows = csv.DictReader(path.read_text().splitlines())
    return {(row["method"], row["task"]): {k: v for k, v in row.items() if k != "seconds"} for row in rows}


def check_by_hand(rows: dict[tuple[str, str], dict[str, str]], folder: Path) -> None:
    """Compare the figures of the shifted clips, and of the grey renders of scenes, with what was put into them."""
    expected = 20 * math.log10(255 / LEVELS)
    shifted = [row for (method, task), row in rows.items() if method == "Shifted" and task not in SCENES]
    found = [abs(float(row["psnr_source"] or row["psnr_outside"]) - expected) for row in shifted]
    drifts = [abs(float(row["colour_drift"]) - LEVELS) for row in shifted]
    print(f"Shifted: {len(shifted)} tasks, {expected:.4f} dB and a drift of {LEVELS} levels by hand")
    print(f"off by {max(found):.1e} dB and {max(drifts):.1e} levels at most")
    greys = []
    for name in SCENES:
        (renders,) = folder.glob(f"results/{name}/Unedited-*.mkv")
        error = np.square(np.asarray(video.read(renders).frames).astype(float) - GREY).mean()
        psnr = 10 * math.log10(255**2 / error)
        greys.append(abs(float(rows["Shifted", name]["psnr_source"]) - psnr))
        print(f"grey renders of {name}: {psnr:.4f} dB by hand, off by {greys[-1]:.1e}")
    assert max(*found, *drifts, *greys) < 1e-6


if __name__ == "__main__":
    main()
