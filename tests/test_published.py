"""Published configurations of each family, two layers of them on a fake CUDA device: a few steps of an edit at the
model's native size, in bf16, with no shape, dtype or device that does not fit, and none that waits."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from benchmarks.device_ledger import CUDA, MIXED, WAITS
from benchmarks.fake_cuda import fake_cuda
from benchmarks.fake_edits import fake_model
from benchmarks.published import MODELS
from v2edit.backbones.memory import MemoryMode
from v2edit.editing import EditConfig, Editor
from v2edit.editing.progression import AlignedText


@pytest.mark.parametrize("name", MODELS)
def test_a_few_steps_of_an_edit(name: str, tmp_path: Path) -> None:
    fake = fake_model(name, tmp_path, layers=2)
    backbone = fake.backbone
    with fake_cuda(fake.mode) as ledger:
        backbone.place(CUDA, MemoryMode())
        x0 = torch.empty(1, *backbone.latent_shape(backbone.native_size), device=CUDA)
        text = AlignedText(backbone.blank_text(), backbone.blank_text(), backbone.blank_text(), shared=12)
        ledger.enter("denoising", 0)
        editor, config = Editor(backbone), EditConfig(steps=3, alpha=1.0, beta=0.5)
        *_, edited = editor.subtasks(x0, text, config, lambda at: ledger.enter("denoising", at.step % at.steps))
    assert isinstance(edited, FakeTensor) and edited.shape == x0.shape and edited.dtype == torch.float32
    faults = [e for e in ledger.events if e.kind == MIXED or (e.step > 0 and e.kind in WAITS)]
    assert not faults, list(map(str, faults))
