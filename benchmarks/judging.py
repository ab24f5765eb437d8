"""A judge of a whole suite, killed on the way: 40 tasks x 6 methods x 20 queries, each asked once.

    python benchmarks/judging.py --out FOLDER [--tasks 40] [--methods 6] [--queries 20] [--kills 3]

A server on this machine answers as OpenAI's do, scores each video by its shade, refuses some requests as too many (429,
with a pause), answers some in a useless way, and counts what it is asked. The benchmark's process is killed (SIGKILL)
as often as said and started again. What is asked twice is at most the query that was on its way. The key that is sent
is in no file and in nothing that is printed.
"""

import argparse
import base64
import csv
import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np
from PIL import Image

from v2edit import video
from v2edit.metrics.lvlm_score import ASPECTS

KEY = "sk-benchmark-0123456789abcdef"
SHADE = 30  # of the first method's grey; each of the others is brighter by as much
BUSY, USELESS = 97, 61  # every so many requests are refused, or answered with nothing of use


class Judge:
    """The server: it counts requests, those that it refused, and those that it answered uselessly."""

    def __init__(self) -> None:
        self.requests = self.refused = self.useless = 0
        self.keys: Counter[str] = Counter()
        self.lock = Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, {"object": "list", "data": [{"id": "judge"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with judge.lock:
                    judge.requests += 1
                    number = judge.requests
                    judge.keys[self.headers["Authorization"]] += 1
                if number % BUSY == 0:
                    judge.refused += 1
                    self.reply(429, {"error": {"message": "too many"}}, {"Retry-After": "0.05"})
                elif number % USELESS == 0:
                    judge.useless += 1
                    self.reply(200, completion("I would rather not."))
                else:
                    self.reply(200, completion(json.dumps(scores(body))))

            def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    @property
    def queries(self) -> int:
        """The number of requests that were answered with scores."""
        return self.requests - self.refused - self.useless


def completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "1", "object": "chat.completion", "model": "judge", "choices": [choice], "usage": {}}


def scores(body: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Return each video's scores: its shade over three, wherever it stands."""
    found, label = {}, ""
    for part in next(one for one in body["messages"] if one["role"] == "user")["content"]:
        if "text" in part:
            label = part["text"].removeprefix("Video ").rstrip(":")
        elif len(label) == 1:
            data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
            shade = round(np.asarray(Image.open(io.BytesIO(data))).mean() / SHADE)
            found[label] = dict.fromkeys(ASPECTS, 10 * shade)
    return found


def write_suite(folder: Path, tasks: int, methods: int) -> list[str]:
    """Write clips, their suite and the methods' results; return the options that name these."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, rng = [], np.random.default_rng(0)
    for k in range(tasks):
        clip = rng.integers(0, 20, (2, 16, 16, 3), dtype=np.uint8)
        video.write(clip, folder / f"{k:02}.mp4", fps=8)
        lines.append(
            {"video": f"{k:02}.mp4", "name": f"task-{k:02}", "source_prompt": "a hen", "target_prompt": "a fox"}
        )
        for m in range(methods):
            (folder / f"tool-{m}").mkdir(exist_ok=True)
            video.write(clip // 4 + np.uint8(SHADE * (m + 1)), folder / f"tool-{m}" / f"task-{k:02}.mp4", fps=8)
    (folder / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [f"Tool {m}={folder / f'tool-{m}'}" for m in range(methods)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    for name, number in (("tasks", 40), ("methods", 6), ("queries", 20), ("kills", 3)):
        parser.add_argument(f"--{name}", type=int, default=number)
    options = parser.parse_args()
    tools, judge = write_suite(options.out / "suite", options.tasks, options.methods), Judge()
    command = [
        sys.executable, "-m", "v2edit", "bench", "--suite", str(options.out / "suite"), "--methods", "none",
        "--results", *tools, "--metrics", "colour", "--processes", "1", "-o", str(options.out / "bench"),
        "--judge", "judge", "--judge-url", judge.url, "--judge-queries", str(options.queries), "--judge-frames", "1",
    ]  # fmt: skip
    log = options.out / "printed.txt"
    total = options.tasks * options.queries
    for k in range(options.kills):
        kill_at(command, log, judge, total * (k + 1) // (options.kills + 1))
    run(command, log)
    print(f"finished: {judge.queries} queries for {total}, with {options.kills} kills", flush=True)
    assert total <= judge.queries <= total + options.kills
    before = judge.requests
    run(command, log)
    print(f"again: {judge.requests - before} queries; {judge.refused} were refused (429), {judge.useless} useless")
    assert judge.requests == before and set(judge.keys) == {f"Bearer {KEY}"}
    check_scores(options.out / "bench", options.tasks, options.methods)
    files = [path for path in options.out.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()], "the key is in a file"
    print(f"the key is in none of {len(files)} files")


def run(command: list[str], log: Path) -> None:
    with log.open("ab") as printed:
        subprocess.run(command, check=True, stdout=printed, stderr=printed, env=os.environ | {"V2EDIT_LVLM_KEY": KEY})


def kill_at(command: list[str], log: Path, judge: Judge, queries: int) -> None:
    """Start the benchmark and kill it with all its children when so many queries are answered, or asked."""
    with log.open("ab") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=printed, env=os.environ | {"V2EDIT_LVLM_KEY": KEY})
        while process.poll() is None and judge.queries < queries:
            time.sleep(0.002)
        process.kill()
        process.wait()
    print(f"killed with {judge.queries} queries", flush=True)
    assert judge.queries >= queries, log.read_text()[-2000:]


def check_scores(folder: Path, tasks: int, methods: int) -> None:
    """Compare the scores with the shades that the videos were given."""

    rows = list(csv.DictReader((folder / "report.csv").read_text().splitlines()))
    judged = [row for row in rows if row["overall"]]
    assert len(judged) == tasks * methods
    for row in judged:
        assert float(row["overall"]) == 10 * (int(row["method"].split()[1]) + 1), row
    print(f"{len(judged)} scores are those of the shades")


if __name__ == "__main__":
    main()
