"""JSON from outside: bounded, and with one meaning only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LARGEST = 16 * 2**20  # bytes; Python's objects take up to sixty times as much as their text


def read_json(path: Path) -> Any:
    """What a JSON file holds; a mark at its front is passed over.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, in one line: too large, too deep, no UTF-8, a key twice in an object.
    """
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{size:,} bytes are more than the {LARGEST:,} that such a file may have")
    return parse_json(path.read_text(encoding="utf-8-sig"))


def parse_json(text: str) -> Any:
    """What a JSON text says. Raises `ValueError`, in one line, where it is none, too deep, or has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    facts = dict(pairs)
    if len(facts) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in facts if names.count(name) > 1)
        raise ValueError(f"it has {twice!r:.60} twice in one object")
    return facts


def names_file(path: Path) -> bool:
    """Whether there is a file at a path that a document gives, which may be longer than any that a disk takes."""
    try:
        return path.is_file()
    except OSError:
        return False
