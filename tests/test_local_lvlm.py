"""A vision-language model in this process: real LLaVA classes of transformers at tiny size, from a folder on disk."""

import json
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import tokenizer_of
from tokenizers import Tokenizer as Rust
from tokenizers import decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from v2edit import backbones, video
from v2edit.backbones import loading
from v2edit.editing import EditConfig
from v2edit.errors import UserError
from v2edit.jobs.functions import edit_video
from v2edit.prompts import PromptPair
from v2edit.prompts.chat import Message, Picture
from v2edit.prompts.local import LocalChat, _to_chat_template
from v2edit.prompts.lvlm import LVLMConfig, answer_schema, generate_prompts, open_chat
from v2edit.prompts.style import read_style
from v2edit.prompts.tokens import PromptTokenizer

PAIR = PromptPair("a red ball on the floor", "a blue ball on the floor")
ANSWER = json.dumps({"source": PAIR.source, "target": PAIR.target})
INSTRUCTION = "make it blue"
FRAMES = np.full((3, 32, 32, 3), 120, np.uint8)
# Like the chat templates on the hub: marked turns, pictures at their place, the system's turn first.
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Save a LLaVA of 60,000 random weights with its processor; its tokenizer splits into characters."""
    letters = [chr(k) for k in range(32, 127)]
    marks = ["<pad>", "</s>", "<unk>", "<image>", "<system>", "<user>", "<assistant>"]
    rust = Rust(models.WordLevel({piece: k for k, piece in enumerate([*marks, *letters])}, unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    rust.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rust, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=marks[3:],
    )  # fmt: skip
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="full", image_token="<image>",
        chat_template=template, num_additional_image_tokens=1,
    )  # fmt: skip
    torch.manual_seed(0)
    size = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**size, image_size=16, patch_size=8, projection_dim=48),
            text_config=LlamaConfig(**size, vocab_size=len(tokenizer), max_position_embeddings=4096,
                                    pad_token_id=0, bos_token_id=None, eos_token_id=1),
            image_token_index=3, vision_feature_layer=-1, vision_feature_select_strategy="full",
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A style of few words, for a model that reads letter by letter."""
    folder = tmp_path_factory.mktemp("style")
    example = {"frames": "f", "instruction": "i", "source": PAIR.source, "target": PAIR.target}
    lines = ["system = 'Answer as JSON.'", "progression = 'p'", "[[describing]]", "frames = 'f'", "prompt = 'p'"]
    lines += ["[[editing]]", *(f"{key} = {value!r}" for key, value in example.items())]
    (folder / "style.toml").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("lvlm") / "untrained")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, style: Path) -> Path:
    """The same model, trained on one answer: it gives that answer because of its weights."""
    folder = save(tmp_path_factory.mktemp("lvlm") / "trained")
    chat = LocalChat(str(folder), "cpu")
    model, processor = chat._model, chat._processor
    turns = [_to_chat_template(message) for message in messages_of(style)]
    inputs = dict(processor.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, tokenize=True,
                                               return_tensors="pt"))  # fmt: skip
    answer = processor.tokenizer(ANSWER + "</s>", return_tensors="pt").input_ids
    before, ids = inputs["input_ids"].shape[1], torch.cat([inputs["input_ids"], answer], 1)
    labels = torch.where(torch.arange(ids.shape[1]) < before, -100, ids)
    optimizer = torch.optim.AdamW(model.requires_grad_(True).parameters(), 4e-3)
    for _ in range(300):
        loss = model(input_ids=ids, pixel_values=inputs["pixel_values"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.02:
            break
    model.save_pretrained(folder)
    return folder


def messages_of(style: Path) -> list[Message]:
    pictures = [Picture.from_frame(frame) for frame in FRAMES[[0, 2]]]
    return read_style(style).build_messages(pictures, INSTRUCTION)


def test_a_chat_goes_through_the_models_own_template(untrained: Path, style: Path) -> None:
    chat = LocalChat(str(untrained), "cpu", max_tokens=12)
    calls: list[dict] = []
    pictures: list[torch.Tensor] = []
    chat._model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: pictures.extend([*args, *kwargs.values()][:1]), with_kwargs=True
    )
    chat._model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    answers = [chat.ask(messages_of(style), answer_schema(False)) for _ in range(2)]
    assert answers[0] == answers[1]  # greedy
    assert answers[0].truncated  # random weights never end an answer
    text = chat._processor.tokenizer.decode(calls[0]["input_ids"][0])
    assert text.startswith("<system>Answer as JSON.</s><user>") and text.endswith("</s><assistant>")
    assert re.search(f"<user>Instruction: {INSTRUCTION}(<image>){{10}}</s>", text)  # five tokens for each picture
    assert pictures[0].shape == (2, 3, 16, 16)
    chat.close()
    assert chat._model is None


def test_answers_without_prompts_are_an_error_of_one_line(untrained: Path, style: Path) -> None:
    config = LVLMConfig(model=f"local:{untrained}", frames=2)
    with open_chat(config, "cpu") as chat:
        assert isinstance(chat, LocalChat)
        chat.max_tokens = 12
        with pytest.raises(UserError, match=r"3 answers of .*untrained.*cut off") as error:
            generate_prompts(
                chat, FRAMES, INSTRUCTION, read_style(style), PromptTokenizer(tokenizer_of(40), 40), config
            )
    assert "\n" not in str(error.value) and "--source-prompt" in str(error.value)


def test_the_language_model_leaves_memory_before_the_video_model_is_loaded(
    trained: Path, style: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    """An edit from frames and an instruction: prompts, the language model released, then the video model."""
    clip = tmp_path / "clip.mp4"
    video.write(FRAMES, clip, fps=8)
    models: list[weakref.ref] = []
    init, load = LocalChat.__init__, loading.load

    def tracked_init(self: LocalChat, *args: str) -> None:
        init(self, *args)
        models.append(weakref.ref(self._model))

    def checked_load(*args, **options):
        assert models and models[0]() is None, "the language model is still in memory"
        return load(*args, **options)

    monkeypatch.setattr(LocalChat, "__init__", tracked_init)
    monkeypatch.setattr(loading, "load", checked_load)
    monkeypatch.setattr(backbones, "load", checked_load, raising=False)
    lvlm = LVLMConfig(model=f"local:{trained}", frames=2, style=str(style))
    run = edit_video(clip, INSTRUCTION, lvlm=lvlm, model=str(tiny_model), config=EditConfig(steps=2), device="cpu",
                     out=tmp_path / "run")  # fmt: skip
    assert run.prompts == PAIR and (run.folder / "edited.mp4").is_file()
    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["lvlm"]["model"] == f"local:{trained}" and facts["prompts"]["target"] == PAIR.target


@pytest.mark.parametrize("model", ["/no/where", "./mine", "../mine", "~/mine", "models/of/mine", "mine/", "my models"])
def test_a_folder_that_does_not_exist(model: str) -> None:
    with pytest.raises(UserError, match=f"^no such folder: {re.escape(model)}$"):
        LocalChat(model, "cpu")


@pytest.mark.parametrize(
    ("reason", "needs"),
    [
        ("Package `num2words` is required. Install it with `pip install num2words`.", "num2words"),
        ("X requires the Torchvision library but it was not found in your environment.\nSee https://x", "torchvision"),
        ("requires the Torchvision library and the num2words library", "torchvision and num2words"),
    ],
)
def test_a_missing_package_is_named(untrained: Path, monkeypatch: pytest.MonkeyPatch, reason: str, needs: str) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise ImportError(reason)

    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", refuse)
    with pytest.raises(UserError, match=f"it needs {needs}: pip install"):
        LocalChat(str(untrained), "cpu")


def test_a_local_judge_is_known_by_its_files(untrained: Path) -> None:
    names = []
    for _ in range(2):
        chat = LocalChat(str(untrained), "cpu")
        names.append(chat.identify())
        (untrained / "config.json").touch()
    assert names[0] != names[1] and all(str(untrained) in name for name in names)


def test_models_that_cannot_be_loaded_are_an_error_of_one_line(tmp_path: Path, style: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot load") as error:
        LocalChat(str(tmp_path), "cpu")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="chat template"):
        LocalChat(str(save(tmp_path / "dumb", template=None)), "cpu")
    chat = LocalChat(str(save(tmp_path / "strict", template="{{ raise_exception('no system turn, please') }}")), "cpu")
    with pytest.raises(UserError, match="no system turn, please"):
        chat.ask(messages_of(style), answer_schema(False))
