"""How long a file is by its own structure, of which FFmpeg says nothing where it ends too early or has a hole."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
EBML, SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")  # Matroska and WebM
MXF_PARTITION = bytes.fromhex("060e2b34020501010d010201")
PNG, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
MP4_BOXES = {b"ftyp", b"mdat", b"moov", b"free", b"skip", b"wide"}  # that an MP4 or MOV file may begin with
TS_PACKETS = 188, 204  # bytes
MIN_PACKETS = 4  # of MPEG-TS after a hole; what is behind the last packet is none
OGG_PAGE = 65307  # bytes, at most


def is_cut_off(path: Path) -> bool:
    """Return whether a file ends before its structure does: AVI, WMV, ASF, Matroska, WebM, MP4, MOV, MXF, FLV, GIF,
    PNG, Ogg, or MPEG-TS, where only a part of a packet at the end shows."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
        file.seek(max(0, size - OGG_PAGE))
        tail = file.read()
    if head.startswith(b"GIF8"):
        return not _has_gif_trailer(path)
    if head.startswith(PNG):
        return PNG_END not in tail
    if head.startswith(b"OggS"):
        return not _is_last_ogg_page(tail[tail.rfind(b"OggS") :])
    for length in TS_PACKETS:
        if head[:1] == head[length : length + 1] == b"G":
            part = tail[len(tail) - size % length - length :]  # behind the last whole packet, if that is one
            return size % length > 0 and part[:1] == part[length : length + 1] == b"G"
    if head[4:8] in MP4_BOXES:
        kinds, end = _walk_boxes(path)
        return end > size and kinds[-1] in (b"mdat", b"moof", b"moov")
    return size < _find_declared_size(head)


def has_hole(path: Path) -> bool:
    """Return whether something else stands where a file of packets of one size, MPEG-TS, WMV or ASF, has packets."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(ASF_HEADER) and (at := head.find(ASF_FILE_PROPERTIES)) > 0:
        start = int.from_bytes(head[16:24], "little") + 50  # the bytes of the header, and of that of the packets
        count, length = (int.from_bytes(head[at + k : at + k + 4], "little") for k in (56, 92))
        first = np.memmap(path, np.uint8, "r")[start :: max(1, length)][:count]
        return bool((first != first[:1]).any())
    for length in TS_PACKETS:
        if head[:1] == head[length : length + 1] == b"G":
            first = np.memmap(path, np.uint8, "r")[::length]
            others = np.flatnonzero(first != ord("G"))
            return len(others) > 0 and int(others[-1]) + MIN_PACKETS < len(first)
    return False


def count_png_frames(path: Path) -> int:
    """Return how many frames an animated PNG says that it has, 0 if unsaid."""
    with path.open("rb") as file:
        head = file.read(4096)
    at = head.find(b"acTL")
    return int.from_bytes(head[at + 4 : at + 8], "big") if at > 0 else 0


def lacks_index(path: Path) -> bool:
    """Return whether a file is an MP4 or MOV file without its index, moov, or with a part of it."""
    kinds, end = _walk_boxes(path)
    is_mp4 = bool(MP4_BOXES.intersection(kinds[:1])) and not {b"ftyp", b"mdat"}.isdisjoint(kinds)
    return is_mp4 and (b"moov" not in kinds or end > path.stat().st_size)


def _walk_boxes(path: Path) -> tuple[list[bytes], int]:
    """Return the kinds of the top boxes of an MP4 or MOV file, and where the last one ends."""
    kinds, size, at = [], path.stat().st_size, 0
    with path.open("rb") as file:
        while at + 8 <= size and len(kinds) < 64:
            file.seek(at)
            header = file.read(16)
            length = int.from_bytes(header[:4], "big")
            kinds.append(header[4:8])
            if length == 0:  # to the end of the file
                break
            at += max(8, int.from_bytes(header[8:], "big") if length == 1 else length)
    return kinds, at


def _find_declared_size(head: bytes) -> int:
    """Return the bytes of a whole file by its header, 0 if unsaid."""
    if head.startswith(b"RIFF") and head[4:8] != b"\xff" * 4:
        return 8 + int.from_bytes(head[4:8], "little")
    if head.startswith(ASF_HEADER) and (at := head.find(ASF_FILE_PROPERTIES)) > 0:
        return int.from_bytes(head[at + 40 : at + 48], "little")
    if head.startswith(EBML) and (at := head.find(SEGMENT) + 4) > 4 and head[at]:
        length = 9 - head[at].bit_length()  # of the size, a number whose first bit that is set tells its own length
        limit = 1 << 7 * length
        segment = int.from_bytes(head[at : at + length], "big") % limit
        return at + length + segment if segment < limit - 1 else 0  # all bits of a live recording are set
    if head.startswith(MXF_PARTITION):
        at = 17 + (head[16] & 0x7F if head[16] & 0x80 else 0)  # after the length of what follows
        return int.from_bytes(head[at + 24 : at + 32], "big")  # where the footer begins
    if head.startswith(b"FLV") and (at := head.find(b"filesize\0") + 9) > 9:
        return int(max(0.0, struct.unpack(">d", head[at : at + 8])[0]))
    return 0


def _is_last_ogg_page(page: bytes) -> bool:
    """Return whether bytes are a whole page of an Ogg file, with the flag of the last one of a stream."""
    if len(page) < 27:
        return False
    sizes = page[27 : 27 + page[26]]  # of the parts that follow
    return len(page) >= 27 + page[26] + sum(sizes) and bool(page[5] & 4)


def _has_gif_trailer(path: Path) -> bool:
    """Return whether all blocks of a GIF file are there, to the one that ends it."""
    with path.open("rb") as file:

        def skip_colours(flags: int) -> None:
            file.seek(3 << (flags & 7) + 1 if flags & 0x80 else 0, 1)

        try:
            skip_colours(file.read(13)[10])
            while (kind := file.read(1)) in (b"!", b","):  # an extension, a picture
                if kind == b",":
                    skip_colours(file.read(9)[8])
                file.seek(1, 1)
                while length := file.read(1)[0]:
                    file.seek(length, 1)
        except IndexError:
            return False
    return kind == b";"
