"""Input that breaks readers, by accident or on purpose: one clear refusal with place and remedy, in no time, and nothing written."""

from __future__ import annotations

import builtins
import errno
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_writer import FLUX_DEV, outcome, process
from hypothesis import given
from hypothesis import strategies as st

from estimator.configfile import MAX_CONFIG_BYTES
from estimator.errors import CannotTell, InputError
from estimator.trainers import read_jobs
from estimator.trainers.aitoolkit_keys import NEUTRAL, READ, UNMODELLED, known_keys

GOOD = yaml.safe_dump({"job": "extension", "config": {"name": "x", "process": [process()]}}).encode()
BILLION_LAUGHS = "\n".join(
    ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
).encode()
WAY_IN = 10.0  # seconds; generous for a shared machine, and far below what an expansion or a scan to the end would take

CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "blank": b"\n  \n\n",
    "only comments": b"# nothing\n",
    "only null": b"~\n",
    "a list": b"- job: extension\n",
    "a word": b"hello\n",
    "a number": b"12\n",
    "not yaml": b"job: [extension\nconfig: }{",
    "tabs": b"job: extension\nconfig:\n\tname: x\n",
    "duplicate keys": GOOD + b"job: extension\n",
    "billion laughs": BILLION_LAUGHS,
    "billion laughs inside a config": GOOD + BILLION_LAUGHS,
    "a cycle": b"job: &a {b: *a}\n",
    "deep brackets": b"[" * 500_000,
    "deep maps": b"{a: " * 200_000,
    "deep indentation": b"".join(b" " * i + b"a:\n" for i in range(1000)),
    "deep dashes": b"- " * 300_000,
    "many values": b"- a\n" * 200_000,
    "many anchors": b"".join(b"- &a%d x\n" % i for i in range(45_000)),
    "one long word": b"a: " + b"x" * (MAX_CONFIG_BYTES - 10),
    "one long key": b"x" * 500_000 + b": 1",
    "one long number": b"a: " + b"9" * 500_000,
    "one long base 60 number": b"a: 1" + b":59" * 300_000,
    "open variables": b"${" * 500_000,
    "missing variables": b"a: ${NO_SUCH_VARIABLE_OF_THIS_TEST}\n",
    "a zip": b"PK\x03\x04" + bytes(range(256)) * 10,
    "safetensors": (8).to_bytes(8, "little") + b'{"a": 1}' + b"\0" * 64,
    "utf-16": "job: extension\n".encode("utf-16"),
    "latin-1": "job: extension\nname: caf\xe9\n".encode("latin-1"),
    "zeros": b"\0" * 1000,
    "control characters": b"job: \x01\x02\n",
    "two documents": GOOD + b"---\n" + GOOD,
    "a python object": b"job: !!python/object/apply:os.system [ls]\n",
    "a date": b"job: 2024-01-01\n",
    "not a number": b"job: .nan\nconfig: .inf\n",
    "null sections": b"job:\nconfig:\n",
    "missing process": b"job: extension\nconfig: {name: x}\n",
    "null process": b"job: extension\nconfig: {name: x, process: }\n",
    "process of nothing": b"job: extension\nconfig: {name: x, process: [{}, [], 3, ~]}\n",
    "null train section and no datasets": (
        b"job: extension\nconfig:\n name: x\n process:\n - type: sd_trainer\n   train:\n   datasets:\n   network:\n"
    ),
    "json in yaml's clothes": b'{"job": "extension", "config": {"name": "x", "process": []}}',
    "html": b"<!DOCTYPE html>\n<html><body>404</body></html>",
    "an unknown arch": GOOD.replace(b"arch: flux", b"arch: flusx"),
    "a negative batch": GOOD.replace(b"dtype: bf16", b"batch_size: -1"),
    "a quoted batch": GOOD.replace(b"dtype: bf16", b"batch_size: '8'"),
    "a huge batch": GOOD.replace(b"dtype: bf16", b"batch_size: 1e9"),
    "a batch beyond floats": GOOD.replace(b"dtype: bf16", b"batch_size: 1" + b"0" * 60),
    "a huge resolution": GOOD.replace(b"resolution: 512", b"resolution: 1000000000"),
    "many wrong resolutions": GOOD.replace(b"resolution: 512", b"resolution: [0" + b", 0" * 40_000 + b"]"),
    "many resolutions": GOOD.replace(b"resolution: 512", b"resolution: [512" + b", 512" * 40_000 + b"]"),
    "many wrong datasets": GOOD.replace(b"datasets:\n", b"datasets:\n" + b"    - 1\n" * 40_000),
    "many unknown keys": GOOD.replace(b"resolution: 512", b"batch_size: x\n" + b"".join(b"      k%d: 1\n" % i for i in range(300))),
}  # fmt: skip


