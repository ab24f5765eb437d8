"""The options of loading a model: where it runs, in which numbers, and what it may take. Loads no torch.

Each option, its default and its help text exist once, here; the command line is made from it, and `load` takes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from tyro.conf import UseAppendAction, arg

from v2edit.backbones.families import Attention, DType, Offload, Quantise, parse_resolution
from v2edit.backbones.memory import MemoryMode
from v2edit.backbones.weight_files import WeightFile
from v2edit.errors import UserError


@dataclass(frozen=True)
class LoadOptions:
    """Where a model runs, and what it needs there."""

    device: Annotated[str, arg(metavar="DEVICE")] = "auto"
    """A torch device, such as cpu, cuda:1, mps or xpu; auto takes a GPU where there is one. Two (cuda:0,cuda:1) share
    each step, the halves of guidance, and each holds the transformer."""
    dtype: DType = "auto"
    """Number format; auto is the one that the model was published in (float32 on the CPU)."""
    offload: Literal[Offload, "auto"] = "auto"
    """Bring whole parts (model) or single layers (group) to the device as needed: less memory, slower; auto is the
    fastest way that fits an edit into the device's free memory (of torchrun's processes: none)."""
    vae_tiling: bool = False
    """Encode and decode in tiles: less memory, slower."""
    resolution: Annotated[str | None, arg(metavar="WIDTHxHEIGHT", help_behavior_hint="")] = None
    """Edit at about so many pixels, in the video's own shape: smaller is quicker and takes less memory (default: the
    model's own)."""
    attention: Attention = "torch"
    """The kernel of attention: torch's own, or one of the packages flash-attn, FlashAttention-3 and SageAttention (of 8
    bits: faster, less exact)."""
    compile: bool = False
    """Compile a layer of each kind before the first step (torch.compile): minutes once, and faster steps."""
    lora: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FILE[:SCALE]")] = ()
    """A LoRA (.safetensors) to add to the model, such as one distilled to few steps: a file, or owner/name/file of a
    Hugging Face repository. Give it again for more; of models with two transformers as high=FILE and low=FILE."""
    flow_shift: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None
    """How far a flow model's steps lie towards noise; a distilled LoRA names its own (default: the model's own)."""
    quantize: Quantise = "none"
    """Store the weights of transformers and text encoder in 8 bits (int8, fp8: torchao) or 4 (nf4: bitsandbytes), which
    take a half or a quarter of the memory."""
    transformer: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FILE")] = ()
    """The transformer's weights from a file, .gguf (quantised) or .safetensors, named as for --lora."""
    block_processes: Annotated[int, arg(metavar="INT")] = 1
    """Processes that denoise the blocks of a long clip (--long) side by side, each with the model: as many times the
    memory, the same result. --device cuda gives each the next GPU."""

    @property
    def memory_mode(self) -> MemoryMode:
        """The memory mode that the options ask for, auto taken to be none."""
        return MemoryMode("none" if self.offload == "auto" else self.offload, self.vae_tiling)

    def __post_init__(self) -> None:
        files = (self.transformer,) if isinstance(self.transformer, str) else tuple(self.transformer)
        object.__setattr__(self, "transformer", files)
        if self.device.count(",") > 1:
            raise UserError(f"--device is {self.device!r}, expected one or two: guidance has two halves")
        if self.block_processes < 1:
            raise UserError(f"--block-processes is {self.block_processes}, expected 1 or more")
        if self.block_processes > 1 and "," in self.device:
            raise UserError(f"--device is {self.device!r}, and --block-processes have one each: name one kind, as cuda")
        loras = (self.lora,) if isinstance(self.lora, str) else tuple(self.lora)
        object.__setattr__(self, "lora", loras)
        _ = self.weight_files
        if self.quantize not in get_args(Quantise):
            raise UserError(f"--quantize is {self.quantize!r}, expected {' or '.join(get_args(Quantise))}")
        if self.flow_shift is not None and not 0 < self.flow_shift < math.inf:
            raise UserError(f"--flow-shift is {self.flow_shift}, expected above 0, such as 5")
        if self.resolution is not None:
            parse_resolution(self.resolution)

    @property
    def loras(self) -> list[WeightFile]:
        """The LoRAs to add. Raises `UserError` for what is none."""
        return [WeightFile.parse("--lora", text, (".safetensors",), scaled=True) for text in self.lora]

    @property
    def transformers(self) -> list[WeightFile]:
        """The files of transformers. Raises `UserError` for what is none."""
        return [WeightFile.parse("--transformer", text, (".gguf", ".safetensors")) for text in self.transformer]

    @property
    def weight_files(self) -> list[WeightFile]:
        """The files of weights beside the model's own."""
        return [*self.transformers, *self.loras]
