"""One process at a time has a run; the system takes the lock away with the process, however that ends."""

import logging
import os
from pathlib import Path
from typing import IO

from v2edit.files import flocked

log = logging.getLogger(__name__)
LOCK = "lock"  # in the state folder
PROBED = 0.3  # seconds for which somebody who only looks may hold it


def locked(state: Path) -> IO[str] | None:
    """The lock of a state folder, held until it is closed or the process ends; None while another process has it."""
    file = (state / LOCK).open("a+")
    try:
        if not _flock(file, exclusive=True, patience=PROBED):
            file.close()
            return None
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


def _flock(file: IO[str], exclusive: bool, patience: float = 0.0) -> bool:
    try:
        return flocked(file, exclusive, patience)
    except ImportError:  # Windows: there, two processes on one run are the user's to avoid.
        return True
    except OSError as error:  # a file system without locks
        log.warning("cannot lock %s (%s): see to it that no other process writes this run", file.name, error.strerror)
    return True
