"""Processes that start with the libraries imported, so that a test of processes does not wait for imports."""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from v2edit.workers import ProcessPool, Worker

SERVER = multiprocessing.get_context("forkserver")
PRELOADED = ["pytest", "v2edit.cli.app", "v2edit.jobs.functions", "v2edit.batch.worker", "v2edit.bench.trials",
             "v2edit.backbones.cogvideox", "v2edit.editing.editor", "v2edit.scenes.rer", "v2edit.scenes.reading",
             "v2edit.scenes.formats.nerfstudio", "v2edit.video.sheets", "av", "PIL.Image",
             "diffusers.pipelines.cogvideo.pipeline_cogvideox", "transformers.models.t5.modeling_t5"]  # fmt: skip
SERVER.set_forkserver_preload(PRELOADED)


class PreloadedPool(ProcessPool):
    """A `ProcessPool` whose processes start with the libraries imported."""

    def __init__(self, factories: Sequence[Callable[[], Worker]], threads: int | None = None) -> None:
        super().__init__(factories, threads)
        self._context = SERVER


class ForkingPool(ProcessPool):
    """A `ProcessPool` for a process of the server, whose copies it starts."""

    def __init__(self, factories: Sequence[Callable[[], Worker]], threads: int | None = None) -> None:
        super().__init__(factories, threads)
        self._context = multiprocessing.get_context("fork")


class InlinePool:
    """A pool whose one worker is this process, for tests that processes do not matter to."""

    def __init__(self, factories: Sequence[Callable[[], Worker]], threads: int | None = None) -> None:
        self.worker = factories[0]()

    def imap_unordered(self, jobs: deque[Any]) -> Iterator[tuple[Any, Any]]:
        while jobs:
            job = jobs.popleft()
            outcome = self.worker.run(job)
            if isinstance(outcome, Exception):
                raise outcome
            yield job, outcome

    def stop(self) -> None:
        pass


def run_command(*words: object, cwd: Path) -> CompletedProcess[str]:
    """Run a `v2edit` command line in a process of its own; return its exit code and what it printed."""
    return run_python(_code_of(words), cwd)


def run_python(code: str, cwd: Path) -> CompletedProcess[str]:
    """Run Python code, to which `sys` is known, in a process of its own; return as `subprocess.run` does."""
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("out", "err")]
        process = SERVER.Process(target=_run_python, args=(code, cwd, *printed))
        process.start()
        process.join(300)
        assert process.exitcode is not None, f"{code} takes more than five minutes"
        return CompletedProcess([code], process.exitcode, *(path.read_text() for path in printed))


class RunningCommand:
    """A `v2edit` command line in a process of its own while it runs: `stdout` and `stderr` can be read, and signals
    sent, as with `subprocess.Popen`."""

    def __init__(self, *words: object) -> None:
        pipes = [SERVER.Pipe(duplex=False) for _ in range(2)]
        self._process = SERVER.Process(target=_run_at_pipes, args=(_code_of(words), *(writer for _, writer in pipes)))
        self._process.start()
        for _, writer in pipes:
            writer.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(reader.fileno())) for reader, _ in pipes)

    def poll(self) -> int | None:
        """Return the exit code, or minus the number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, timeout: float) -> int | None:
        """Wait for the end, no longer than `timeout` seconds, and return as `poll` does."""
        self._process.join(timeout)
        return self.poll()

    def kill(self) -> None:
        """End it if it still runs."""
        self._process.kill()
        self._process.join()


def _code_of(words: Sequence[object]) -> str:
    return f"from v2edit.cli.app import main; sys.exit(main({list(map(str, words))!r}))"


def _run_at_pipes(code: str, out: Connection, err: Connection) -> None:
    # As a shell starts it, whatever the server's own parent ignores.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    for pipe, number in ((out, 1), (err, 2)):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    # Those of the server may be files, where one can seek.
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    exec(code, {"sys": sys})


def _run_python(code: str, cwd: Path, out: Path, err: Path) -> None:
    for path, number in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    exec(code, {"sys": sys})
