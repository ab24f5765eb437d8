"""Step caching on diffusers' own classes: one choice for all rows, exactness, splits, resuming, and what it costs."""

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers.hooks import MagCacheConfig, apply_mag_cache
from support.clips import PAIR, SAME
from support.families import FAMILIES
from support.models import fake_model_of, pipeline_of
from torch import Tensor

from v2edit.attention import Replacement
from v2edit.backbones import Size
from v2edit.backbones.caching import StepCache
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.backbones.core import PipelineBackbone
from v2edit.backbones.fake import Cost, count
from v2edit.backbones.magnitudes import read_magnitudes, write_magnitudes
from v2edit.backbones.replica import replicate
from v2edit.backbones.rowwise import rowwise_class
from v2edit.cli.app import main
from v2edit.editing import EditConfig, Editor
from v2edit.editing.calibration import measure_magnitudes
from v2edit.editing.config import ResolvedConfig
from v2edit.editing.controls import is_controlled
from v2edit.editing.cost import AT_ONCE, CostModel, count_forwards, steps_per_subtask
from v2edit.editing.progression import aligned_text
from v2edit.editing.skips import MAX_SKIPS, magnitude, plan_skips
from v2edit.errors import UserError
from v2edit.runs.snapshots import Snapshots
from v2edit.sampling import Schedule

GENTLE = ((0.0, 1.0), (1.0, 2.0))  # magnitudes that change so little that many steps are skipped
CONFIG = EditConfig(steps=8, cache=1.0)


def calibrated(backbone: PipelineBackbone) -> PipelineBackbone:
    backbone.defaults = replace(backbone.defaults, magnitudes=GENTLE)
    return backbone


def cogvideox() -> PipelineBackbone:
    return calibrated(CogVideoX(pipeline_of("5b")))


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request) -> PipelineBackbone:
    return calibrated(FAMILIES[request.param]())


def noise_of(backbone: PipelineBackbone, rows: int = 1, frames: int | None = None) -> Tensor:
    shape = list(backbone.latent_shape(backbone.native_size))
    shape[0] = frames or shape[0]
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0))


def edited(backbone: PipelineBackbone, config: EditConfig = CONFIG, pair=PAIR, max_rows: int = 99, **options) -> Tensor:
    editor = Editor(backbone)
    editor.batcher.max_rows = max_rows
    return list(editor.subtasks(noise_of(backbone), aligned_text(backbone, pair), config, **options))[-1]


def planned(backbone: PipelineBackbone, config: EditConfig) -> tuple[dict[int, float], Schedule, ResolvedConfig]:
    schedule = backbone.schedule(config.steps, backbone.latent_shape(backbone.native_size))
    resolved = config.resolve(backbone.defaults, schedule)
    return plan_skips(schedule, resolved), schedule, resolved


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_source_prompt_gives_the_source_back(backbone):
    config = replace(CONFIG, beta=0.0)
    assert planned(backbone, config)[0]
    assert far(edited(backbone, config, SAME), noise_of(backbone)) <= 1e-5


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm-ode", "dpm-sde"])
@pytest.mark.parametrize("subtasks", [1, 3])
def test_it_does_so_with_every_solver(solver, subtasks):
    backbone, config = cogvideox(), replace(CONFIG, beta=0.0, solver=solver, subtasks=subtasks)
    assert far(edited(backbone, config, SAME), noise_of(backbone)) <= 1e-6 * subtasks


def test_where_nothing_is_skipped_the_bytes_are_those_without():
    backbone = cogvideox()
    kept = edited(backbone, replace(CONFIG, cache=1e-6))
    assert torch.equal(kept, edited(backbone, replace(CONFIG, cache=0.0)))
    assert not torch.equal(kept, edited(backbone))


