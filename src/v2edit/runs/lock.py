"""The lock of a run's state folder: one process at a time works on a run, and the system releases the lock with it."""

import logging
import os
from pathlib import Path
from typing import IO

from v2edit.files import try_flock

log = logging.getLogger(__name__)
LOCK = "lock"  # in the state folder
LOCK_TIMEOUT = 0.3  # seconds for which a process that only looks may hold the lock


def lock_state(state: Path) -> IO[str] | None:
    """Lock a state folder until the returned file is closed or the process ends; None where another process has it."""
    file = (state / LOCK).open("a+")
    try:
        if not _try_flock(file, exclusive=True, timeout=LOCK_TIMEOUT):
            file.close()
            return None
        if not (state / LOCK).exists() or os.fstat(file.fileno()).st_ino != (state / LOCK).stat().st_ino:
            file.close()  # The process that held it has finished the run and removed its state.
            return None
    except BaseException:
        file.close()
        raise
    return file


def is_state_locked(state: Path) -> bool:
    """Return whether a process works on the run of a state folder."""
    try:
        with (state / LOCK).open() as file:
            return not _try_flock(file, exclusive=False)
    except FileNotFoundError:
        return False


def _try_flock(file: IO[str], exclusive: bool, timeout: float = 0.0) -> bool:
    try:
        return try_flock(file, exclusive, timeout)
    except ImportError:  # Windows: there, two processes on one run are the user's to avoid.
        return True
    except OSError as error:  # a file system without locks
        log.warning("cannot lock %s (%s): see to it that no other process writes this run", file.name, error.strerror)
    return True
