"""The memory mode of a backbone: what is where, what is done at a time, and the next mode that needs less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from v2edit.backbones.memory import MemoryMode
from v2edit.backbones.placement import Placement
from v2edit.backbones.rowwise import plain_class, rowwise_class


class MemoryModes:
    """The part of a `Backbone` that keeps to the memory there is."""

    vae: Any
    placement: Placement
    replica: Any
    _start_mode = _memory_mode = MemoryMode()

    @property
    def device(self) -> torch.device:
        raise NotImplementedError

    @property
    def networks(self) -> list[Any]:
        raise NotImplementedError

    def layers(self, network: Any) -> list[Any]:
        raise NotImplementedError

    def place(self, device: torch.device, mode: MemoryMode) -> None:
        """Run on a device in a memory mode; edits start from it. Parts come to the device when they are needed."""
        self._start_mode = mode
        self._set_mode(device, mode)

    @property
    def memory_mode(self) -> MemoryMode:
        return self._memory_mode

    @memory_mode.setter
    def memory_mode(self, mode: MemoryMode) -> None:
        self._set_mode(self.device, mode)

    @property
    def resident_bytes(self) -> int:
        return self.placement.resident_bytes

    def reset_memory_mode(self) -> None:
        self.memory_mode = self._start_mode

    def _set_mode(self, device: torch.device, mode: MemoryMode) -> None:
        before, self._memory_mode = self._memory_mode, mode
        if mode.vae_tiling != before.vae_tiling:
            (self.vae.enable_tiling if mode.vae_tiling else self.vae.disable_tiling)()
        if (device, mode.offload, mode.row_by_row) == (self.device, before.offload, before.row_by_row):
            return
        self.placement.remove_hooks()  # Those of layers keep to the class that a layer had before.
        for network in self.networks + (self.replica.networks if self.replica is not None else []):
            for layer in self.layers(network):
                layer.__class__ = (rowwise_class if mode.row_by_row else plain_class)(type(layer))
        self.placement.apply(device, mode.offload)
        self.__dict__.pop("_video_to_video", None)  # whose network is a copy of one with other hooks

    def free_text_encoders(self) -> None:
        self.placement.free_texts()

    def shrink(self) -> str | None:
        if not self.memory_mode.row_by_row:
            self.memory_mode = replace(self.memory_mode, row_by_row=True)
            return "the rows of a call one at a time in each layer"
        return self.offload_more()

    def offload_more(self) -> str | None:
        """Offload more of the model from now on, and describe how; None on the CPU or where no further mode is left."""
        mode = self.memory_mode.with_less_on_device
        if self.device.type == "cpu" or mode is None:
            return None
        in_4_bits = any(getattr(part, "is_loaded_in_4bit", False) for part in self.placement.parts.values())
        if mode.offload == "group" and in_4_bits:  # whose layers do not move
            return None
        self.memory_mode = mode
        return f"--offload {mode.offload}"

    def shrink_coding(self) -> str | None:
        """Go on encoding and decoding with less memory, in the end in tiles, whose blended edges are another result."""
        if (option := self.offload_more()) is not None:
            return option
        if self.device.type == "cpu" or self.memory_mode.vae_tiling:
            return None
        self.memory_mode = replace(self.memory_mode, vae_tiling=True)
        return "--vae-tiling, whose frames differ a little"
