"""The studio behind its routes: the library, the uploads, the queue, the tools and the events of one folder."""

from __future__ import annotations

import hashlib
import logging
import secrets
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from v2edit.errors import UserError
from v2edit.files import LOCK_TIMEOUT, atomic_write, read_json, try_flock
from v2edit.jobs.scene import SceneEdit
from v2edit.jobs.video import VideoEdit
from v2edit.runs import default_name, unique_path
from v2edit.runs.layout import EDITED_SPLAT
from v2edit.studio.commands import command_words
from v2edit.studio.events import EventLog
from v2edit.studio.library import Library, to_json
from v2edit.studio.masks import MASK
from v2edit.studio.media import find_file
from v2edit.studio.notes import Notes, Trash
from v2edit.studio.options import NOUNS, JobKind, build_job, check_options, to_keywords
from v2edit.studio.queue import JobQueue
from v2edit.studio.reading import find_edited
from v2edit.studio.records import JobRecord, JobRecords
from v2edit.studio.settings import ID, Settings
from v2edit.studio.sources import copy_upload, find_source
from v2edit.studio.studies import Studies
from v2edit.studio.tools import READER, THINKER, Tools, ToolsBusy
from v2edit.studio.uploads import Uploads
from v2edit.studio.views import job_view
from v2edit.studio.worker import EditTask, StudioWorker
from v2edit.workers import ProcessPool

log = logging.getLogger(__name__)
CAPTION_SECONDS, MACHINE_SECONDS = 60.0, 180.0
RESUMABLE = ("edit", "seeds", "scene")  # kinds of runs


class Unknown(KeyError):
    """What a client names is not there; the text says what."""

    def __str__(self) -> str:
        return str(self.args[0])


