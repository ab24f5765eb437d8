"""The studio under stress: `kills` ends its processes at random moments, `load` has many clients beside an edit.

    python benchmarks/studio.py kills [--ends 20] [--seed 0]
    python benchmarks/studio.py load [--minutes 10] [--clients 50] [--pause 1]

`kills` ends the server, a worker, or both with SIGKILL; each job must end once with the bytes of an undisturbed run.
`load`, where each client looks at a list, a run and three places of its video every second or so, reports errors, how
long a list of runs takes (50th, 99th percentile, longest), how much longer the edit takes than alone, and the server's
memory while one client listens and reads nothing."""

import argparse
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

API = "/api/v1"
SHORT = {"steps": 30, "guidance": 1.0, "save_every": 3}
RUNS = 300  # in the library beside those that are made


class Studio:
    """A `v2edit studio` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.start()

    def start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        words = ["studio", self.folder, "--port", self.port, "--no-open", "--device", "cpu"]
        self.log = self.folder.with_name("server.log").open("a")
        command = [sys.executable, "-m", "v2edit", *map(str, words)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        while True:
            assert self.process.poll() is None, self.folder.with_name("server.log").read_text()
            with suppress(OSError):
                self.ask("GET", "/jobs")
                return
            time.sleep(0.05)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = {} if data is None else {"Content-Type": "application/json"}
        if isinstance(body, bytes):
            kind = {"Content-Type": "application/octet-stream"}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, API + path, data, kind)
            reply = connection.getresponse()
            content = reply.read()
            if reply.status >= 400:
                raise RuntimeError(f"{method} {path}: {reply.status} {content[:200]!r}")
            return json.loads(content) if content else None

    def upload(self, clip: Path) -> str:
        id = self.ask("POST", "/uploads", {"name": clip.name, "bytes": clip.stat().st_size})["id"]
        self.ask("PUT", f"/uploads/{id}/{clip.name}", clip.read_bytes())
        self.ask("POST", f"/uploads/{id}/finish")
        while (found := self.ask("GET", f"/uploads/{id}"))["state"] != "ready":
            assert found["state"] != "failed", found
            time.sleep(0.1)
        return id

    def submit(self, upload: str, instruction: str, **options: Any) -> str:
        body = {"input": {"upload": upload}, "instruction": instruction, "options": options}
        return self.ask("POST", "/jobs", body)["id"]

    def wait(self, job: str) -> dict[str, Any]:
        while (found := self.ask("GET", f"/jobs/{job}"))["state"] not in ("done", "failed", "stopped"):
            time.sleep(0.1)
        return found

    def wait_for_step(self, jobs: list[str]) -> None:
        """Wait until one of some jobs makes steps, or none is left to."""
        while True:
            states = [self.ask("GET", f"/jobs/{job}")["state"] for job in jobs]
            if "running" in states or not {"queued", "loading"} & set(states):
                return
            time.sleep(0.05)

    def steps(self, run: str) -> int | None:
        """Return how many steps of a run are made, None for one that has not begun."""
        from v2edit.errors import UserError
        from v2edit.runs import read_run_state

        try:
            return read_run_state(self.folder / run).done
        except UserError:
            return None

    def workers(self) -> list[int]:
        """Return the processes that the server has started and that run edits or tools."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and b"spawn_main" in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self.log.close()


def make_clip(folder: Path) -> tuple[Path, dict[str, Any]]:
    from v2edit.primitives.sample import write_sample

    write_sample(7, folder, "recolour", frames=9, size=48)
    return folder / "clip.mp4", json.loads((folder / "clip.json").read_text())


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.iterdir()) if path.name != "run.json"}


