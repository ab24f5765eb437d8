"""Damaged and hostile splat files, each refused in one line, and conversions that cannot be."""

import gzip
import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.scenes import gaussians_of
from support.splats import CORPUS, SIX, spz_of

from v2edit.cli.app import main
from v2edit.errors import UserError
from v2edit.scenes.formats.splats import read_splat


def cut(name: str, share: float) -> bytes:
    content = (CORPUS / name).read_bytes()
    return content[: int(len(content) * share)]


def changed(name: str, place: int, values: bytes) -> bytes:
    content = bytearray((CORPUS / name).read_bytes())
    content[place : place + len(values)] = values
    return bytes(content)


def sog_with(change) -> bytes:
    """Return the .sog of the corpus with its files, {name: content}, changed by a function."""
    with zipfile.ZipFile(CORPUS / "sog" / "six.sog") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def meta_with(change) -> bytes:
    def in_meta(files: dict) -> None:
        facts = json.loads(files["meta.json"])
        change(facts)
        files["meta.json"] = json.dumps(facts).encode()

    return sog_with(in_meta)


def gigapixels(files: dict) -> None:
    head = bytes([0x2F]) + ((16382) | (16382 << 14)).to_bytes(4, "little")
    files["means_l.webp"] = b"RIFF" + bytes(4) + b"WEBPVP8L" + bytes(4) + head + bytes(20)


NONE = gaussians_of(0, 0, 0)
DAMAGED = {
    "empty.spz": (lambda: b"", "empty file"),
    "lfs.sog": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
    "magic.spz": (lambda: b"NOPE" + bytes(60), "no .spz"),
    "magic_inside.spz": (lambda: gzip.compress(b"NOPE" + bytes(60)), "no .spz"),
    "cut.spz": (lambda: cut("spz/v3.spz", 0.7), "cut short"),
    "cut4.spz": (lambda: cut("spz/v4.spz", 0.7), "cut short|damaged"),
    "version.spz": (lambda: changed("spz/v4.spz", 4, b"\x09"), "version 9"),
    "count.spz": (lambda: gzip.compress(spz_of(NONE, count=2_000_000_000)), "forged"),
    "count4.spz": (lambda: changed("spz/v4.spz", 8, b"\xff\xff\xff\x7f"), "forged"),
    "table4.spz": (lambda: changed("spz/v4.spz", 40, b"\xff\xff\xff\x7f"), "expected"),
    "bits.spz": (lambda: gzip.compress(spz_of(gaussians_of(0, 9, 0), bits=60)), "60 bits"),
    "nothing.spz": (lambda: gzip.compress(spz_of(NONE)), "no Gaussians"),
    "bomb.spz": (lambda: gzip.compress(spz_of(NONE, count=60_000)[:16] + bytes(400_000)), "cut short"),
    "length.splat": (lambda: cut("dot_splat/six.splat", 0.7), "32 for each"),
    "noise.splat": (lambda: np.random.default_rng(0).bytes(3200), "no .splat"),
    "other.splat": (lambda: SIX.read_bytes(), "name it so"),
    "cut.ksplat": (lambda: cut("ksplat/level1.ksplat", 0.98), "cut short"),
    "count.ksplat": (lambda: changed("ksplat/level1.ksplat", 16, b"\xff\xff"), "its sections 6"),
    "sections.ksplat": (lambda: changed("ksplat/level0.ksplat", 4, b"\xff\xff\xff\xff"), "forged"),
    "level.ksplat": (lambda: changed("ksplat/level0.ksplat", 20, b"\x07"), "compression 7"),
    "buckets.ksplat": (lambda: changed("ksplat/level1.ksplat", 4096 + 36, b"\0"), "buckets|sections|cut short"),
    "cut.sog": (lambda: cut("sog/six.sog", 0.6), "no .sog|damaged"),
    "magic.sog": (lambda: b"nothing" * 50, "no .sog"),
    "meta.sog": (lambda: sog_with(lambda files: files.pop("meta.json")), "no meta.json"),
    "image.sog": (lambda: sog_with(lambda files: files.pop("sh0.webp")), "no sh0.webp"),
    "no_image.sog": (lambda: sog_with(lambda files: files.update({"sh0.webp": b"nothing" * 9})), "no WebP"),
    "gigapixels.sog": (lambda: sog_with(gigapixels), "16383 x 16383"),
    "count.sog": (lambda: meta_with(lambda facts: facts.update(count=10**9)), "forged"),
    "more.sog": (lambda: meta_with(lambda facts: facts.update(count=9999)), "pixels for 9,999"),
    "outside.sog": (lambda: meta_with(lambda facts: facts["quats"].update(files=["../../etc/passwd"])), "beside its"),
    "book.sog": (lambda: meta_with(lambda facts: facts["scales"].update(codebook=[1.0])), "code books"),
    "nan.sog": (lambda: meta_with(lambda facts: facts["means"].update(mins=[float("nan")] * 3)), "no Gaussian that"),
    "zip_bomb.sog": (lambda: sog_with(lambda files: files.update({"meta.json": b" " * (1 << 25)})), "too many"),
    "cut.ply": (lambda: cut("splat/six.compressed.ply", 0.98), "cut short"),
    "chunks.ply": (
        lambda: (CORPUS / "splat/six.compressed.ply").read_bytes().replace(b"element chunk 1", b"element chunk 0"),
        "chunks for 6|cut short|stray",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_in_a_line(tmp_path, capsys, name):
    content, reason = DAMAGED[name]
    (tmp_path / name).write_bytes(content())
    assert main(["convert", str(tmp_path / name), str(tmp_path / "out.ply")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("v2edit: note: ")]
    assert len(lines) == 1 and re.search(reason, lines[0]), lines
    assert sorted(one.name for one in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["gone.ply", "b.spz"], "no such splat"),
        (["six.ply", "b.ksplat"], "is read, and not written"),
        (["six.ply", "b.obj"], "no format of splats"),
        (["six.ply", "six.ply"], "exists"),
        (["six.ply", "nowhere/b.ply"], "no folder"),
        (["folder", "b.ply"], "no splat|no meta.json"),
    ],
)
def test_a_conversion_that_cannot_be_is_refused(tmp_path, monkeypatch, capsys, words, reason):
    monkeypatch.chdir(tmp_path)
    shutil.copy(SIX, "six.ply")
    Path("folder").mkdir()
    assert main(["convert", *words]) == 2
    assert re.search(reason, capsys.readouterr().err)


def test_a_name_that_is_no_splat_s(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 0")
    with pytest.raises(UserError, match="no splat"):
        read_splat(tmp_path / "a.obj")
