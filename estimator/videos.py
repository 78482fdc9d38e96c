"""The size, length and speed of a clip, from its header alone.

MP4, MOV and AVI are read here; other containers need PyAV (`av`), if it is installed. Sources: ISO/IEC 14496-12 (boxes moov, trak,
tkhd, mdhd, hdlr, stts), Microsoft's AVI RIFF reference (avih).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".webm", ".mkv", ".wmv", ".m4v", ".flv")  # toolkit/data_loader.py: video_extensions
BOXED = (".mp4", ".mov", ".m4v")
PICTURES, SOUND = b"vide", b"soun"  # handlers of tracks
AVI_SOUND = re.compile(rb"strh.{4}auds", re.DOTALL)  # the header of a stream of sound
MAX_HEADER_BYTES = 64 * 2**20  # of a box that is read whole
_WHOLE = 2**16  # a fixed-point one of tkhd
_SIDEWAYS = 2**15  # of its matrix: a picture turned by a quarter has nothing on the diagonal


class NotAVideo(ValueError):
    """The file's header cannot be read; says why."""


@dataclass(frozen=True, slots=True)
class Clip:
    """`width`, `height` in pixels as it is meant to be seen; `frames` in all; `per_second`; `sound`: it has a track of it."""

    width: int
    height: int
    frames: int
    per_second: float
    sound: bool = False


def read_clip(path: str) -> Clip:
    """The clip's header. Raises NotAVideo or OSError."""
    ending = os.path.splitext(path)[1].lower()
    try:
        with open(path, "rb") as file:
            if ending in BOXED:
                return _boxed(file)
            if ending == ".avi":
                return _avi(file)
    except (struct.error, IndexError, KeyError, ZeroDivisionError, OverflowError) as error:
        raise NotAVideo(f"a damaged header ({error})") from None
    return _by_pyav(path, ending)


def _by_pyav(path: str, ending: str) -> Clip:
    try:
        import av  # type: ignore[import-not-found]
    except ImportError:
        raise NotAVideo(f"reading {ending} needs PyAV: pip install av") from None
    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            frames = int(stream.frames or rate * float((container.duration or 0) / av.time_base))
            return Clip(int(stream.width), int(stream.height), frames, rate, bool(container.streams.audio))
    except Exception as error:
        raise NotAVideo(str(error)) from None


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        head = 8
        if size == 1:
            size, head = struct.unpack_from(">Q", data, place + 8)[0], 16
        size = size or len(data) - place
        if size < head:
            return
        yield kind, data[place + head : place + size]
        place += size


def _boxed(file: BinaryIO) -> Clip:
    """The first video track of moov, wherever in the file that stands."""
    end = file.seek(0, os.SEEK_END)
    place = 0
    while place + 8 <= end:
        file.seek(place)
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            size, head = struct.unpack(">Q", file.read(8))[0], 16
        size = size or end - place
        if size < head:
            break
        if kind == b"moov":
            tracks = [track for inner, track in _boxes(file.read(min(size - head, MAX_HEADER_BYTES))) if inner == b"trak"]
            clip = next((clip for clip in map(_track, tracks) if clip is not None), None)
            if clip is not None:
                return replace(clip, sound=any(_kind(track) == SOUND for track in tracks))
        place += size
    raise NotAVideo("no video track")


def _kind(track: bytes) -> bytes:
    """What a track holds, as its handler says."""
    return dict(_boxes(dict(_boxes(track)).get(b"mdia", b""))).get(b"hdlr", b"")[8:12]


def _track(track: bytes) -> Clip | None:
    if _kind(track) != PICTURES:
        return None
    parts = dict(_boxes(track))
    media = dict(_boxes(parts.get(b"mdia", b"")))
    head = parts.get(b"tkhd", b"")
    start = 52 if head[:1] == b"\1" else 40  # version 1 has times of 8 bytes
    matrix = struct.unpack_from(">9i", head, start)
    width, height = (n // _WHOLE for n in struct.unpack_from(">II", head, start + 36))
    times = media[b"mdhd"]
    scale = struct.unpack_from(">I", times, 20 if times[:1] == b"\1" else 12)[0]
    table = dict(_boxes(dict(_boxes(media[b"minf"]))[b"stbl"]))[b"stts"]
    entries = [struct.unpack_from(">II", table, 8 + 8 * n) for n in range(struct.unpack_from(">I", table, 4)[0])]
    frames, ticks = sum(count for count, _ in entries), sum(count * each for count, each in entries)
    if width < 1 or height < 1 or frames < 1:
        raise NotAVideo(f"a size of {width}x{height} and {frames} frames")
    if abs(matrix[0]) < _SIDEWAYS:
        width, height = height, width
    return Clip(width, height, frames, frames * scale / ticks)


def _avi(file: BinaryIO) -> Clip:
    data = file.read(2**16)
    place = data.find(b"avih")
    if data[:4] != b"RIFF" or place < 0:
        raise NotAVideo("no AVI header")
    values = struct.unpack_from("<14I", data, place + 8)
    if not (values[0] and values[4] and values[8] and values[9]):
        raise NotAVideo("an AVI header without size or length")
    return Clip(values[8], values[9], values[4], 1_000_000 / values[0], AVI_SOUND.search(data) is not None)
