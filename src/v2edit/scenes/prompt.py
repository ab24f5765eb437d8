"""What a scene shows, in words that lie beside it."""

from __future__ import annotations

from pathlib import Path

from v2edit.files import read_json

FILE = "scene.json"  # `v2edit sample --scene` writes one


def find_prompt(scene: Path) -> str | None:
    """`source_prompt` in the `scene.json` of a dataset's folder, or None."""
    try:
        facts = read_json(scene / FILE)
    except (OSError, ValueError):
        return None
    prompt = facts.get("source_prompt") if isinstance(facts, dict) else None
    return prompt if isinstance(prompt, str) else None
