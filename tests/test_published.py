"""Published configurations of each family, two layers of them on tensors without data: a few steps of an edit at the
model's native size, in bf16, with no shape or dtype that does not fit."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from benchmarks.published import MODELS
from v2edit.backbones.fake import FakeModel
from v2edit.backbones.families import family_of
from v2edit.editing import EditConfig, Editor
from v2edit.editing.progression import AlignedText


@pytest.mark.parametrize("name", MODELS)
def test_a_few_steps_of_an_edit(name: str, tmp_path: Path) -> None:
    published = MODELS[name]
    family = family_of(published.pipeline)
    assert family is not None
    fake = FakeModel(published.write(tmp_path, num_layers=2), family, torch.bfloat16, family.defaults)
    backbone = fake.backbone
    with fake.mode:
        x0 = torch.empty(1, *backbone.latent_shape(backbone.native_size))
    text = AlignedText(backbone.blank_text(), backbone.blank_text(), backbone.blank_text(), shared=12)
    *_, edited = Editor(backbone).subtasks(x0, text, EditConfig(steps=3))
    assert isinstance(edited, FakeTensor) and edited.shape == x0.shape and edited.dtype == torch.float32