def refused(path: Path | str, *overrides: str, arch: str | None = None) -> InputError | CannotTell:
    """The refusal; asserts that it is in time, has a place or names the option, and says what to do."""
    start = time.process_time()
    with pytest.raises((InputError, CannotTell)) as caught:
        read_jobs(path, overrides, arch)
    assert time.process_time() - start < WAY_IN
    for problem in caught.value.problems:
        assert problem.what
        assert problem.fix
        assert problem.place is not None
        assert len(str(problem)) < 1500, "a message to read, not a dump of the file"
        str(problem).encode("utf-8")
    return caught.value


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_files_made_to_break_the_reader(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / f"config.{ending}"
    path.write_bytes(CONTENTS[name])
    assert isinstance(refused(path), InputError)
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == CONTENTS[name]


def test_the_file_those_are_made_from_is_fine(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(GOOD)
    assert len(read_jobs(tmp_path / "config.yaml")) == 1


def test_messages_point_at_the_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(CONTENTS["tabs"])
    (problem,) = refused(path).problems
    assert problem.place is not None
    assert problem.place.line == 3
    assert "tab" in problem.fix


# ---------------------------------------------------------------- no files at all


def test_a_missing_file_suggests_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "flux_dev.yaml").write_bytes(GOOD)
    error = refused(tmp_path / "flux_dve.yaml")
    assert "flux_dev.yaml" in str(error)


def test_a_folder_suggests_the_config_in_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(GOOD)
    assert "config.yaml" in str(refused(tmp_path))
    assert "folder" in str(refused(tmp_path))


def test_a_huge_file_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "100.0 MiB" in str(refused(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024  # KiB


def test_an_endless_file_never_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for name in ("pipe.yaml", "zero.yaml", "loop.yaml"):
        refused(tmp_path / name)


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(GOOD)

    def deny(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file) == str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real(file, *args, **kwargs)

    real: Callable[..., Any] = builtins.open
    monkeypatch.setattr(builtins, "open", deny)  # permission bits do not stop root, who runs CI
    assert "Permission denied" in str(refused(path))


@pytest.mark.parametrize("name", ["a\0b.yaml", "x" * 5000 + ".yaml", "", "no/such/folder/x.yaml", "~/nothing.yaml", "\udcff.yaml"])
def test_impossible_paths(name: str) -> None:
    with pytest.raises(InputError):
        read_jobs(name)


@pytest.mark.parametrize("name", ["config", "config.txt", "config.YAML", "config.yaml.bak", "config.toml"])
def test_a_file_of_another_kind_is_refused_as_by_the_trainer(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD)
    assert "rename" in str(refused(tmp_path / name))


def test_a_broken_dataset_folder_is_no_failure(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(20):
        (images / f"{i}.png").write_bytes(os.urandom(i))
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({"job": "extension", "config": {"name": "x", "process": [process(datasets=[{"folder_path": str(images)}])]}})
    )
    (job,) = read_jobs(path)
    assert not job.datasets[0].scanned
    assert any("20 of 20 images" in w for w in job.warnings)


# ---------------------------------------------------------------- any tree of values

SECTIONS = {"train": "train", "model": "model", "network": "network", "sample": "sample", "save": "save"}
odd = st.sampled_from(
    [
        None,
        True,
        False,
        -1,
        0,
        1,
        8,
        "8",
        1e9,
        float("nan"),
        float("inf"),
        -0.5,
        10**40,
        "",
        "false",
        "flux",
        "[name]",
        "a --w x",
        "\n",
        "é",
    ]
) | st.builds(json.loads, st.sampled_from(["[]", "{}", "[null]", "[[]]", '{"a": 1}']))
anything = st.recursive(
    odd | st.text(max_size=6) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def section(table: str) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(sorted(known_keys(table))), anything, max_size=6) | anything


processes = st.fixed_dictionaries(
    {"type": st.sampled_from(["sd_trainer"] * 6 + ["diffusion_trainer", "concept_slider"]) | odd, "training_folder": st.just("o")},
    optional={
        **{key: section(table) for key, table in SECTIONS.items()},
        "model": st.just(FLUX_DEV) | section("model").map(lambda s: {**FLUX_DEV, **s} if isinstance(s, dict) else s),
        "datasets": st.lists(section("datasets").map(lambda s: {"folder_path": "/x", **s} if isinstance(s, dict) else s), max_size=3)
        | anything,
        "sample": section("sample").flatmap(
            lambda s: st.lists(section("sample.samples"), max_size=3).map(
                lambda items: {**s, "samples": items} if isinstance(s, dict) else s
            )
        ),
        **dict.fromkeys(("trigger_word", "name", "adapter", "logging", "first_sample"), anything),
    },
)


def read_or_refuse(folder: Path, data: object) -> None:
    path = folder / "any.json"
    path.write_text(json.dumps(data))
    found = outcome(lambda: read_jobs(path))
    if isinstance(found, (InputError, CannotTell)):
        assert found.problems
        assert all(p.what for p in found.problems)
        return
    assert isinstance(found, tuple)
    for job in found:
        assert all(b.width > 0 and b.height > 0 for d in job.datasets for b in d.buckets)
        assert all(s.width > 0 and s.height > 0 for s in job.samples)
        assert job.train.batch_size >= 1


@given(processes)
def test_any_process_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
    read_or_refuse(tmp_path_factory.getbasetemp(), {"job": "extension", "config": {"name": "x", "process": [value]}})


@given(st.dictionaries(st.sampled_from(["job", "config", "meta", "run", "x"]), anything, max_size=5))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> None:
    read_or_refuse(tmp_path_factory.getbasetemp(), data)


@given(st.dictionaries(st.sampled_from(["name", "process", "device"]), anything, max_size=3))
def test_any_config_section_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any]) -> None:
    read_or_refuse(tmp_path_factory.getbasetemp(), {"job": "extension", "config": config})


def test_every_key_has_one_class() -> None:
    """A key that were in two tables would be read and reported, or ignored and reported."""
    for table in {*READ, *NEUTRAL, *UNMODELLED}:
        tables = [READ.get(table, frozenset()), NEUTRAL.get(table, frozenset()), frozenset(UNMODELLED.get(table, {}))]
        assert sum(map(len, tables)) == len(known_keys(table)), table
