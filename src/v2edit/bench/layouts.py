"""The layouts of published suites: where each keeps its tasks, and what its fields are called.

Readers translate fields alone; the data stay their owners', who say what may be done with them.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from v2edit.bench.task_lines import read_lines, read_table
from v2edit.errors import UserError
from v2edit.files import MAX_JSON_BYTES, read_json

Lines = Iterable[tuple[str, Any]]  # (place, fields of `suite_files`)
OWN = ("tasks.jsonl", "tasks.json", "tasks.csv")


def find(path: Path) -> tuple[Path, Lines] | None:
    """Return the file that a suite's tasks are in, and its lines in this project's fields; None for a file of these
    fields, or a folder that is none of the layouts. Raises `UserError` for a folder that has clips and no edits."""
    for layout in (_own, _five, _loveu, _ivebench, _openve, _davis):
        if (found := layout(path)) is not None:
            return found
    return None


def _own(path: Path) -> tuple[Path, Lines] | None:
    """A folder with a file of tasks in it. Beside DAVIS's folders, a `video` may be the name of a sequence."""
    if path.is_dir() and (file := next((path / name for name in OWN if (path / name).is_file()), None)):
        return file, _name_sequences(path, read_lines(file))
    return None


def _name_sequences(folder: Path, lines: Lines) -> Iterator[tuple[str, Any]]:
    """Replace names of DAVIS sequences by their frames, with their annotations as masks (see `_davis`)."""
    for place, content in lines:
        name = content.get("video") if isinstance(content, dict) else None
        if isinstance(name, str) and re.fullmatch(r"[\w-]+", name) and not (folder / name).exists():
            for part in ("JPEGImages/480p", "JPEGImages/Full-Resolution", "JPEGImages"):
                if (folder / part / name).is_dir():
                    mask = f"{part.replace('JPEGImages', 'Annotations')}/{name}"
                    found = {"video": f"{part}/{name}", "aliases": [name]}
                    content = {**({"mask": mask} if (folder / mask).is_dir() else {}), **content, **found}
                    break
        yield place, content


def _davis(path: Path) -> tuple[Path, Lines] | None:
    """DAVIS (https://davischallenge.org/davis2017/code.html): JPEGImages/480p/NAME and Annotations/480p/NAME. It has no
    edits: a file of tasks beside these folders names them."""
    if path.is_dir() and (path / "JPEGImages").is_dir():
        raise UserError(
            f"{path} has DAVIS's clips and no edits: put a tasks.jsonl there, with lines such as "
            '{"video": "bear", "source_prompt": "…", "target_prompt": "…"}'
        )
    return None


def _five(path: Path) -> tuple[Path, Lines] | None:
    """FiVE-Bench (Li et al. 2025, https://github.com/MinghanLi/FiVE-Bench, evaluation/evaluate.py): edit_prompt/
    editN_FiVE.json, a list of objects; images/NAME or videos/NAME.mp4; bmasks/NAME, white where the subject is. Prompts
    have the words that change in [brackets]."""
    folder = next((one for one in (path, path / "data") if (one / "edit_prompt").is_dir()), None)
    if folder is None:
        return None
    files = sorted((folder / "edit_prompt").glob("edit*_FiVE.json"))
    return (folder / "edit_prompt", _translate(files, folder, _five_line)) if files else None


FIVE_KINDS = {
    "1": "object replacement (rigid)", "2": "object replacement (non-rigid)", "3": "colour alteration",
    "4": "material modification", "5": "object addition", "6": "object removal",
}  # fmt: skip


