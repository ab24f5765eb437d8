"""One process at a time has a run; the system takes the lock away with the process, however that ends."""

import logging
import os
import time
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)
LOCK = "lock"  # in the state folder
PROBED = 0.3  # seconds for which somebody who only looks may hold it


def locked(state: Path) -> IO[str] | None:
    """The lock of a state folder, held until it is closed or the process ends; None while another process has it."""
    file = (state / LOCK).open("a+")
    until = time.monotonic() + PROBED
    try:
        while not _flock(file, exclusive=True):
            if time.monotonic() > until:
                file.close()
                return None
            time.sleep(0.01)
        if not (state / LOCK).exists() or os.fstat(file.fileno()).st_ino != (state / LOCK).stat().st_ino:
            file.close()  # Who had it has finished the run, and removed it.
            return None
    except BaseException:
        file.close()
        raise
    return file


def is_free(state: Path) -> bool:
    """Whether no process has the lock of a state folder."""
    try:
        with (state / LOCK).open() as file:
            return _flock(file, exclusive=False)
    except FileNotFoundError:
        return True


def _flock(file: IO[str], exclusive: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: there, two processes on one run are the user's to avoid.
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        log.warning("cannot lock %s (%s): see to it that no other process writes this run", file.name, error.strerror)
    return True
