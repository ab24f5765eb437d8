"""Kernels of attention: what one returns is compared with explicit logits before an edit relies on it."""

import logging
import math
import os
import sys
from collections.abc import Callable
from functools import cache

import pytest
import torch
from support.attention import TOLERANCE, randn
from support.clips import PAIR, frames_of
from support.families import FAMILIES
from support.kernels import FAULTY, base_2, forget_checks, install, raising, replace_cpu_kernel, without_mean
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend

from v2edit import backbones
from v2edit.attention import attention_with_lse, attention_with_lse_reference, kernels
from v2edit.backbones import versions
from v2edit.backbones.fake import count
from v2edit.cli.app import main
from v2edit.editing import EditConfig, Editor
from v2edit.editing.progression import aligned_text
from v2edit.errors import UserError

CPU = torch.device("cpu")
CONFIG = EditConfig(steps=4, guidance=6.0)


def edited(family: str, before: Callable[[], None] = lambda: None, kernel: str = "torch") -> Tensor:
    """Edit a clip's latents, after doing something `before` that encoding is not to see."""
    backbone = FAMILIES[family]()
    backbone.call.kernel = kernel
    x0, text = backbone.encode(frames_of(0)), aligned_text(backbone, PAIR)
    before()
    (latents,) = Editor(backbone).subtasks(x0, text, CONFIG)
    return latents


@cache
def right_edit(family: str) -> Tensor:
    return edited(family)


@pytest.mark.parametrize(
    ("family", "fault"),
    [*(("CogVideoX 5b", fault) for fault in FAULTY), ("Wan 2.1", "base 2"), ("Wan 2.1", "an error")],
)
def test_an_edit_is_right_whatever_a_kernel_returns(family, fault, monkeypatch, caplog):
    expected = right_edit(family)
    replace_cpu_kernel(monkeypatch, FAULTY[fault])
    assert (edited(family) - expected).norm() <= 1e-5 * expected.norm()
    about = [message for message in caplog.messages if message.startswith("attention by cpu")]
    assert 1 <= len(about) <= 2, "of several keys, and of one if there was such a call"
    assert ("corrected" in about[0]) == (fault == "base 2")
    slow = [message for message in caplog.messages if "explicit logits" in message]
    assert len(slow) == (fault != "base 2"), "said once"


def test_a_kernel_is_checked_once(monkeypatch):
    calls = []

    def counted(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(q.shape)
        return base_2(q, k, v)

    replace_cpu_kernel(monkeypatch, counted)
    q = randn(2, 2, 9, 8, seed=0)
    for _ in range(3):
        torch.testing.assert_close(attention_with_lse(q, q, q), attention_with_lse_reference(q, q, q))
    assert len(calls) == 4 and calls[1:] == [q.shape] * 3
    attention_with_lse(q.double(), q.double(), q.double())
    assert len(calls) == 6, "another dtype is another kernel"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("one_key", [False, True])
@pytest.mark.parametrize("head_size", [16, 64, 128])
def test_torchs_own_kernel_is_right_here(dtype, one_key, head_size):
    assert kernels.check_kernel(kernels.CPU, CPU, dtype, head_size, one_key) == kernels.KernelCheck("cpu", "right")


def test_a_loaded_model_has_its_kernels_checked(tiny_model, monkeypatch, caplog):
    replace_cpu_kernel(monkeypatch, base_2)
    backbones.load(str(tiny_model))
    assert "a log-sum-exp in base 2; its log-sum-exp is corrected" in caplog.text
    before = dict(kernels._checks)
    assert len(before) == 2, "of several keys and of one"
    caplog.clear()
    backbones.load(str(tiny_model))
    assert kernels._checks == before and not caplog.messages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tensors_without_data_are_not_checked(dtype, monkeypatch):
    forget_checks(monkeypatch)
    with FakeTensorMode():
        for device, channels in (("cpu", 64), ("cuda", 64), ("cuda", 12)):
            q = torch.empty(2, 3, 50, channels, device=device, dtype=dtype)
            out, lse = attention_with_lse(q, q, q)
            assert out.shape == q.shape and lse.shape == q.shape[:3] and out.device == lse.device == q.device
            names = [kernel.name for kernel in kernels.candidate_kernels(q, q, q)]
            expected = {"cpu": {"cpu"}, "cuda": {"flash", "efficient", "cudnn"} if channels == 64 else set()}[device]
            assert set(names) == expected and len(names) == len(expected)
    assert not kernels._checks


def test_torchs_math_kernel_is_never_taken_on_a_gpu(monkeypatch):
    """It holds all logits at once, 28 GiB of an edit of CogVideoX-5b: here none are held but a chunk's."""
    monkeypatch.setattr(kernels, "torch_choice", lambda q, k, v: SDPBackend.MATH.value)
    monkeypatch.setattr(kernels, "MAX_LOGITS", 10 * 2 * 3 * 500)
    with FakeTensorMode():
        q = torch.empty(2, 3, 500, 8, device="cuda")
        cost = count(lambda: kernels.attention(q, q, q))
    assert 0 < cost.peak < 4 * 2 * 3 * 500 * 500 / 4


# By the signatures of the packages.
def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False, **kwargs):
    assert tensor_layout == "HND" and not is_causal and not kwargs
    out, lse = attention_with_lse_reference(*((24 * x).round() / 24 for x in (q, k)), v)
    return (out, lse) if return_lse else out


def flash_attn_3(q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1), return_attn_probs=False):
    out, lse = attention_with_lse_reference(*(x.transpose(1, 2) for x in (q, k, v)))
    return (out.transpose(1, 2), lse) if return_attn_probs else out.transpose(1, 2)


