"""What every test shares: few threads, and the way to real material where there is some."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from support.studio import Client, Sample

# Timing belongs in benchmarks: a busy machine must not fail a test. And a change is judged by the same examples as the
# one before it; `--hypothesis-profile=search` draws new ones every time.
settings.register_profile("search", deadline=None)
settings.register_profile("v2edit", deadline=None, derandomize=True)
settings.load_profile("v2edit")

# Torch reads these when it is first imported. One thread for each of the processes that share the work is quicker than
# two that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Otherwise MKL may sum in another order where a thread's scratch memory is aligned otherwise, and no two rows of a
# batch need be equal to the last bit, whatever their inputs.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

ROOT = Path(__file__).resolve().parent.parent

# They begin first, so that no process is left with one of them at the end.
LONGEST = [f"test_{name}" for name in ("survival", "scene_edit", "examples", "bench", "cli", "batch_ray", "end_to_end")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Keep what is imported by now out of later garbage collections, of which each edit and each dry run makes one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real videos, prompts and scenes; the test is skipped where there is none."""
    folder = Path(os.environ.get("V2EDIT_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real material at {folder}: set V2EDIT_DATA to a folder that has it")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Diffusers folders of CogVideoX ("tiny"), Wan 2.1 ("wan") and Wan 2.2 A14B ("a14b") at tiny size, random weights;
    read them, do not change them."""
    from support.families import wan_pipeline_of
    from support.models import pipeline_of

    folder = tmp_path_factory.mktemp("models")
    made = {"tiny": pipeline_of("5b"), "wan": wan_pipeline_of(), "a14b": wan_pipeline_of(experts=2)}
    for name, pipeline in made.items():
        pipeline.save_pretrained(folder / name)
    return {name: folder / name for name in made}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of CogVideoX's classes at a tiny size with random weights; read it, do not change it."""
    from support.models import pipeline_of

    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipeline_of("5b").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sample(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A short edit for the studio, by a tiny model."""
    from support.studio import make_sample

    return make_sample(tmp_path_factory.mktemp("clip"), tiny_model)


@pytest.fixture(scope="session")
def sample_run(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of that edit as the command line makes it; read it or copy it, do not change it."""
    from support.processes import run_command

    out = tmp_path_factory.mktemp("whole") / "run"
    words = [word for name, value in sample.options.items() for word in (f"--{name.replace('_', '-')}", value)]
    ran = run_command("edit", sample.clip, sample.instruction, *words, "-o", out, cwd=out.parent)
    assert ran.returncode == 0, ran.stderr
    return out


@pytest.fixture(scope="session")
def studio(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A studio that all tests share, with its client. Jobs that name no model take the tiny one."""
    from support.studio import serving

    with serving(tmp_path_factory.mktemp("studio") / "runs", model=str(tiny_model)) as client:
        yield client
