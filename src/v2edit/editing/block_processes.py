"""Processes that denoise the blocks of a step side by side, each with the model. The bits are those of one process: a
block takes nothing from the others of its step, and every process computes with as many threads.

Letters: N latent frames of a block, B branches, C channels."""

from __future__ import annotations

import logging
import os
import pickle
import traceback
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from v2edit import backbones
from v2edit.backbones import Backbone, Checkpoint
from v2edit.backbones.memory import MemoryMode
from v2edit.backbones.options import LoadOptions
from v2edit.editing.change import on_latents
from v2edit.editing.microbatch import MicroBatcher
from v2edit.editing.subtask import Subtask
from v2edit.host import count_devices
from v2edit.workers import Died, Ended, ProcessPool, Refused, Started

log = logging.getLogger(__name__)
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class BlockInputs:
    """What the network is given of a block before step k, on the CPU: the edit's latents, the noise in those of the
    sources, and the sources themselves, each [1, N, C, h, w]."""

    k: int
    edit: Tensor
    eps: Tensor
    sources: Sequence[Tensor]

    def denoise(self, subtask: Subtask) -> tuple[Tensor, bool]:
        """Return what the block takes for x0 in each branch of a subtask, [N, B C, h, w] on the CPU, and whether the
        attention to the words that change is one channel more, as it is where that is gathered."""
        device = subtask.backbone.device
        own = with_sources(subtask, self.sources, device)
        branches = own.branches(self.edit.to(device), self.eps.to(device), self.k)
        x0s, words = own.denoise(branches, self.k)
        values = torch.cat(x0s, dim=2)[0]
        attention = None if words is None else on_latents(words.mean, x0s[0].shape[1:])
        if attention is not None:
            values = torch.cat([values, attention[0].to(values)], dim=1)
        return values.cpu(), attention is not None


def with_sources(subtask: Subtask, x0s: Sequence[Tensor], device: torch.device) -> Subtask:
    """Return a subtask of other sources' x0, on a device."""
    sources = [replace(one, x0=x0.to(device)) for one, x0 in zip(subtask.sources, x0s, strict=True)]
    return replace(subtask, sources=sources)


@dataclass(frozen=True, eq=False)
class BlockJob:
    """A block for another process. `subtask` is pickled, and None where that process has it."""

    subtask: bytes | None
    inputs: BlockInputs
    mode: MemoryMode
    frame_rate: float


@dataclass(frozen=True, eq=False)
class BlockOutcome:
    """What `BlockInputs.denoise` returned, and the memory mode that it ended in."""

    values: Tensor
    attended: bool
    mode: MemoryMode


@dataclass
class BlockWorker:
    """A process's model, which denoises blocks. Jobs and outcomes are pickled by themselves, since torch would pass
    their tensors in shared memory, of which containers have little."""

    checkpoint: Checkpoint
    options: LoadOptions
    mode: MemoryMode
    threads: int
    subtask: Subtask | None = None

    def load(self) -> tuple[str | None, str]:
        try:
            torch.set_num_threads(self.threads)
            backbone = backbones.load(self.checkpoint, self.options, mode=self.mode)
            backbone.free_text_encoders()
            self.batcher = MicroBatcher(backbone)
        except Exception as error:
            return None, str(error)
        return f"{backbone.device}, process {os.getpid()}", ""

    def run(self, job: bytes) -> Any:
        """Return the pickled outcome of a pickled `BlockJob`, or the exception that it raises."""
        try:
            return pickle.dumps(self._denoise(pickle.loads(job)))
        except Exception as error:
            error.add_note("".join(traceback.format_exception(error)))  # A traceback itself does not travel.
            return error

    def _denoise(self, job: BlockJob) -> BlockOutcome:
        backbone = self.batcher.backbone
        backbone.set_frame_rate(job.frame_rate)
        backbone.memory_mode = job.mode
        if job.subtask is not None:
            self.subtask = _on_device(replace(pickle.loads(job.subtask), batcher=self.batcher), backbone.device)
        assert self.subtask is not None
        values, attended = job.inputs.denoise(self.subtask)
        return BlockOutcome(values, attended, backbone.memory_mode)


