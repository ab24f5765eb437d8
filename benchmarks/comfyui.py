"""Run the nodes in a real ComfyUI: its own server, its HTTP interface, the example workflows of the pack.

    PYTHON benchmarks/comfyui.py --comfyui FOLDER    (FOLDER has main.py; PYTHON is ComfyUI's, with v2edit installed)

The server gets a folder of its own for inputs, outputs and nodes: nothing in FOLDER is changed. Each check prints a
line with its figures, and the exit status is 1 where one fails: an edit end to end, with the source's frames and rate
and the bytes of `v2edit edit`; the same prompt again, which is cached; a mask, outside of which nothing changes; an
interrupt in the middle, after which the same prompt goes on to the bytes of an edit that was not interrupted; an IMAGE
batch; a VIDEO with sound; a mistake in one line; and with --scene a scene.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from v2edit import video
from v2edit.primitives.sample import write_sample
from v2edit.runs import read_run_state

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "comfyui" / "api_workflows"
SAMPLE = "v2edit_sample.mp4"
STARTS, RUNS = 600, 900  # seconds for which the server may start, and a prompt run
PICTURE, TEXT = 1, 3  # kinds of binary messages
EDIT = "4"  # the node of the edit in the examples


@dataclass
class Outcome:
    """How a prompt went: the `kind` of its last message, the nodes that were `cached`, the messages of the edit's
    progress, the texts below it, the pictures of it, and what the nodes show."""

    kind: str = ""
    cached: list[str] = field(default_factory=list)
    steps: list[tuple[float, float]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    pictures: int = 0
    shown: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class Client:
    """A client of ComfyUI's server, as its page is one."""

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self.session, self.address, self.id = session, address, uuid.uuid4().hex

    async def run(self, prompt: dict[str, Any], interrupt_at: int | None = None) -> Outcome:
        """Queue a prompt and follow it to its end; interrupt it after so many messages of the edit's progress."""
        outcome = Outcome()
        async with self.session.ws_connect(f"{self.address}/ws?clientId={self.id}", max_msg_size=0) as events:
            body = {"prompt": prompt, "client_id": self.id}
            async with self.session.post(f"{self.address}/prompt", json=body) as answer:
                queued = await answer.json()
                if answer.status != 200:
                    return Outcome("refused", error=json.dumps(queued))
            async with asyncio.timeout(RUNS):
                async for message in events:
                    if message.type == aiohttp.WSMsgType.BINARY:
                        self._note_binary(message.data, outcome)
                    elif message.type == aiohttp.WSMsgType.TEXT:
                        event = json.loads(message.data)
                        if await self._note(event, queued["prompt_id"], outcome, interrupt_at):
                            break
        if outcome.kind == "execution_success":
            outcome.shown = await self._read_history(queued["prompt_id"])
        return outcome

    async def _read_history(self, prompt: str) -> dict[str, Any]:
        """Return what the nodes of a prompt that has ended show; the server notes it a moment after the end."""
        while True:
            async with self.session.get(f"{self.address}/history/{prompt}") as answer:
                if found := await answer.json():
                    return found[prompt]["outputs"]
            await asyncio.sleep(0.1)

    async def _note(self, event: dict[str, Any], prompt: str, outcome: Outcome, interrupt_at: int | None) -> bool:
        """Note a message; return whether the prompt has ended."""
        kind, data = event["type"], event["data"]
        if data.get("prompt_id") != prompt:
            return False
        if kind == "execution_cached":
            outcome.cached = data["nodes"]
        if kind == "progress" and data["node"] == EDIT:
            outcome.steps.append((data["value"], data["max"]))
            if len(outcome.steps) == interrupt_at:
                async with self.session.post(f"{self.address}/interrupt", json={}) as answer:
                    assert answer.status == 200
        if kind in ("execution_success", "execution_error", "execution_interrupted"):
            outcome.kind, outcome.error = kind, data.get("exception_message", "").strip()
            return True
        return False

    @staticmethod
    def _note_binary(data: bytes, outcome: Outcome) -> None:
        """Note a picture, or a text below a node: a kind, the length of the node's number, the number, the text."""
        kind = int.from_bytes(data[:4], "big")
        outcome.pictures += kind == PICTURE
        if kind == TEXT:
            length = int.from_bytes(data[4:8], "big")
            if data[8 : 8 + length] == EDIT.encode():
                outcome.texts.append(data[8 + length :].decode())


