"""A browser for the studio's page, and what is asked of every page: no errors, labels, contrast, its own origin."""

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 120_000.0  # milliseconds; a busy machine is no fault
WIDTHS = (1440, 1024, 390)
THREE_D = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]

LOOK = Path(__file__).with_name("look.js").read_text(encoding="utf-8")  # what is wrong with a page as it is shown
DROP = """async ({ name, text }) => {
  const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  for (const kind of ["dragover", "drop"])
    window.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: transfer }));
}"""


def find_browser() -> Path:
    """Return the browser of this machine; skip the test where there is none, or nothing to drive it with."""
    pytest.importorskip("playwright", reason="needs playwright (Python) to drive a browser")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is here")
    return Path(found)


def expect(locator: Any) -> Any:
    """Return playwright's assertions on a locator, with patience."""
    from playwright.sync_api import expect as wait_for

    wait_for.set_options(timeout=PATIENCE)
    return wait_for(locator)


@dataclass
class Browser:
    """A browser that is started, for a studio at an address; it notes what its pages complain of and ask for."""

    engine: Any
    address: str
    complaints: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    @contextmanager
    def page(self, view: str = "", width: int = 1280, scheme: str = "dark") -> Iterator[Any]:
        """Open a view in a window of its own."""
        context = self.engine.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._ask)
        page.goto(self.address + view)
        yield page
        context.close()

    @contextmanager
    def another(self, address: str, *arguments: str) -> Iterator["Browser"]:
        """Start one more browser, for another studio."""
        engine = self.engine.browser_type.launch(executable_path=str(find_browser()), args=["--no-sandbox", *arguments])
        yield Browser(engine, address)
        engine.close()

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text} ({message.location['url']})")

    def _ask(self, request: Any) -> None:
        if not request.url.startswith((self.address, "blob:", "data:")):
            self.foreign.append(request.url)


@contextmanager
def browsing(address: str, *arguments: str) -> Iterator[Browser]:
    """Start a browser for the studio at an address; skip the test where there is none."""
    path = find_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        engine = driver.chromium.launch(executable_path=str(path), args=["--no-sandbox", *arguments])
        yield Browser(engine, address)
        engine.close()


def drop(page: Any, file: Path) -> None:
    """Drop a file on a page that waits for one."""
    page.locator(".drop").wait_for()
    page.evaluate(DROP, {"name": file.name, "text": base64.b64encode(file.read_bytes()).decode()})
