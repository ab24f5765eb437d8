"""Files of weights that options name beside the model: where each is, and what it is for. Loads no torch."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from v2edit.errors import UserError, first_line

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
Expert = Literal["high", "low"]


@dataclass(frozen=True)
class WeightFile:
    """A file on this machine, or in a Hugging Face repository as owner/name/file."""

    option: str  # that named it
    source: str
    expert: Expert | None = None  # of two, the one for much noise or for little
    scale: float = 1.0

    @classmethod
    def parse(cls, option: str, text: str, suffixes: tuple[str, ...], scaled: bool = False) -> WeightFile:
        """Read [high=|low=]FILE or, where it may be `scaled`, [high=|low=]FILE[:SCALE]. Raises `UserError` for a
        pickle, another suffix, or a scale that is no number."""
        expert, rest = None, text
        if found := re.match(r"(high|low)=", text):
            expert, rest = found[1], text[found.end() :]
        source, scale = rest, 1.0
        if scaled and not rest.endswith(suffixes):
            source, _, number = rest.rpartition(":")
            try:
                scale = float(number) if source else 1.0
            except ValueError:  # C:\lora
                source = rest
            source = source or rest
        ending = Path(source).suffix.lower()
        if ending in PICKLES:
            raise UserError(f"{option} {source} is a pickle, which can hold code: convert it to safetensors")
        if ending not in suffixes:
            raise UserError(f"{option} is {text!r}, expected {cls.form(suffixes, scaled)}")
        if not math.isfinite(scale):
            raise UserError(f"{option} {source}: its scale is {scale}, expected a number")
        return cls(option, source, expert, scale)  # pyright: ignore[reportArgumentType] (the expert, by the pattern)

    @staticmethod
    def form(suffixes: tuple[str, ...], scaled: bool) -> str:
        """Describe what an option takes."""
        kinds = " or ".join(suffixes)
        return f"a {kinds} file, here or on the hub (owner/name/file{suffixes[0]}){', and a :scale' if scaled else ''}"

    @property
    def is_local(self) -> bool:
        """Whether it is a file of this machine, or could be nothing else."""
        path = Path(self.source)
        return path.is_file() or path.is_absolute() or self.source.startswith(".") or self.source.count("/") < 2

    @property
    def absolute(self) -> str:
        """The option's text with an absolute path, which means the same from any folder."""
        source = os.path.abspath(self.source) if self.is_local else self.source
        expert = f"{self.expert}=" if self.expert else ""
        return f"{expert}{source}{'' if self.scale == 1.0 else f':{self.scale:g}'}"

    def fetch(self) -> Path:
        """Return the path of the file, downloaded where it is on the hub. Raises `UserError` where there is none."""
        if self.is_local:
            if not Path(self.source).is_file():
                raise UserError(f"{self.option}: there is no file {self.source}")
            return Path(self.source)
        from huggingface_hub import errors, hf_hub_download

        owner, name, file = self.source.split("/", 2)
        try:
            return Path(hf_hub_download(f"{owner}/{name}", file))
        except errors.LocalEntryNotFoundError as error:
            raise UserError(f"{self.option}: no file {self.source} here, and the hub cannot be reached") from error
        except errors.GatedRepoError as error:
            raise UserError(
                f"{self.option}: {owner}/{name} is gated: accept its terms at its page on the hub, then hf auth login"
            ) from error
        except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.HFValidationError) as error:
            raise UserError(f"{self.option}: there is no {self.source}, neither here nor on the hub") from error
        except OSError as error:
            raise UserError(f"{self.option}: cannot download {self.source}: {first_line(error)}") from error

    def part(self, model: str, experts: int) -> str:
        """Return the name of the transformer that it is for, in a pipeline of so many. Raises `UserError` where it says
        which and there is one, or does not and there are two."""
        if experts == 1 and self.expert is not None:
            raise UserError(
                f"{self.option} {self.expert}={self.source}: {model} has one transformer; leave out {self.expert}="
            )
        if experts == 2 and self.expert is None:
            raise UserError(
                f"{self.option} {self.source}: {model} has two transformers: say high={self.source} for that of much "
                "noise, low=… for that of little, or give both"
            )
        return "transformer_2" if self.expert == "low" else "transformer"