def kills(place: Path, ends: int, seed: int) -> None:
    """Kill processes at random moments and check that every job ends once, with the right bytes."""
    rng, counts = random.Random(seed), Counter[str]()
    clip, facts = make_clip(place)
    options = SHORT | {"source_prompt": facts["source_prompt"]}
    studio = Studio(place / "runs")
    upload = studio.upload(clip)
    begin, first = time.monotonic(), studio.submit(upload, facts["instruction"], **options)
    studio.wait_for_step([first])
    loading = time.monotonic() - begin
    whole = contents(studio.folder / studio.wait(first)["run"])
    working = time.monotonic() - begin - loading
    print(f"undisturbed: {loading:.0f} s up to the first step, {working:.0f} s from there", flush=True)
    jobs = [studio.submit(upload, facts["instruction"], **options) for _ in range(3)]
    while sum(counts.values()) < ends:
        if rng.random() < 0.2:  # Most of such a short job's time goes into loading, and little is at stake.
            time.sleep(rng.uniform(0, loading))
        else:
            studio.wait_for_step(jobs)
            time.sleep(rng.uniform(0, working))
        what = rng.choice(["server", "worker", "both"])
        workers = studio.workers()
        if what in ("worker", "both"):
            if not workers:
                continue
            for pid in workers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if what in ("server", "both"):
            studio.process.kill()
            studio.process.wait()
            studio.start()
        counts[what] += 1
        runs = {job: found["run"] for job in jobs if (found := studio.ask("GET", f"/jobs/{job}"))["run"]}
        steps = {job: studio.steps(run) for job, run in runs.items()}
        states = Counter(studio.ask("GET", f"/jobs/{job}")["state"] for job in jobs)
        print(f"{sum(counts.values()):3} {what:6} {dict(states)}, steps made {[*steps.values()]}", flush=True)
        if all(state == "done" for state in states):
            jobs.append(studio.submit(upload, facts["instruction"], **options))
    ended = [studio.wait(job) for job in jobs]
    runs = [one["run"] for one in ended]
    wrong = [one["id"] for one in ended if one["state"] != "done" or contents(studio.folder / one["run"]) != whole]
    there = {path.name for path in studio.folder.iterdir() if not path.name.startswith(".")}
    again = sum(len(re.findall("resumed", (studio.folder / run / "run.json").read_text())) for run in runs)
    studio.stop()
    assert not wrong, (wrong, [one["reason"] for one in ended])
    assert len(set(runs)) == len(jobs) and len(there) == len(jobs) + 1, (runs, there)
    print(f"{sum(counts.values())} ends {dict(counts)}: {len(jobs)} jobs, each ended once with the bytes of an "
          f"undisturbed run; {again} of them were resumed")  # fmt: skip


def fill(folder: Path, run: Path, count: int) -> None:
    """Copy a run many times."""
    for k in range(count):
        shutil.copytree(run, folder / f"{run.name}-copy-{k:04}")


@contextmanager
def silent_listener(studio: Studio):
    """A client of the events that reads nothing."""
    with socket.create_connection(("127.0.0.1", studio.port)) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.sendall(f"GET {API}/events HTTP/1.1\r\nHost: 127.0.0.1:{studio.port}\r\n\r\n".encode())
        yield


def memory(pid: int) -> float:
    """Return the MiB that a process holds."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+)", text)[1]) / 1024  # type: ignore[index]


def processor(pid: int) -> float:
    """Return the seconds of processor time that a process has taken."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def one_client(
    studio: Studio, number: int, end: float, pause: float, names: list[str], times: list[float], errors: list[str]
) -> None:
    """List, open a run, and seek three times in its video, as a page does, with pauses, until the end."""
    rng = random.Random(number)
    connection = http.client.HTTPConnection("127.0.0.1", studio.port, timeout=60)

    def get(path: str, **headers: str) -> bytes:
        connection.request("GET", API + path, headers=headers)
        reply = connection.getresponse()
        body = reply.read()
        if reply.status not in (200, 206):
            raise RuntimeError(f"{path}: {reply.status} {body[:100]!r}")
        return body

    while time.monotonic() < end:
        try:
            begin = time.monotonic()
            get(f"/runs?limit=60&offset={60 * rng.randrange(4)}")
            times.append(time.monotonic() - begin)
            get("/jobs")
            name = rng.choice(names)
            size = next(
                one["bytes"] for one in json.loads(get(f"/runs/{name}"))["files"] if one["name"] == "compare.mp4"
            )
            for _ in range(3):
                first = rng.randrange(size)
                get(f"/runs/{name}/files/compare.mp4", Range=f"bytes={first}-{min(size - 1, first + 2**18)}")
            time.sleep(pause * rng.uniform(0.5, 1.5))
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
            connection.close()
            time.sleep(0.5)
    connection.close()


