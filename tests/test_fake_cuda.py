"""Whole edits on a fake CUDA device: one device, one dtype, no waiting in a step, and the memory that is counted.

The device itself comes first: what it is to find, it finds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.families import FAMILIES
from torch import Tensor, nn

from benchmarks.fake_cuda import ASYNC, COPY, CUDA, FLOAT32, MIXED, SYNC, TO_HOST, WAITS, fake_cuda
from benchmarks.fake_edits import CONFIG, FakeEdit, fake_model, run_edit
from benchmarks.published import MODELS
from v2edit import backbones
from v2edit.backbones.fake import FakeModel
from v2edit.backbones.families import Offload

MIB = 2**20


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
        half(4) + torch.ones(4)


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
    assert ledger.peaks["loading"] == {"cpu": 4 * MIB, "cuda": 4 * MIB}
    assert ledger.peaks["working"]["cuda"] == 6 * MIB


def check(edit: FakeEdit) -> None:
    """Check that an edit met one dtype in its products, and waits for nothing in a step but what an offload does."""
    waits = edit.in_steps(*WAITS)
    assert not [line for line in waits if "group_offloading.py" not in line], waits
    for phase in edit.peaks:
        assert not edit.in_phase(phase, MIXED)


@pytest.mark.parametrize("offload", ["none", "model", "group"])
@pytest.mark.parametrize("row_by_row", [False, True])
def test_an_edit_on_a_device(offload: Offload, row_by_row: bool, tiny_model: Path) -> None:
    fake = tiny_fake(tiny_model)
    edit = run_edit(fake, offload, row_by_row=row_by_row)
    check(edit)


def tiny_fake(folder: Path) -> FakeModel:
    checkpoint = backbones.find(str(folder))
    return FakeModel(folder, checkpoint.family, torch.bfloat16, checkpoint.defaults)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_of_each_family(family: str, tmp_path: Path) -> None:
    FAMILIES[family]().pipeline.save_pretrained(tmp_path)
    check(run_edit(tiny_fake(tmp_path)))
