"""The lines of a file of tasks, as JSONL, JSON or CSV: each an object, or the mistake in its place."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from v2edit.errors import UserError
from v2edit.files import MAX_JSON_BYTES, parse_json

EXAMPLE = '{"video": "a.mp4", "source_prompt": "a red ball", "target_prompt": "a blue ball"}'


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield where each task stands, and its object or the mistake in it. Raises `UserError` for no such file."""
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise UserError(f"{path}: {size:,} bytes are more than the {MAX_JSON_BYTES:,} that a suite may have")
    data = path.read_bytes()
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
            if line.strip():
                yield f"line {number}", _parse_json(line)
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start + 1})") from error
    if path.suffix.lower() == ".csv":
        yield from _read_csv(text)
        return
    content = _parse_json(text.encode())
    if isinstance(content, UserError):
        raise UserError(f"{path}: {content}")
    tasks = content.get("tasks") if isinstance(content, dict) else content
    if not isinstance(tasks, list):
        raise UserError(f"{path} holds no list of tasks, such as [{EXAMPLE}]")
    yield from ((f"task {number}", one) for number, one in enumerate(tasks, start=1))


def read_table(path: Path) -> str:
    """Return the text of a published table, in UTF-8 or, as spreadsheets save it, in Windows' Western code page.
    Raises `UserError` where it is too large."""
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise UserError(f"{path}: {size:,} bytes are more than the {MAX_JSON_BYTES:,} that a suite may have")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _read_csv(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a CSV file, its empty fields left out; `words` are divided by |."""
    rows = csv.reader(io.StringIO(text, newline=""))
    head = [one.strip() for one in next(rows, [])]
    for row in rows:
        if not any(row):
            continue
        place = f"line {rows.line_num}"
        if len(row) > len(head):
            yield place, UserError(f"it has {len(row)} fields, and the first line names {len(head)}")
            continue
        content: dict[str, Any] = {key: value for key, value in zip(head, row, strict=False) if value}
        if "words" in content:
            content["words"] = [one.strip() for one in content["words"].split("|")]
        if re.fullmatch(r"-?\d+", content.get("seed", "")):
            content["seed"] = int(content["seed"])
        yield place, content


def _parse_json(line: bytes) -> Any:
    """Return what a JSON text says, or the mistake in it."""
    try:
        return parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return UserError(f"it is not UTF-8 (byte {error.start + 1})")
    except json.JSONDecodeError as error:
        return UserError(f"it is no JSON ({error.msg} at character {error.colno})")
    except ValueError as error:
        return UserError(f"it is no JSON ({error})")
