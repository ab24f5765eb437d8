"""The two prompts of an edit."""

from dataclasses import dataclass

from v2edit.errors import UserError


@dataclass(frozen=True)
class PromptPair:
    """What the video shows (`source`) and what it is to show (`target`), in the style the model is used to.

    The closer the two texts, the more of the video is kept: what differs between them is what is edited.
    Raises `UserError` when either is empty.
    """

    source: str
    target: str

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text.strip():
                raise UserError(
                    f"the {name} prompt is empty ({text!r}): describe the video "
                    f"{'as it is' if name == 'source' else 'as it should be'} with --{name}-prompt"
                )
