"""CTIDS and CDC: by hand on chosen embeddings, and over transformers' own CLIP classes at tiny size."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    SiglipConfig,
    SiglipModel,
    T5Config,
    T5EncoderModel,
)

from v2edit.errors import UserError
from v2edit.metrics.clip_score import ClipEncoder, cdc, ctids
from v2edit.primitives.classifier import SceneClassifier
from v2edit.primitives.clip import PrimitivesClip
from v2edit.primitives.questions import SLOTS
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import sample_scene

PROMPTS = ("a red ball on the floor", "a blue ball on the floor")


class KnownEmbeddings:
    """Embeddings written down: a frame stands for the direction whose angle, in degrees, is its red value."""

    def encode_images(self, frames: np.ndarray) -> torch.Tensor:
        angles = torch.deg2rad(torch.from_numpy(frames[:, 0, 0, 0].astype(np.float32)))
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    def encode_texts(self, prompts):
        return torch.tensor([[1.0, 0.0] if "red" in prompt else [0.0, 1.0] for prompt in prompts])


def frames_of(*angles: int) -> np.ndarray:
    return np.stack([np.full((2, 2, 3), angle, np.uint8) for angle in angles])


def test_by_hand():
    # Frame 1 goes from 0 to 90 degrees, exactly as the text does: 1. Frame 2 goes from 90 to 0, the other way: -1.
    # Frame 3 goes from 0 to 180 degrees, (-2, 0), and the text (-1, 1): cos 45 degrees.
    found = ctids(KnownEmbeddings(), frames_of(0, 90, 0), frames_of(90, 0, 180), *PROMPTS)
    assert found == pytest.approx((1 - 1 + 0.5**0.5) / 3, abs=1e-6)
    # The source goes (1,0) -> (0,1) -> (-1,0), by (-1,1) then (-1,-1); the edit (0,1) -> (-1,0) -> (1,0), by (-1,-1)
    # then (2,0): cosines 0 and -1/sqrt(2).
    found = cdc(KnownEmbeddings(), frames_of(0, 90, 180), frames_of(90, 180, 0))
    assert found == pytest.approx(-(0.5**0.5) / 2, abs=1e-6)


def tiny(kind: str) -> ClipEncoder:
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer().train_new_from_iterator(list(PROMPTS), 300)
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {**tower, **special, "vocab_size": len(tokenizer), "max_position_embeddings": 12}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    else:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    return ClipEncoder(model, CLIPProcessor(images, tokenizer))


@pytest.fixture(params=["clip", "siglip"])
def clip(request: pytest.FixtureRequest) -> ClipEncoder:
    return tiny(request.param)


def random_frames(seed: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 20, 3), dtype=np.uint8)


def test_over_the_real_classes_as_transformers_itself_embeds(clip: ClipEncoder):
    source, edited = random_frames(0), random_frames(1)

    def embedded(frames: np.ndarray) -> np.ndarray:
        rows = []
        for frame in frames:  # one by one, where Clip takes them together
            pixels = clip.processor.image_processor(frame, return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                rows.append(clip.model.get_image_features(pixels).pooler_output[0].numpy())
        return np.stack([row / np.linalg.norm(row) for row in rows])

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    o, e = embedded(source), embedded(edited)
    before, after = clip.encode_texts(PROMPTS).numpy()
    assert ctids(clip, source, edited, *PROMPTS) == pytest.approx(
        np.mean([cosine(b - a, after - before) for a, b in zip(o, e, strict=True)]), abs=1e-4
    )
    assert cdc(clip, source, edited) == pytest.approx(
        np.mean([cosine(o[k + 1] - o[k], e[k + 1] - e[k]) for k in range(3)]), abs=1e-4
    )


def test_what_must_hold_of_any_clip(clip: ClipEncoder):
    source, edited = random_frames(2), random_frames(3)
    there, back = ctids(clip, source, edited, *PROMPTS), ctids(clip, edited, source, *PROMPTS)
    assert there == pytest.approx(-back, abs=1e-5) and there != 0
    assert there == pytest.approx(-ctids(clip, source, edited, *PROMPTS[::-1]), abs=1e-5)
    assert ctids(clip, source, source, *PROMPTS) == 0
    assert cdc(clip, source, source) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(clip.encode_images(source).norm(dim=1), torch.ones(4))


def test_a_saved_folder_gives_the_same(clip: ClipEncoder, tmp_path: Path):
    clip.model.save_pretrained(tmp_path)
    clip.processor.save_pretrained(tmp_path)
    again = ClipEncoder.load(tmp_path)
    assert torch.allclose(again.encode_images(random_frames(4)), clip.encode_images(random_frames(4)), atol=1e-6)
    assert torch.allclose(again.encode_texts(PROMPTS), clip.encode_texts(PROMPTS), atol=1e-6)


def test_long_prompts_are_cut_with_a_note(clip: ClipEncoder, caplog: pytest.LogCaptureFixture):
    assert clip.encode_texts(["a red ball " * 100]).shape[0] == 1
    assert "CLIP reads 12 tokens of a prompt" in caplog.text


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path):
    clip = KnownEmbeddings()
    with pytest.raises(UserError, match="3 frames and the source 2"):
        ctids(clip, frames_of(0, 1), frames_of(0, 1, 2), *PROMPTS)
    with pytest.raises(UserError, match="two frames or more"):
        cdc(clip, frames_of(0), frames_of(0))
    with pytest.raises(UserError, match="no CLIP called"):
        ClipEncoder.load(tmp_path / "nowhere")
    T5EncoderModel(
        T5Config(vocab_size=8, d_model=8, d_kv=4, num_heads=2, d_ff=8, num_layers=1)
    ).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(UserError, match="is no CLIP"):
        ClipEncoder(AutoModel.from_pretrained(tmp_path), None)


def built_in() -> PrimitivesClip:
    torch.manual_seed(0)
    return PrimitivesClip.new(CLIPTextConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=6, max_position_embeddings=5, eos_token_id=2,
    )).eval()  # fmt: skip


@torch.no_grad()
def test_the_built_in_one_is_what_was_saved_and_never_changes_the_classifier(tmp_path: Path):
    clip, frames = built_in(), torch.rand(2, 3, 64, 96) * 2 - 1
    clip.save(tmp_path)
    again, tokens = PrimitivesClip.load(tmp_path).eval(), {"input_ids": torch.tensor([[1, 5, 2], [1, 7, 2]])}
    for one, other in ((clip, again), (again, PrimitivesClip.load(tmp_path).eval())):
        for get, inputs in (("get_image_features", {"pixel_values": frames}), ("get_text_features", tokens)):
            before, after = getattr(one, get)(**inputs), getattr(other, get)(**inputs)
            assert before.shape == (2, 6)
            torch.testing.assert_close(after, before, rtol=1e-2, atol=1e-2)  # half precision
    assert not any("classifier" in name for file in tmp_path.glob("*.safetensors") for name in load_file(file))
    clip.train()
    clip.get_image_features(frames)
    for name, tensor in SceneClassifier.load().state_dict().items():
        assert torch.equal(tensor, clip.classifier.state_dict()[name]), name
    assert not any(parameter.requires_grad for parameter in clip.classifier.parameters())


def test_loading_the_built_in_one_prints_nothing(capfd):
    ClipEncoder.load()
    assert capfd.readouterr() == ("", "")


@torch.no_grad()
def test_the_built_in_one_sees_what_the_classifier_answers_by():
    scene = sample_scene(Random(3))
    video = as_pixels(render_clip(scene, 1).frames)
    classifier = SceneClassifier.load()
    seen = classifier.look(video[None])
    assert seen.shape == (1, 1, len(SLOTS) + classifier.OF_SCENE, classifier.WIDTH)
    clip = built_in()
    assert torch.equal(clip.get_image_features(video), clip.image(seen[:, 0]))
    assert not torch.equal(clip.get_image_features(video.flip(3)), clip.get_image_features(video))


def as_pixels(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
