"""Chat with a vision-language model that transformers runs in this process: `--lvlm local:HUB_ID_OR_FOLDER`."""

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from v2edit.errors import UserError
from v2edit.host import quiet_libraries, release_memory
from v2edit.prompts.chat import Answer, Message, Picture, to_single_line

log = logging.getLogger(__name__)
MAX_TOKENS = 2048  # of an answer


class LocalChat:
    """An image-text-to-text model of transformers, from a hub id or a folder. `close` frees its memory. Decoding is
    greedy: equal questions give equal answers."""

    def __init__(self, model: str, device: str = "auto", max_tokens: int = MAX_TOKENS) -> None:
        self.name, self.max_tokens = model, max_tokens
        model = find_folder(model)
        log.info("loading %s", model)
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        with _one_line_errors(f"cannot load the language model {model}"), quiet_libraries():
            self._processor: Any = AutoProcessor.from_pretrained(model)
            if not getattr(self._processor, "chat_template", None) or not hasattr(self._processor, "image_processor"):
                raise UserError(f"{model} is no vision-language model: it has no processor with a chat template")
            self._model: Any = AutoModelForImageTextToText.from_pretrained(model, dtype="auto", use_safetensors=True)
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            self._model.to(device).eval().requires_grad_(False)

    def ask(self, messages: Sequence[Message], schema: dict[str, Any]) -> Answer:
        with _one_line_errors(f"the language model {self.name} failed"), quiet_libraries():
            inputs = self._processor.apply_chat_template(
                [_to_chat_template(message) for message in messages],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            ).to(self._model.device, dtype=self._model.dtype)
            out = self._model.generate(**inputs, max_new_tokens=self.max_tokens, do_sample=False)
        answer = out[0, inputs["input_ids"].shape[1] :]
        return Answer(self._processor.decode(answer, skip_special_tokens=True).strip(), len(answer) >= self.max_tokens)

    def identify(self) -> str:
        """Return the model's id and commit, or its folder and the sizes and times of the files in it."""
        folder = Path(self._model.config._name_or_path)
        if not folder.is_dir():
            return f"local {self.name} {getattr(self._model.config, '_commit_hash', None)}"
        files = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
        return f"local {json.dumps([str(folder.resolve()), [(name, s.st_size, s.st_mtime_ns) for name, s in files]])}"

    def close(self) -> None:
        self._model = self._processor = None
        release_memory()


def find_folder(model: str) -> str:
    """Return a hub id as it is, or an existing folder's path. Raises `UserError` for a folder that does not exist."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith(".") or os.sep + "." in model:
        raise UserError(f"no such folder: {model}")
    return model


def _to_chat_template(message: Message) -> dict[str, Any]:
    from PIL import Image

    parts = [
        {"type": "image", "image": Image.open(BytesIO(part.jpeg))}
        if isinstance(part, Picture)
        else {"type": "text", "text": part}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


@contextmanager
def _one_line_errors(what: str) -> Iterator[None]:
    """Turn the errors of transformers, the hub and a model's chat template into UserErrors of one line."""
    from jinja2 import TemplateError
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        packages = dict.fromkeys(re.findall(r"pip install ([\w.-]+)|Package `([\w.-]+)`|the (\w+) library", str(error)))
        names = list(dict.fromkeys(name.lower() for found in packages for name in found if name))
        needs = f"it needs {' and '.join(names)}: pip install {' '.join(names)}" if names else str(error)
        raise UserError(f"{what}: {to_single_line(needs)[:300]}") from error
    except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError, TemplateError) as error:
        raise UserError(f"{what}: {to_single_line(str(error))[:300] or type(error).__name__}") from error
