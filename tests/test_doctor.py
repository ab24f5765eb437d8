"""`v2edit doctor`: what this machine has, what is known to be bad, and which models fit."""

import json
from collections.abc import Iterator

import pytest
import torch
from support.servers import serve

from benchmarks.families import MODELS, cost_model_of, count_cost
from v2edit.attention.kernels import KernelCheck
from v2edit.backbones.costs import published_costs
from v2edit.cli.app import main
from v2edit.editing.cost import with_margin
from v2edit.jobs import doctor
from v2edit.jobs.doctor import GIB, Diagnosis, Doctor, Finding, fits_of


def findings(found: Iterator[Finding]) -> dict[str, Finding]:
    return {one.name: one for one in found}


def test_the_page_of_this_machine(capsys):
    assert main(["doctor"]) == 0
    page = capsys.readouterr().out
    for word in (torch.__version__, "diffusers", "attention cpu", "GiB free", "cores", "language model"):
        assert word in page, word
    assert "BAD" not in page and all(len(line) < 400 for line in page.splitlines())


def test_the_page_for_programs(capsys):
    assert main(["doctor", "--simulate-gpu", "24", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    result = lines[-1]
    assert {fit["model"] for fit in result["fits"]} == set(MODELS)
    assert all(fit["minutes"] is None for fit in result["fits"])  # nothing was measured


def test_a_larger_card_takes_at_least_as_fast_a_way():
    """And whatever is said to fit asks for no more than there is."""
    order = {cost.model: [way.mode.text for way in cost.ways] for cost in published_costs()}
    for cost in published_costs():
        assert [way.peak for way in cost.ways] == sorted((way.peak for way in cost.ways), reverse=True)
    before: dict[str, int] = {}
    for size in (8, 12, 24, 80, 200):
        for fit in fits_of(size * GIB, 1e14):
            place = order[fit.model].index(fit.mode) if fit.mode else len(order[fit.model])
            assert place <= before.get(fit.model, place)
            assert not fit.mode or with_margin(fit.peak) <= size * GIB
            before[fit.model] = place
            assert fit.minutes == pytest.approx(fit.petaflops * 1e15 / 1e14 / 60)
    assert set(before.values()) == {0}  # 200 GiB hold every model with all rows at once


@pytest.mark.parametrize("name", ["Wan 2.1 1.3B", *(pytest.param(name, marks=pytest.mark.heavy) for name in MODELS)])
def test_the_costs_in_the_package_are_those_of_the_code(name):
    """`benchmarks/families.py --write` writes them; --offload auto would choose the same modes."""
    (kept,) = (cost for cost in published_costs() if cost.model == name)
    counted = count_cost(name)
    assert counted.flops == pytest.approx(kept.flops, rel=1e-6)
    assert [(way.mode, pytest.approx(way.peak, rel=0.01)) for way in counted.ways] == [
        (way.mode, way.peak) for way in kept.ways
    ]
    cost_model = cost_model_of(name)
    size = cost_model.fake.backbone.native_size
    for free in (8, 16, 24):
        (fit,) = (fit for fit in fits_of(free * GIB, None) if fit.model == name)
        mode = cost_model.fastest_mode(size, free * GIB, ("none", "model", "group"))
        assert fit.mode == (mode and mode.text)


def test_versions_known_to_be_bad_end_in_an_error(monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    found = findings(doctor._faults(torch.device("cuda")))
    assert found["fault"].level == "bad" and "install" in found["fault"].text
    monkeypatch.setattr(Doctor, "run", lambda self: Diagnosis(list(found.values())))
    assert main(["doctor"]) == 2
    page = capsys.readouterr()
    assert "BAD: torch 2.9" in page.out and page.err.count("\n") == 1


@pytest.mark.parametrize(
    ("check", "level"),
    [
        (KernelCheck("flash", "right"), ""),
        (KernelCheck("flash", "corrected", "a log-sum-exp in base 2", 0.69), "note"),
        (KernelCheck("flash", "wrong", "attention off by 0.3"), "note"),
        (KernelCheck("flash3", "missing", "there is no package flash_attn_interface"), ""),
    ],
)
def test_kernels_are_told_with_what_the_check_showed(check, level, monkeypatch):
    monkeypatch.setattr("v2edit.attention.kernels.survey_kernels", lambda *_: [check])
    found = findings(doctor._kernels(torch.device("cpu")))
    assert found[f"attention {check.name}"].level == level and check.reason in found[f"attention {check.name}"].text
    assert ("attention" in found) == (not check.usable)


def test_a_fault_at_one_size_of_heads_is_told(monkeypatch):
    def survey(device: torch.device, dtype: torch.dtype, head_size: int) -> list[KernelCheck]:
        wrong = KernelCheck("flash", "wrong", "attention off by 0.3")
        return [wrong if head_size == 64 else KernelCheck("flash", "right")]

    monkeypatch.setattr("v2edit.attention.kernels.survey_kernels", survey)
    assert findings(doctor._kernels(torch.device("cpu")))["attention flash"].level == "note"


def test_a_card_is_described_with_what_it_computes_in(monkeypatch):
    monkeypatch.setattr(doctor, "count_devices", lambda kind: int(kind == "cuda"))
    monkeypatch.setattr(doctor, "available_memory", lambda device: 14 * GIB)
    monkeypatch.setattr("v2edit.backbones.dtypes.has_bfloat16", lambda device: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    found = findings(doctor._devices(torch.device("cuda")))
    assert found["cuda:0"].text == "Tesla T4, 14.0 GiB free, computes in float16, taken"


def test_a_language_model_answers_or_not():
    with serve() as server:
        server.models = ["llava", "qwen"]
        (found,) = doctor._language_model(server.url)
        assert "lists 2 models, such as llava" in found.text and not found.level
    (found,) = doctor._language_model("http://127.0.0.1:9/v1")
    assert found.level == "note" and "\n" not in found.text
    (found,) = doctor._language_model("ftp://nowhere")
    assert found.level == "note"


@pytest.mark.parametrize("words", [["--simulate-gpu", "0"], ["--simulate-gpu", "-3"], ["--device", "tpu"]])
def test_what_no_machine_has_is_one_line(words, capsys):
    assert main(["doctor", *words]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0
