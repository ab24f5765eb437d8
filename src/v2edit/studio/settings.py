"""What a studio is started with, and the bounds of all that it takes from its clients."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from v2edit.backbones.families import BUILT_IN
from v2edit.prompts.lvlm import LVLMConfig

MIB, GIB = 2**20, 2**30
STATE = ".studio"  # in the folder of runs: what a run folder cannot hold
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
ID = re.compile(r"[a-z0-9]{20}")  # of jobs, uploads and masks: about 100 random bits


@dataclass(frozen=True)
class Settings:
    """What a studio serves, to whom, and how much of it."""

    folder: Path  # of the runs, absolute
    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None  # which clients must show; None: none is asked for
    allow_hosts: tuple[str, ...] = ()  # more names that the Host header may have
    devices: tuple[str, ...] = ("auto",)  # a worker for each
    model: str = BUILT_IN  # of jobs that name none
    lvlm: LVLMConfig = LVLMConfig()
    max_upload_bytes: int = 16 * GIB
    max_json_bytes: int = MIB
    max_mask_bytes: int = 32 * MIB
    max_queued: int = 500  # jobs that wait
    jobs_per_minute: int = 60
    max_streams: int = 64  # clients that listen to events
    max_tasks: int = 64  # that wait for the tools
    read_timeout: float = 30.0  # seconds for the next piece of a request, and for a client to take anything
    tool_memory: int = 8 * GIB  # address space of the process that reads foreign files
    tool_seconds: float = 300.0  # that it may take for one
    max_unpacked_bytes: int = 32 * GIB  # of an archive
    max_unpacked_files: int = 20_000

    @property
    def state(self) -> Path:
        """The folder of what belongs to the studio alone."""
        return self.folder / STATE

    @property
    def hosts(self) -> frozenset[str]:
        """What the Host header may be."""
        own = self.host if ":" not in self.host else f"[{self.host}]"
        names = {own, *LOCAL_NAMES}
        return frozenset({f"{name}:{self.port}".lower() for name in names} | {one.lower() for one in self.allow_hosts})

    def allows(self, host: str) -> bool:
        """Return whether a Host header may be this. Where all of the machine's addresses are served, each of them may:
        a page that leads its own name here, as a hostile one would, sends that name."""
        if host in self.hosts:
            return True
        name, _, port = host.rpartition(":")
        if self.host not in ("0.0.0.0", "::") or port != str(self.port):
            return False
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True
