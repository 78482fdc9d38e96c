"""The out-of-memory messages of torch, in all its versions, as numbers.

Sources, read or met in public reports: torch 1.0 to 1.3 ("(GPU 0; 11.93 GiB total capacity; 4.00 GiB already allocated; 7.33 GiB free;
179.00 KiB cached)", pytorch pull request 13751, where `cached` is what is held and not used), 1.4 to 2.0 ("... reserved in total by
PyTorch)"), 2.1 ("has a total capacty of", its spelling; "Process N has ..."), 2.2 to 2.14 (c10/cuda/CUDACachingAllocator.cpp), with a limit
("20.00 GiB allowed;"), with private pools (pull request 124673), the cudaMallocAsync back end ("Allocation on device 0 would exceed
allowed memory"), and 2.14's warning ("memory allocation failed with OOM on device 0 while trying to allocate N bytes (free: N, total: N)").
HIP and XPU print the same.
"""

from __future__ import annotations

import re

from estimator.crash import OomText
from estimator.gpus import GIB, MIB

_UNITS = {
    "bytes": 1,
    "kib": 2**10,
    "mib": MIB,
    "gib": GIB,
    "tib": 2**40,
    "kb": 2**10,
    "mb": MIB,
    "gb": GIB,
}  # torch counts in powers of two throughout
_SIZE = r"(\d+(?:\.\d+)?) ?(bytes|[KMGT]i?B)"
NONSENSE_BYTES = 2**50
"""No card has so much. Where NVML cannot tell (Windows), torch prints 17179869184.00 GiB: 2**64 less a little."""

_TRIED = re.compile(rf"(?:Tried to allocate|Requested size:|Requested *:) *{_SIZE}")
_TOTAL = re.compile(rf"total capaci?ty of {_SIZE}|{_SIZE} total capacity|Device limit *: *{_SIZE}")
_FREE = re.compile(rf"of which {_SIZE} is free|; {_SIZE} free|Free \(according to CUDA\): *{_SIZE}")
_DEVICE = re.compile(r"GPU (\d+)(?:;| has a total)|Allocation on device (\d+)")
_IN_USE = re.compile(rf"this process has {_SIZE} memory in use")
_OTHERS = re.compile(rf"Process (\d+) has {_SIZE} memory in use")
_ALLOCATED = re.compile(rf"allocated memory {_SIZE} is allocated by|{_SIZE} already allocated|Currently allocated *: *{_SIZE}")
_CACHED = re.compile(rf"and {_SIZE} is reserved by PyTorch but unallocated|; {_SIZE} cached")
_RESERVED = re.compile(rf"{_SIZE} reserved in total")
_ALLOWED = re.compile(rf"{_SIZE} allowed;")
_WARNING = re.compile(
    r"(?:allocation|mapping) failed with OOM on device (\d+)(?: while trying to \w+ (\d+) bytes)?(?: \(free: (\d+), total: (\d+)\))?"
)
_BEGINS = re.compile(r"(?:CUDA|HIP|XPU) out of memory\.|Allocation on device(?: \d+)? would exceed")
_ENDS = re.compile(r"reserved by PyTorch but unallocated|reserved in total by|cached\)|PyTorch limit")


def is_oom_text(text: str) -> bool:
    """Whether torch's message begins in this text."""
    return _BEGINS.search(text) is not None


def is_complete(text: str) -> bool:
    """Whether the message's numbers are all there; a terminal may have wrapped it over several lines."""
    return _ENDS.search(text) is not None


def is_warning(text: str) -> bool:
    """Whether this is 2.14's warning that the driver had no memory; torch then releases what it caches and tries again."""
    return _WARNING.search(text) is not None


def parse_warning(text: str) -> OomText:
    """The warning's numbers, exact bytes."""
    found = _WARNING.search(text)
    device, tried, free, total = found.groups() if found else (None,) * 4
    return OomText(device=_number(device), tried_bytes=_number(tried), free_bytes=_number(free), total_bytes=_number(total))


def parse(text: str) -> OomText:
    """The message's numbers; whatever else stands in the text is passed over. Never raises."""
    text = " ".join(text[:4000].split())  # the longest message, with many processes, is a fifth of that
    start = _BEGINS.search(text)
    text = text[start.start() :] if start else text
    allocated, cached, total = _first(_ALLOCATED, text), _first(_CACHED, text), _first(_TOTAL, text)
    reserved = _first(_RESERVED, text)
    if cached is None and reserved is not None and allocated is not None:
        cached = max(reserved - allocated, 0)
    others = tuple((int(pid), _bytes(value, unit)) for pid, value, unit in _OTHERS.findall(text))
    in_use = _first(_IN_USE, text)
    if in_use == 0 and allocated:  # NVML could not tell
        in_use = None
    device = _DEVICE.search(text)
    numbers = OomText(
        device=_number(next((each for each in device.groups() if each), None)) if device else None,
        tried_bytes=_first(_TRIED, text),
        total_bytes=total,
        free_bytes=_first(_FREE, text),
        in_use_bytes=in_use,
        allocated_bytes=allocated,
        cached_bytes=cached,
        allowed_bytes=_first(_ALLOWED, text),
        others=tuple((pid, size) for pid, size in others if size < NONSENSE_BYTES),
    )
    return _own_process(numbers)


def _own_process(numbers: OomText) -> OomText:
    """In a container torch cannot tell its own process by its number and lists it among the others: that which fits what torch holds."""
    reserved = numbers.reserved_bytes
    if numbers.in_use_bytes is not None or reserved is None or not numbers.others:
        return numbers
    own = min(numbers.others, key=lambda each: abs(each[1] - reserved))
    outside = own[1] - reserved
    if not -64 * MIB <= outside <= MOST_OUTSIDE_BYTES:
        return numbers
    others = list(numbers.others)
    others.remove(own)
    values = {name: getattr(numbers, name) for name in OomText.__slots__}
    return OomText(**{**values, "in_use_bytes": own[1], "others": tuple(others)})


MOST_OUTSIDE_BYTES = 2 * GIB
"""What a process has outside torch's allocator at most: context, kernels, libraries' workspaces (1.8 GiB in published messages)."""


def _first(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    if found is None:
        return None
    value, unit = [each for each in found.groups() if each is not None][:2]
    size = _bytes(value, unit)
    return size if size < NONSENSE_BYTES else None


def _bytes(value: str, unit: str) -> int:
    """NONSENSE_BYTES for what is more than that."""
    return round(min(float(value) * _UNITS[unit.lower()], NONSENSE_BYTES))


def _number(text: str | None) -> int | None:
    return int(text) if text else None
