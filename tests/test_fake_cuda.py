"""Whole edits on a fake CUDA device: one device, one dtype, no waiting in a step, and the memory that is counted.

The device itself comes first: what it is to find, it finds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.families import FAMILIES
from torch import Tensor, nn

from benchmarks.device_ledger import ASYNC, COPY, CUDA, FLOAT32, MIXED, SYNC, TO_HOST, WAITS
from benchmarks.fake_cuda import fake_cuda
from benchmarks.fake_edits import FakeEdit, fake_model, run_edit
from benchmarks.published import MODELS
from v2edit import backbones
from v2edit.backbones.fake import FakeModel
from v2edit.backbones.families import Offload
from v2edit.backbones.memory import MemoryMode
from v2edit.editing import EditConfig
from v2edit.editing.cost import CostModel
from v2edit.prompts import PromptPair

MIB = 2**20
PHASES = ["encoding prompts", "encoding", "denoising", "decoding"]


def half(*shape: int) -> Tensor:
    return torch.empty(*shape, device=CUDA, dtype=torch.bfloat16)


FOUND: dict[str, tuple[Callable[[], object], list[str]]] = {
    "a number is read": (lambda: half(1).item(), [SYNC]),
    "a condition": (lambda: bool((half(4) > 0).any()), [SYNC]),
    "numbers are read": (lambda: half(4).tolist(), [SYNC]),
    "a list becomes a tensor": (lambda: torch.tensor([1.0, 2.0], device=CUDA), [COPY]),
    "a tensor is moved": (lambda: torch.ones(4).to(CUDA), [COPY]),
    "moved from page-locked memory": (lambda: torch.ones(4).pin_memory().to(CUDA, non_blocking=True), [ASYNC]),
    "drawn in page-locked memory": (lambda: torch.randn(4, pin_memory=True).to(CUDA, non_blocking=True), [ASYNC]),
    "moved back": (lambda: half(4).cpu(), [TO_HOST]),
    "an index in main memory": (lambda: half(4)[torch.tensor([0, 1])], [COPY]),
    "a mask as an index": (lambda: half(4).__setitem__(half(4) > 0, 0.0), []),  # masked_fill: its shape is known
    "two dtypes in a product": (lambda: half(4, 4) @ half(4, 4).float(), [MIXED]),
    "a product in float32": (lambda: half(4, 4).float() @ half(4, 4).float(), [FLOAT32]),
    "the stream": (lambda: torch.cuda.current_stream().synchronize(), [SYNC]),
    "nothing": (lambda: half(4, 4) @ half(4, 4) + 1.0, []),
}


@pytest.mark.parametrize(("work", "events"), FOUND.values(), ids=FOUND)
def test_what_makes_a_host_wait_is_found(work: Callable[[], object], events: list[str]) -> None:
    with fake_cuda() as ledger:
        try:
            work()
        except RuntimeError as error:
            assert events == [MIXED], error
    assert [event.kind for event in ledger.events] == events
    assert all(event.line.startswith("tests/test_fake_cuda.py:") for event in ledger.events)


def test_devices_do_not_mix() -> None:
    with fake_cuda(), pytest.raises(RuntimeError, match="two devices"):
        _ = half(4) + torch.ones(4)


def test_memory_is_counted_by_device_and_phase() -> None:
    with fake_cuda(memory=8 * MIB) as ledger:
        layer = nn.Linear(1024, 1024, bias=False, device="cpu")
        assert ledger.now == {"cpu": 4 * MIB}
        layer.to("cuda")
        assert layer.weight.device == CUDA and +ledger.now == {"cuda": 4 * MIB}
        ledger.enter("working")
        x = torch.empty(1024, 512, device=CUDA)
        del x
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(8 * MIB, device=CUDA)
        assert torch.cuda.mem_get_info()[0] == 4 * MIB
        locked = torch.ones(768, 1024, device="cpu").pin_memory()  # 3 MiB: torch locks the next power of two
        assert locked.is_pinned() and ledger.now["cpu"] == 4 * MIB
    assert ledger.peaks["loading"] == {"cpu": 4 * MIB, "cuda": 4 * MIB}
    assert ledger.peaks["working"] == {"cuda": 6 * MIB, "cpu": 7 * MIB, "pinned": 4 * MIB}


def tiny_fake(family: str, folder: Path) -> FakeModel:
    """Build a tiny model of a family on fake tensors, in bf16."""
    real = FAMILIES[family]()
    real.pipeline.save_pretrained(folder)
    checkpoint = backbones.find(str(folder))
    fake = FakeModel(folder, checkpoint.family, torch.bfloat16, checkpoint.defaults)
    fake.backbone.native_size = real.native_size
    return fake


def check(edit: FakeEdit, offloaded: bool = False) -> None:
    """Check that products met one dtype, and that no step waited, but for what an offload brings: layers, an expert."""
    assert not [str(event) for event in edit.ledger.events if event.kind == MIXED]
    in_float32 = edit.in_steps(FLOAT32)
    assert not [line for line in in_float32 if "transformer_mochi.py" not in line], (
        in_float32
    )  # its tables of positions
    waits = edit.in_steps(*WAITS)
    # The sketch of a live preview is copied once a second at most.
    brought = ("editing/sketch.py", *(("group_offloading.py", "modeling_utils.py") if offloaded else ()))
    assert not [line for line in waits if not any(name in line for name in brought)], waits


heavy = pytest.mark.heavy


@pytest.mark.parametrize(
    ("offload", "frames", "fewer_rows"),
    [
        ("none", 25, True),  # a clip of windows
        ("model", 9, False),
        ("group", 9, False),
        pytest.param("none", 9, False, marks=heavy),
        pytest.param("model", 25, True, marks=heavy),
        pytest.param("group", 25, True, marks=heavy),
    ],
)
def test_an_edit_with_each_offload(offload: Offload, frames: int, fewer_rows: bool, tmp_path: Path) -> None:
    fake = tiny_fake("CogVideoX 5b", tmp_path)
    edit = run_edit(fake, offload, frames, max_rows=1 if fewer_rows else None, row_by_row=fewer_rows)
    assert edit.size.frames == frames
    check(edit, offload == "group")


@heavy
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_of_each_family(family: str, tmp_path: Path) -> None:
    prompts = PromptPair('the word "on" on the floor', 'the word "off" on the floor')  # some spell what is quoted
    check(run_edit(tiny_fake(family, tmp_path), prompts=prompts))


@pytest.mark.parametrize("offload", ["none", pytest.param("model", marks=heavy)])
def test_peaks_are_those_that_are_counted_beforehand(offload: Offload, tmp_path: Path) -> None:
    """Of CogVideoX-5b at its published widths, two layers of it: the autoencoder and the text encoder are whole."""
    config = EditConfig(steps=2, alpha=1.0, beta=0.5)
    edit, fake = (fake_model("CogVideoX-5b", tmp_path / name, layers=2) for name in ("run", "counted"))
    edit = run_edit(edit, offload, frames=9, config=config)
    check(edit)
    config = config.resolve(fake.backbone.defaults, fake.backbone.schedule(config.steps))
    counted = CostModel(fake, config).peaks(edit.size, MemoryMode(offload))
    for phase in PHASES:
        peak = edit.peaks[phase]["cuda"]
        if (offload, phase) == (
            "none",
            "encoding",
        ):  # The network comes later, but is there when a scene is encoded again.
            assert counted[phase] >= peak
        else:
            assert counted[phase] == pytest.approx(peak, rel=0.02), phase


@heavy
@pytest.mark.parametrize("offload", ["none", "model", "group"])
@pytest.mark.parametrize("name", MODELS)
def test_edits_of_published_models(name: str, offload: Offload, tmp_path: Path) -> None:
    check(run_edit(fake_model(name, tmp_path, layers=2), offload, frames=9), offload != "none")


@heavy
def test_on_a_device_too_small_an_edit_goes_on_with_less(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    peaks = run_edit(tiny_fake("CogVideoX 5b", tmp_path)).peaks
    memory = max(held["cuda"] for held in peaks.values()) * 97 // 100
    edit = run_edit(tiny_fake("CogVideoX 5b", tmp_path), memory=memory)
    assert max(held["cuda"] for held in edit.peaks.values()) <= memory
    assert "out of memory: going on with" in caplog.text
