"""Running out of memory in the middle: the edit goes on in smaller calls, with the same result."""

import ctypes
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from hypothesis import given
from hypothesis import strategies as st
from support.clips import PAIR, frames_of
from support.models import pipeline_of
from support.processes import SERVER

from v2edit.backbones.cogvideox import CogVideoX
from v2edit.backbones.rowwise import RowwiseLayer
from v2edit.editing import EditConfig, Editor, Progress
from v2edit.editing.controls import attention_map_replacement
from v2edit.editing.microbatch import SPLITS, select_rows, split_rows
from v2edit.editing.progression import aligned_text
from v2edit.host import is_out_of_memory, process_memory, retry_smaller_on_oom
from v2edit.runs.snapshots import Snapshots

CONFIG = EditConfig(steps=4, subtasks=2, mixture=0.3, guidance=6.0)
M_MMAP_THRESHOLD = -3  # of glibc's mallopt


def edited(backbone: CogVideoX, config: EditConfig, frames: int = 9, max_rows: int = 99) -> torch.Tensor:
    x0 = backbone.encode(frames_of(0, frames), loop=config.loop)
    editor = Editor(backbone)
    editor.batcher.max_rows = max_rows
    return list(editor.subtasks(x0, aligned_text(backbone, PAIR), config))[-1]


@pytest.mark.parametrize(
    ("variant", "frames", "changes"),
    [
        ("2b", 9, {}),
        ("5b", 9, {}),
        ("5b", 9, {"amr_unconditional": True, "mixture": 1.0}),
        ("5b", 9, {"guidance": 1.0}),
        ("5b", 9, {"amr": False}),
        ("5b", 25, {"subtasks": 1}),  # by windows
        ("5b", 16, {"loop": True}),
    ],
    ids=str,
)
def test_every_split_gives_the_same_edit(variant, frames, changes):
    config = replace(CONFIG, **changes)
    whole = edited(CogVideoX(pipeline_of(variant)), config, frames)
    for max_rows, row_by_row in ((3, False), (1, False), (99, True), (1, True)):  # rows of a call; those of a layer
        backbone = CogVideoX(pipeline_of(variant))
        assert not row_by_row or backbone.shrink() is not None
        other = edited(backbone, config, frames, max_rows)
        assert (other - whole).norm() <= 1e-5 * whole.norm(), (max_rows, row_by_row)


def test_maps_are_taken_from_the_rows_that_came_before():
    """Row by row with wrong maps is another edit: what the test above could not tell if maps did not matter."""
    config = replace(CONFIG, subtasks=1)
    with_maps, without = (edited(CogVideoX(pipeline_of("5b")), replace(config, amr=amr)) for amr in (True, False))
    assert (with_maps - without).norm() > 1e-3 * with_maps.norm()


@given(st.lists(st.booleans(), min_size=2, max_size=3), st.booleans(), st.integers(0, 2))
def test_rows_that_exchange_maps_stay_together(guided, in_both, split):
    branches, unconditional = len(guided), [branch for branch, needs in enumerate(guided) if needs]
    if in_both := in_both and guided[-1]:
        unconditional = list(range(branches))
    rows, first = branches + len(unconditional), len(unconditional)
    edits = [rows - 1, *([first - 1] if in_both else [])]
    sources = [[(row, 1.0)] for row in range(rows)]
    for edit in edits:
        others = range(edit - branches + 1, edit)
        sources[edit] = [(row, 1 / len(others)) for row in others]
    weights = [1 / (branches - 1)] * (branches - 1)
    maps = attention_map_replacement(weights, 3, unconditional, in_both)
    assert [list(row) for row in maps.sources] == sources
    calls = split_rows(rows, first, maps, split)
    if split == 1:
        assert calls == [part for part in (list(range(first)), list(range(first, rows))) if part]
    assert sorted(row for call in calls for row in call) == list(range(rows))
    for call in calls:
        part = select_rows(maps, call)
        for row, row_sources in zip(call, part.sources, strict=True):
            assert [(call[index], weight) for index, weight in row_sources] == sources[row]
    if split == 2:
        assert max(map(len, calls)) == (branches if edits else 1)
    assert len(calls) == 1 or split > 0


class Limited:
    """Makes network calls of more than `rows` rows fail as an allocator fails, once they have begun."""

    def __init__(self, backbone: CogVideoX, rows: int, error: Callable[[], BaseException], after: int = 0) -> None:
        self.rows, self.error, self.after, self.calls = rows, error, after, []
        backbone.networks[0].transformer_blocks[1].register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs) -> None:
        rows = len(kwargs["hidden_states"])
        self.calls.append(rows)
        if rows > self.rows and len(self.calls) > self.after:
            raise self.error()


ERRORS = {
    "of a GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "of main memory": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                                           "allocate memory: you tried to allocate 274877906944 bytes."),
    "of Python": MemoryError,
}  # fmt: skip


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("rows", [3, 2])
def test_only_the_failed_step_is_repeated(error, rows, caplog):
    config = replace(CONFIG, steps=8, subtasks=1)
    whole = edited(CogVideoX(pipeline_of("5b")), config)
    backbone, seen = CogVideoX(pipeline_of("5b")), []
    limited = Limited(backbone, rows, error, after=2)
    x0 = backbone.encode(frames_of(0))
    (other,) = Editor(backbone).subtasks(x0, aligned_text(backbone, PAIR), config, seen.append)
    assert (other - whole).norm() <= 1e-5 * whole.norm()
    assert [at.step for at in seen] == list(range(1, 8)) and isinstance(seen[0], Progress)
    # Two steps as they were, the third begun and failed, then in CFG batches: that step, and those after it.
    assert limited.calls == [4, 4, 4, 2, 2, *[2] * 4]
    assert (
        len(caplog.messages) == 1 and "the conditional and the unconditional batch one after the other" in caplog.text
    )