def read_workflow(name: str, **inputs: Any) -> dict[str, Any]:
    """Return an example in the API format, with other inputs of its edit."""
    workflow = json.loads((WORKFLOWS / name).read_text(encoding="utf-8"))
    workflow[EDIT]["inputs"] |= inputs
    return workflow


def checksum(path: Path) -> str:
    """Return the first digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


class Check:
    """The checks and how many failed."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, name: str, passed: bool, figures: str) -> None:
        self.failed += not passed
        print(f"{'ok  ' if passed else 'FAIL'} {name}: {figures}", flush=True)


class Trial:
    """The checks against one server, whose inputs and outputs are in a folder."""

    def __init__(self, client: Client, base: Path, steps: int) -> None:
        self.client, self.base, self.steps, self.check = client, base, steps, Check()

    @property
    def runs(self) -> dict[Path, str]:
        """The run folders, and the state of each."""
        folders = (self.base / "output" / "v2edit").glob("*")
        return {path: read_run_state(path).state for path in folders if path.name != "sources"}

    async def edit(self, name: str, interrupt_at: int | None = None, **inputs: Any) -> tuple[Outcome, list[Path]]:
        """Run an example; return how it went and the run folders that it made."""
        before = set(self.runs)
        outcome = await self.client.run(read_workflow(name, steps=self.steps, **inputs), interrupt_at)
        return outcome, sorted(set(self.runs) - before)

    async def whole(self) -> None:
        source = video.read(self.base / "input" / SAMPLE)
        outcome, made = await self.edit("edit_video.json")
        edited = video.read(made[0] / "edited.mp4")
        saved = video.read(next((self.base / "output" / "video").glob("*.mp4")))
        same = len(edited.frames) == len(source.frames) == len(saved.frames) and edited.fps == source.fps == saved.fps
        change = np.abs(np.asarray(edited.frames).astype(int) - np.asarray(source.frames)).mean()
        passed = outcome.kind == "execution_success" and same and change > 1 and len(outcome.steps) >= self.steps // 2
        figures = f"{outcome.kind}, {len(edited.frames)} frames at {edited.fps}, changed by {change:.1f} of 255, "
        figures += f"{len(outcome.steps)} messages of progress, {outcome.pictures} pictures, {outcome.texts[-1]!r}"
        self.check("an edit", passed and outcome.pictures > 1, figures)
        self.check(
            "shown in the node", outcome.shown[EDIT]["images"][0]["filename"] == "edited.mp4", str(outcome.shown[EDIT])
        )
        print(outcome.shown["3"]["text"][0])
        words = [
            "edit",
            self.base / "input" / SAMPLE,
            "turn the purple cube orange",
            "--mask",
            "auto",
            "--device",
            "cpu",
        ]
        words += ["--steps", str(self.steps), "-o", self.base / "cli"]
        command = [sys.executable, "-m", "v2edit", "--quiet", *words]
        subprocess.run(command, check=True)
        own, other = checksum(made[0] / "edited.mp4"), checksum(self.base / "cli" / "edited.mp4")
        self.check("as v2edit edit", own == other, f"{own} by the node, {other} by the command")
        again, more = await self.edit("edit_video.json")
        passed = again.kind == "execution_success" and EDIT in again.cached and not more and not again.steps
        self.check("the same again", passed, f"{again.kind}, cached nodes {again.cached}, {len(more)} new runs")

    async def masked(self) -> None:
        source = np.asarray(video.read(self.base / "input" / SAMPLE).frames)
        outcome, made = await self.edit("edit_with_mask.json")
        edited = np.asarray(video.read(made[0] / "edited.mp4").frames)
        half = source.shape[2] // 2 + 8  # beyond where it fades out
        outside = np.abs(edited[:, :, half:].astype(int) - source[:, :, half:]).mean()
        inside = np.abs(edited[:, :, : half - 16].astype(int) - source[:, :, : half - 16]).mean()
        passed = outcome.kind == "execution_success" and outside < 1.5 and inside > 2 * outside
        self.check(
            "a mask", passed, f"changed by {inside:.2f} of 255 inside, {outside:.2f} outside (the encoder's part)"
        )

    async def interrupted(self) -> None:
        stopped, made = await self.edit("edit_video.json", interrupt_at=self.steps // 3, seed=7)
        state = self.runs[made[0]] if made else "no run"
        passed = stopped.kind == "execution_interrupted" and state == "stopped"
        self.check("interrupted", passed, f"{stopped.kind} after {len(stopped.steps)} steps, the run is {state}")
        again, more = await self.edit("edit_video.json", seed=7)
        passed = again.kind == "execution_success" and not more and self.runs[made[0]] == "done"
        figures = f"{again.kind} in the same run, from {again.steps[0][0]} of {again.steps[0][1]}"
        self.check("queued again", passed and again.steps[0][0] > PARTS_BEGUN, figures)
        (made[0] / "edited.mp4").rename(self.base / "resumed.mp4")  # then it is made anew
        whole, beside = await self.edit("edit_video.json", seed=7, options="# from the beginning")
        resumed, fresh = checksum(self.base / "resumed.mp4"), checksum(beside[0] / "edited.mp4")
        passed = whole.kind == "execution_success" and resumed == fresh
        self.check("as if not interrupted", passed, f"{resumed} resumed, {fresh} in one go")

    async def batch(self) -> None:
        """Edit an IMAGE batch with sound that is made a video again."""
        workflow = read_workflow("edit_video.json", steps=self.steps, video=["20", 0], fps=8.0)
        workflow["20"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}}
        workflow["3"]["inputs"] |= {"video": ["20", 0], "fps": 8.0}
        before = set(self.runs)
        outcome = await self.client.run(workflow)
        made = sorted(set(self.runs) - before)
        fps = video.read(made[0] / "edited.mp4").fps if made else None
        self.check("an IMAGE batch", outcome.kind == "execution_success" and fps == 8, f"{outcome.kind}, at {fps}")

    async def sounding(self) -> None:
        """Edit a video from components, with sound, and count what of it comes out."""
        workflow = read_workflow("edit_video.json", steps=self.steps, video=["21", 0])
        workflow["20"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}}
        workflow["22"] = {"class_type": "EmptyAudio", "inputs": {"duration": 5.0, "sample_rate": 44100, "channels": 2}}
        workflow["21"] = {"class_type": "CreateVideo", "inputs": {"images": ["20", 0], "fps": 24.0, "audio": ["22", 0]}}
        workflow["3"]["inputs"] |= {"video": ["21", 0]}
        before = set(self.runs)
        outcome = await self.client.run(workflow)
        made = sorted(set(self.runs) - before)
        seconds = sound_seconds(made[0] / "edited.mp4") if made else 0.0
        passed = outcome.kind == "execution_success" and 0.3 < seconds < 0.5
        self.check("a VIDEO with sound", passed, f"{outcome.kind}, {seconds:.3f} s of sound beside 9 frames at 24 fps")

    async def mistaken(self) -> None:
        outcome, made = await self.edit("edit_video.json", options="guidence = 3")
        passed = outcome.kind == "execution_error" and "\n" not in outcome.error and "guidance" in outcome.error
        self.check("a mistake", passed and not made, outcome.error)

    async def scene(self) -> None:
        folder = self.base / "scene"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "v2edit",
                "--quiet",
                "sample",
                "--scene",
                "--seed",
                "10",
                "--kind",
                "recolour",
                "-o",
                folder,
            ],
            check=True,
        )
        workflow = {"2": copy.deepcopy(read_workflow("edit_video.json")["2"])}
        inputs = {"model": ["2", 0], "scene": str(folder), "instruction": "paint the orange cone blue", "seed": 0}
        inputs |= {"strength": "normal", "steps": self.steps, "subtasks": 1, "options": "quality = draft"}
        workflow[EDIT] = {"class_type": "V2EditScene", "inputs": inputs}
        workflow["5"] = read_workflow("edit_video.json")["5"] | {
            "inputs": {"video": [EDIT, 1], "filename_prefix": "video/scene", "format": "auto", "codec": "auto"}
        }
        outcome = await self.client.run(workflow)
        splats = list((self.base / "output" / "v2edit").glob("*/edited.ply"))
        self.check(
            "a scene", outcome.kind == "execution_success" and len(splats) == 1, f"{outcome.kind} {outcome.error}"
        )


