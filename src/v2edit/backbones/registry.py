"""From a model's name (built in, a hub id or a folder) to a `Backbone`. Finding one loads no torch; loading it does."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import PickleError
from typing import TYPE_CHECKING, Any, Literal

from v2edit.backbones.defaults import BUILT_IN_DEFAULTS, PUBLISHED_DEFAULTS, Defaults, Offload
from v2edit.documents import read_json
from v2edit.errors import UserError

if TYPE_CHECKING:
    from v2edit.backbones.base import Backbone, Outline
    from v2edit.backbones.counting import Hollow

BUILT_IN = "primitives"
BUILT_IN_FOLDER = Path(__file__).parents[1] / "models" / BUILT_IN
PUBLISHED = "zai-org/CogVideoX-5b"  # what to suggest for videos of the real world
INDEX = "model_index.json"
FAMILIES = {"CogVideoXPipeline": "CogVideoX", "CogVideoXVideoToVideoPipeline": "CogVideoX"}
SCHEDULERS = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
# Each part of a model, and the files that it cannot be without: one of each group.
SAFE, PICKLED = "*.safetensors", "*.bin"
WEIGHTS = (("config.json",), (SAFE,))
PARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "text_encoder": WEIGHTS,
    "tokenizer": (("tokenizer.json", "spiece.model"),),
    "transformer": WEIGHTS,
    "vae": WEIGHTS,
    "scheduler": (("scheduler_config.json",),),
}

# Whose code a model's parts may name: diffusers imports whatever library an index says.
LIBRARIES = ("diffusers", "transformers")
OUTLINE = [
    INDEX,
    "tokenizer/*",
    "scheduler/*",
    *(f"{part}/config.json" for part in ("transformer", "vae", "text_encoder")),
]

# What diffusers and transformers raise over files that are no model.
STUMBLES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
    TypeError, ValueError,
    PickleError,
)  # fmt: skip

DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Checkpoint:
    """A model that is there and of a known family: its `name` as given, and where it is loaded from."""

    name: str
    source: str  # a folder or a hub id
    commit: str | None = None  # of a hub id
    cached: bool = False  # the hub cannot be reached, but an earlier download is here
    family: str = "CogVideoX"
    pickles: bool = False  # weights that are pickles are taken, too

    @property
    def prompt_style(self) -> str:
        """The name of the style that prompts for it are written in."""
        return BUILT_IN if self.name == BUILT_IN else self.family.lower()

    @property
    def defaults(self) -> Defaults:
        """What its edits do where their settings leave it open."""
        return BUILT_IN_DEFAULTS if self.name == BUILT_IN else PUBLISHED_DEFAULTS


@dataclass(frozen=True)
class Loaded:
    """A model in memory, for one edit after the other."""

    checkpoint: Checkpoint
    backbone: Backbone


def find(model: str = BUILT_IN, revision: str | None = None, allow_pickle: bool = False) -> Checkpoint:
    """Finds a model by its index alone; `load` says what both take.

    Raises:
        UserError: the model cannot be found, is not of a known family, lacks a part, or has it as a pickle only.
    """
    folder = BUILT_IN_FOLDER if model == BUILT_IN else Path(model)
    if folder.is_dir():
        checkpoint, path = Checkpoint(model, str(folder)), folder / INDEX
        if not path.is_file():
            raise UserError(f"{folder} is not a model: a diffusers folder has a {INDEX}")
    elif model == BUILT_IN:
        raise UserError(f"this installation lacks the built-in model ({folder}); install it again or name a --model")
    elif folder.exists() or model.count("/") != 1 or model.startswith((".", "/")):
        raise UserError(f"no model {model!r}: give {BUILT_IN!r}, a Hugging Face id such as {PUBLISHED}, or a folder")
    else:
        path, reached = _fetched_index(model, revision)
        checkpoint = Checkpoint(model, model, path.parent.name, cached=not reached)
    try:
        index = read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {_first_line(error)}") from error
    index = index if isinstance(index, dict) else {}
    _check(model, index, folder if folder.is_dir() else None, allow_pickle)
    return replace(checkpoint, family=FAMILIES[index["_class_name"]], pickles=allow_pickle)


def outline(checkpoint: Checkpoint) -> Outline:
    """What is known of a model without its weights: of a hub id, some small files are fetched.

    Raises:
        UserError: they cannot be fetched or read.
    """
    from v2edit.backbones.cogvideox import outline as outline_of

    with _reading(checkpoint) as folder:
        return outline_of(folder, checkpoint.defaults)


def hollow(checkpoint: Checkpoint, dtype: DType, device: str) -> Hollow:
    """The model without its numbers, to count what it costs: of a hub id, some small files are fetched.

    Raises:
        UserError: they cannot be fetched or read.
    """
    import torch

    from v2edit.backbones.counting import Hollow

    with _reading(checkpoint) as folder:
        return Hollow(folder, getattr(torch, dtype_of(checkpoint, dtype, device_of(device))), checkpoint.defaults)


@contextmanager
def _reading(checkpoint: Checkpoint) -> Iterator[Path]:
    """The folder of a model's small files; what goes wrong with them is the user's to know."""
    from huggingface_hub import snapshot_download

    try:
        folder = checkpoint.source
        if checkpoint.commit:
            folder = snapshot_download(
                folder, revision=checkpoint.commit, allow_patterns=OUTLINE, local_files_only=checkpoint.cached
            )
        with quiet():
            yield Path(folder)
    except UserError:
        raise
    except STUMBLES as error:
        raise UserError(f"cannot read how {checkpoint.name} is made: {_first_line(error)}") from error


def weights_here(checkpoint: Checkpoint) -> bool:
    """Whether all of its weights are on this machine."""
    folder = Path(checkpoint.source)
    if checkpoint.commit:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(checkpoint.source, revision=checkpoint.commit, local_files_only=True))
        except (LocalEntryNotFoundError, OSError):
            return False
    return all(_whole(folder / part) for part, needs in PARTS.items() if needs is WEIGHTS)


def _whole(part: Path) -> bool:
    """Whether a part's weights lie in its folder, with all of the files that its index names."""
    files = {file.name for file in part.glob("*.safetensors")}
    try:
        named = [set(read_json(index)["weight_map"].values()) for index in part.glob("*.safetensors.index.json")]
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(files) and all(shards <= files for shards in named)