def _five_line(item: dict[str, Any], folder: Path, file: Path) -> dict[str, Any]:
    name, target = item["video_name"], str(item.get("save_dir") or item["editing_type_id"])
    number = (re.match(r"edit(\d)", file.name) or [""])[1] if re.match(r"edit(\d)", file.name) else ""
    questions = None
    if item.get("multiple_choice_question"):
        questions = {
            "source": item.get("source_yes_no_question") or None,
            "target": item["target_yes_no_question"],
            "choice": item["multiple_choice_question"],
        }
    images = folder / "images" / name
    return {
        "name": f"{file.stem.split('_')[0]}-{name}-{target}",
        "kind": FIVE_KINDS.get(number, str(item["editing_type_id"])),
        "video": str(images if images.is_dir() else folder / "videos" / f"{name}.mp4"),
        "mask": str(folder / "bmasks" / name) if (folder / "bmasks" / name).is_dir() else None,
        "source_prompt": _plain(item["source_prompt"]),
        "target_prompt": _plain(item["target_prompt"]),
        "instruction": item.get("instruction") or None,
        "questions": questions,
        "aliases": [f"{name}/{target}", f"{file.stem.split('_')[0]}/{name}", f"{name}_{target}"],
    }


def _plain(prompt: str) -> str:
    return prompt.replace("[", "").replace("]", "")


def _loveu(path: Path) -> tuple[Path, Lines] | None:
    """LOVEU-TGVE 2023 (https://github.com/showlab/loveu-tgve-2023, scripts/create_configs.py): a table with a line a
    video, four edits each, and lines that begin the parts (DAVIS, Youtube, Videvo); PART_480p/480p_videos/NAME.mp4 or
    480p_frames/NAME. Results are in PART_480p/NAME/style and so on. An .xlsx is to be saved as .csv first."""
    if path.is_dir():
        file = next(iter(sorted(path.glob("LOVEU*TGVE*.csv"))), None)
        if file is None and (table := next(iter(path.glob("LOVEU*TGVE*.xlsx")), None)):
            raise UserError(f"{table} is a spreadsheet: save it as .csv beside it")
    else:
        file = path if path.suffix.lower() == ".csv" and "Our GT caption" in _head(path) else None
    return None if file is None else (file, _loveu_lines(file))


LOVEU_PARTS = ("DAVIS_480p", "youtube_480p", "videvo_480p")
LOVEU_EDITS = ("Style Change Caption", "Object Change Caption", "Background Change Caption", "Multiple Changes Caption")


def _loveu_lines(file: Path) -> Iterator[tuple[str, Any]]:
    folder, part = file.parent, LOVEU_PARTS[0]
    rows = csv.DictReader(io.StringIO(read_table(file), newline=""))
    for row in rows:
        name = (row.get("Video name") or "").strip()
        if name.endswith("Videos:"):
            part = next((one for one in LOVEU_PARTS if one.lower().startswith(name.split()[0].lower())), part)
            continue
        if not name or not (row.get("Our GT caption") or "").strip():
            continue
        here = next((one for one in (part, *LOVEU_PARTS) if _loveu_video(folder, one, name).exists()), part)
        for column in LOVEU_EDITS:
            edited = (row.get(column) or row.get(column.replace("Changes", "Change")) or "").strip()
            kind = column.split()[0].lower()
            yield (
                f"line {rows.line_num} ({kind})",
                {
                    "name": f"{name}-{kind}",
                    "kind": kind,
                    "video": str(_loveu_video(folder, here, name).absolute()),
                    "source_prompt": row["Our GT caption"].strip(),
                    "target_prompt": edited,
                    "aliases": [f"{here}/{name}/{kind}", f"{name}/{kind}", f"{name}_{kind}"],
                },
            )


def _loveu_video(folder: Path, part: str, name: str) -> Path:
    places = [
        folder / part / "480p_videos" / f"{name}.mp4", folder / part / "480p_frames" / name,
        folder / part / f"{name}.mp4", folder / part / name,
    ]  # fmt: skip
    return next((place for place in places if place.exists()), places[0])