def load(place: Path, minutes: float, clients: int, pause: float) -> None:
    """Have many clients beside an edit."""
    clip, facts = make_clip(place)
    options = {"source_prompt": facts["source_prompt"], "guidance": 1.0}
    studio = Studio(place / "runs")
    upload = studio.upload(clip)
    run = studio.folder / studio.wait(studio.submit(upload, facts["instruction"], steps=4, **options))["run"]
    fill(studio.folder, run, RUNS)
    while studio.ask("GET", "/runs?limit=1")["total"] < RUNS:
        time.sleep(0.5)
    names = [one["name"] for one in studio.ask("GET", "/runs?limit=500")["runs"]]

    def timed(seed: int) -> float:
        """Return the seconds that an edit takes, from its first step on."""
        job = studio.submit(upload, facts["instruction"], steps=60, seed=seed, **options)
        while studio.ask("GET", f"/jobs/{job}")["state"] not in ("running", "done"):
            time.sleep(0.1)
        begin = time.monotonic()
        assert studio.wait(job)["state"] == "done"
        return time.monotonic() - begin

    alone = timed(1)
    before, taken = memory(studio.process.pid), processor(studio.process.pid)
    times, errors, beside = [], [], []
    end = time.monotonic() + 60 * minutes
    arguments = end, pause, names, times, errors
    threads = [threading.Thread(target=one_client, args=(studio, k, *arguments)) for k in range(clients)]
    with silent_listener(studio):
        for thread in threads:
            thread.start()
        peak, seed = before, 2
        while time.monotonic() < end:
            beside.append(timed(seed))
            peak, seed = max(peak, memory(studio.process.pid)), seed + 1
        for thread in threads:
            thread.join()
    taken = processor(studio.process.pid) - taken
    studio.stop()
    times.sort()
    mean = sum(beside) / len(beside)
    percentile = {p: 1000 * times[min(len(times) - 1, int(p / 100 * len(times)))] for p in (50, 95, 99)}
    print(f"{clients} clients, {minutes:g} min, {len(names)} runs: {len(times)} lists, {len(errors)} errors, "
          f"{6 * len(times) / (60 * minutes):.0f} requests a second")  # fmt: skip
    shown = ", ".join(f"p{p} {value:.0f} ms" for p, value in percentile.items())
    print(f"a list: {shown}, {1000 * times[-1]:.0f} ms at most")
    print(f"an edit: {alone:.1f} s alone, {mean:.1f} s beside them ({mean / alone:.2f} times), {len(beside)} edits")
    print(f"the server: {1000 * taken / (6 * len(times)):.2f} ms of processor a request, load of the machine "
          f"{os.getloadavg()[1]:.0f} on {os.cpu_count()} cores")  # fmt: skip
    print(f"the server: {before:.0f} MiB before, {peak:.0f} MiB at the peak, with a client that reads nothing")
    for text, count in Counter(errors).most_common(5):
        print(f"{count} x {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "load"))
    parser.add_argument("--ends", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between what a client looks at, about")
    parser.add_argument("--clients", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "kills":
            kills(Path(folder), options.ends, options.seed)
        else:
            load(Path(folder), options.minutes, options.clients, options.pause)


if __name__ == "__main__":
    main()
