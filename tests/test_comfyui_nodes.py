"""The nodes themselves, where ComfyUI can be imported (PYTHONPATH=FOLDER, with its own Python); else skipped."""

import importlib.util
import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.clips import PAIR, frames_of, images_of
from support.videos import NTSC, clip, make

from v2edit import video as videos
from v2edit.comfyui.options import MODEL_OPTIONS
from v2edit.editing.config import EditConfig
from v2edit.errors import UserError

PACK = Path(__file__).resolve().parent.parent / "comfyui"


@pytest.fixture(scope="module")
def nodes() -> Any:
    """The nodes, in a ComfyUI without GPU."""
    if importlib.util.find_spec("comfy_api") is None:
        pytest.skip("ComfyUI cannot be imported: PYTHONPATH=FOLDER, and its Python")
    import utils.install_util  # pyright: ignore[reportMissingImports]  # noqa: F401  (before another utils hides it)
    from comfy.cli_args import args  # pyright: ignore[reportMissingImports]

    args.cpu = True
    from v2edit.comfyui import nodes

    return nodes


def test_the_nodes_take_what_the_workflows_give(nodes: Any) -> None:
    known = {
        one.GET_SCHEMA().node_id: one.INPUT_TYPES()
        for one in (nodes.V2EditModel, nodes.V2EditPrompts, nodes.V2EditVideo, nodes.V2EditScene)
    }
    for path in (PACK / "api_workflows").glob("*.json"):
        for node in json.loads(path.read_text()).values():
            if (inputs := known.get(node["class_type"])) is not None:
                assert (
                    inputs["required"].keys()
                    <= node["inputs"].keys()
                    <= (inputs["required"] | inputs["optional"]).keys()
                )
    edit = known["V2Edit"]["required"] | known["V2Edit"]["optional"]
    for name in nodes.EDIT_WIDGETS:
        assert edit[name][1]["default"] == getattr(EditConfig(), name)
    assert known["V2EditModel"]["required"].keys() | known["V2EditModel"]["optional"].keys() <= MODEL_OPTIONS | {
        "other_model",
        "options",
    }


def test_a_video_of_a_file_is_that_file(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths  # pyright: ignore[reportMissingImports]
    from comfy_api.latest import InputImpl, Types  # pyright: ignore[reportMissingImports]

    from v2edit.comfyui.server import find_source, open_file

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    path = make(tmp_path / "clip.mp4", list(clip(4)))
    assert find_source(open_file(path), 24) == path and not (tmp_path / "output").exists()
    frames = frames_of(7, 4)
    parts = Types.VideoComponents(images=images_of(frames), audio=None, frame_rate=NTSC)
    read = videos.read(find_source(InputImpl.VideoFromComponents(parts), 24))
    assert np.array_equal(read.frames[:], frames) and read.fps == NTSC
    assert videos.read(find_source(images_of(frames), 12.5)).fps == Fraction(25, 2)
    with path.open("rb") as file:
        found = find_source(InputImpl.VideoFromFile(io.BytesIO(file.read())), 24)
    assert found.read_bytes() == path.read_bytes() and found.suffix == ".mp4"


def test_an_edit_comes_out_as_comfyui_takes_it(
    nodes: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In inference mode, as ComfyUI runs a node: its outputs, what is too long for a batch, an interrupt, a mistake."""
    import comfy.model_management as management  # pyright: ignore[reportMissingImports]
    import folder_paths  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    frames, mask = images_of(frames_of(8)), torch.zeros(1, 32, 32)
    mask[:, :, :16] = 1
    with torch.inference_mode():
        (model,) = nodes.V2EditModel.execute(model="primitives", other_model=str(tiny_model), vae_tiling=False).args
        assert model.options.device == "cpu"
        prompts = nodes.V2EditPrompts.execute(model, "", source_prompt=PAIR.source, target_prompt=PAIR.target).args
        assert prompts[1:3] == (PAIR.source, PAIR.target)

        def edit(**more: Any) -> Any:
            given = {"steps": 3, "grow": 0, "options": "crop = off\ncolour = free"} | more
            return nodes.V2EditVideo.execute(model, prompts[0], frames, 12.5, mask, **given)

        made = edit()
        video, images, masks, *_, folder = made.args
        assert images.shape == (9, 32, 32, 3) and images.dtype == masks.dtype == torch.float32
        assert torch.equal(images[:, :, 16:], frames[:, :, 16:]) and not torch.equal(images, frames)
        assert masks.shape == (9, 32, 32) and not masks[:, :, 16:].any() and (masks[:, :, :8] == 1).all()
        assert video.get_frame_rate() == Fraction(25, 2) and Path(folder, "run.json").is_file()
        assert made.ui.as_dict()["images"][0]["subfolder"] == f"v2edit/{Path(folder).name}"
        monkeypatch.setattr(nodes, "fits_a_batch", lambda video: False)
        video, images, masks, *_ = edit().args
        assert video.get_frame_count() == 9 and images is masks and "too long for a batch" in images.message

        management.interrupt_current_processing()
        with pytest.raises(management.InterruptProcessingException):
            edit(seed=2)
        assert not management.processing_interrupted()
        with pytest.raises(UserError, match=r"^strength is 'much'"):
            edit(strength="much")
        for more, words in (({"auto_mask": True}, "auto_mask"), ({"options": "format = png"}, "format = png")):
            with pytest.raises(UserError, match=words):
                edit(**more)