PARTS_BEGUN = 100  # of 1000: more than the first step


def sound_seconds(path: Path) -> float:
    """Return the seconds of sound in a file."""
    import av

    with av.open(str(path)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


def prepare(base: Path) -> None:
    """Lay out a folder for ComfyUI with the pack and the sample clip."""
    for name in ("custom_nodes", "input", "output", "models", "user", "temp", "sample"):
        (base / name).mkdir(exist_ok=True)
    (base / "custom_nodes" / "v2edit").symlink_to(ROOT / "comfyui")
    write_sample(5, base / "sample", "recolour")
    (base / "sample" / "clip.mp4").rename(base / "input" / SAMPLE)


async def wait_for(session: aiohttp.ClientSession, address: str, server: subprocess.Popen) -> dict[str, Any]:
    """Wait until the server answers; return what it says of its nodes."""
    for _ in range(STARTS):
        if server.poll() is not None:
            sys.exit("ComfyUI's server ended while it started: see its log")
        with suppress(aiohttp.ClientError):
            async with session.get(f"{address}/object_info") as answer:
                return await answer.json()
        await asyncio.sleep(1)
    sys.exit(f"ComfyUI's server does not answer after {STARTS} s")


async def check_all(base: Path, address: str, server: subprocess.Popen, steps: int, scene: bool) -> int:
    """Run all checks; return how many failed."""
    async with aiohttp.ClientSession() as session:
        nodes = await wait_for(session, address, server)
        trial = Trial(Client(session, address), base, steps)
        found = sorted(name for name in nodes if name.startswith("V2Edit"))
        trial.check("the nodes", len(found) == 4, ", ".join(found))
        checks: list[Callable[[], Any]] = [trial.whole, trial.masked, trial.interrupted, trial.batch, trial.sounding]
        for one in [*checks, trial.mistaken, *([trial.scene] if scene else [])]:
            await one()
        return trial.check.failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--scene", action="store_true", help="edit a scene, too (minutes)")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        prepare(base)
        command = [sys.executable, "main.py", "--cpu", "--base-directory", base, "--port", port, "--disable-api-nodes"]
        with (base / "server.log").open("wb") as log:
            server = subprocess.Popen(
                [str(word) for word in command], cwd=options.comfyui, stdout=log, stderr=log, env=dict(os.environ)
            )
            try:
                work = check_all(base, f"http://127.0.0.1:{port}", server, options.steps, options.scene)
                failed = asyncio.run(work)
            finally:
                server.terminate()
                server.wait()
                text = (base / "server.log").read_text(errors="replace").splitlines()
        if failed:
            print("\n".join(text[-40:]))
        sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
