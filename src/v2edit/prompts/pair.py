"""The prompts of an edit, and the file that they are saved in."""

import json
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path

from v2edit.errors import UserError
from v2edit.files import read_json

MAX_INTERMEDIATE = 5  # six subtasks, as in V2Edit Sec. 4.1


@dataclass(frozen=True)
class PromptPair:
    """Descriptions of the video before (`source`) and after the edit (`target`), in the style of the model's captions.
    The words in which they differ are edited; the closer the two texts, the more of the video stays. `intermediate` are
    the prompts of the steps between, mildest first, where they are written and not interpolated: n of them make n + 1
    subtasks. Raises `UserError` when a prompt is empty or there are more than five of these."""

    source: str
    target: str
    intermediate: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "intermediate", tuple(self.intermediate))  # a JSON file has a list
        for name in ("source", "target"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text.strip():
                raise UserError(
                    f"the {name} prompt is empty ({text!r}): describe the video "
                    f"{'as it is' if name == 'source' else 'as it should be'} with --{name}-prompt"
                )
        if not all(isinstance(text, str) and text.strip() for text in self.intermediate):
            raise UserError(f"an intermediate prompt is empty: {list(self.intermediate)}")
        for text in self.chain:
            # Prompts end up in terminals, pictures and files; and no tokenizer accepts half a character.
            if odd := [c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\r\n"]:
                raise UserError(f"a prompt has a character in it that is no text ({odd[0]!r}): {text:.80}")
        if len(self.intermediate) > MAX_INTERMEDIATE:
            raise UserError(
                f"{len(self.intermediate)} intermediate prompts are too many: {MAX_INTERMEDIATE} make "
                f"{MAX_INTERMEDIATE + 1} subtasks, which is the most"
            )

    @property
    def chain(self) -> tuple[str, ...]:
        """Return all prompts in order, p_0 (source) to p_S (target)."""
        return (self.source, *self.intermediate, self.target)


def write_prompts(path: Path, prompts: PromptPair, instruction: str | None) -> None:
    """Write prompts to a JSON file that a person can edit and `read_prompts` reads. Raises `UserError` where the file
    exists, which is never overwritten, or cannot be written."""
    text = json.dumps({"instruction": instruction, "prompts": asdict(prompts)}, indent=2, ensure_ascii=False)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text + "\n")
    except FileExistsError:
        raise UserError(f"{path} exists; choose another -o or remove it") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another -o") from error


def read_prompts(path: Path) -> tuple[PromptPair, str | None]:
    """Read the prompts and their instruction from a file of `write_prompts` or from a run's manifest. Raises
    `UserError` where there is no such file, or it holds no prompts."""
    expected = 'expected {"prompts": {"source": "…", "target": "…"}}, as v2edit prompts -o and a run.json have it'
    try:
        manifest = read_json(path)
    except OSError as error:
        raise UserError(f"cannot read the prompts in {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); {expected}") from error
    prompts = manifest.get("prompts") if isinstance(manifest, dict) else None
    if not isinstance(prompts, dict) or not {"source", "target"} <= prompts.keys():
        raise UserError(f"{path} holds no prompts: {expected}")
    if unknown := prompts.keys() - {"source", "target", "intermediate"}:
        raise UserError(f"{path} has {', '.join(map(repr, sorted(unknown)))} among its prompts; {expected}")
    intermediate = prompts.get("intermediate") or []
    if not isinstance(intermediate, list):
        raise UserError(f"the intermediate prompts in {path} are no list of texts: {intermediate!r:.80}")
    instruction = manifest.get("instruction")
    pair = PromptPair(prompts["source"], prompts["target"], tuple(intermediate))
    return pair, instruction if isinstance(instruction, str) else None