class BlockProcesses:
    """This process and others with the model of a backbone, which begin with the first blocks. Where one of them cannot
    go on, its blocks are denoised by this process, and the rest goes on without it."""

    def __init__(self, backbone: Backbone, checkpoint: Checkpoint, count: int) -> None:
        self.backbone, self.checkpoint, self._count = backbone, checkpoint, count
        self._pool: ProcessPool | None = None
        self._workers: dict[int, Subtask | None] = {}  # those that can go on, with the subtask that each has

    @classmethod
    def of(cls, backbone: Backbone) -> BlockProcesses | None:
        """Return as many processes as a backbone's options say, None where it is this one alone."""
        count, checkpoint = backbone.load_options.block_processes, backbone.checkpoint
        return None if count == 1 or checkpoint is None else cls(backbone, checkpoint, count)

    @property
    def count(self) -> int:
        """The blocks that are denoised at a time."""
        return 1 + len(self._workers) if self._pool else self._count

    def denoise(self, subtask: Subtask, blocks: Sequence[BlockInputs]) -> list[tuple[Tensor, bool]]:
        """Return what each of at most `count` blocks gives, in their order; the first one is this process's."""
        try:
            if self._pool is None and len(blocks) > 1:
                self._start()
            given = dict(zip(self._workers, range(1, len(blocks)), strict=False))
            for worker, index in given.items():
                self._submit(worker, subtask, blocks[index])
            results = {0: blocks[0].denoise(subtask)}
            results |= self._collect(given)
        except BaseException:
            self.stop()  # Some may be at their blocks yet, which nobody waits for.
            raise
        return [results[index] if index in results else one.denoise(subtask) for index, one in enumerate(blocks)]

    def stop(self) -> None:
        """End the other processes; they begin again with the next blocks."""
        if self._pool is not None:
            self._pool.stop()
            self._pool, self._workers = None, {}

    def _start(self) -> None:
        log.info("blocks: loading the model in each of %d processes", self._count)
        backbone = self.backbone
        make = partial(BlockWorker, self.checkpoint, mode=backbone.memory_mode, threads=torch.get_num_threads())
        options = [replace(backbone.load_options, device=self._device(k)) for k in range(1, self._count)]
        pool = ProcessPool([partial(make, options=one) for one in options])
        weakref.finalize(self, pool.stop)
        self._pool, self._workers = pool, dict.fromkeys(range(pool.count))
        waiting = set(self._workers)
        for worker in self._workers:
            pool.start(worker)
        while waiting:
            for event in pool.wait():
                waiting.discard(event.worker)
                if not isinstance(event, Started):
                    self._lose(event)

    def _device(self, number: int) -> str:
        """Return the device of a process by its number: the next of its kind, unless one was named."""
        device = self.backbone.device
        if device.type == "cpu" or self.backbone.load_options.device not in ("auto", device.type):
            return str(device)
        return f"{device.type}:{number % count_devices(device.type)}"

    def _submit(self, worker: int, subtask: Subtask, inputs: BlockInputs) -> None:
        assert self._pool is not None
        pickled = None
        if self._workers[worker] is not subtask:
            bare = with_sources(subtask, [torch.empty(0)] * len(subtask.sources), CPU)
            pickled = pickle.dumps(_on_device(replace(bare, batcher=None), CPU))  # pyright: ignore[reportArgumentType]
            self._workers[worker] = subtask
        job = BlockJob(pickled, inputs, self.backbone.memory_mode, self.backbone.frame_rate)
        self._pool.submit(worker, pickle.dumps(job))

    def _collect(self, given: dict[int, int]) -> dict[int, tuple[Tensor, bool]]:
        """Wait for the outcomes of the workers' blocks; return those that there are, by the blocks' numbers."""
        assert self._pool is not None
        waiting, results = dict(given), {}
        while waiting:
            for event in self._pool.wait():
                index = waiting.pop(event.worker, None)
                if index is None or not isinstance(event, Ended) or isinstance(event.outcome, Exception):
                    self._lose(event)
                    continue
                outcome: BlockOutcome = pickle.loads(event.outcome)
                results[index] = outcome.values, outcome.attended
                if outcome.mode != self.backbone.memory_mode:  # It ran out of memory; so would the others.
                    self.backbone.memory_mode = outcome.mode
        return results

    def _lose(self, event: Any) -> None:
        """Go on without the worker of an event."""
        assert self._pool is not None
        if self._workers.pop(event.worker, self) is self:
            return
        match event:
            case Died(_, reason) | Refused(_, reason):
                why = reason
            case _:
                why = str(event.outcome)
                self._pool.end(event.worker)
        log.warning("blocks: a process cannot go on (%s): going on with %d of %d", why, self.count, self._count)


def _on_device(subtask: Subtask, device: torch.device) -> Subtask:
    """Return a subtask with its texts on a device."""
    text = subtask.text
    texts = {name: getattr(text, name).to(device) for name in ("original", "current", "edit", "negative")}
    sources = [replace(source, prompt=source.prompt.to(device)) for source in subtask.sources]
    return replace(subtask, text=replace(text, **texts), sources=sources)
