"""The out-of-memory messages of torch's versions as numbers. Messages are worded as torch words them; figures as in the reports named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.crash import OomText
from estimator.diagnosis import oomtext

MIB, GIB = 2**20, 2**30


def gib(size: float) -> int:
    return round(size * GIB)


def mib(size: float) -> int:
    return round(size * MIB)


HINT = " If reserved but unallocated memory is large try setting max_split_size_mb to avoid fragmentation."
MESSAGES: dict[str, tuple[str, OomText]] = {
    "1.0, pytorch pull request 13751": (
        "RuntimeError: CUDA out of memory. Tried to allocate 16.00 GiB (GPU 0; 11.93 GiB total capacity; 4.00 GiB already allocated; "
        "7.33 GiB free; 179.00 KiB cached)",
        OomText(0, gib(16), gib(11.93), gib(7.33), None, gib(4), 179 * 2**10),
    ),
    "1.4 to 2.0, pytorch issue 59778": (
        "CUDA out of memory. Tried to allocate 2.26 GiB (GPU 0; 6.00 GiB total capacity; 781.59 MiB already allocated; 3.03 GiB free; "
        "1.24 GiB reserved in total by PyTorch)",
        OomText(0, gib(2.26), gib(6), gib(3.03), None, mib(781.59), gib(1.24) - mib(781.59)),
    ),
    "with a limit, pytorch issue 111729": (
        "CUDA out of memory. Tried to allocate 64.00 MiB (GPU 1; 11.91 GiB total capacity; 4.70 GiB already allocated; 7.01 GiB free; "
        "4.77 GiB allowed; 4.74 GiB reserved in total by PyTorch)",
        OomText(1, mib(64), gib(11.91), gib(7.01), None, gib(4.7), gib(4.74) - gib(4.7), gib(4.77)),
    ),
    "2.1 with its spelling, its own process as one of many, GenerateU issue 10": (
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 496.00 MiB. GPU 0 has a total capacty of 14.75 GiB of which "
        "235.06 MiB is free. Process 20398 has 14.52 GiB memory in use. Of the allocated memory 14.06 GiB is allocated by PyTorch, and "
        f"330.42 MiB is reserved by PyTorch but unallocated.{HINT}",
        OomText(0, mib(496), gib(14.75), mib(235.06), gib(14.52), gib(14.06), mib(330.42)),
    ),
    "another process, fluxgym issue 383": (
        "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 80.00 MiB. GPU 1 has a total capacity of 23.64 GiB of "
        "which 80.25 MiB is free. Process 17653 has 19.03 GiB memory in use. Including non-PyTorch memory, this process has 4.53 GiB "
        "memory in use. Of the allocated memory 4.00 GiB is allocated by PyTorch, and 14.50 MiB is reserved by PyTorch but unallocated."
        f"{HINT}",
        OomText(1, mib(80), gib(23.64), mib(80.25), gib(4.53), gib(4), mib(14.5), None, ((17653, gib(19.03)),)),
    ),
    "Windows, which cannot tell, ai-toolkit issue 506": (
        "CUDA out of memory. Tried to allocate 2.03 GiB. GPU 0 has a total capacity of 31.84 GiB of which 0 bytes is free. Including "
        "non-PyTorch memory, this process has 17179869184.00 GiB memory in use. Of the allocated memory 29.69 GiB is allocated by PyTorch, "
        f"and 138.42 MiB is reserved by PyTorch but unallocated.{HINT}",
        OomText(0, gib(2.03), gib(31.84), 0, None, gib(29.69), mib(138.42)),
    ),
    "no processes at all, fluxgym issue 78": (
        "CUDA out of memory. Tried to allocate 80.00 MiB. GPU 0 has a total capacity of 12.00 GiB of which 6.31 GiB is free. Of the "
        f"allocated memory 4.64 GiB is allocated by PyTorch, and 14.47 MiB is reserved by PyTorch but unallocated.{HINT}",
        OomText(0, mib(80), gib(12), gib(6.31), None, gib(4.64), mib(14.47)),
    ),
    "nothing in use, Regional-Prompting-FLUX issue 13": (
        "CUDA out of memory. Tried to allocate 32.00 MiB. GPU 0 has a total capacity of 23.43 GiB of which 4.06 MiB is free. Including "
        "non-PyTorch memory, this process has 0 bytes memory in use. Of the allocated memory 23.03 GiB is allocated by PyTorch, and "
        f"15.67 MiB is reserved by PyTorch but unallocated.{HINT}",
        OomText(0, mib(32), gib(23.43), mib(4.06), None, gib(23.03), mib(15.67)),
    ),
    "private pools, sglang pull request 15927": (
        "CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 139.80 GiB of which 493.00 MiB is free. Including "
        "non-PyTorch memory, this process has 139.32 GiB memory in use. Of the allocated memory 135.53 GiB is allocated by PyTorch, with "
        f"572.00 MiB allocated in private pools (e.g., CUDA Graphs), and 265.53 MiB is reserved by PyTorch but unallocated.{HINT}",
        OomText(0, gib(1), gib(139.8), mib(493), gib(139.32), gib(135.53), mib(265.53)),
    ),
    "cudaMallocAsync": (
        "torch.OutOfMemoryError: Allocation on device 0 would exceed allowed memory. (out of memory)\nCurrently allocated     : 10.39 GiB\n"
        "Requested               : 30.00 MiB\nDevice limit            : 11.00 GiB\nFree (according to CUDA): 0 bytes\n"
        "PyTorch limit (set by user-supplied memory fraction)\n                        : 17179869184.00 GiB",
        OomText(0, mib(30), gib(11), 0, None, gib(10.39)),
    ),
    "AMD": (
        "HIP out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.98 GiB of which 1.20 GiB is free. Of the "
        f"allocated memory 13.00 GiB is allocated by PyTorch, and 300.00 MiB is reserved by PyTorch but unallocated.{HINT}",
        OomText(0, gib(2), gib(15.98), gib(1.2), None, gib(13), mib(300)),
    ),
}


@pytest.mark.parametrize("version", MESSAGES)
def test_every_version_of_the_message(version: str) -> None:
    text, numbers = MESSAGES[version]
    assert oomtext.is_oom_text(text)
    assert oomtext.is_complete(text)
    assert oomtext.parse(text) == numbers


@pytest.mark.parametrize("version", MESSAGES)
def test_a_message_that_a_terminal_wrapped(version: str) -> None:
    text, numbers = MESSAGES[version]
    words = text.split(" ")
    assert oomtext.parse("\n  ".join(" ".join(words[i : i + 7]) for i in range(0, len(words), 7))) == numbers


def test_two_threads_printed_it_at_once() -> None:
    text, numbers = MESSAGES["no processes at all, fluxgym issue 78"]
    assert oomtext.parse(f"torch.OutOfMemoryError: {text}torch.OutOfMemoryError: {text}") == numbers


def test_the_warning_has_exact_bytes() -> None:
    text = (
        "[W1122 15:37:54.967188916 CUDACachingAllocator.cpp:3934] memory allocation failed with OOM on device 0 while trying to allocate "
        "18874368 bytes (free: 0, total: 17171480576)."
    )
    assert oomtext.is_warning(text)
    assert not oomtext.is_oom_text(text)
    assert oomtext.parse_warning(text) == OomText(0, 18874368, 17171480576, 0)


@given(st.text() | st.text(alphabet="CUDA out of memory. Tried to allocate 0123456789.GiBM;()", max_size=300))
def test_whatever_stands_there_is_read_without_an_error(text: str) -> None:
    numbers = oomtext.parse(f"CUDA out of memory. Tried to allocate {text}")
    assert all(size is None or size >= 0 for size in (numbers.tried_bytes, numbers.total_bytes, numbers.cached_bytes))


def test_a_number_of_hundreds_of_digits_is_no_size() -> None:
    numbers = oomtext.parse(f"CUDA out of memory. Tried to allocate {'9' * 400}.00 GiB. GPU 0 has a total capacity of 23.51 GiB")
    assert (numbers.tried_bytes, numbers.total_bytes) == (None, gib(23.51))


sizes = st.integers(0, 2**42)


def printed(size: int) -> str:
    """As torch's format_size prints a size."""
    if size <= 1024:
        return f"{size} bytes"
    for unit, name in ((2**10, "KiB"), (MIB, "MiB"), (GIB, "GiB")):
        if size <= unit * 1024 or name == "GiB":
            return f"{size / unit:.2f} {name}"
    raise AssertionError


def is_near(read: int | None, size: int) -> bool:
    return read is not None and abs(read - size) <= max(1, 0.0051 * (GIB if size > GIB else MIB if size > MIB else 2**10))


@given(sizes, sizes, sizes, sizes, sizes)
def test_any_sizes_come_back_within_the_two_decimals(tried: int, total: int, free: int, allocated: int, cached: int) -> None:
    text = (
        f"CUDA out of memory. Tried to allocate {printed(tried)}. GPU 3 has a total capacity of {printed(total)} of which {printed(free)} "
        f"is free. Of the allocated memory {printed(allocated)} is allocated by PyTorch, and {printed(cached)} is reserved by PyTorch "
        "but unallocated."
    )
    numbers = oomtext.parse(text)
    assert numbers.device == 3
    read = (numbers.tried_bytes, numbers.total_bytes, numbers.free_bytes, numbers.allocated_bytes, numbers.cached_bytes)
    assert all(map(is_near, read, (tried, total, free, allocated, cached)))
