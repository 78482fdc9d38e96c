"""Reading log files: any encoding and line end, colours and time stamps, any size in little memory; what is no log is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.diagnosis import lines
from estimator.diagnosis.lines import MOST_LINE_BYTES, open_log
from estimator.errors import InputError

MIB = 2**20


def read(path: Path, content: bytes) -> list[tuple[int, str]]:
    path.write_bytes(content)
    return [(number, line.decode("utf-8", "replace")) for number, line in open_log(str(path))]


def test_progress_bars_are_taken_apart_and_keep_their_line(tmp_path: Path) -> None:
    assert read(tmp_path / "log", b"a\rb\r\nc\nd") == [(1, "a"), (1, "b"), (2, "c"), (3, "d")]


def test_colours_and_stamps_go(tmp_path: Path) -> None:
    content = (
        b"\x1b[31mred\x1b[0m\n[2024-09-18 08:19:50] [INFO] told\n2026-04-14T16:07:00.123Z zulu\n[rank1]: ranked\ntrainer-1  | boxed\n"
        b"\x1b]0;title\x07titled\n 12:30:00 kept"
    )
    assert [line for _, line in read(tmp_path / "log", content)] == ["red", "told", "zulu", "ranked", "boxed", "titled", " 12:30:00 kept"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "Loading transformer\n" * 20 + "café 文件\n"
    found = [line for _, line in read(tmp_path / "log", text.encode(encoding))]
    assert found[1] == "Loading transformer"
    assert found[-1] == "café 文件"


def test_other_encodings_cannot_break_it(tmp_path: Path) -> None:
    assert len(read(tmp_path / "log", "Loading café\nKilled\n".encode("latin-1"))) == 2


def test_zeros_after_a_power_cut(tmp_path: Path) -> None:
    assert read(tmp_path / "log", b"Loading transformer\n" * 9 + b"\0" * 4096)[8] == (9, "Loading transformer")


@given(
    st.lists(st.sampled_from([b"a", b"Loading VAE", b"\r", b"\n", b"\r\n", "█".encode(), b"\x1b[0m"]), min_size=1, max_size=60),
    st.integers(1, 9),
)
def test_where_the_file_is_cut_into_chunks_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], size: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    content = b"x" + b"".join(pieces)
    whole = read(path, content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK_BYTES", size)
        patch.setattr(lines, "_HEAD_BYTES", size)
        assert read(path, content) == whole


def test_a_line_without_end_and_a_bar_without_end(tmp_path: Path) -> None:
    """Lines are cut; of bars none is lost."""
    assert [len(line) for _, line in read(tmp_path / "log", b"y" * (5 * MIB) + b"\nend")] == [MOST_LINE_BYTES, 3]
    bars = b"".join(b"cat:  1%%|#| %d/99999 [00:01<00:02, 1.00it/s]\r" % n for n in range(30_000))
    assert len(read(tmp_path / "log", bars)) == 30_000


def test_memory_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    bar = b"cat:   8%|8         | 123/2000 [00:12<03:10,  1.55it/s, lr: 1.0e-04 loss: 1.000e+00]"
    with path.open("wb") as file:
        for _ in range(24):
            file.write((bar + b"\r") * (MIB // len(bar)))
            file.write(b"\n" if _ % 2 else b"")
    tracemalloc.start()
    count = sum(1 for _ in open_log(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count > 200_000
    assert peak < 12 * MIB


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "nothing"),
    "blank": (b" \n\r\n\t", "nothing"),
    "zeros": (b"\0" * 100_000, "nothing"),
    "gzip": (b"\x1f\x8b\x08\0\0" + bytes(range(256)), "gzip"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "picture"),
    "weights": ((120).to_bytes(8, "little") + b'{"a":' + bytes(range(256)) * 500, "binary"),
    "random": (bytes(i * 7919 % 251 for i in range(100_000)), "binary"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_log_is_refused_with_a_remedy(tmp_path: Path, name: str) -> None:
    content, word = REFUSED[name]
    with pytest.raises(InputError) as error:
        read(tmp_path / "log", content)
    assert word in error.value.problems[0].what
    assert error.value.problems[0].fix


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_log(str(tmp_path / "none"))
    (tmp_path / "log.txt").write_text("x")
    with pytest.raises(InputError, match=r"folder.*\n.*log\.txt"):
        open_log(str(tmp_path))