def _ivebench(path: Path) -> tuple[Path, Lines] | None:
    """IVEBench (Chen et al. 2025, https://huggingface.co/datasets/Coraxor/IVEBench; metrics/ivebench_utils.py of
    https://github.com/RyanChenYN/IVEBench): ivebench_prompt_short.json and _long.json, lists of objects; the clips in
    ivebenchdb_mp4_short and _long. Results have the names of their sources."""
    if path.is_dir():
        files = sorted(path.glob("*ivebench*_prompt_*.json"))
    else:
        files = [path] if re.search(r"ivebench.*_prompt_.*\.json$", path.name) else []
    if not files:
        return None
    folder = path if path.is_dir() else path.parent
    return (folder / files[0].name if len(files) == 1 else folder / "ivebench"), _translate(files, folder, _ive_line)


def _ive_line(item: dict[str, Any], folder: Path, file: Path) -> dict[str, Any]:
    name, length = Path(item["src_video_name"]), "long" if "long" in file.name else "short"
    places = [f"ivebenchdb_mp4_{length}", f"ivebench_mp4_{length}", "videos", "."]
    found = [folder / place / one for place in places for one in (name, name.with_suffix(".mp4"), name.with_suffix(""))]
    return {
        "name": f"{length}-{item['id']}-{name.stem}",
        "kind": item.get("category") or "edit",
        "video": str(next((one for one in found if one.exists()), found[0])),
        "source_prompt": item["source_prompt"],
        "target_prompt": item["target_prompt"],
        "instruction": item["edit_prompt"],
        "aliases": [name.stem],
    }


def _openve(path: Path) -> tuple[Path, Lines] | None:
    """OpenVE-Bench (https://huggingface.co/datasets/Lewandofski/OpenVE-Bench): benchmark_videos.csv with edited_type,
    prompt (an instruction: it has no captions) and original_video. A tool's own table has its results' paths in
    edited_result_path."""
    file = path / "benchmark_videos.csv" if path.is_dir() else path
    if not file.is_file() or file.suffix.lower() != ".csv" or "edited_type" not in _head(file):
        return None
    return file, _openve_lines(file)


def _openve_lines(file: Path) -> Iterator[tuple[str, Any]]:
    rows = csv.DictReader(io.StringIO(read_table(file), newline=""))
    for number, row in enumerate(rows):
        given = Path(row.get("original_video") or "")
        clip = next((one for one in (given, Path("videos") / given.name) if (file.parent / one).is_file()), given)
        yield (
            f"line {rows.line_num}",
            {
                "name": given.stem,
                "kind": row["edited_type"] or "",
                "video": str(clip) if row.get("original_video") else "",
                "instruction": row.get("prompt") or "",
                "aliases": [f"{number:04d}", f"{number:04d}_{given.stem}"],
            },
        )


def _translate(
    files: list[Path], folder: Path, line: Callable[[dict[str, Any], Path, Path], dict[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """Yield the objects of JSON lists in this project's fields; a field that is missing is the line's mistake."""
    for file in files:
        try:
            items = read_json(file)
        except (OSError, ValueError) as error:
            yield file.name, UserError(f"it cannot be read ({error})")
            continue
        if not isinstance(items, list):
            yield file.name, UserError("it holds no list of tasks")
            continue
        for number, item in enumerate(items, start=1):
            try:
                fields: Any = line(item, folder.absolute(), file)
                fields = {key: value for key, value in fields.items() if value is not None}
            except (KeyError, TypeError, AttributeError) as error:
                kind = "it is no object" if not isinstance(item, dict) else "a field is no text"
                fields = UserError(f"it has no field {error}" if isinstance(error, KeyError) else kind)
            yield f"{file.name}, task {number}", fields


def _head(file: Path) -> str:
    """Return the first line of a table, or nothing where it is no text."""
    if not file.is_file() or file.stat().st_size > MAX_JSON_BYTES:
        return ""
    with file.open("rb") as table:
        return table.readline(10_000).decode("utf-8-sig", errors="replace")
