"""Scenes whose files are damaged, cut off or spelled in other ways: nothing is read wrongly without a word."""

from pathlib import Path

import pytest
from support.scenes import dataset_of, ring, write_colmap

from v2edit.errors import UserError
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.reading import read_scene

LENSES = {"PINHOLE": [20.0, 21, 8, 6], "OPENCV": [20.0, 21, 8, 6, 0, 0, 0, 0], "SIMPLE_RADIAL": [20.0, 8, 6, 0]}


def read(folder: Path) -> Dataset:
    dataset = read_scene(folder).dataset
    assert dataset is not None
    return dataset


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_colmap(tmp_path, dataset_of(ring(4)), "PINHOLE", LENSES["PINHOLE"])
    return tmp_path / "sparse" / "0"


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("part", ["cameras", "rigs", "images", "points3D", "frames"])
def test_a_binary_model_that_is_cut_anywhere_is_refused(tmp_path, lens, part):
    write_colmap(tmp_path, dataset_of(ring(4)), lens, LENSES[lens])
    read(tmp_path)
    file = tmp_path / "sparse" / "0" / f"{part}.bin"
    whole = file.read_bytes()
    for length in {len(whole) - 1, len(whole) - 4, len(whole) - 7, len(whole) // 2, 8, 3, 0}:
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"{part}.bin says it holds more than it does"):
            read(tmp_path)
