"""Run folders: the record of a run from its first step on, and what resuming it after any end needs.

run.json           how the run is made, its progress, and when it was done
edited.mp4, …      the results, all of them once the run is done
.state/            until then: the lock, the request, snapshots of the loops, and results in the making"""

from v2edit.runs.manifest import (  # isort: skip
    MANIFEST, PACKAGES, Request, RunState, check_save_every, find_runs, read_run_state, utc_now,
)  # fmt: skip
from v2edit.runs.naming import (  # isort: skip
    check_input, default_name, default_run_folder, display_path, fingerprint_input, redact, unique_path,
    why_not_writable,
)  # fmt: skip
from v2edit.runs.pace import Pace
from v2edit.runs.writer import RunWriter, remove_leftover_state

__all__ = [
    "MANIFEST", "PACKAGES", "Pace", "Request", "RunState", "RunWriter", "check_input", "check_save_every",
    "default_name", "default_run_folder", "display_path", "find_runs", "fingerprint_input", "read_run_state", "redact",
    "remove_leftover_state", "unique_path", "utc_now", "why_not_writable",
]  # fmt: skip
