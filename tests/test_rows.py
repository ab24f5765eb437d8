"""The rows of a step: which run, and that leaving out those that nothing needs changes no result."""

from dataclasses import replace

import pytest
import torch
from support.clips import PAIR, SAME, frames_of
from support.models import pipeline_of
from torch import Tensor

from v2edit.backbones.cogvideox import CogVideoX
from v2edit.editing import EditConfig, Editor
from v2edit.editing.controls import attention_map_replacement
from v2edit.editing.cost import count_forwards
from v2edit.editing.guidance import Branch, denoise_with_guidance
from v2edit.editing.microbatch import MicroBatcher, unconditional_branches
from v2edit.editing.progression import aligned_text
from v2edit.prompts import PromptPair


@pytest.fixture
def backbone() -> CogVideoX:
    return CogVideoX(pipeline_of("5b"))


def edited(backbone: CogVideoX, config: EditConfig, pair: PromptPair = PAIR) -> tuple[Tensor, Tensor]:
    x0 = backbone.encode(frames_of(0))
    return x0, list(Editor(backbone).subtasks(x0, aligned_text(backbone, pair), config))[-1]


@pytest.mark.parametrize("in_both", [False, True])
@pytest.mark.parametrize("scales", [(6.0, 6.0, 6.0), (1.0, 1.0, 6.0), (4.0, 4.0, 1.0), (1.0, 1.0, 1.0)], ids=str)
def test_a_step_is_that_of_two_full_batches(backbone, scales, in_both):
    """Against every branch in both batches, [CFG batch][branch], all guided: bit for bit where all rows are needed."""
    branch_text = aligned_text(backbone, PAIR).for_subtask(2, 2)
    prompts = [branch_text.original, branch_text.current, branch_text.edit]
    generator = torch.Generator().manual_seed(0)
    latents, schedule = torch.randn(3, 3, 4, 8, 8, generator=generator), backbone.schedule(10)
    branches = [Branch(v, *one) for v, *one in zip(latents.split(1), prompts, scales, strict=True)]
    weights, negative = [0.7, 0.3], branch_text.negative
    unconditional = unconditional_branches(True, scales, in_both)
    maps = attention_map_replacement(weights, branch_text.shared, unconditional, in_both)
    got = denoise_with_guidance(MicroBatcher(backbone), branches, negative, 2, schedule, maps, False, unconditional)

    maps = attention_map_replacement(weights, branch_text.shared, range(3), in_both)
    both = backbone.denoise(latents.repeat(2, 1, 1, 1, 1), 2, schedule, [negative] * 3 + prompts, maps)
    for x0, uncond, cond, scale in zip(got, *both.chunk(2), scales, strict=True):
        expected = uncond + scale * (cond - uncond)
        if min(scales) > 1:
            assert torch.equal(x0[0], expected)
        else:
            assert (x0[0] - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("changes", "forwards"),
    [
        ({}, 4 * 4 + 5 * 2),
        ({"guidance": 1.0, "source_guidance": 4.0}, 4 * 3 + 5),
        ({"source_guidance": 1.0, "subtasks": 2}, 4 * (3 + 4) + 10 * 2),  # the edit alone needs two rows
        ({"source_guidance": 1.0, "amr_unconditional": True}, 26),  # its unconditional row takes the source's maps
        ({"source_guidance": 1.0, "amr_unconditional": True, "amr": False}, 4 * 3 + 5 * 2),
        ({"guidance_until": 0.3}, 4 * 4 + 2 * 2 + 3),
        ({"guidance_until": 0.7, "subtasks": 2}, 2 * (4 + 6) + 2 * (2 + 3) + 2 * 5),
        ({"guidance_until": 1.0, "amr_unconditional": True}, 4 * 2 + 5),
    ],
    ids=str,
)
def test_rows_that_nothing_needs_do_not_run(backbone, changes, forwards):
    config, rows = EditConfig(steps=10, **changes), []
    backbone.networks[0].register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    edited(backbone, config)
    schedule = backbone.schedule(10)
    assert sum(rows) == sum(count_forwards(schedule, config.resolve(backbone.defaults, schedule))) == forwards


@pytest.mark.parametrize("solver", ["ddim", "dpm-sde"])
@pytest.mark.parametrize("changes", [{"guidance": 1.0}, {"guidance_until": 0.4, "subtasks": 2}], ids=str)
def test_the_source_comes_back_without_guidance(backbone, changes, solver):
    x0, back = edited(backbone, EditConfig(steps=10, beta=0.0, solver=solver, **changes), SAME)
    assert (back - x0).norm() <= 1e-4 * x0.norm()


def test_guidance_is_that_of_the_steps_above_its_last_share(backbone):
    """Left out of all steps it is guidance 1, of none CogVideoX's default, and in between neither; a model may have a
    share of its own, which an edit can do without."""
    config = EditConfig(steps=8)
    alone, none, half, default = (
        edited(backbone, replace(config, **changes))[1]
        for changes in ({"guidance": 1.0}, {"guidance_until": 1.0}, {"guidance_until": 0.5}, {})
    )
    assert torch.equal(none, alone)
    assert min((half - alone).norm(), (half - default).norm()) > 1e-3 * default.norm()
    backbone.defaults = replace(backbone.defaults, guidance_until=0.5)
    assert torch.equal(edited(backbone, config)[1], half)
    assert torch.equal(edited(backbone, replace(config, guidance_until=0.0))[1], default)


@pytest.mark.parametrize("changes", [{"source_guidance": 1.0}, {"guidance": 1.0, "source_guidance": 4.0}], ids=str)
def test_every_split_gives_the_same_edit_with_fewer_unconditional_rows(backbone, changes):
    config = replace(EditConfig(steps=4, subtasks=2, mixture=0.3, guidance=6.0), **changes)
    _, whole = edited(backbone, config)
    for max_rows in (3, 1):
        editor, x0 = Editor(backbone), backbone.encode(frames_of(0))
        editor.batcher.max_rows = max_rows
        other = list(editor.subtasks(x0, aligned_text(backbone, PAIR), config))[-1]
        assert (other - whole).norm() <= 1e-5 * whole.norm()