@pytest.mark.parametrize("rowwise", [False, True])
def test_a_skipped_step_adds_what_the_layers_added_and_keeping_changes_nothing(backbone, rowwise):
    """Against torch's hooks on the first and the last layer; with maps, and rows one at a time."""
    schedule, text = backbone.schedule(10), aligned_text(backbone, PAIR)
    texts, maps = [text.source, text.target], Replacement(text.shared, (((0, 1.0),), ((0, 1.0),)))
    v, network = noise_of(backbone, 2), backbone.networks[0]
    layers, seen = backbone.layers(network), {}
    kinds = [type(layer) for layer in layers]

    def remember_input(layer, args, kwargs) -> None:
        seen["in"] = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)).clone()

    def remember_output(layer, args, out) -> None:
        seen["out"] = (out[0] if isinstance(out, tuple) else out).clone()

    def replace_output(layer, args, out):
        hidden = seen["in"] + 0.9 * (seen["kept out"] - seen["kept in"])
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    cache = StepCache()
    cached = cache.of_rows(range(2))
    try:
        for layer in layers:
            layer.__class__ = rowwise_class(type(layer)) if rowwise else type(layer)
        plain = backbone.denoise(v, 0, schedule, texts, maps)
        first = layers[0].register_forward_pre_hook(remember_input, with_kwargs=True)
        last = layers[-1].register_forward_hook(remember_output)
        assert torch.equal(backbone.denoise(v, 0, schedule, texts, maps, cached=cached), plain)
        seen |= {"kept in": seen["in"], "kept out": seen["out"]}
        last.remove()
        replaced = layers[-1].register_forward_hook(replace_output)
        expected = backbone.denoise(v + 0.1, 1, schedule, texts, maps)
        first.remove()
        replaced.remove()
        cache.scale = 0.9
        flops = count(lambda: seen.update(x0=backbone.denoise(v + 0.1, 1, schedule, texts, maps, cached=cached))).flops
        assert far(seen["x0"], expected) <= 1e-5 < 1e-3 < far(seen["x0"], plain)
        assert 0 < flops < count(lambda: backbone.denoise(v, 0, schedule, texts, maps)).flops
        assert backbone.layers(network) == layers
    finally:
        for layer, kind in zip(layers, kinds, strict=True):
            layer.__class__ = kind


@pytest.mark.parametrize("loop", [False, True])
def test_every_split_gives_the_same_edit(loop):
    config = replace(CONFIG, loop=loop, subtasks=2)
    whole = edited(cogvideox(), config)
    for max_rows, rowwise in ((3, False), (1, False), (99, True), (1, True)):
        backbone = cogvideox()
        assert not rowwise or backbone.shrink() is not None
        assert far(edited(backbone, config, max_rows=max_rows), whole) <= 1e-5, (max_rows, rowwise)
    backbone = cogvideox()
    backbone.replica = replicate(backbone, torch.device("cpu"))  # the unconditional rows beside the others
    assert far(edited(backbone, config), whole) <= 1e-5


def test_running_out_of_memory_in_a_kept_or_a_skipped_step_changes_nothing():
    whole, (skips, *_) = edited(cogvideox()), planned(cogvideox(), CONFIG)
    for step in (min(skips) - 1, min(skips)):
        backbone, failed = cogvideox(), []
        denoise = backbone.denoise

        def fail_once(latents, k, *rest, denoise=denoise, failed=failed, step=step):
            x0 = denoise(latents, k, *rest)
            if k == step and not failed:
                failed.append(len(latents))
                raise torch.OutOfMemoryError
            return x0

        backbone.denoise = fail_once  # pyright: ignore[reportAttributeAccessIssue]
        assert far(edited(backbone), whole) <= 1e-5 and failed == [4]


