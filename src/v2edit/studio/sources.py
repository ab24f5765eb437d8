"""What runs were made of, found again: those of the command line name a file, which may be there unchanged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from v2edit.errors import UserError
from v2edit.runs import fingerprint_input
from v2edit.studio.library import Library, Run
from v2edit.studio.reading import find_edited
from v2edit.studio.uploads import Upload, Uploads


def find_source(run: Run, library: Library, uploads: Uploads) -> dict[str, Any] | Path:
    """Return what a run was made of: an input of the studio (an upload, or another run whose edited video it was), or
    else the file or folder that the run names, if it is still what it was. Raises `UserError` where that is not so."""
    recorded = run.facts.get("input")
    if not isinstance(recorded, dict) or not all(isinstance(recorded.get(key), str) for key in ("path", "sha256")):
        raise UserError("the run does not say what it was made of")
    path = Path(recorded["path"])
    for upload in uploads.all():
        is_copy = upload.copy_of == recorded["sha256"] and upload.state in ("probing", "ready")
        if is_copy or (upload.state == "ready" and path == uploads.path(upload.id)):
            return {"upload": upload.id}
    try:
        is_same = path.exists() and fingerprint_input(path)["sha256"] == recorded["sha256"]
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror}") from error
    if not is_same:
        raise UserError(f"{path.name} is gone, or another by now: choose it again")
    if (other := library.get(path.parent.name)) is not None and find_edited(other.folder) == path:
        return {"run": other.name}
    return path


def copy_upload(path: Path, checksum: str, kind: str, uploads: Uploads) -> Upload:
    """Copy a file or a folder of this machine into an upload, which is to be looked at then. Raises `TooLarge`,
    `DiskFull` and `UserError` as an upload does."""
    files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
    wanted = "scene" if kind == "scene" else "frames" if path.is_dir() else "file"
    upload = uploads.create(path.name, sum(one.stat().st_size for one in files), max(1, len(files)), wanted)
    try:
        place = uploads.place(upload.id) / "files"
        if path.is_dir() and wanted == "frames":
            shutil.copytree(path, place, dirs_exist_ok=True)
        elif path.is_dir():
            shutil.copytree(path, place / upload.name)
        else:
            shutil.copyfile(path, place / upload.name)
        return uploads.copied(upload.id, checksum)
    except BaseException:
        uploads.remove(upload.id)
        raise
