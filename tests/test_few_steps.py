"""Edits of four and eight steps, as distilled weights take them: without guidance, each family's schedule."""

from dataclasses import replace

import pytest
import torch
from support.clips import SAME
from support.families import FAMILIES, wan_pipeline_of

from v2edit import backbones
from v2edit.backbones import LoadOptions
from v2edit.editing import EditConfig, Editor
from v2edit.editing.controls import first_step, is_controlled
from v2edit.editing.progression import aligned_text
from v2edit.errors import UserError


@pytest.mark.parametrize("name", FAMILIES)
def test_few_steps_are_controlled_and_give_the_source_back(name) -> None:
    backbone = FAMILIES[name]()
    for steps in (2, 4, 8):
        schedule, config = backbone.schedule(steps), EditConfig(steps=steps, guidance=1.0)
        resolved = config.resolve(backbone.defaults, schedule)
        start = first_step(schedule, resolved.alpha, inc=True)
        assert start >= 1 and is_controlled(schedule, start, resolved)
    shape = backbone.latent_shape(backbone.native_size)
    x0 = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    for solver in ("auto", "dpm-sde"):
        config = EditConfig(steps=4, guidance=1.0, beta=0.0, solver=solver)
        (back,) = Editor(backbone).subtasks(x0, aligned_text(backbone, SAME), config)
        assert float((back - x0).norm() / x0.norm()) <= 1e-5


def test_a_shift_moves_a_flow_models_steps(tmp_path) -> None:
    """Distilled LoRAs of Wan want shift 5: 4 steps at 1000, 937.5, 833.3 and 625; and not other models' schedules."""
    wan_pipeline_of(experts=2, shift=3.0).save_pretrained(tmp_path / "wan")
    checkpoint, options = backbones.find(str(tmp_path / "wan")), LoadOptions(flow_shift=5.0)
    shifted = [
        backbones.load(checkpoint, options).schedule(4),
        backbones.load_fake_model(checkpoint, options).backbone.schedule(4),
        backbones.read_info(checkpoint, options).schedule(4),
    ]
    levels = torch.tensor([1, 3 / 4, 1 / 2, 1 / 4, 0])
    for schedule in shifted:
        assert torch.allclose(schedule.s, (5 * levels / (1 + 4 * levels)).double(), atol=2e-3)
        assert torch.allclose(schedule.timesteps.double(), 1000 * schedule.s[:-1], atol=1)
        assert schedule.second_expert == 2
    own = backbones.read_info(checkpoint).schedule(4)
    assert torch.allclose(own.s, (3 * levels / (1 + 2 * levels)).double(), atol=2e-3)
    for name in ("CogVideoX 5b", "LTX 0.9.7"):
        backbone = FAMILIES[name]()
        assert backbone.with_flow_shift(backbone.pipeline.scheduler, None) is backbone.pipeline.scheduler
        with pytest.raises(UserError, match=r"--flow-shift: (only flow models|the model.s pipeline)"):
            backbone.with_flow_shift(backbone.pipeline.scheduler, 5.0)
    for shift in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UserError, match="--flow-shift"):
            replace(options, flow_shift=shift)
