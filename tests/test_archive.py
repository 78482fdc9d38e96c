"""The files of a profile as they are stored: arrays and texts of `programs.bin`, and folded lists of bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.extract.written import folded
from estimator import archive
from estimator.archive import Archive, described, sizes_of

PROFILES = Path(__file__).resolve().parent.parent / "profiles"


def members() -> dict[str, Any]:
    tensors = np.array([[0, 5, -1], [1, 5, 70_000], [0, 6, -1]])
    return {
        "e0": np.array([0, 0, 2, -1, -2]), "e1": np.array([0, 0, 2, -1, -2]), "e2": np.array([], dtype=np.int64),
        "dt0": tensors, "dt1": tensors, "dt2": np.zeros((0, 3), dtype=np.int64), "dc0": np.array([[3, 0, 2, -1, 1, -1, -2]]),
        "coefficients": np.array([[2**40, -1], [0, 7]]), "labels": ["", "größer", "a|forward"], "names": [],
        "layers/b": ["one", "two"], "layers/a": [], "places/b/bf16": np.array([[0, 2, 0, 0], [2, 2, 2, 1]]),
    }  # fmt: skip


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    given_ = members()
    archive.write(tmp_path, given_)
    found = Archive(tmp_path).all()
    assert found.keys() == given_.keys()
    for name, member in given_.items():
        assert np.array_equal(found[name], member), name
        assert isinstance(found[name], list) == isinstance(member, list)
    assert Archive(tmp_path).calls(1) is None
    assert Archive(tmp_path).tensors(2).shape == (0, 3)


def test_the_same_content_is_stored_once_and_the_same_members_are_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for order in (1, -1):
        archive.write(tmp_path, dict(sorted(members().items(), key=lambda item: "/" not in item[0])[::order]) | members())
        written.append((tmp_path / archive.FILE).read_bytes())
    index = json.loads(written[0].split(b"\n")[0])
    assert (index["e1"], index["dt1"]) == ("e0", "dt0")
    archive.write(tmp_path, members())
    assert (tmp_path / archive.FILE).read_bytes() == written[0]


def test_a_text_of_several_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels: a text of several lines"):
        archive.write(tmp_path, {"labels": ["a\nb"]})


def test_what_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    for label in ("before", "after"):
        archive.write(tmp_path, {"labels": [label]})
        assert archive.opened(tmp_path).labels == [label]


def test_tables_of_layers_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(json.dumps({"layers": ["b"], "places": ["b/bf16"]}))
    data = described(tmp_path)  # there is no archive yet
    assert ("b" in data["layers"], "c" in data["layers"], list(data["places"]), len(data["places"])) == (True, False, ["b/bf16"], 1)
    with pytest.raises(FileNotFoundError):
        data["layers"]["b"]
    archive.write(tmp_path, members())
    assert dict(described(tmp_path)["layers"]) == {"b": ["one", "two"]}
    assert data["places"]["b/bf16"] == [[0, 2, 0, 0], [2, 2, 2, 1]]
    assert data["places"].get("c") is None


@pytest.mark.parametrize("content", [b"", b"no line", b"[1]\n", b'{"labels": [9, 0, 0]}\nabc'])
def test_a_broken_archive_is_no_profile(tmp_path: Path, content: bytes) -> None:
    (tmp_path / archive.FILE).write_bytes(content)
    with pytest.raises((ValueError, AttributeError, archive.lzma.LZMAError)):
        _ = Archive(tmp_path).labels


@given(st.lists(st.sampled_from([512, 1024, 4096]), max_size=40), st.integers(1, 6), st.lists(st.integers(1, 3), max_size=4))
def test_folded_bytes_are_the_same_list(block: list[int], times: int, rest: list[int]) -> None:
    sizes = [*rest, *block * times, *rest]
    assert sizes_of(folded(sizes)) == sizes


def test_a_models_blocks_are_folded() -> None:
    assert folded([7, *[1, 1, 2, 3] * 48, 7]) == [[7, 1], [[[1, 2], [2, 1], [3, 1]], 48], [7, 1]]
    assert folded([]) == []


def test_every_shipped_file_is_small() -> None:
    assert max(path.stat().st_size for path in PROFILES.rglob("*") if path.is_file()) < 2**19
