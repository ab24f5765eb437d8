"""Ctrl-C at a certain moment, in the process of the test."""

import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


def interrupt() -> None:
    """Send SIGINT to this process and its children, as a terminal does."""
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def default_interrupts() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt; a test runner in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class InterruptingStream(io.StringIO):
    """A stream that interrupts this process when a text is first written."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def write(self, text: str) -> int:
        count = super().write(text)
        if self._text and self._text in text:
            self._text = ""
            interrupt()
        return count


@contextmanager
def interrupt_when_written(text: str) -> Iterator[InterruptingStream]:
    """Replace stderr by an `InterruptingStream`."""
    with default_interrupts(), mock.patch.object(sys, "stderr", stream := InterruptingStream(text)):
        yield stream
