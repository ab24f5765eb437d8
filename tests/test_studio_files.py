"""Files of foreign hands: their names, and archives that are more than they say."""

import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support.videos import error_of

from v2edit.studio.archives import unzip
from v2edit.studio.uploads import sanitise


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd", "passwd"), ("C:\\x\\clip.mp4", "clip.mp4"), ("..", "file"), (".hidden", "file.hidden"),
        ("a\0b.mp4", "a_b.mp4"), ("наш клип.mp4", "наш клип.mp4"), ("x" * 500 + ".mp4", "x" * 116 + ".mp4"),
        ("-o.mp4", "-o.mp4"), ("a;rm -rf.mp4", "a_rm -rf.mp4"),
    ],
)  # fmt: skip
def test_names_of_files_are_made_plain(name: str, kept: str):
    assert sanitise(name) == kept


def make_zip(path: Path, *members: tuple[str, bytes], links: tuple[str, ...] = ()) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
        for name in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, "/etc/passwd")
    return path


@pytest.mark.parametrize(
    ("members", "links", "reason"),
    [
        ([("../evil.txt", b"x")], (), "leads elsewhere"), ([("/etc/evil", b"x")], (), "leads elsewhere"),
        ([("a/../../evil", b"x")], (), "leads elsewhere"), ([("..\\evil", b"x")], (), "leads elsewhere"),
        ([("C:evil", b"x")], (), "leads elsewhere"), ([("a", b"x")], ("link",), "link"),
        ([("/".join("d" * 20), b"x")], (), "leads elsewhere"), ([], (), "empty"),
        ([(f"{k}", b"") for k in range(101)], (), "100 are the most"),
        ([("a", b"\0" * 20_001)], (), "more than is taken"),
    ],
)  # fmt: skip
def test_hostile_archives_are_refused(tmp_path: Path, members: Any, links: Any, reason: str):
    archive = make_zip(tmp_path / "a.zip", *members, links=links)
    assert reason in error_of(lambda: unzip(archive, tmp_path / "out", 20_000, 100))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def test_an_archive_that_lies_about_its_size_is_refused(tmp_path: Path):
    archive = make_zip(tmp_path / "a.zip", ("a", b"\0" * 10_000))
    raw = archive.read_bytes().replace((10_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(raw)
    assert error_of(lambda: unzip(archive, tmp_path / "out", 20_000, 100))
    assert not (tmp_path / "out").exists()
