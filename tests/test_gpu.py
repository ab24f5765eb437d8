"""Tests that need a GPU, skipped where there is none; `make test-heavy` runs them."""

from dataclasses import replace

import pytest
import torch
from support.clips import PAIR, SAME, frames_of
from support.models import fake_model_of, pipeline_of
from torch.nn.attention import SDPBackend, sdpa_kernel

from v2edit import backbones
from v2edit.attention import (
    Replacement,
    Window,
    attention_with_lse,
    attention_with_lse_reference,
    replaced_attention,
    replaced_attention_reference,
    windowed_attention,
    windowed_attention_reference,
)
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.editing import EditConfig, Editor
from v2edit.editing.progression import aligned_text

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CONFIG = EditConfig(steps=10, beta=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("frames", "loop"), [(9, False), (25, False), (24, True)])
def test_the_source_comes_back_on_a_gpu(dtype, frames, loop):
    backbone = CogVideoX(pipeline_of("5b").to("cuda", dtype))
    x0 = backbone.encode(frames_of(0, frames), loop=loop)
    (back,) = Editor(backbone).subtasks(x0, aligned_text(backbone, SAME), replace(CONFIG, loop=loop))
    assert (back - x0).norm() <= 1e-4 * x0.norm()


KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [64, 32, 12])
@pytest.mark.parametrize("keys", [45, 1])
def test_the_kernels_give_the_log_sum_exp_that_the_reference_gives(kernel, dtype, channels, keys):
    q, k, v = (torch.randn(2, 3, n, channels, device="cuda", dtype=dtype) for n in (70, keys, keys))
    with sdpa_kernel([kernel, SDPBackend.MATH]):  # MATH where the kernel does not take these shapes
        got = attention_with_lse(q, k, v)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, expected in zip(got, attention_with_lse_reference(q, k, v), strict=True):
        torch.testing.assert_close(one.float(), expected.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loop", [False, True])
def test_windows_and_replaced_maps_on_a_gpu(kernel, dtype, loop):
    window, text = Window(7, 3, loop), 20
    q, k, v = (torch.randn(2, text + 7 * 30, 4, 64, device="cuda", dtype=dtype).transpose(1, 2) for _ in range(3))
    video = q[:, :, text:], window.with_halo(k[:, :, text:]), window.with_halo(v[:, :, text:])
    maps = Replacement(15, (((0, 1.0),), ((0, 1.0),)))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    with sdpa_kernel([kernel, SDPBackend.MATH]):
        got = (
            replaced_attention(q, k, v, maps, text),
            windowed_attention(q, k, v, video, window, text, maps),
        )
    expected = (
        replaced_attention_reference(q, k, v, maps, text),
        windowed_attention_reference(q, k, v, video, window, text, maps),
    )
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading_changes_nothing(offload, tiny_model):
    plain, offloaded = (
        Editor(backbones.load(str(tiny_model), device="cuda", dtype="float32", offload=mode)).edit(
            frames_of(1), PAIR, CONFIG
        )
        for mode in ("none", offload)
    )
    assert abs(plain.frames.astype(int) - offloaded.frames.astype(int)).max() <= 1


def test_a_seed_means_the_same_noise_on_every_device():
    def latents(device: str) -> torch.Tensor:
        backbone = CogVideoX(pipeline_of("5b").to(device))
        x0 = CogVideoX(pipeline_of("5b")).encode(frames_of(2)).to(device)
        return next(Editor(backbone).subtasks(x0, aligned_text(backbone, PAIR), EditConfig(steps=10))).cpu()

    torch.testing.assert_close(latents("cuda"), latents("cpu"), rtol=1e-2, atol=1e-2)


def test_memory_that_runs_out_ends_in_offloading_and_the_same_edit(caplog):
    """Every option in turn, in the middle of an edit."""
    config = EditConfig(steps=8, guidance=6.0)

    def edited(refusals: int) -> tuple[torch.Tensor, CogVideoX]:
        backbone = CogVideoX(pipeline_of("5b").to("cuda"))
        x0, text, left = backbone.encode(frames_of(0)), aligned_text(backbone, PAIR), [refusals]

        def refuse(*_: object) -> None:
            left[0] -= 1
            if left[0] >= 0:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        backbone.networks[0].patch_embed.register_forward_hook(refuse)
        (latents,) = Editor(backbone).subtasks(x0, text, config)
        backbone.decode(latents)
        return latents, backbone

    (whole, _), (pieces, backbone) = edited(0), edited(5)
    assert backbone.memory_mode.offload == "group" and [m.split("with ")[1] for m in caplog.messages][-2:] == [
        "--offload model, which is slower",
        "--offload group, which is slower",
    ]
    assert (pieces - whole).norm() <= 1e-4 * whole.norm()


def test_the_counted_peak_is_that_of_the_device(tiny_model):
    """Of a step, at a size where it is more than the allocator's blocks."""
    backbone, size = CogVideoX(pipeline_of("5b").to("cuda")), backbones.Size(49, 256, 256)
    latents, text = torch.randn(2, 13, 4, 64, 64, device="cuda"), [backbone.blank_text()] * 2
    schedule = backbone.schedule(10)
    backbone.denoise(latents, 0, schedule, text)  # Tables of positions are made once.
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    backbone.denoise(latents, 0, schedule, text)
    took = torch.cuda.max_memory_allocated() - before
    assert fake_model_of(tiny_model).forward(2, size).peak == pytest.approx(took, rel=0.25)
