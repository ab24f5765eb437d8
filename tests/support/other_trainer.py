"""A trainer of its own, a program that knows nothing of v2edit: it shows from each camera the image of the nearest view
it was trained on. `mode` beside it says where it is to go wrong, and `calls.jsonl` what it was called with.

It is started with another Python than the tests' on purpose: standard library and Pillow only."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["fit", "render", "export"])
    for name in ("data", "model", "cameras", "warm", "note", "steps", "seed", "subtask"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    noted = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV", "PATH")
    call = {name: str(value) for name, value in vars(options).items() if value is not None}
    call |= {"environment": {name: os.environ[name] for name in noted if name in os.environ}, "pid": os.getpid()}
    with (HERE / "calls.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\n")
    go_wrong(options)
    {"fit": fit, "render": render, "export": export}[options.command](options)


def go_wrong(options: argparse.Namespace) -> None:
    """Do as `mode` says, a line `COMMAND NUMBER MODE`: NUMBER is the subtask of a fit, or that of a rendered model."""
    mode = HERE / "mode"
    command, number, what = mode.read_text().split() if mode.exists() else ("", "", "")
    made = options.subtask or ("" if options.model is None else read_model(options.model)["subtask"])
    if (options.command, made) != (command, number):
        return
    if what == "fail":
        print("step 3 of 10\n\x1b[31mMemoryError: the model is too large\x1b[0m\nsee the manual", file=sys.stderr)
        sys.exit(3)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "nothing":
        sys.exit(0)
    if what == "small":
        options.small = True
    if what in ("hang", "wait"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        options.out.mkdir(exist_ok=True)
        (options.out / "half").write_text("written")
        part = HERE / "pids.part"
        part.write_text(f"{os.getpid()} {child.pid}")
        part.rename(HERE / "pids")
        print("loading", flush=True)
        while True:
            time.sleep(0.2)
            if what == "wait":
                print("40%", flush=True)


def fit(options: argparse.Namespace) -> None:
    facts = json.loads(Path(options.data, "transforms.json").read_text())
    before = [] if options.warm is None else read_model(options.warm)["history"]
    assert set(facts["train_filenames"]) == {frame["file_path"] for frame in facts["frames"]}
    options.out.mkdir(exist_ok=True)
    views = []
    for frame in facts["frames"]:
        image = Path(frame["file_path"]).name
        shutil.copyfile(Path(options.data, frame["file_path"]), options.out / image)
        views.append([image, frame["transform_matrix"]])
    for step in (1, 2):
        print(f"{step * 50}%")
    model = {"subtask": options.subtask, "history": [*before, options.steps], "views": views}
    (options.out / "model.json").write_text(json.dumps(model))


def render(options: argparse.Namespace) -> None:
    from PIL import Image

    facts, model = json.loads(Path(options.cameras, "transforms.json").read_text()), read_model(options.model)
    for k, frame in enumerate(facts["frames"]):
        image, _ = min(model["views"], key=lambda view: distance(view[1], frame["transform_matrix"]))
        scale = 2 if getattr(options, "small", False) else 1
        with Image.open(Path(options.model, image)) as picture:
            picture.resize((facts["w"] // scale, facts["h"] // scale)).save(options.out / f"frame {k}.png")


def export(options: argparse.Namespace) -> None:
    shutil.copyfile(HERE / "splat.ply", options.out / "made.ply")


def read_model(folder: str) -> dict:
    return json.loads(Path(folder, "model.json").read_text())


def distance(pose: list, other: list) -> float:
    return sum((a[column] - b[column]) ** 2 for a, b in zip(pose, other, strict=True) for column in range(4))


if __name__ == "__main__":
    main()