def flash_attn_3_beta(q, k, v, softmax_scale=None, causal=False):
    return flash_attn_3(q, k, v, return_attn_probs=True)


def flash_attn_2(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, return_attn_probs=False):
    out = flash_attn_3(q, k, v, return_attn_probs=return_attn_probs)
    return (*out, None) if return_attn_probs else out


PACKAGES = {
    "flash2": ("flash_attn", "flash_attn_func", flash_attn_2),
    "flash3": ("flash_attn_interface", "flash_attn_func", flash_attn_3),
    "flash3, beta": ("flash_attn_interface", "flash_attn_func", flash_attn_3_beta),
    "sage": ("sageattention", "sageattn", sageattn),
}


@pytest.mark.parametrize(
    ("family", "option"), [*(("CogVideoX 5b", option) for option in PACKAGES), ("Wan 2.1", "flash3")]
)
def test_the_kernel_of_a_package_attends_everywhere(family, option, monkeypatch, caplog):
    package, name, function = PACKAGES[option]
    calls = []

    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return function(*args, **kwargs)

    expected = right_edit(family)
    install(monkeypatch, package, **{name: counted})

    def without_torchs_own() -> None:  # neither at controlled steps nor at free ones
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", raising)
        replace_cpu_kernel(monkeypatch, raising)

    got = edited(family, without_torchs_own, option.split(",")[0])
    assert (got - expected).norm() <= (0.1 if option == "sage" else 1e-5) * expected.norm()
    assert len(calls) > 20 and not caplog.messages


@pytest.mark.parametrize("fault", [without_mean, raising], ids=lambda f: f.__name__)
def test_a_package_that_is_wrong_is_not_taken(fault, monkeypatch, caplog):
    expected = right_edit("CogVideoX 5b")
    install(monkeypatch, "sageattention", sageattn=lambda q, k, v, tensor_layout, return_lse: fault(q, k, v))
    assert edited("CogVideoX 5b", kernel="sage").equal(expected)
    assert "attention by sage in float32" in caplog.text and "going on with the next kernel" in caplog.text


def test_a_package_that_is_missing_is_refused_before_weights_are_read():
    with pytest.raises(UserError, match="--attention sage: there is no package sageattention"):
        backbones.load(attention="sage")


def test_a_package_of_another_torch_is_refused(monkeypatch):
    def broken(name: str) -> None:
        raise OSError("undefined symbol: _ZN3c10")

    monkeypatch.setattr(kernels, "import_module", broken)
    with pytest.raises(UserError, match="cannot be loaded: undefined symbol"):
        kernels.expect_kernel("flash3")


def test_all_kernels_of_a_device_are_listed(monkeypatch):
    install(monkeypatch, "sageattention", sageattn=sageattn)
    found = {check.name: check for check in kernels.survey_kernels(CPU, torch.float32, 64)}
    assert {name: check.result for name, check in found.items()} == {
        "cpu": "right", "flash2": "missing", "flash3": "missing", "sage": "right",
    }  # fmt: skip
    assert found["sage"].usable and not found["flash2"].usable and "no package flash_attn" in found["flash2"].reason


def test_running_out_of_memory_is_no_fault_of_a_kernel(monkeypatch):
    def full(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    replace_cpu_kernel(monkeypatch, full)
    q = randn(1, 1, 4, 8, seed=0)
    with pytest.raises(torch.OutOfMemoryError):
        attention_with_lse(q, q, q)
    assert not kernels._checks


@pytest.mark.parametrize(
    ("torch_version", "cudnn", "fatal", "count"),
    [
        ("2.13.0+cu130", 92000, False, 0),
        ("2.9.0+cu128", 91002, True, 1),
        ("2.9.1+cu130", 91500, True, 1),
        ("2.10.0+cu128", 91002, False, 1),
        ("2.10.0+cu128", 91501, False, 0),
        ("2.8.0+cu128", 91002, False, 1),
        ("2.8.0+cu128", 90701, False, 0),
        ("2.6.0+cu124", 90100, False, 0),
        ("2.13.0", None, False, 0),
    ],
)
def test_bad_versions_are_known(torch_version, cudnn, fatal, count, monkeypatch, caplog):
    faults = versions.known_faults(torch_version, cudnn)
    assert len(faults) == count and any(fault.fatal for fault in faults) == fatal
    monkeypatch.setattr(torch, "__version__", torch_version)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    versions.check_versions(CPU)
    assert not caplog.messages, "on a CPU they do nothing"
    if fatal:
        with pytest.raises(UserError, match=r"install another one, such as torch 2\.13\.0"):
            versions.check_versions(torch.device("cuda"))
    else:
        versions.check_versions(torch.device("cuda"))
    assert len([one for one in caplog.records if one.levelno == logging.WARNING]) == count - fatal


def test_the_check_tells_base_2_from_the_natural_one_in_any_dtype():
    for dtype in TOLERANCE:
        check = kernels.check_kernel(kernels.Kernel("aotriton", base_2), CPU, dtype, 64)
        assert check.result == "corrected" and check.factor == math.log(2)


ALLOCATORS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


@pytest.mark.parametrize(
    ("platform", "chosen", "expected"),
    [
        ("linux", None, "expandable_segments:True"),
        ("win32", None, None),
        *(("linux", name, None if name != "PYTORCH_CUDA_ALLOC_CONF" else "backend:native") for name in ALLOCATORS),
    ],
)
def test_a_command_has_expandable_segments_unless_the_user_chose(platform, chosen, expected, monkeypatch, capsys):
    for name in ALLOCATORS:
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv(chosen, "backend:native")
    monkeypatch.setattr(sys, "platform", platform)
    assert main(["runs", "--no-such-option"]) == 2
    assert os.environ.get("PYTORCH_CUDA_ALLOC_CONF") == expected
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
