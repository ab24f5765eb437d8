"""The conversation with a language model that tests hold over HTTP."""

import numpy as np
import pytest

from support.models import tokenizer_of
from v2edit.errors import UserError
from v2edit.prompts import PromptPair
from v2edit.prompts.lvlm import LVLMConfig, generate_prompts, open_chat
from v2edit.prompts.style import read_style
from v2edit.prompts.tokens import PromptTokenizer

SOURCE = (
    "A small red boat with a white sail glides slowly over a calm mountain lake, its wake a thin line on the dark "
    "water. Pine trees stand along the shore, and the camera follows the boat from the side in soft morning light."
)
GOOD = {"source": SOURCE, "target": SOURCE.replace("red", "blue")}
PAIR = PromptPair(**GOOD)
KEY = "sk-test-0123456789abcdef"
STYLE = read_style("cogvideox")
TOKENIZER = PromptTokenizer(tokenizer_of(226, SOURCE), 226)
FRAMES = np.random.default_rng(0).integers(0, 256, (20, 30, 40, 3), dtype=np.uint8)
INSTRUCTION = "paint the boat blue"


def write(url: str, instruction: str = INSTRUCTION, subtasks: int = 1, **settings: object) -> PromptPair:
    config = LVLMConfig(model="m", url=url, **settings)
    with open_chat(config) as chat:
        return generate_prompts(chat, FRAMES, instruction, STYLE, TOKENIZER, config, subtasks)


def refused(url: str, **settings: object) -> str:
    """Return the error, one line without the key."""
    with pytest.raises(UserError) as error:
        write(url, **settings)
    text = str(error.value)
    assert "\n" not in text and KEY not in text
    assert error.value.__cause__ is None  # a traceback from Python contains no request either
    return text
