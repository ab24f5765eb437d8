"""Inputs that are mistaken for each other, and the line that a wrong command ends with."""

import numpy as np
import pytest

from support.scenes import gaussians_of
from v2edit import video
from v2edit.cli.app import main
from v2edit.scenes.formats.splats import write_splat


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A clip that no model here edits at its own size."""
    path = tmp_path_factory.mktemp("clip") / "man-surfing.mp4"
    generator = np.random.default_rng(0)
    video.write(generator.integers(0, 255, (9, 192, 256, 3), np.uint8), path, fps=8)
    return str(path)


@pytest.fixture(scope="module")
def splat(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A scene without photographs."""
    return str(write_splat(tmp_path_factory.mktemp("splat") / "garden.ply", gaussians_of(0)))


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]):
    """Return a function that runs a command which must fail with one line, and returns that line."""

    def refused(*words: str) -> str:
        capsys.readouterr()
        assert main(list(words)) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("v2edit: error: ") and printed.err.count("\n") == 1
        assert len(printed.err) < 500
        return printed.err.removeprefix("v2edit: error: ").strip()

    return refused