def dtype_of(checkpoint: Checkpoint, dtype: DType, device: Any) -> str:
    """The number format that `auto` means for a model on a torch device."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device.type == "cuda" and checkpoint.name != BUILT_IN else "float32"


def load(
    model: str | Checkpoint = BUILT_IN,
    device: str = "auto",
    dtype: DType = "auto",
    offload: Offload = "none",
    vae_tiling: bool = False,
    revision: str | None = None,
    allow_pickle: bool = False,
) -> Backbone:
    """Loads a video model.

    Args:
        model: "primitives" (built in), a Hugging Face id such as "zai-org/CogVideoX-5b", a diffusers folder, or
            what `find` made of one of them.
        device: a torch device; "auto" takes CUDA where there is one.
        dtype: "auto" is bfloat16 on CUDA and float32 elsewhere (and always for the built-in model).
        offload: "model" moves the parts from main memory to the GPU in turn, "group" streams layer by layer.
        vae_tiling: decode in tiles, for less memory.
        revision: of a hub id.
        allow_pickle: take weights that are pickles (.bin) where there are no others. They are unpickled as tensors and
            nothing else, so that code in them is refused and not run.

    Raises:
        UserError: the model cannot be found, is not of a known family, or lacks a part.
    """
    checkpoint = find(model, revision, allow_pickle) if isinstance(model, str) else model

    import torch
    from diffusers import CogVideoXPipeline
    from safetensors import SafetensorError

    from v2edit.backbones.cogvideox import CogVideoX, check_claims

    target = device_of(device)
    if offload != "none" and target.type == "cpu":
        raise UserError(f"--offload {offload} moves parts to a GPU, and the device is the CPU; leave it out")
    safe = None if checkpoint.pickles else True
    try:
        with quiet():
            folder = checkpoint.source
            if checkpoint.commit:
                folder = CogVideoXPipeline.download(
                    folder, revision=checkpoint.commit, local_files_only=checkpoint.cached, use_safetensors=safe
                )
            check_claims(Path(folder))
            numbers = getattr(torch, dtype_of(checkpoint, dtype, target))
            pipeline = CogVideoXPipeline.from_pretrained(folder, dtype=numbers, use_safetensors=safe)
    except UserError:
        raise
    except (*STUMBLES, SafetensorError) as error:
        raise UserError(f"cannot load the model {checkpoint.name}: {_first_line(error)}") from error
    backbone = CogVideoX(pipeline, checkpoint.name, checkpoint.defaults)
    backbone.place(target, offload)
    if vae_tiling:
        pipeline.vae.enable_tiling()
    return backbone


def _check(model: str, index: dict[str, Any], folder: Path | None, allow_pickle: bool) -> None:
    """Raises `UserError` for a model that cannot be edited with, as far as its index and its folder tell."""
    if (kind := str(index.get("_class_name"))) not in FAMILIES:
        what = f"a {kind}" if "_class_name" in index else "no pipeline"
        raise UserError(
            f"{model} is {what}, which cannot be edited with; known are the families "
            f"{', '.join(sorted(set(FAMILIES.values())))} (such as {PUBLISHED}) and the built-in {BUILT_IN!r}"
        )
    missing, pickled = [], []
    for part, needs in PARTS.items():
        kind = index.get(part)
        if not isinstance(kind, list) or kind[-1:] in ([], [None]) or (folder and not (folder / part).is_dir()):
            missing.append(f"its {part}")
        elif folder:
            lacks = [names for names in needs if not _any(folder / part, *names)]
            if (SAFE,) in lacks and _any(folder / part, PICKLED):
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
    for part, kind in index.items():
        if isinstance(kind, list) and (len(kind) != 2 or kind[0] not in (*LIBRARIES, None)):
            named = f"{kind[0]!r:.60}" if kind else "nothing"
            raise UserError(
                f"{model} wants code of {named} for its {part!r:.60}, which is not run; known are {LIBRARIES}"
            )
    if (scheduler := index["scheduler"][-1]) not in SCHEDULERS:
        raise UserError(f"{model} has the scheduler {scheduler}; known are {' and '.join(SCHEDULERS)}")


def _any(folder: Path, *names: str) -> bool:
    return any(file.is_file() for name in names for file in folder.glob(name))


def _fetched_index(model: str, revision: str | None) -> tuple[Path, bool]:
    """A hub model's index (in the folder of its commit), and whether the hub itself was reached for it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        with _quiet_log("huggingface_hub"):
            try:
                # Asked for once: a download alone repeats its question for half a minute.
                get_hf_file_metadata(hf_hub_url(model, INDEX, revision=revision))
                reached = True
            except (EntryNotFoundError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError):
                raise
            except Exception:  # no network, in one of its many forms; an earlier download may be here
                reached = False
            return Path(hf_hub_download(model, INDEX, revision=revision, local_files_only=not reached)), reached
    except LocalEntryNotFoundError as error:
        message = f"cannot reach the hub for {model}: is there a network? Or give a local folder as --model"
        raise UserError(message) from error
    except GatedRepoError as error:
        message = f"the model {model} is gated: accept its terms at its page on the hub, then log in (hf auth login)"
        raise UserError(message) from error
    except RepositoryNotFoundError as error:
        message = f"there is no model {model}, neither as a folder nor on the hub (a private one wants hf auth login)"
        raise UserError(message) from error
    except RevisionNotFoundError as error:
        raise UserError(f"the model {model} has no revision {revision!r}") from error
    except EntryNotFoundError as error:
        raise UserError(f"the model {model} is not a diffusers pipeline: it has no {INDEX}") from error
    except HFValidationError as error:
        raise UserError(f"{model!r} is no Hugging Face id, such as {PUBLISHED}, and there is no such folder") from error
    except OSError as error:
        raise UserError(f"cannot download {INDEX} of the model {model}: {_first_line(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' remarks, and without their bars for parts being read, which are many and short.
    Downloads keep theirs. Everything is as it was afterwards."""
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as of_transformers

    loggers = of_diffusers, of_transformers
    before = [(logger, logger.get_verbosity(), logger.is_progress_bar_enabled()) for logger in loggers]
    downloads = not are_progress_bars_disabled()

    def keep_download_bars() -> None:  # transformers' switch moves this one, too
        if downloads and are_progress_bars_disabled():
            enable_progress_bars()
        elif not downloads and not are_progress_bars_disabled():
            disable_progress_bars()

    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    keep_download_bars()
    try:
        with _quiet_log("huggingface_hub"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, verbosity, bars in before:
            logger.set_verbosity(verbosity)
            if bars:
                logger.enable_progress_bar()
        keep_download_bars()


@contextmanager
def _quiet_log(name: str) -> Iterator[None]:
    """Without a library's warnings in its log."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def device_of(name: str) -> Any:
    """The torch device of a name; auto is a GPU where there is one. Raises `UserError` for one that is not here."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"the device {name!r} cannot be used here: {_first_line(error)}") from error
    return device


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