def test_when_nothing_smaller_is_left_the_error_is_the_users(caplog):
    backbone = CogVideoX(pipeline_of("5b"))
    Limited(backbone, 0, ERRORS["of main memory"])
    with pytest.raises(RuntimeError, match="can't allocate") as failure:
        edited(backbone, replace(CONFIG, subtasks=1))
    assert is_out_of_memory(failure.value)
    assert [message.split(", which")[0].split("with ")[1] for message in caplog.messages] == [
        SPLITS[1],  # and not SPLITS[2]: the source and the edit cannot be parted, so that no call would be smaller
        "the rows of a call one at a time in each layer",
    ]
    assert all(isinstance(layer, RowwiseLayer) for layer in backbone.networks[0].transformer_blocks)


def test_other_errors_are_none_of_its_business():
    calls = []

    def fails() -> None:
        calls.append(1)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        retry_smaller_on_oom(fails, lambda: "less")
    assert calls == [1]


def edit_under_a_limit(out: Path) -> None:
    """Edit within as much memory as lies between the peaks of half the rows and of all; write what was saved, the
    number of rows that it came to, the error, and what was logged. Peaks are those of the network's layers: the
    process's own is that of whatever it did before."""
    import resource

    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**18)  # tensors go back to the system, whatever was freed before
    logging.basicConfig(filename=out, format="%(message)s")
    pipeline = pipeline_of("5b")
    wide = {**pipeline.transformer.config, "num_attention_heads": 8, "num_layers": 1}
    pipeline.transformer = CogVideoXTransformer3DModel(**wide)
    backbone = CogVideoX(pipeline)
    text, config = aligned_text(backbone, PAIR), EditConfig(steps=2, alpha=0.5, beta=0.0, guidance=6.0)
    x0 = torch.randn(1, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    sizes: list[int] = []
    for layer in pipeline.transformer.modules():
        layer.register_forward_hook(lambda *_: sizes.append(process_memory("VmSize")))

    def edit(max_rows: int) -> tuple[torch.Tensor, int, int]:
        sizes.clear()
        editor = Editor(backbone)
        editor.batcher.max_rows = max_rows
        (edited,) = editor.subtasks(x0, text, config)
        return edited, max(sizes), editor.batcher.max_rows

    _, split_peak, _ = edit(2)
    whole, peak, _ = edit(4)
    resource.setrlimit(resource.RLIMIT_AS, ((split_peak + peak) // 2,) * 2)
    again, _, max_rows = edit(4)
    logging.warning("%d %d %g", peak - split_peak, max_rows, (again - whole).norm() / whole.norm())


@pytest.mark.skipif(sys.platform != "linux", reason="the limit, and the size, are Linux's")
def test_an_edit_goes_on_under_a_limit_of_the_system(tmp_path):
    """`ulimit -v` makes the allocator itself fail: between the peaks of one CFG batch at a time and of all rows."""
    process = SERVER.Process(target=edit_under_a_limit, args=(tmp_path / "log",))
    process.start()
    process.join()
    log = (tmp_path / "log").read_text()
    assert process.exitcode == 0, log
    saved, max_rows, error = map(float, log.splitlines()[-1].split())
    assert saved > 8 * 2**20 and max_rows < 4 and error < 1e-5
    assert "out of memory: going on with the conditional and the unconditional batch" in log


def test_a_resumed_edit_encodes_in_tiles_where_it_did_before(tmp_path):
    """However much memory is free by then: tiles are another result."""
    config = EditConfig(steps=4, guidance=6.0, beta=0.0)

    def edited(folder: Path, is_poor: bool, stop: int | None = None) -> np.ndarray:
        backbone = CogVideoX(pipeline_of("5b"))
        vae = backbone.vae
        vae.tile_sample_min_height = vae.tile_sample_min_width = 16
        vae.tile_latent_min_height = vae.tile_latent_min_width = 16 // backbone.spatial
        vae.tile_overlap_factor_height = vae.tile_overlap_factor_width = 0.5

        def run_out(*_: object) -> None:
            if is_poor and not vae.use_tiling:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        def tile() -> str:  # as on a GPU, where offload has come to its end
            backbone.memory_mode = replace(backbone.memory_mode, vae_tiling=True)
            return "--vae-tiling"

        def interrupt(at: Progress) -> None:
            if at.step == stop:
                raise KeyboardInterrupt

        vae.encoder.register_forward_pre_hook(run_out)
        backbone.shrink_coding = tile
        folder.mkdir(exist_ok=True)
        return np.asarray(
            Editor(backbone).edit(frames_of(0), PAIR, config, interrupt, Snapshots(folder, every=1)).frames
        )

    whole = edited(tmp_path / "whole", is_poor=True)
    with pytest.raises(KeyboardInterrupt):
        edited(tmp_path / "stopped", is_poor=True, stop=3)
    assert np.array_equal(edited(tmp_path / "stopped", is_poor=False), whole)
    assert not np.array_equal(edited(tmp_path / "rich", is_poor=False), whole)
