"""Where the parts of a model are: on the device all the time, or while they work, or layer by layer.

Parts move by themselves when they are called, so that whoever calls them, diffusers' own pipelines too, finds them
there. Moving changes no number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import (
    _GROUP_OFFLOADING,
    _LAYER_EXECUTION_TRACKER,
    _LAZY_PREFETCH_GROUP_OFFLOADING,
)
from torch import Tensor, nn

from v2edit.backbones.families import Offload
from v2edit.host import available_memory, cap_device_memory, is_out_of_memory, release_memory

STREAMS = ("cuda", "xpu")  # kinds of devices that copy while they compute
PINNED_SHARE = 0.5  # of main memory that may be page-locked
LAYERS_AT_A_TIME = 3  # of a transformer: one that works, the next, and the last one until its memory is free
ROOM_BESIDE = 1.25  # a text encoder comes beside other parts where there is room for so many times its weights


class Placement:
    """The parts of a pipeline on a device and in main memory, as an offload mode says.

    none: transformers and autoencoder stay on the device once they were needed; model: one part at a time is there;
    group: a transformer's layers come one ahead of their use (diffusers' group offloading), those of a text encoder in
    turn. Text encoders leave the device after their work in every mode."""

    def __init__(self, parts: Mapping[str, nn.Module], networks: Sequence[nn.Module], vae: nn.Module) -> None:
        self.parts = dict(parts)
        self.networks = [name for name, part in parts.items() if any(part is network for network in networks)]
        self.texts = [name for name, part in parts.items() if name not in self.networks and part is not vae]
        self.vae = vae
        self.device = tensor_device(networks[0])
        self.offload: Offload = "none"
        # The bytes of a module of a named part.
        self.stored_bytes: Callable[[str, nn.Module], int] = lambda name, module: tensor_bytes(module)
        self._resident: list[str] = []
        self._hooks: list[Any] = []
        self._streamed: list[nn.Module] = []

    def apply(self, device: torch.device, offload: Offload) -> None:
        """Prepare for a mode. Parts leave the device that may not stay there, and none comes before it is needed."""
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.remove_hooks()
        if device.type == "cpu" and offload == "none":
            for part in self.parts.values():
                move(part, device)
        else:
            cap_device_memory(device)
            for name, part in self.parts.items():
                if offload != "none" or name in self.texts or tensor_device(part) != device:
                    move(part, torch.device("cpu"))
        self.device, self.offload = device, offload
        there = self.parts.items() if offload == "none" else ()
        self._resident = [name for name, part in there if tensor_device(part) == device]
        self.add_hooks()

    def add_hooks(self) -> None:
        """Let the parts move by themselves from now on."""
        if not self.moves:
            return
        for name in self.texts:
            self._hook_text(name, self.parts[name])
        for name in self.networks:
            self.hook_network(name, self.parts[name])
        name = next(name for name, part in self.parts.items() if part is self.vae)
        for child in self.vae.children():  # `encode` and `decode` call these
            self._hooks.append(child.register_forward_pre_hook(lambda *_: self.bring(name)))

    def remove_hooks(self) -> None:
        """Leave the parts where they are from now on."""
        for hook in self._hooks:
            hook.remove()
        for network in self._streamed:
            stop_streaming(network)
        self._hooks, self._streamed = [], []

    @contextmanager
    def without_hooks(self) -> Iterator[None]:
        """Take the hooks off for a while: a copy of a part with hooks would copy all that they refer to."""
        self.remove_hooks()
        yield
        self.add_hooks()

    def hook_network(self, name: str, network: nn.Module) -> None:
        """Let a transformer come when it is called: the part `name`, or a copy of it that shares its parameters."""
        if not self.moves:
            return
        part = self.parts[name]

        def bring(*_: Any) -> None:
            self.bring(name)
            for own, copied in zip(part.modules(), network.modules(), strict=True) if network is not part else ():
                copied._buffers.update(own._buffers)  # Parameters are shared and moved in place, buffers are not.

        self._hooks.append(network.register_forward_pre_hook(bring))
        if self.offload == "group":
            stream_layers(network, self.device, self.may_pin(available_memory(torch.device("cpu"))))
            self._streamed.append(network)

    def free_texts(self) -> None:
        """Free the text encoders' weights, for good."""
        for name in self.texts:
            self.parts[name].to("meta")
        self._resident = [name for name in self._resident if name not in self.texts]
        release_memory()

    def bring(self, name: str) -> None:
        """Bring a part to the device, and send away what may not stay beside it."""
        if name in self._resident:
            return
        part, is_text = self.parts[name], name in self.texts
        assert tensor_device(part).type != "meta", f"{name} was freed"
        if self.offload != "none" or (is_text and not self._has_room(part)):
            self._send_away()
        if self.offload == "group" and (name in self.networks or is_text):
            return  # their layers come by themselves
        try:
            self._move_whole(part)
        except RuntimeError as error:
            if not is_out_of_memory(error) or not self._resident:
                raise
            self._send_away()
            release_memory()
            self._move_whole(part)
        self._resident.append(name)
        if self.offload == "none" and name in self.networks:  # A second expert comes with the first: no step waits.
            for other in self.networks:
                self.bring(other)

    def _move_whole(self, part: nn.Module) -> None:
        """Move a part to the device, or none of it."""
        try:
            move(part, self.device)
        except RuntimeError:
            move(part, torch.device("cpu"))
            raise

    def weights(self, offload: Offload) -> dict[str, int]:
        """Return the most bytes of weights on the device, in an offload mode, while text encoders, transformers and
        the autoencoder work."""
        sizes = {name: self.stored_bytes(name, part) for name, part in self.parts.items()}
        vae = next(sizes[name] for name, part in self.parts.items() if part is self.vae)
        texts = max(sizes[name] for name in self.texts)
        networks = [sizes[name] for name in self.networks]
        if offload == "none":
            staying = sum(networks) + vae
            return {"text": texts, "networks": staying, "vae": staying}
        if offload == "group":
            texts = max(self._bytes_in_turn(name, 1) for name in self.texts)
            networks = [self._bytes_in_turn(name, LAYERS_AT_A_TIME) for name in self.networks]
        return {"text": texts, "networks": max(networks), "vae": vae}

    @property
    def resident_bytes(self) -> int:
        """The bytes of weights that are on the device now, but for single layers."""
        return sum(tensor_bytes(self.parts[name]) for name in self._resident)

    def main_memory(self, offload: Offload, pin: bool) -> int:
        """Return the bytes of main memory that the weights take: all of them while they are loaded, and what is
        page-locked with --offload group."""
        total = sum(self.stored_bytes(name, part) for name, part in self.parts.items())
        if offload == "group" and pin:
            total += sum(pinned_bytes(self.parts[name]) - tensor_bytes(self.parts[name]) for name in self.networks)
        return total

    def _bytes_in_turn(self, name: str, at_a_time: int) -> int:
        """Return the most bytes on the device of a part whose layers come in turn, while the rest of it is there."""
        part = self.parts[name]
        # Of a transformer, the lists of layers that diffusers' group offloading finds.
        stacks = [one for one in part.children() if isinstance(one, (nn.ModuleList, nn.Sequential))]
        layers = [layer for stack in stacks for layer in stack] if at_a_time > 1 else largest_stack(part)
        sizes = sorted(self.stored_bytes(name, layer) for layer in layers)
        return self.stored_bytes(name, part) - sum(sizes) + sum(sizes[-at_a_time:])

    @property
    def moves(self) -> bool:
        """Whether parts move by themselves."""
        return self.device.type != "cpu" or self.offload != "none"

    def may_pin(self, free: int | None) -> bool:
        """Whether main memory, of which some bytes are free beside the weights, allows to page-lock the transformers,
        so that the device copies while it computes."""
        total = sum(tensor_bytes(self.parts[name]) for name in self.networks)
        pinned = sum(pinned_bytes(self.parts[name]) for name in self.networks)
        return free is None or pinned <= PINNED_SHARE * (free + total)

    def _has_room(self, part: nn.Module) -> bool:
        free = available_memory(self.device) if self.device.type in STREAMS else None
        return free is None or free > ROOM_BESIDE * tensor_bytes(part)

    def _send_away(self, names: Sequence[str] | None = None) -> None:
        """Move parts (default: all that are there) to main memory."""
        leaving = [name for name in self._resident if names is None or name in names]
        for name in leaving:
            move(self.parts[name], torch.device("cpu"))
            self._resident.remove(name)
        if leaving:
            release_memory()

    def _hook_text(self, name: str, encoder: nn.Module) -> None:
        """Let a text encoder come when it is called, and leave after it."""
        layers = largest_stack(encoder) if self.offload == "group" else []
        within = {id(module) for layer in layers for module in layer.modules()}
        rest = [module for module in encoder.modules() if id(module) not in within]

        def come(*_: Any) -> None:
            self.bring(name)
            if layers:
                move_own(rest, self.device)

        def leave(*_: Any) -> None:
            if layers:
                move_own(rest, torch.device("cpu"))
            self._send_away([name])

        self._hooks += [encoder.register_forward_pre_hook(come), encoder.register_forward_hook(leave)]
        for layer in layers:
            self._hooks += [
                layer.register_forward_pre_hook(lambda layer, _: move(layer, self.device)),
                layer.register_forward_hook(lambda layer, *_: move(layer, torch.device("cpu"))),
            ]