@pytest.mark.parametrize("name", ["CogVideoX 5b", "Wan A14B"])
def test_stopped_after_any_step_it_goes_on_to_the_same_bytes(name, tmp_path):
    backbone, config = calibrated(FAMILIES[name]()), replace(CONFIG, solver="dpm-sde", ending="same")
    whole, (skips, schedule, resolved) = edited(backbone, config), planned(backbone, config)
    assert skips

    for left in range(1, steps_per_subtask(schedule, resolved)):

        def stop(name: str, steps: int, left=left) -> None:
            if steps == left:
                raise InterruptedError

        folder = tmp_path / str(left)
        folder.mkdir()
        with pytest.raises(InterruptedError):
            edited(backbone, config, snapshots=Snapshots(folder, every=1, on_step=stop))
        facts = Snapshots(folder).loop("edit-1").load().facts  # pyright: ignore[reportOptionalMemberAccess]
        assert facts["k"] not in skips and schedule.steps - left - MAX_SKIPS <= facts["k"] <= schedule.steps - left
        assert torch.equal(edited(backbone, config, snapshots=Snapshots(folder, every=1)), whole), left


def test_steps_are_skipped_as_in_diffusers_magcache():
    """Its own hooks on a small network's blocks, by ratios of the same magnitudes."""
    backbone, draw = cogvideox(), random.Random(0)
    for steps, threshold in ((12, 0.1), (30, 0.06), (30, 0.25), (50, 0.7)):
        schedule = backbone.schedule(steps)
        levels = [schedule.noise(k) for k in range(steps)]
        table = tuple((noise, draw.uniform(0.85, 1.15) * (0.2 + noise)) for noise in levels)
        settings = EditConfig(steps=steps, inc=False, pnc=False, amr=False, cache=threshold)
        config = settings.resolve(replace(backbone.defaults, magnitudes=table), schedule)
        values = [value for _, value in table]
        ratios = [1.0, *(after / before for before, after in pairwise(values))]

        network = CogVideoX(pipeline_of("5b")).networks[0]
        apply_mag_cache(network, MagCacheConfig(threshold, mag_ratios=ratios, num_inference_steps=steps))
        calls: list[int] = []
        network.transformer_blocks[-1].attn1.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        hidden, text = torch.randn(1, 4, 32), torch.randn(1, 3, 32)
        ran = []
        for k in range(steps):
            before = len(calls)
            for block in network.transformer_blocks:
                block(hidden, text, torch.randn(1, network.config.time_embed_dim))
            ran += [k] if len(calls) > before else []
        assert sorted(plan_skips(schedule, config)) == [k for k in range(steps) if k not in ran] != []


def test_no_step_is_skipped_from_other_rows_or_another_network(backbone):
    for steps, until in ((8, 0.0), (50, 0.0), (50, 0.3)):
        skips, schedule, config = planned(backbone, replace(CONFIG, steps=steps, guidance_until=until))
        assert 0 < len(skips) < steps
        for k, ratio in skips.items():
            ran = max(j for j in range(k) if j not in skips)
            assert k - ran <= MAX_SKIPS
            assert is_controlled(schedule, k, config) == is_controlled(schedule, ran, config)
            assert schedule.expert(k) == schedule.expert(ran)
            guidance, before = (config.guidance_at(schedule, step, classifier_free=True) for step in (k, ran))
            assert guidance == before
            assert ratio == pytest.approx(2 ** (schedule.noise(k) - schedule.noise(ran)))


