"""A log file as lines, streamed: bounded memory whatever the file is, progress bars taken apart at their carriage returns.

Logs come in UTF-8, in UTF-16 (PowerShell's redirection), in whatever a console had; with ANSI colours; with a service's time stamps
before each line; cut in the middle of a character; with blocks of zeros after a power cut. All of that is a log.
Pictures, weights and archives are not.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

from estimator.errors import InputError, Problem
from estimator.job import Place

CHUNK_BYTES = 2**20
MOST_LINE_BYTES = 2**14
"""What is kept of a line; the longest that matters, an out-of-memory message with many processes, is a quarter of it."""
_HEAD_BYTES = 2**16
MOST_CONTROLS, MOST_STRANGE = 0.02, 0.1
"""Shares of a file's beginning: more control characters than the first, and with what is no UTF-8 more than the second, is no text."""
_CONTROLS = bytes([*range(7), *range(14, 27), *range(28, 32), 127])
_ZEROS = re.compile(rb"\0{64,}")
_UTF16 = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
_MAGIC = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "a zip archive", b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture", b"BZh": "bzip2",
          b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"SQLite format 3": "a database", b"\x7fELF": "a program"}  # fmt: skip
_ANSI = re.compile(rb"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
# What services put before a line: a time stamp, a level, a rank, a container's name.
_PREFIX = re.compile(
    rb"(?:\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,\d]*(?:Z|[+-]\d\d:?\d\d)?\]?\s+|\[(?:INFO|ERROR|WARNING|DEBUG|rank\d+)\]:?\s+"
    rb"|\d\d:\d\d:\d\d[.,\d]*\s+|(?:SUBPROCESS|stdout|stderr):\s|[A-Za-z][\w.-]{0,60}\s*\| (?=\S)|\d+: (?=\[rank))"
)


def open_log(path: str) -> Iterator[tuple[int, bytes]]:
    """(line number, text) of every line of the log at `path`, without line ends, colours and time stamps; lines between carriage returns
    have the same number. Raises InputError where there is no such file, nothing in it, or no text.
    """
    name = os.fspath(path)
    _check(name)
    try:
        file = open(name, "rb")  # noqa: SIM115 - closed by the generator
    except OSError as error:
        raise _fail(name, "cannot be read", error.strerror or str(error), "check its permissions") from None
    head = file.read(_HEAD_BYTES)
    try:
        _check_head(head, name)
    except InputError:
        file.close()
        raise
    return _lines(file, head)


def _lines(file: BinaryIO, head: bytes) -> Iterator[tuple[int, bytes]]:
    with file as stream:
        decode = _decoder(head)
        rest, number, chunk = b"", 1, head
        while chunk:
            *whole, rest = (rest + decode(chunk).removeprefix(codecs.BOM_UTF8)).split(b"\n")
            for line in whole:
                yield from _parts(number, line)
                number += 1
            if len(rest) > MOST_LINE_BYTES:
                bars, _, rest = rest.rpartition(b"\r")
                if bars:
                    yield from _parts(number, bars)
                rest = rest[:MOST_LINE_BYTES]
            chunk = stream.read(CHUNK_BYTES)
        if rest:
            yield from _parts(number, rest)


def _parts(number: int, line: bytes) -> Iterator[tuple[int, bytes]]:
    if b"\r" not in line:
        yield number, clean(line)
        return
    for part in line.split(b"\r"):
        if part:
            yield number, clean(part)


def clean(line: bytes) -> bytes:
    """A line without colours, zeros, time stamps and what is too long."""
    if len(line) > MOST_LINE_BYTES:
        line = line[:MOST_LINE_BYTES]
    if b"\x1b" in line:
        line = _ANSI.sub(b"", line)
    if b"\0" in line:
        line = line.replace(b"\0", b"")
    if line[:1] in b"[0123456789Ss" or b" | " in line[:64]:
        for _ in range(3):
            found = _PREFIX.match(line)
            if found is None:
                break
            line = line[found.end() :]
    return line.rstrip()


def _decoder(head: bytes) -> Callable[[bytes], bytes]:
    """bytes -> UTF-8 bytes; anything but UTF-16 is taken as it is."""
    for encoding in _UTF16:
        if _is_utf16(head, encoding):
            decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
            return lambda chunk: decoder.decode(chunk).encode("utf-8", "replace")
    return lambda chunk: chunk


def _is_utf16(head: bytes, encoding: str) -> bool:
    """By its mark, or because every other byte of Latin text is zero."""
    sample = head[:2000]
    odd, even = sample[1::2], sample[0::2]
    high, low = (odd, even) if encoding == "utf-16-le" else (even, odd)
    by_zeros = len(sample) > 20 and high.count(0) > 0.8 * len(high) and low.count(0) < 0.1 * len(low)
    return head.startswith(_UTF16[encoding]) or by_zeros


def _check(name: str) -> None:
    try:
        info = os.stat(name)
    except FileNotFoundError:
        raise _fail(
            name, "no such file", "", "give the training log; AI Toolkit's UI writes it to log.txt in the job's output folder"
        ) from None
    except (OSError, ValueError) as error:
        raise _fail(name, "cannot be read", str(error), "check the path and its permissions") from None
    if stat.S_ISDIR(info.st_mode):
        logs = [each for each in ("log.txt", "train.log") if os.path.isfile(os.path.join(name, each))]
        raise _fail(name, "this is a folder, not a log", "", f"give {os.path.join(name, logs[0])}" if logs else "give the log file itself")
    if not stat.S_ISREG(info.st_mode):
        raise _fail(name, "this is no regular file", "", "save the log to a file and give that")


def _check_head(head: bytes, name: str) -> None:
    if not head.strip(b" \t\r\n\0"):
        raise _fail(name, "there is nothing in this log", "", "give the log of a run; the trainer's option --log FILE writes one")
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
    if kind:
        raise _fail(
            name,
            f"this is {kind}, not a log",
            "",
            "unpack it first" if "zip" in kind or kind in ("xz", "zstd", "bzip2") else "give the log",
        )
    text = _ZEROS.sub(b"", head)
    if any(_is_utf16(head, encoding) for encoding in _UTF16):
        text = head.replace(b"\0", b"").removeprefix(codecs.BOM_UTF16_LE).removeprefix(codecs.BOM_UTF16_BE)
    strange = len(text) - len(text.translate(None, _CONTROLS))
    if strange > MOST_CONTROLS * len(text) and strange + _high(text) > MOST_STRANGE * len(text):
        raise _fail(name, "this is a binary file, not a log", "", "give the text that the trainer printed")


def _high(text: bytes) -> int:
    """Bytes that are no valid UTF-8."""
    return len(text) - len(text.decode("utf-8", "ignore").encode("utf-8"))


def _fail(name: str, what: str, why: str, fix: str) -> InputError:
    return InputError(Problem(what, Place(name, ""), why, fix))
