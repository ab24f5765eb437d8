"""What edits with published models take, counted once (`benchmarks/families.py --write`): for a machine that has
downloaded none of them. Loads no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from v2edit.backbones.memory import MemoryMode

COSTS = Path(__file__).parent / "published_costs.json"
HUB_IDS = {
    "CogVideoX-2b": "zai-org/CogVideoX-2b",
    "CogVideoX-5b": "zai-org/CogVideoX-5b",
    "CogVideoX 1.5-5b": "zai-org/CogVideoX1.5-5B",
    "HunyuanVideo": "hunyuanvideo-community/HunyuanVideo",
    "HunyuanVideo 1.5": "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
    "Mochi": "genmo/mochi-1-preview",
    "LTX-Video 0.9.5 2B": "Lightricks/LTX-Video-0.9.5",
    "LTX-Video 0.9.8 13B": "Lightricks/LTX-Video-0.9.8-13B-distilled",
    "Wan 2.1 1.3B": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "Wan 2.1 14B": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "SkyReels-V2 14B": "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers",
    "Wan 2.2 TI2V-5B": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    "Wan 2.2 A14B": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
}  # fmt: skip


@dataclass(frozen=True)
class MemoryWay:
    """A memory mode, with the counted peak in bytes on the device, the free memory that it asks for (the peak and a
    margin), and the bytes of main memory for weights."""

    mode: MemoryMode
    peak: int
    needed: int
    main_memory: int


@dataclass(frozen=True)
class PublishedCost:
    """One subtask of 50 steps at a published model's native size and defaults: FLOPs, and the memory modes from the
    fastest to the smallest, those that take less than all before."""

    model: str
    clip: str  # frames x height x width
    flops: float
    ways: tuple[MemoryWay, ...]

    @classmethod
    def from_record(cls, record: dict) -> Self:
        ways = (MemoryWay(MemoryMode(**way.pop("mode")), **way) for way in map(dict, record["ways"]))
        return cls(record["model"], record["clip"], record["flops"], tuple(ways))


def published_costs() -> list[PublishedCost]:
    """Return the counted costs of published models."""
    return [PublishedCost.from_record(record) for record in json.loads(COSTS.read_text(encoding="utf-8"))]


def write_costs(costs: list[PublishedCost]) -> None:
    """Write the costs into the package."""
    COSTS.write_text(json.dumps([asdict(cost) for cost in costs], indent=1) + "\n", encoding="utf-8")