def test_the_cost_is_that_of_the_steps_that_run(tiny_model):
    """Counted without data as with them: a skipped step, what is kept for it, and the rows of a whole edit."""
    fake, real, size = fake_model_of(tiny_model), CogVideoX(pipeline_of("5b")), Size(9, 32, 32)
    calibrated(fake.backbone)
    fake.encoding = fake.decoding = lambda *_: Cost(0.0, 0)  # which caching does not change
    latents, text, cache = noise_of(real, 4), [real.blank_text()] * 4, StepCache()
    (skipped, kept), schedule = fake.skipped(4, size), real.schedule(50)
    cached = cache.of_rows(range(4))
    real.denoise(latents, 0, schedule, text, cached=cached)
    cache.scale = 1.0
    took = count(lambda: real.denoise(latents, 0, schedule, text, cached=cached))
    assert skipped.flops == took.flops > 0 and skipped.peak == pytest.approx(took.peak, rel=0.05)
    width = real.networks[0].config.num_attention_heads * real.networks[0].config.attention_head_dim
    assert kept == cache.nbytes == 4 * fake.tokens(size) * width * 4

    backbone = calibrated(real)
    skips, schedule, config = planned(backbone, CONFIG)
    seen, denoise = [], backbone.denoise

    def count_rows(latents, k, *rest):
        seen.append(0 if k in skips else len(latents))
        return denoise(latents, k, *rest)

    backbone.denoise = count_rows  # pyright: ignore[reportAttributeAccessIssue]
    edited(backbone)
    assert [sum(seen)] == count_forwards(schedule, config)
    without = replace(config, cache=0.0)
    costs = [CostModel(fake, one).edit(size, AT_ONCE) for one in (config, without)]
    assert costs[0].flops < costs[1].flops
    peaks = [CostModel(fake, one).peaks(size, AT_ONCE)["denoising"] for one in (config, without)]
    assert peaks[0] == peaks[1] + kept


def test_calibration_measures_what_the_layers_add(tmp_path):
    """Against the cache of each step, and through the file: at another number of steps the levels are what counts."""
    backbone, seen = cogvideox(), {}
    denoise = backbone.denoise

    def remember(latents, k, *rest):
        x0 = denoise(latents, k, *rest)
        seen.setdefault(k, []).append(torch.stack([rest[-1].cache.added[row] for row in range(2)]))
        return x0

    backbone.denoise = remember  # pyright: ignore[reportAttributeAccessIssue]
    measured = measure_magnitudes(backbone, [PAIR.source, PAIR.target], 4)
    schedule = backbone.schedule(4)
    for k, (noise, value) in enumerate(measured):
        norms = torch.cat(seen[k]).norm(dim=-1)
        assert noise == schedule.noise(k)
        assert value == pytest.approx(float(norms.log().mean().exp()), rel=1e-4)
    write_magnitudes(tmp_path / "step_cache.json", "tiny", measured)
    read = read_magnitudes(tmp_path / "step_cache.json")
    assert [magnitude(read, noise) for noise, _ in measured] == pytest.approx([v for _, v in measured], rel=1e-4)
    assert magnitude(((0.0, 1.0), (1.0, 4.0)), 0.5) == pytest.approx(2.0)


def test_a_model_is_calibrated_by_a_command_and_edits_with_its_file(tmp_path, capsys):
    out = tmp_path / "step_cache.json"
    assert main(["calibrate", "a red ball", "--steps", "2", "-o", str(out)]) == 0
    assert len(read_magnitudes(out)) == 2 and str(out) in capsys.readouterr().out
    assert main(["calibrate", "a red ball", "-o", str(out)]) == 2
    assert main(["calibrate", "-o", str(tmp_path / "other")]) == 2
    assert "PROMPT" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{}", "[]", '{"magnitudes": []}', '{"magnitudes": [[0.5, -1]]}', "no JSON"])
def test_a_file_of_something_else_is_refused(text, tmp_path):
    path: Path = tmp_path / "step_cache.json"
    path.write_text(text)
    with pytest.raises(UserError, match="v2edit calibrate"):
        read_magnitudes(path)


def test_a_model_that_is_not_calibrated_is_refused_and_the_settings_are_written():
    backbone = CogVideoX(pipeline_of("5b"))
    with pytest.raises(UserError, match="v2edit calibrate"):
        CONFIG.resolve(backbone.defaults, backbone.schedule(8))
    _, _, config = planned(calibrated(backbone), CONFIG)
    assert (
        plan_skips(backbone.schedule(8), ResolvedConfig(**json.loads(json.dumps(vars(config)))))
        == planned(backbone, CONFIG)[0]
    )
