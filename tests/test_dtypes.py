"""Number formats: which one a model runs in, and numbers that leave it."""

from pathlib import Path

import pytest
import torch
from support.clips import PAIR, frames_of
from support.models import pipeline_of
from torch import nn

from v2edit import backbones, host
from v2edit.backbones.dtypes import resolve_dtype, stored_dtype
from v2edit.backbones.hub import find
from v2edit.cli.app import main
from v2edit.editing import EditConfig, Editor
from v2edit.errors import UserError
from v2edit.host import find_device, is_out_of_memory, memory_advice, retry_smaller_on_oom

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def folder_of(variant: str, dtype: torch.dtype, folder: Path) -> Path:
    pipeline_of(variant).to(dtype=dtype).save_pretrained(folder)
    return folder


def resolve(folder: Path, dtype: str = "auto", device: torch.device = CUDA) -> torch.dtype:
    return resolve_dtype(find(str(folder)), folder, dtype, device)


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("v2edit.backbones.dtypes.has_bfloat16", lambda device: True)


@pytest.fixture
def turing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("v2edit.backbones.dtypes.has_bfloat16", lambda device: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")


@pytest.mark.usefixtures("ampere")
@pytest.mark.parametrize(
    ("variant", "stored", "expected"),
    [
        ("5b", torch.float16, torch.float16),  # what it was published in
        ("2b", torch.bfloat16, torch.bfloat16),
        ("2b", torch.float32, torch.float16),  # the family's, where the file is float32
        ("5b", torch.float32, torch.bfloat16),
    ],
)
def test_auto_is_the_checkpoints_own_16_bit_format(variant, stored, expected, tmp_path):
    folder = folder_of(variant, stored, tmp_path / "model")
    assert resolve(folder) == expected
    assert resolve(folder, device=CPU) == torch.float32 and resolve(folder, "float32") == torch.float32
    for weights in folder.rglob("*.safetensors"):  # not downloaded yet
        weights.unlink()
    assert stored_dtype(folder / "transformer") is None
    checkpoint = backbones.Checkpoint(str(folder), str(folder))
    assert resolve_dtype(checkpoint, folder, "auto", CUDA) == {"2b": torch.float16, "5b": torch.bfloat16}[variant]


@pytest.mark.usefixtures("turing")
def test_a_card_without_bfloat16_takes_float16_or_refuses(tmp_path):
    folder = folder_of("5b", torch.bfloat16, tmp_path / "model")
    assert resolve(folder) == torch.float16
    with pytest.raises(UserError, match=r"--dtype is bfloat16, which Tesla T4 .*float16"):
        resolve(folder, "bfloat16")
    assert resolve(folder, "bfloat16", CPU) == torch.bfloat16


@pytest.mark.usefixtures("ampere")
def test_the_built_in_model_stays_float32():
    checkpoint = find()
    assert resolve_dtype(checkpoint, Path(checkpoint.source), "auto", CUDA) == torch.float32


def scale(part: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.mul_(factor)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("transformer.proj_out", "the edit's latents.*NaN.*float16 is too narrow.*--dtype bfloat16"),
        ("vae.decoder.conv_out", "the decoded frames.*float16"),
        ("vae.encoder.conv_out", "the video's latents.*float16"),
    ],
)
def test_numbers_beyond_float16_end_an_edit_in_one_line(part, message, tmp_path):
    pipeline = pipeline_of("5b").to(dtype=torch.float16)
    scale(pipeline.components[part.split(".")[0]].get_submodule(part.split(".", 1)[1]), 6e4)
    pipeline.save_pretrained(tmp_path)
    backbone = backbones.load(str(tmp_path), dtype="float16")
    with pytest.raises(UserError, match=message) as error:
        Editor(backbone).edit(frames_of(0), PAIR, EditConfig(steps=4))
    assert "\n" not in str(error.value)


def test_no_black_video_with_exit_code_0(tmp_path, capsys, monkeypatch):
    """And another cause is named where the format is wide enough."""
    monkeypatch.chdir(tmp_path)
    pipeline = pipeline_of("5b")
    scale(pipeline.transformer.proj_out, float("nan"))
    pipeline.save_pretrained("model")
    from v2edit import video

    video.write(frames_of(0), tmp_path / "clip.mp4", fps=8)
    words = ["edit", "clip.mp4", "--source-prompt", PAIR.source, "--target-prompt", PAIR.target, "--model", "model"]
    assert main([*words, "--steps", "4", "--save-every", "1", "-o", "run"]) == 2
    assert "latents at step" in (error := capsys.readouterr().err) and "weights may be damaged" in error
    assert not list(Path("run").glob("*.mp4"))


OF_GPUS = [
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "GET was unable to find an engine to execute this computation",
    "MPS backend out of memory (MPS allocated: 17.98 GB, other allocations: 1.2 GB, max allowed: 18.13 GB).",
    "Invalid buffer size: 45.20 GiB",
    "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "HIP error: hipErrorOutOfMemory",
]


@pytest.mark.parametrize("message", OF_GPUS)
def test_libraries_words_for_no_memory_lead_to_less_memory(message):
    tries = iter([RuntimeError(message), None])

    def work() -> str:
        if error := next(tries):
            raise error
        return "done"

    assert retry_smaller_on_oom(work, lambda: "less") == "done"
    assert "--offload" in str(memory_advice(RuntimeError(message))) or "Invalid buffer" in message


def test_other_errors_are_no_lack_of_memory():
    for message in ("CUDA error: an illegal memory access was encountered", "CUDNN_STATUS_BAD_PARAM", "expected Half"):
        assert not is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize(
    ("there", "expected"),
    [({}, "cpu"), ({"mps": 1}, "mps"), ({"xpu": 2}, "xpu"), ({"mps": 1, "cuda": 1}, "cuda")],
)
def test_auto_is_a_gpu_where_there_is_one(there, expected, monkeypatch):
    monkeypatch.setattr(host, "count_devices", lambda kind: there.get(kind, 0))
    assert find_device("auto").type == expected
