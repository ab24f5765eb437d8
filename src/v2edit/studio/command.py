"""The command `v2edit studio`: from options to a server that runs."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction, arg

from v2edit.backbones.families import BUILT_IN
from v2edit.errors import UserError
from v2edit.prompts.lvlm import LVLMConfig, check_chat

if TYPE_CHECKING:
    from v2edit.studio.settings import Settings

GIB = 2**30
MISSING = "the studio needs two more packages: pip install 'v2edit[studio]'"


@dataclass(frozen=True)
class ServeStudio:
    """Serve a web page to edit with, over a folder of runs."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")] = Path("runs")
    """The folder of the runs, those of the command line too; what is the studio's own is in its .studio."""
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    """The address to serve on. Any but this machine's own (127.0.0.1) asks clients for a token."""
    port: Annotated[int, arg(metavar="INT")] = 7860
    """The port to serve on; 0 takes a free one."""
    token_file: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """A file with the token that clients must show (default: none on 127.0.0.1, else a new one, which is printed)."""
    allow_host: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME:PORT")] = ()
    """Another name that clients may use for this machine, such as that of a proxy before it. Give it again for more."""
    device: Annotated[str, arg(metavar="DEVICE")] = "auto"
    """The torch device to edit on; several, such as cuda:0,cuda:1, edit one job each at a time."""
    model: Annotated[str, arg(metavar="MODEL")] = BUILT_IN
    """The video model of jobs that name none."""
    lvlm: Annotated[OmitArgPrefixes[LVLMConfig], arg(name="language-model")] = LVLMConfig()
    max_upload: Annotated[float, arg(metavar="GIB")] = 16.0
    """The most that one upload may have."""
    no_open: FlagCreatePairsOff[bool] = False
    """Do not open the page in a browser."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise UserError(f"--port is {self.port}, expected 0 to 65535")
        if not 0 < self.max_upload < 2**20:
            raise UserError(f"--max-upload is {self.max_upload:g}, expected GiB above 0")
        if not all(name.strip() for name in self.device.split(",")):
            raise UserError(f"--device is {self.device!r}, expected a device, or several such as cuda:0,cuda:1")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the studio."""
        with suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host == "localhost"

    def token(self) -> str | None:
        """Return the token that clients must show, None for none. Raises `UserError` for a file that has none."""
        if self.token_file is None:
            return None if self.is_local else secrets.token_urlsafe(24)
        try:
            token = self.token_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise UserError(f"--token-file: {self.token_file} cannot be read: {error}") from error
        if len(token) < 16 or not token.isascii() or not token.isprintable() or set(token) & set(' ";,\\'):
            raise UserError(f"--token-file: {self.token_file} must have 16 or more letters, digits or dashes")
        return token

    def settings(self, port: int) -> Settings:
        """Return what the studio is started with, on a port. Raises `UserError`."""
        from v2edit.studio.settings import Settings

        if self.lvlm.model is not None:
            check_chat(self.lvlm)
        return Settings(
            folder=Path(os.path.abspath(self.folder)), host=self.host, port=port, token=self.token(),
            allow_hosts=tuple(self.allow_host), devices=tuple(name.strip() for name in self.device.split(",")),
            model=self.model, lvlm=self.lvlm, max_upload_bytes=int(self.max_upload * GIB),
        )  # fmt: skip

    def run(self, on_ready: Callable[[str, Settings], None]) -> None:
        """Serve until the process is interrupted; `on_ready` is called with the address once it can be opened. Raises
        `UserError` where the extra is missing, the port is taken, or another studio serves the folder."""
        try:
            import fastapi  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError:
            raise UserError(MISSING) from None
        with self.bind() as listener:
            settings = self.settings(listener.getsockname()[1])
            serve(settings, listener, lambda: on_ready(self.address(settings), settings))

    def bind(self) -> socket.socket:
        """Return a socket that listens at the address. Raises `UserError` where it cannot."""
        try:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            listener.listen(128)
            return listener
        except OSError as error:
            where = f"{self.host}:{self.port}"
            raise UserError(f"cannot serve at {where}: {error.strerror or error}; choose another --port") from error

    def address(self, settings: Settings) -> str:
        """Return the address to open, with the token behind a #, which no server is ever told."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        host = "localhost" if self.host in ("0.0.0.0", "::") else name
        return f"http://{host}:{settings.port}/{f'login#{settings.token}' if settings.token else ''}"


def serve(settings: Settings, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve a studio on a socket until the process is interrupted. Raises `UserError` where the folder is served."""
    import asyncio

    from v2edit.studio.app import create_app
    from v2edit.studio.core import Studio
    from v2edit.studio.server import make_server

    studio = Studio(settings)
    try:
        studio.start()
        server = make_server(create_app(studio), settings)
        server.on_shutdown = studio.begin_to_close

        async def main() -> None:
            async def tell() -> None:
                while not server.started:
                    await asyncio.sleep(0.01)
                on_ready()

            told = asyncio.ensure_future(tell())
            await server.serve(sockets=[listener])
            told.cancel()

        with suppress(KeyboardInterrupt):
            asyncio.run(main())
    finally:
        studio.close()


def open_browser(address: str) -> None:
    """Open the page in a browser, if there is one, without waiting for it."""
    threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
