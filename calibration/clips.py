"""Short clips for probe and validation jobs: Motion JPEG in an AVI file, which needs nothing but Pillow to write."""

from __future__ import annotations

import io
import struct
from pathlib import Path

from PIL import Image

INDEXED, KEY_FRAME = 0x10, 0x10


def write_clip(path: Path, width: int, height: int, frames: int, per_second: int = 16) -> None:
    """A clip of one colour. The format is that of the AVI RIFF reference (header list, frames, index)."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "JPEG")
    frame = buffer.getvalue() + b"\0" * (len(buffer.getvalue()) % 2)
    stream = _chunk(b"strh", struct.pack(
        "<4s4sIHHIIIIIIIIhhhh", b"vids", b"MJPG", 0, 0, 0, 0, 1, per_second, 0, frames, len(frame), 0xFFFFFFFF, 0, 0, 0, width, height
    )) + _chunk(b"strf", struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, b"MJPG", width * height * 3, 0, 0, 0, 0))  # fmt: skip
    main = _chunk(b"avih", struct.pack(
        "<14I", 1_000_000 // per_second, 0, 0, INDEXED, frames, 0, 1, len(frame), width, height, 0, 0, 0, 0
    ))  # fmt: skip
    header = _list(b"hdrl", main + _list(b"strl", stream))
    movie = _list(b"movi", _chunk(b"00dc", frame) * frames)
    places = (struct.pack("<4sIII", b"00dc", KEY_FRAME, 4 + n * (len(frame) + 8), len(frame)) for n in range(frames))
    body = b"AVI " + header + movie + _chunk(b"idx1", b"".join(places))
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data


def _list(kind: bytes, data: bytes) -> bytes:
    return _chunk(b"LIST", kind + data)
