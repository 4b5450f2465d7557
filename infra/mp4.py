"""What an MP4 file claims of itself, counted before FFmpeg believes it."""

from __future__ import annotations

import mmap
import re

# An hour of sound and pictures has 400,000.
MAX_PACKETS = 1_000_000
# FFmpeg takes a file that begins with one of these for an MP4.
_FIRST_BOXES = frozenset(
    b"ftyp moov mdat wide free skip styp sidx moof pnot udta uuid junk pict prfl ediw".split()
)
# The count of packets in an MP4's tables; cmov is a header in zlib.
_TABLES = re.compile(rb"(?s)(?:stsz|stz2)(?=.{8}(.{4}))|trun(?=.{4}(.{4}))|cmov")


def begins(head: bytes) -> bool:
    """Whether a file that begins with these 8 bytes or more is an MP4."""
    return head[4:8] in _FIRST_BOXES


def packets_claimed(mp4: bytes | mmap.mmap) -> int:
    """What the tables say, true or not: FFmpeg makes room for so many before it looks further.

    The tables are looked for as bytes, in every box but the media data, because FFmpeg finds
    them in whatever box they are.
    """
    at = claimed = 0
    while at < len(mp4):
        size, kind = int.from_bytes(mp4[at : at + 4]), mp4[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(mp4[at + 8 : at + 16])
        end = min(at + size, len(mp4)) if size >= 8 else len(mp4)
        if kind != b"mdat" or 0 < size < 8:
            for table in _TABLES.finditer(mp4, at, end):
                count = table[1] or table[2]
                claimed += int.from_bytes(count) if count else MAX_PACKETS + 1
        at = end
    return claimed