class Studio:
    """All that the routes need. `pool` makes the pools of processes."""

    def __init__(self, settings: Settings, pool: Callable[..., ProcessPool] = ProcessPool) -> None:
        self.settings, self.secret = settings, secrets.token_bytes(32)
        self._lock_file = lock_library(settings.state)
        self.events = EventLog()
        self.notes, self.trash = Notes(settings.state / "notes"), Trash(settings.state / "trash")
        self.uploads = Uploads(settings.state / "uploads", settings.max_upload_bytes)
        self.studies = Studies(settings.state / "studies")
        self.masks, self.cache = settings.state / "masks", settings.state / "cache"
        for folder in (self.masks, self.cache):
            folder.mkdir(parents=True, exist_ok=True)
        self.library = Library(settings.folder, self.notes, partial(self.events.publish, "run"))
        self.tools = Tools(settings.tool_memory, settings.max_tasks, pool)
        edits = pool([partial(StudioWorker, device) for device in settings.devices])
        limits = settings.max_queued, settings.jobs_per_minute
        records = JobRecords(settings.state / "jobs")
        self.queue = JobQueue(records, edits, settings.folder, self.prepare, self._publish_job, limits)
        self.commands: dict[str, tuple[str | None, tuple[str, str]]] = {}  # of jobs, by their run folder
        self._describing: dict[Path, Future[dict[str, Any]]] = {}
        self.machine: Future[dict[str, Any]] | None = None
        self._machine_lock, self._resuming = threading.Lock(), threading.Lock()

    def start(self) -> None:
        """Read what is on disk and begin with what waits."""
        self.library.start()
        self._prune_cache()
        self.queue.start()
        for upload in self.uploads.all():
            if upload.state == "probing":  # when an earlier server ended
                self.probe(upload.id)

    def _prune_cache(self) -> None:
        """Remove what was made of runs that are gone, or others by now."""
        kept = {self.cache_of(run.name) for run in self.library.all()}
        for path in self.cache.iterdir():
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def begin_to_close(self) -> None:
        """Tell workers, tools and streams of events to end, all at once, without waiting for them."""
        for one in (self.queue, self.tools):
            one.begin_to_close()
        self.events.close()

    def close(self) -> None:
        """End all work, which goes on with the next start, and release the folder."""
        self.begin_to_close()
        self.queue.close()
        self.tools.close()
        self.library.close()
        self._lock_file.close()

    # --- jobs ----------------------------------------------------------------------------------

    def find_input(self, given: dict[str, Any], kind: JobKind) -> tuple[Path, str]:
        """Return the path of a job's input and what it is called. Raises `Unknown` where there is none, and `UserError`
        where it cannot be edited."""
        if (id := given.get("upload")) is not None:
            try:
                path, upload = self.uploads.path(id), self.uploads.get(id)
            except KeyError:
                raise Unknown("there is no such upload") from None
            of, nouns = upload.facts.get("kind"), {"frames": "a folder of pictures", "image": "one picture"}
            # The cameras of photographs and of a video are found first, as v2edit scene does.
            if of not in (("scene", "frames", "video") if kind == "scene" else ("frames", "video", "image")):
                raise UserError(f"{upload.name} is {nouns.get(str(of), f'a {of}')}, and this edits a {NOUNS[kind]}")
            return path, Path(upload.name).stem
        run = self.library.get(str(given.get("run")))
        if run is None:
            raise Unknown("there is no such run")
        if (name := given.get("file")) is not None:
            path = find_file(run.folder, str(name))
        else:
            path = run.folder / EDITED_SPLAT if kind == "scene" else find_edited(run.folder)
        if path is None or not path.exists():
            raise Unknown(f"{run.name} has no such file to edit")
        return path, run.folder.name

    def find_mask(self, id: str | None) -> Path | None:
        """Return the file of a mask. Raises `Unknown`."""
        if id is None:
            return None
        if not ID.fullmatch(id) or not (self.masks / id / MASK).is_file():
            raise Unknown("there is no such mask")
        return self.masks / id / MASK

    def build(
        self,
        kind: Any,
        path: Path,
        instruction: str | None,
        options: dict[str, Any],
        mask: str | None = None,
        trim: list[float | None] | None = None,
        out: Path | None = None,
    ) -> tuple[VideoEdit | SceneEdit, dict[str, Any]]:
        """Return the job that a client asks for, and its keywords. Raises `UserError` and `Unknown`."""
        checked = check_options(kind, options, self.settings)
        if mask is not None and kind == "scene":
            raise UserError("a scene takes no drawn mask: box3d names a part of its space")
        keywords = to_keywords(kind, checked, self.settings, self.find_mask(mask), trim, out)
        if "grow" not in keywords and mask is not None and (grow := self._mask_grow(mask)) is not None:
            keywords["grow"] = grow
        return build_job(kind, path, instruction, keywords), keywords

    def _mask_grow(self, id: str) -> int | None:
        return read_json(self.masks / id / "mask.json").get("grow")

    def prepare(self, record: JobRecord) -> EditTask:
        """Return the task of a job, with its run folder reserved. Raises `UserError`."""
        if record.resumes:
            out = self.settings.folder / record.input["run"]
            return EditTask(None, out, ("v2edit", "resume", str(out)))
        try:
            path, stem = self.find_input(record.input, record.kind)
            out = None if record.run is None else self.settings.folder / record.run
            if out is None:
                title = record.instruction or str(record.options.get("target_prompt") or "")
                out = self._reserve(default_name(Path(f"{stem}.x"), title) or "run")
            else:
                out.mkdir(exist_ok=True)
            job, keywords = self.build(
                record.kind, path, record.instruction, record.options, record.mask, record.trim, out
            )
        except Unknown as error:
            raise UserError(str(error)) from error
        return EditTask(job, out, tuple(command_words(record.kind, path, record.instruction, keywords)))

    def resume_run(self, name: str) -> JobRecord:
        """Put a run that stopped or failed into the queue, wherever it was begun. Raises `Unknown`, `QueueFull`, and
        `UserError` where it cannot be gone on with."""
        run = self.library.get(name)
        if run is None:
            raise Unknown("there is no such run")
        if run.state not in ("stopped", "failed"):
            raise UserError(f"the run is {run.state}: only what stopped or failed is gone on with")
        if run.parent is not None or run.kind not in RESUMABLE:
            raise UserError("this run is a part of a larger one, which goes on where it was begun")
        with self._resuming:
            for job in self.queue.all():
                if job.run == name and job.state != "done":
                    return self.queue.resume(job.id)
            return self.queue.submit(
                kind="scene" if run.kind == "scene" else "edit", title=str(run.summary["title"])[:200],
                input={"run": name, "resume": True}, instruction=run.summary["instruction"], run=name,
            )  # fmt: skip

    def _reserve(self, name: str) -> Path:
        """Make an empty folder for a run, which no other run can take then."""
        while True:
            folder = unique_path(self.settings.folder / name)
            try:
                folder.mkdir()
                return folder
            except FileExistsError:  # since it was looked for, or empty
                if not any(record.run == folder.name for record in self.queue.all()):
                    return folder
                name = f"{name}-{len(self.queue.all())}"

    def _publish_job(self, id: str, record: JobRecord | None) -> None:
        if record is None:
            self.commands.pop(id, None)
        self.events.publish("job", id, None if record is None else job_view(self, record))
        if record is None or record.state not in ("loading", "running"):
            self.library.nudge()

    # --- uploads and the tools -----------------------------------------------------------------

    def probe(self, id: str) -> None:
        """Let the tools look at an upload that is finished."""
        bounds = {"max_bytes": self.settings.max_unpacked_bytes, "max_files": self.settings.max_unpacked_files}
        upload = self.uploads.get(id)
        folder = str(self.uploads.place(id))
        call = self.tools.call("probe", READER, self.settings.tool_seconds, folder=folder, kind=upload.wanted, **bounds)
        call.add_done_callback(partial(self._probed, id))

    def _probed(self, id: str, call: Future[dict[str, Any]]) -> None:
        if (error := call.exception()) is not None:
            if str(error) == "the studio is ending":
                return  # The next one looks again.
            reason = str(error).replace(str(self.settings.state / "uploads" / id / "files") + "/", "")
            self.publish_upload(self.uploads.set(id, state="failed", reason=reason))
            return
        facts = call.result()
        may_be_built_in = facts.pop("may_be_built_in", False) and facts["source_prompt"] is None
        upload = self.uploads.set(id, state="ready", facts=facts)
        self.publish_upload(upload)
        if upload is not None and may_be_built_in:
            path = str(self.uploads.place(id) / facts["path"])
            with suppress(ToolsBusy):
                caption = self.tools.call("caption", THINKER, CAPTION_SECONDS, path=path)
                caption.add_done_callback(partial(self._captioned, id, facts))

    def _captioned(self, id: str, facts: dict[str, Any], call: Future[dict[str, Any]]) -> None:
        if call.exception() is None and call.result()["source_prompt"] is not None:
            self.publish_upload(self.uploads.set(id, facts=facts | call.result()))

    def take_source(self, name: str) -> dict[str, Any]:
        """Return what a run was made of as the input of another edit; a file of this machine becomes an upload. Raises
        `Unknown` where it is not to be found, and what `Uploads.create` raises."""
        if (run := self.library.get(name)) is None:
            raise Unknown("there is no such run")
        try:
            found = find_source(run, self.library, self.uploads)
        except UserError as error:
            raise Unknown(str(error)) from error
        if not isinstance(found, Path):
            return found
        upload = copy_upload(found, run.facts["input"]["sha256"], run.kind, self.uploads)
        self.publish_upload(upload)
        self.probe(upload.id)
        return {"upload": upload.id}

    def publish_upload(self, upload: Any) -> None:
        if upload is not None:
            self.events.publish("upload", upload.id, upload.view)

    def describe(self, name: str) -> tuple[Path, Future[dict[str, Any]] | None]:
        """Return where the thumbnail of a run is, and the work that makes it where there is none yet. Raises
        `Unknown`."""
        run = self.library.get(name)
        if run is None:
            raise Unknown("there is no such run")
        place = self.cache_of(name)
        thumb, facts = place / "thumb.jpg", place / "facts.json"
        if (going := self._describing.get(place)) is not None and not going.done():
            return thumb, going
        if facts.is_file() and "sound" in (known := read_json(facts))["media"]:
            self.library.set_media(name, run.stamp, known["media"])
            return thumb, None
        place.mkdir(parents=True, exist_ok=True)
        call = self.tools.call(
            "describe_run", READER, self.settings.tool_seconds, folder=str(run.folder), thumb=str(thumb)
        )

        def keep(done: Future[dict[str, Any]]) -> None:
            if done.exception() is None:
                atomic_write(facts, to_json({"media": done.result()}))
                if not self.library.set_media(name, run.stamp, done.result()):
                    with suppress(Unknown, ToolsBusy):  # It has ended meanwhile, say: clients wait for its description.
                        self.describe(name)

        self._describing[place] = call
        call.add_done_callback(keep)
        call.add_done_callback(lambda done: self._describing.pop(place, None))
        return thumb, call

    def cache_of(self, name: str) -> Path:
        """Return the folder of what was made of a run as it is now. Raises `Unknown`."""
        run = self.library.get(name)
        if run is None:
            raise Unknown("there is no such run")
        key = f"{name}\0{run.stamp}\0{run.folder}".encode(errors="surrogateescape")
        return self.cache / hashlib.sha256(key).hexdigest()[:32]

    def describe_machine(self) -> Future[dict[str, Any]]:
        """Return what is known of this machine, found out once."""
        with self._machine_lock:
            if self.machine is None or (self.machine.done() and self.machine.exception() is not None):
                devices, model = list(self.settings.devices), self.settings.model
                self.machine = self.tools.call(
                    "describe_machine", THINKER, MACHINE_SECONDS, devices=devices, model=model
                )
            return self.machine


def lock_library(state: Path) -> IO[str]:
    """Lock a studio's state folder until the returned file is closed. Raises `UserError` where another studio has it,
    or it cannot be written."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        file = (state / "lock").open("a+")
    except OSError as error:
        raise UserError(f"cannot write to {state}: {error.strerror}; name another folder") from error
    try:
        if not try_flock(file, exclusive=True, timeout=LOCK_TIMEOUT):
            file.close()
            raise UserError(f"another studio serves {state.parent}: use that, or name another folder")
    except ImportError:  # Windows: there, two studios on one folder are the user's to avoid.
        pass
    except OSError as error:
        log.warning("cannot lock %s (%s): see to it that no other studio serves this folder", state, error.strerror)
    return file