def stream_layers(network: nn.Module, device: torch.device, pin: bool) -> None:
    """Let a transformer's layers come to the device one ahead of their use; `pin` all of them in page-locked memory,
    else a layer at a time, which is slower."""
    streams = device.type in STREAMS
    apply_group_offloading(
        network,
        onload_device=device,
        num_blocks_per_group=1,
        use_stream=streams,
        record_stream=streams,
        low_cpu_mem_usage=not pin,
    )


def stop_streaming(network: nn.Module) -> None:
    """Undo `stream_layers`, and leave all layers in main memory."""
    for module in network.modules():
        if (registry := getattr(module, "_diffusers_hook", None)) is None:
            continue
        for name in (_LAYER_EXECUTION_TRACKER, _LAZY_PREFETCH_GROUP_OFFLOADING, _GROUP_OFFLOADING):
            registry.remove_hook(name, recurse=False)
        if not registry.hooks:  # The hooks leave the method of the class that the layer had then.
            module.__dict__.pop("forward", None)
    move(network, torch.device("cpu"))


def largest_stack(module: nn.Module) -> list[nn.Module]:
    """Return the layers of the largest list of layers in a module; none where it has no list."""
    stacks = [list(one) for one in module.modules() if isinstance(one, nn.ModuleList)]
    return max(stacks, key=lambda layers: sum(map(tensor_bytes, layers)), default=[])


def move(part: nn.Module, device: torch.device) -> None:
    """Move a part's parameters and buffers, unless they were freed."""
    if tensor_device(part).type != "meta":
        part.to(device)


def move_own(modules: Sequence[nn.Module], device: torch.device) -> None:
    """Move what modules hold themselves, without what is in the modules in them."""
    for module in modules:
        module._apply(lambda tensor: tensor.to(device), recurse=False)


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Yield a module's parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def tensor_device(module: nn.Module) -> torch.device:
    """Return the device of a module's tensors; the CPU where it has none."""
    return next((tensor.device for tensor in tensors_of(module)), torch.device("cpu"))


def tensor_bytes(module: nn.Module, size: Callable[[int], int] = lambda size: size) -> int:
    """Return the bytes of a module's parameters and buffers, each tensor's changed by `size`."""
    return sum(size(tensor.numel() * tensor.element_size()) for tensor in tensors_of(module))


def pinned_bytes(module: nn.Module) -> int:
    """Return the bytes of page-locked memory that a module takes: torch rounds each tensor up to a power of two."""
    return tensor_bytes(module, lambda size: 1 << (size - 1).bit_length() if size else 0)
