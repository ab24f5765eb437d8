"""Run folders: the record of a run from its first step on, and all that it takes to go on after any end.

run.json           how the run is made, how far it is, and when it was done
edited.mp4, …      what it made, all of it once it is done
.state/            until then: the lock, the request, where its loops stand, and results in the making
"""

from v2edit.runs.naming import (
    check_input,
    default_name,
    default_run_folder,
    describe_input,
    redact,
    shown,
    taken,
    unique_path,
)
from v2edit.runs.state import MANIFEST, PACKAGES, Request, RunState, check_save_every, runs_in, state_of
from v2edit.runs.writer import RunWriter, tidy

__all__ = [
    "MANIFEST",
    "PACKAGES",
    "Request",
    "RunState",
    "RunWriter",
    "check_input",
    "check_save_every",
    "default_name",
    "default_run_folder",
    "describe_input",
    "redact",
    "runs_in",
    "shown",
    "state_of",
    "taken",
    "tidy",
    "unique_path",
]
