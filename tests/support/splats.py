"""Splat files of other programs, and files made by their formats' specifications."""

import struct
from pathlib import Path

import numpy as np

from v2edit.scenes.gaussians import Gaussians

CORPUS = Path(__file__).resolve().parent.parent.parent / "fuzz" / "corpus"
SIX = CORPUS / "splat" / "six.ply"  # what those of other programs were made of


def spz_of(scene: Gaussians, version: int = 3, **facts: int) -> bytes:
    """Return the content of an .spz of a version up to 3, by the specification, all of whose Gaussians are grey and
    without rotation; `facts` replace those of the header."""
    count, degree = len(scene), scene.degree
    header = {"version": version, "count": count, "degree": degree, "bits": 12, "flags": 0} | facts
    head = struct.pack("<4sIIBBBB", b"NGSP", *header.values(), 0)
    values = scene.means.numpy()
    if version == 1:
        positions = values.astype("<f2").tobytes()
    else:
        positions = b"".join(int(x).to_bytes(3, "little", signed=True) for x in np.rint(values * 4096).reshape(-1))
    turns = b"\x80\x80\x80" * count if version < 3 else struct.pack("<I", 3 << 30) * count
    rest = bytes([200]) * count + bytes([128]) * 3 * count + bytes([100]) * 3 * count + turns
    return head + positions + rest + bytes([192]) * (3 * ((degree + 1) ** 2 - 1) * count)
