"""Each metric of edits against an independent computation on fresh inputs."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from skimage.metrics import peak_signal_noise_ratio
from transformers import ViTConfig, ViTModel

from v2edit.errors import UserError
from v2edit.metrics.clip_score import ClipEncoder
from v2edit.metrics.perceptual import AlexNetLPIPS, StructureDistance, load_lpips
from v2edit.metrics.registry import METRICS, EditedClip, MetricOptions
from v2edit.metrics.temporal import colour_drift, flow_between, warp, warp_error
from v2edit.prompts import PromptPair

WEIGHTS = Path(os.environ.get("V2EDIT_DATA", "../shared/data")) / "weights/lpips_alexnet.npz"


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture, uint8 [H, W, 3], whose motion can be seen."""
    coarse = np.random.default_rng(seed).random((3, height // 8 + 2, width // 8 + 2))
    y, x = np.mgrid[:height, :width] / 8.0
    planes = [map_coordinates(one, [y, x], order=3, mode="reflect") for one in coarse]
    return (np.stack(planes, -1).clip(0, 1) * 200).astype(np.uint8)


def moving(count: int = 4, step: int = 2, size: int = 64) -> np.ndarray:
    """Frames [T, S, S, 3] of a picture that moves to the left by `step` pixels a frame."""
    wide = texture(size, size + step * count)
    return np.stack([wide[:, k * step : k * step + size] for k in range(count)])


def measure(name: str, clip: EditedClip) -> dict[str, float]:
    encoder = ClipEncoder.load() if METRICS[name].needs_clip else None
    return dict(METRICS[name].load(MetricOptions(), encoder)(clip))


def test_every_metric_says_what_it_means_and_cannot_tell() -> None:
    for metric in METRICS.values():
        for name, column in metric.columns.items():
            assert column.note and column.limits, name


def test_pixels_are_measured_where_the_mask_says() -> None:
    rng = np.random.default_rng(1)
    source, edited, target = (rng.integers(0, 256, (2, 24, 20, 3), dtype=np.uint8) for _ in range(3))
    mask = np.zeros((2, 24, 20), bool)
    mask[:, :, :9] = True
    found = measure("pixels", EditedClip(source, edited, mask=mask, target=target))
    outside = [frames[:, :, 9:] for frames in (source, edited)]
    assert found["psnr_outside"] == pytest.approx(peak_signal_noise_ratio(*outside))
    assert found["psnr_target"] == pytest.approx(peak_signal_noise_ratio(target, edited))
    assert found.keys() == {"psnr_outside", "ssim_outside", "psnr_target", "ssim_target"}
    same = measure("pixels", EditedClip(source, source))
    assert same["psnr_source"] > 59 and same["ssim_source"] == pytest.approx(1)


def test_warping_is_bilinear_and_flow_finds_a_motion() -> None:
    image, flow = texture(32, 40), np.random.default_rng(2).uniform(-1.4, 1.4, (32, 40, 2)).astype(np.float32)
    y, x = np.mgrid[:32, :40].astype(np.float32)
    expected = map_coordinates(image[..., 0].astype(float), [y + flow[..., 1], x + flow[..., 0]], order=1)
    inner = slice(3, -3), slice(3, -3)
    assert np.abs(warp(image, flow)[..., 0] - expected)[inner].max() < 200 / 32  # OpenCV has 32 steps between pixels
    found, visible = flow_between(*moving(2, step=3))
    assert np.abs(found[visible] - [-3, 0]).mean() < 0.3 and visible.mean() > 0.7


def test_warp_error_is_of_what_does_not_follow_the_source() -> None:
    source = moving()
    assert warp_error(source, source) < 0.2
    flickering = (source.astype(int) + np.array([10, -10, 10, -10])[:, None, None, None]).clip(0, 255).astype(np.uint8)
    assert warp_error(flickering, source) == pytest.approx(1000 * (20 / 255) ** 2, rel=0.2)
    assert warp_error(source[::-1], source) > 10 * warp_error(source, source)
    assert math.isnan(warp_error(source[:1], source[:1]))


def test_colour_drift_by_hand() -> None:
    source = np.full((2, 4, 6, 3), 100, np.uint8)
    edited, outside = source.copy(), np.ones((2, 4, 6), bool)
    edited[0, ..., 0] += 6  # one of six means is off by 6
    assert colour_drift(edited, source, outside) == pytest.approx(math.sqrt(36 / 6))
    edited[:, :2] = 0
    outside[:, :2] = False
    assert colour_drift(edited, source, outside) == pytest.approx(math.sqrt(6))
    assert math.isnan(colour_drift(edited, source, ~outside & outside))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_clip_figures_by_cosines() -> None:
    clip, frames = ClipEncoder.load(), np.stack([texture(64, 64, seed) for seed in range(3)])
    pair = PromptPair("a red ball bounces", "a blue cube hops")
    found = measure("clip", EditedClip(frames[::-1], frames, pair))
    images, texts = clip.encode_images(frames).numpy(), clip.encode_texts([pair.source, pair.target]).numpy()
    before = images[::-1]
    assert found["clip_text"] == pytest.approx(100 * np.mean([cosine(one, texts[1]) for one in images]), abs=1e-3)
    pairs = [cosine(images[i], images[j]) for i in range(3) for j in range(i)]
    assert found["clip_frames"] == pytest.approx(100 * np.mean(pairs), abs=1e-3)
    changes = [cosine(e - o, texts[1] - texts[0]) if np.any(e - o) else 0 for o, e in zip(before, images, strict=True)]
    assert found["ctids"] == pytest.approx(np.mean(changes), abs=1e-3)
    steps = [cosine(before[k + 1] - before[k], images[k + 1] - images[k]) for k in range(2)]
    assert found["cdc"] == pytest.approx(np.mean(steps), abs=1e-3)
    assert math.isnan(measure("clip", EditedClip(frames[[0, 0]], frames[:2], pair))["cdc"])  # a still source


@pytest.mark.skipif(not WEIGHTS.exists(), reason=f"{WEIGHTS} is not there")
def test_lpips_as_its_authors_write_it() -> None:
    """Against torch's own layers, in float64, with the distance written out."""
    a, b = (np.stack([texture(64, 96, seed + k) for k in range(2)]) for seed in (0, 10))
    with np.load(WEIGHTS) as file:
        arrays = {name: torch.from_numpy(file[name].astype(np.float64)) for name in file.files}
    layers, expected = torch.nn.ModuleList(), torch.zeros(2, dtype=torch.float64)
    for k, (stride, padding) in enumerate(((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))):
        weight = arrays[f"conv{k}.weight"]
        layer = torch.nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], stride, padding).double()
        layer.load_state_dict({"weight": weight, "bias": arrays[f"conv{k}.bias"]})
        layers.append(layer)
    xs = []
    for frames in (a, b):
        x = torch.from_numpy(frames).double().permute(0, 3, 1, 2) / 127.5 - 1
        mean, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        xs.append((x - mean.view(3, 1, 1)) / scale.view(3, 1, 1))
    pool = torch.nn.MaxPool2d(3, 2)
    with torch.no_grad():
        for k, layer in enumerate(layers):
            xs = [torch.relu(layer(pool(x) if k in (1, 2) else x)) for x in xs]
            units = [x / x.norm(dim=1, keepdim=True).clamp_min(1e-10) for x in xs]
            expected += (arrays[f"lin{k}.weight"] * (units[0] - units[1]) ** 2).sum(1).mean((1, 2))
    distance = load_lpips(WEIGHTS)
    assert torch.allclose(distance(a, b).double(), expected, rtol=1e-4) and distance(a, a).abs().max() == 0
    options = MetricOptions(lpips=WEIGHTS)
    mask = np.ones((2, 64, 96), bool)
    mask[:, 0, 0] = False
    inside = dict(METRICS["lpips"].load(options, None)(EditedClip(a, b, mask=mask)))
    assert inside["lpips_outside"] < 0.01 < dict(METRICS["lpips"].load(options, None)(EditedClip(a, b)))["lpips_source"]


def test_lpips_without_weights_is_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    for path in (tmp_path / "none.npz", tmp_path / "other.npz"):
        with pytest.raises(UserError, match="weights of LPIPS"):
            AlexNetLPIPS.load(path)


def test_structure_distance_is_of_the_last_layers_keys() -> None:
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                               image_size=224, patch_size=32), add_pooling_layer=False)  # fmt: skip
    a, b = texture(224, 224, 1), texture(224, 224, 2)
    found = StructureDistance(model)(np.stack([a, a]), np.stack([b, a]))

    def similarity(frame: np.ndarray) -> np.ndarray:
        x = (frame.astype(np.float32) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        pixels = torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None]
        with torch.no_grad():
            hidden = model(pixels, output_hidden_states=True).hidden_states[-2]
            last = dict(model.named_modules())["layers.1"]
            keys = last.attention.k_proj(last.layernorm_before(hidden))[0].numpy()
        return np.array([[cosine(one, other) for other in keys] for one in keys])

    expected = float(np.mean((similarity(a) - similarity(b)) ** 2))
    assert found[0].item() == pytest.approx(expected, rel=1e-3) and found[1] == 0
    with pytest.raises(UserError, match="no DINO"):
        StructureDistance.load("/nowhere")
