"""A clock that a test sets, for one module: other threads of the process, a server's, go on with the real one."""

import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest


def set_clock(monkeypatch: pytest.MonkeyPatch, module: str, now: Callable[[], float]) -> None:
    """Let `time.monotonic()` of a module be `now()`."""
    monkeypatch.setattr(f"{module}.time", SimpleNamespace(**vars(time) | {"monotonic": now}))
