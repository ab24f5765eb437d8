"""Find a model by its index alone: the built-in one, a Hugging Face id or a diffusers folder. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from v2edit.backbones import families
from v2edit.backbones.families import BUILT_IN, BUILT_IN_FOLDER, FAMILIES, INDEX, PUBLISHED, SAFE, Defaults, Family
from v2edit.backbones.magnitudes import CACHE_FILE, Magnitudes, read_magnitudes
from v2edit.errors import UserError, first_line
from v2edit.files import read_json
from v2edit.host import quiet_log


@dataclass(frozen=True)
class Checkpoint:
    """A model that exists and is of a known family: its `name` as the user wrote it, and where it is loaded from."""

    name: str
    source: str  # a folder or a hub id
    commit: str | None = None  # of a hub id
    cached: bool = False  # the hub cannot be reached, but an earlier download is here
    family: Family = FAMILIES[0]
    pickles: bool = False  # weights may be pickles
    magnitudes: Magnitudes | None = None  # for step caching

    @property
    def prompt_style(self) -> str:
        """The name of the style of its prompts."""
        return BUILT_IN if self.name == BUILT_IN else self.family.style

    @property
    def defaults(self) -> Defaults:
        """Defaults of the settings that its edits leave open."""
        defaults = families.BUILT_IN_DEFAULTS if self.name == BUILT_IN else self.family.defaults
        return replace(defaults, magnitudes=self.magnitudes or defaults.magnitudes)


def find(model: str = BUILT_IN, revision: str | None = None, allow_pickle: bool = False) -> Checkpoint:
    """Find a model by its index alone; the arguments are those of `load`. Raises `UserError` where the model cannot be
    found, is not of a known family, lacks a part, or has it as a pickle only."""
    folder = BUILT_IN_FOLDER if model == BUILT_IN else Path(model)
    if folder.is_dir():
        cache_file = folder / CACHE_FILE
        magnitudes = read_magnitudes(cache_file) if cache_file.is_file() else None
        checkpoint, path = Checkpoint(model, str(folder), magnitudes=magnitudes), folder / INDEX
        if not path.is_file():
            raise UserError(f"{folder} is not a model: a diffusers folder has a {INDEX}")
    elif model == BUILT_IN:
        raise UserError(f"this installation lacks the built-in model ({folder}); install it again or name a --model")
    elif folder.exists() or model.count("/") != 1 or model.startswith((".", "/")):
        raise UserError(f"no model {model!r}: give {BUILT_IN!r}, a Hugging Face id such as {PUBLISHED}, or a folder")
    else:
        check_family(model)
        path, reached = _fetch_index(model, revision)
        checkpoint = Checkpoint(model, model, path.parent.name, cached=not reached)
    try:
        index = read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {first_line(error)}") from error
    family = _check(model, index if isinstance(index, dict) else {}, folder if folder.is_dir() else None, allow_pickle)
    return replace(checkpoint, family=family, pickles=allow_pickle)


def has_weights(checkpoint: Checkpoint) -> bool:
    """Whether all weights of a model are on this machine."""
    folder = Path(checkpoint.source)
    if checkpoint.commit:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(checkpoint.source, revision=checkpoint.commit, local_files_only=True))
        except (LocalEntryNotFoundError, OSError):
            return False
    parts = checkpoint.family.parts_of(read_json(folder / INDEX))
    return all(_is_complete(folder / part) for part, needs in parts.items() if needs is families.WEIGHTS)


def _is_complete(part: Path) -> bool:
    """Whether the folder of a part has its weights, with all files that its index names."""
    files = {file.name for file in part.glob("*.safetensors")}
    try:
        shards = [set(read_json(index)["weight_map"].values()) for index in part.glob("*.safetensors.index.json")]
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(files) and all(names <= files for names in shards)


def _check(model: str, index: dict[str, Any], folder: Path | None, allow_pickle: bool) -> Family:
    """Return the family of a model. Raises `UserError` for one that this package cannot edit with, by its index and its
    folder."""
    kind = str(index.get("_class_name"))
    if (family := families.family_of(kind)) is None:
        what = f"a {kind}" if "_class_name" in index else "no pipeline"
        raise UserError(f"{model} is {what}; {_supported()}")
    for part, kind in index.items():
        if isinstance(kind, list) and (len(kind) != 2 or kind[0] not in (*families.LIBRARIES, None)):
            named = f"{kind[0]!r:.60}" if kind else "nothing"
            raise UserError(
                f"{model} wants code of {named} for its {part!r:.60}, which is not run; known are {families.LIBRARIES}"
            )
    missing, pickled = [], []
    for part, needs in family.parts_of(index).items():
        if not families.names(index, part) or (folder and not (folder / part).is_dir()):
            missing.append(f"its {part}")
        elif folder:
            lacks = [names for names in needs if not _has_file(folder / part, *names)]
            if (SAFE,) in lacks and _has_file(folder / part, families.PICKLED):
                lacks.remove((SAFE,))
                pickled.append(part)
            missing += [f"{part}/{' or '.join(names)}" for names in lacks]
    if missing:
        raise UserError(f"the model {folder or model} lacks {' and '.join(missing)}; download it again, whole")
    if pickled and not allow_pickle:
        raise UserError(
            f"the model {folder or model} has the weights of its {' and '.join(pickled)} as pickles (.bin), which can "
            "hold code: convert them to safetensors, or take them as they are with --allow-pickle"
        )
    if (scheduler := index["scheduler"][-1]) not in family.schedulers:
        raise UserError(f"{model} has the scheduler {scheduler}; known are {' and '.join(family.schedulers)}")
    return family


def check_family(model: str) -> None:
    """Raise `UserError` for a Hugging Face id that names a family not known here, before anything is fetched."""
    if not Path(model).is_dir() and (found := families.describe_foreign(model)):
        what, is_possible = found
        raise UserError(f"{model} is {what}; {_supported(is_possible)}")


def _supported(is_possible: bool = True) -> str:
    """Say which families there are, and what another one needs where one is possible."""
    *some, last = dict.fromkeys(family.name for family in families.FAMILIES)
    known = f"{', '.join(some)} and {last}"
    backbone = "; another family needs a backbone of its own (docs/extending.md)" if is_possible else ""
    return f"edits run on {known} models, such as {PUBLISHED}, and the built-in {BUILT_IN!r}{backbone}"


def _has_file(folder: Path, *names: str) -> bool:
    return any(file.is_file() for name in names for file in folder.glob(name))


def _fetch_index(model: str, revision: str | None) -> tuple[Path, bool]:
    """Return the path of a hub model's index (in the folder of its commit), and whether the hub was reached."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        with quiet_log("huggingface_hub"):
            try:
                # One request: a download alone repeats its own for half a minute.
                get_hf_file_metadata(hf_hub_url(model, INDEX, revision=revision))
                reached = True
            except (
                errors.EntryNotFoundError,
                errors.HFValidationError,
                errors.RepositoryNotFoundError,
                errors.RevisionNotFoundError,
            ):
                raise
            except Exception:  # no network, in one of its many forms; an earlier download may be cached
                reached = False
            return Path(hf_hub_download(model, INDEX, revision=revision, local_files_only=not reached)), reached
    except errors.LocalEntryNotFoundError as error:
        message = f"cannot reach the hub for {model}: is there a network? Or give a local folder as --model"
        raise UserError(message) from error
    except errors.GatedRepoError as error:
        message = f"the model {model} is gated: accept its terms at its page on the hub, then log in (hf auth login)"
        raise UserError(message) from error
    except errors.RepositoryNotFoundError as error:
        message = f"there is no model {model}, neither as a folder nor on the hub (a private one wants hf auth login)"
        raise UserError(message) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"the model {model} has no revision {revision!r}") from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"the model {model} is not a diffusers pipeline: it has no {INDEX}") from error
    except errors.HFValidationError as error:
        raise UserError(f"{model!r} is no Hugging Face id, such as {PUBLISHED}, and there is no such folder") from error
    except OSError as error:
        raise UserError(f"cannot download {INDEX} of the model {model}: {first_line(error)}") from error
