"""Short clips for probe and validation jobs: Motion JPEG in an AVI file, which needs nothing but Pillow to write."""

from __future__ import annotations

import io
import struct
from pathlib import Path

from PIL import Image

INDEXED, KEY_FRAME = 0x10, 0x10
PCM, SOUND_RATE, SOUND_BYTES = 1, 8000, 2  # a second, a sample


def write_clip(path: Path, width: int, height: int, frames: int, per_second: int = 16, sound: bool = False) -> None:
    """A clip of one colour, perhaps with silence. The format is that of the AVI RIFF reference (header list, frames, index)."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "JPEG")
    frame = buffer.getvalue() + b"\0" * (len(buffer.getvalue()) % 2)
    stream = _chunk(b"strh", struct.pack(
        "<4s4sIHHIIIIIIIIhhhh", b"vids", b"MJPG", 0, 0, 0, 0, 1, per_second, 0, frames, len(frame), 0xFFFFFFFF, 0, 0, 0, width, height
    )) + _chunk(b"strf", struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, b"MJPG", width * height * 3, 0, 0, 0, 0))  # fmt: skip
    main = _chunk(b"avih", struct.pack(
        "<14I", 1_000_000 // per_second, 0, 0, INDEXED, frames, 0, 1 + sound, len(frame), width, height, 0, 0, 0, 0
    ))  # fmt: skip
    samples = b"\0" * (SOUND_BYTES * SOUND_RATE * frames // per_second) if sound else b""
    heard = _chunk(b"strh", struct.pack(
        "<4s4sIHHIIIIIIIIhhhh", b"auds", bytes(4), 0, 0, 0, 0, SOUND_BYTES, SOUND_BYTES * SOUND_RATE, 0, len(samples) // SOUND_BYTES,
        len(samples), 0xFFFFFFFF, SOUND_BYTES, 0, 0, 0, 0,
    )) + _chunk(b"strf", struct.pack("<HHIIHH", PCM, 1, SOUND_RATE, SOUND_BYTES * SOUND_RATE, SOUND_BYTES, 8 * SOUND_BYTES))  # fmt: skip
    header = _list(b"hdrl", main + _list(b"strl", stream) + (_list(b"strl", heard) if sound else b""))
    movie = _list(b"movi", _chunk(b"00dc", frame) * frames + (_chunk(b"01wb", samples) if sound else b""))
    places = (struct.pack("<4sIII", b"00dc", KEY_FRAME, 4 + n * (len(frame) + 8), len(frame)) for n in range(frames))
    index = b"".join(places)
    if sound:
        index += struct.pack("<4sIII", b"01wb", KEY_FRAME, 4 + frames * (len(frame) + 8), len(samples))
    body = b"AVI " + header + movie + _chunk(b"idx1", index)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data


def _list(kind: bytes, data: bytes) -> bytes:
    return _chunk(b"LIST", kind + data)
