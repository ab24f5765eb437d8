"""How long it takes from dropping a clip on the studio's page to the downloaded edit, with the defaults.

    python benchmarks/studio_page.py [--browser chromium] [--steps N]

Starts `v2edit studio` anew (nothing is loaded), drops a clip of the built-in world (9 frames of 96x64) in a real
browser, types the instruction, waits for the prompts and the cost, starts the edit and downloads its MP4. Prints the
seconds after which each was there, and the processor seconds that all of it took."""

import argparse
import base64
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from studio import Studio

from v2edit.primitives.sample import write_sample

DROP = """({ name, text }) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(atob(text), (one) => one.charCodeAt(0))], name));
  window.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer }));
}"""


def measure(folder: Path, browser: str, steps: int | None) -> dict[str, float]:
    """Return the seconds from the drop to each thing that the page shows."""
    from playwright.sync_api import sync_playwright

    clip = folder / "clip.mp4"
    write_sample(5, folder, "recolour")
    instruction = json.loads((folder / "clip.json").read_text())["instruction"]
    (folder / "runs").mkdir()
    studio, took = Studio(folder / "runs"), {}
    with sync_playwright() as driver:
        engine = driver.chromium.launch(executable_path=shutil.which(browser), args=["--no-sandbox"])
        page: Any = engine.new_page(accept_downloads=True)
        page.set_default_timeout(600_000)
        page.goto(f"http://127.0.0.1:{studio.port}/")
        page.locator(".drop").wait_for()
        begin = time.monotonic()

        def note(what: str) -> None:
            took[what] = round(time.monotonic() - begin, 1)

        page.evaluate(DROP, {"name": clip.name, "text": base64.b64encode(clip.read_bytes()).decode()})
        page.get_by_label("What should change?").fill(instruction)
        note("form")
        page.locator(".pieces").wait_for()
        note("prompts")
        if steps is not None:
            page.get_by_text("More settings").click()
            page.locator("#option-steps").fill(str(steps))
        page.locator(".cost dd").first.wait_for()
        note("cost")
        page.get_by_role("button", name="Start the edit").click()
        page.locator(".player canvas").wait_for()
        note("result")
        with page.expect_download() as download:
            page.get_by_role("link", name="MP4").click()
        assert Path(download.value.path()).stat().st_size > 1000
        note("download")
        engine.close()
    studio.process.terminate()
    studio.process.wait()
    times = os.times()
    return took | {"processor": round(times.children_user + times.children_system, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's 50)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for what, seconds in measure(Path(folder), options.browser, options.steps).items():
            print(f"{what:10} {seconds:6.1f} s")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
