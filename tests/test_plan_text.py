"""Edits in a config's text: what is edited changes, every other byte stays; what cannot be done so is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.configfile import ConfigFile, parse, substitute_environment
from estimator.errors import InputError
from estimator.planner.edits import Edit
from estimator.planner.output import unified_diff
from estimator.planner.textedit import edited

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))

HEAD = "job: extension\nconfig:\n  name: x\n  process:\n"
BLOCK = HEAD + """\
    # the only process
    - type: 'sd_trainer'   # quoted
      model:
        name_or_path: "black-forest-labs/FLUX.1-dev"
        quantize: true  # 8 bit
      train: {batch_size: 4, lr: 1e-4}   # flow
      datasets:
        - folder_path: /data/a   # one
          resolution: [ 512,768 , 1024 ]  # odd spaces
        - resolution:
            - 512
            # the middle one
            - 768   # fine
            - 1024  # large
          folder_path: /data/b
        - {folder_path: /data/c, resolution: 1024}
      sample:
      note: |
        gradient_checkpointing: no such key
        resolution: [1, 2]
"""


def as_file(text: str, name: str = "config.yaml") -> ConfigFile:
    data, lines = parse(substitute_environment(text, os.environ, name), name, json=name.endswith(".json"))
    assert isinstance(data, dict)
    return ConfigFile(name, data, lines)


def edit(text: str, *edits: tuple[str, object], name: str = "config.yaml") -> str:
    made = [Edit(key, value) for key, value in edits]
    return edited(text, as_file(text, name), made, lambda new: substitute_environment(new, os.environ, name))


def changed_lines(before: str, after: str) -> tuple[list[str], list[str]]:
    lines = unified_diff(before, after, "f").splitlines()[2:]
    return [line[1:] for line in lines if line.startswith("-")], [line[1:] for line in lines if line.startswith("+")]


@pytest.mark.parametrize(
    ("key", "value", "old", "new"),
    [
        ("model.quantize", False, ["        quantize: true  # 8 bit"], ["        quantize: false  # 8 bit"]),
        ("model.low_vram", True, [], ["        low_vram: true"]),
        (
            "train.batch_size", 1,
            ["      train: {batch_size: 4, lr: 1e-4}   # flow"], ["      train: {batch_size: 1, lr: 1e-4}   # flow"],
        ),
        (
            "train.optimizer", "adamw8bit",
            ["      train: {batch_size: 4, lr: 1e-4}   # flow"],
            ['      train: {batch_size: 4, lr: 1e-4, optimizer: "adamw8bit"}   # flow'],
        ),
        (
            "datasets.0.resolution", (512, 768),
            ["          resolution: [ 512,768 , 1024 ]  # odd spaces"], ["          resolution: [ 512,768 ]  # odd spaces"],
        ),
        (
            "datasets.0.resolution", (768, 1024),
            ["          resolution: [ 512,768 , 1024 ]  # odd spaces"], ["          resolution: [ 768 , 1024 ]  # odd spaces"],
        ),
        (
            "datasets.0.resolution", (512, 768, 1024, 1280),
            ["          resolution: [ 512,768 , 1024 ]  # odd spaces"], ["          resolution: [ 512,768 , 1024, 1280 ]  # odd spaces"],
        ),
        ("datasets.1.resolution", (512, 768), ["            - 1024  # large"], []),
        (
            "datasets.1.resolution", 640,
            [
                "        - resolution:", "            - 512", "            # the middle one", "            - 768   # fine",
                "            - 1024  # large",
            ],
            ["        - resolution: 640"],
        ),
        ("datasets.1.resolution", (512, 768, 1024, 1280), [], ["            - 1280"]),
        (
            "datasets.2.resolution", 768,
            ["        - {folder_path: /data/c, resolution: 1024}"], ["        - {folder_path: /data/c, resolution: 768}"],
        ),
        ("sample.width", 512, ["      sample:"], ["      sample: {width: 512}"]),
        ("type", "ui_trainer", ["    - type: 'sd_trainer'   # quoted"], ["    - type: 'ui_trainer'   # quoted"]),
    ],
)  # fmt: skip
def test_one_line_changes_and_its_comment_stays(key: str, value: object, old: list[str], new: list[str]) -> None:
    assert changed_lines(BLOCK, edit(BLOCK, (key, value))) == (old, new)


def test_line_ends_are_those_of_the_file() -> None:
    windows = BLOCK.replace("\n", "\r\n")
    after = edit(windows, ("model.low_vram", True), ("datasets.1.resolution", (512,)), ("train.batch_size", 2))
    assert after.count("\r\n") == after.count("\n")
    assert after == edit(BLOCK, ("model.low_vram", True), ("datasets.1.resolution", (512,)), ("train.batch_size", 2)).replace("\n", "\r\n")


def test_a_file_without_a_last_line_end_keeps_none() -> None:
    text = HEAD + "    - type: sd_trainer\n      train:\n        batch_size: 4"
    assert edit(text, ("train.batch_size", 2)) == text[:-1] + "2"
    assert edit(text, ("train.dtype", "bf16")).endswith("batch_size: 4\n        dtype: bf16")


def test_a_section_that_is_missing_is_made() -> None:
    text = HEAD + "    - type: sd_trainer\n"
    assert changed_lines(text, edit(text, ("model.low_vram", True))) == ([], ["      model: {low_vram: true}"])


def test_a_map_of_nothing_but_blocks_gets_its_key_first() -> None:
    text = HEAD + "    - train:\n        batch_size: 1\n"
    after = edit(text, ("type", "sd_trainer"))
    assert after == HEAD + "    - type: sd_trainer\n      train:\n        batch_size: 1\n"


def test_an_anchor_of_its_own_stays_and_one_that_is_shared_is_refused() -> None:
    text = HEAD + "    - type: sd_trainer\n      train: {batch_size: &b 4}\n      datasets:\n        - {batch_size: *b}\n"
    both = edit(text, ("train.batch_size", 2), ("datasets.0.batch_size", 2))
    assert "batch_size: &b 2" in both
    with pytest.raises(InputError, match=r"train\.batch_size=2"):
        edit(text, ("train.batch_size", 2))
    alone = edit(text, ("datasets.0.batch_size", 2))
    assert changed_lines(text, alone) == (["        - {batch_size: *b}"], ["        - {batch_size: 2}"])


def test_a_merge_key_is_overridden_beside_it() -> None:
    text = HEAD + "    - type: sd_trainer\n      base: &base\n        batch_size: 4\n      train:\n        <<: *base\n        lr: 1\n"
    after = edit(text, ("train.batch_size", 2))
    assert changed_lines(text, after) == ([], ["        batch_size: 2"])


def test_what_stands_behind_an_alias_is_refused() -> None:
    text = HEAD + "    - type: sd_trainer\n      base: &base {batch_size: 4}\n      train: *base\n"
    with pytest.raises(InputError, match="by hand"):
        edit(text, ("train.batch_size", 2))


def test_json_with_tabs() -> None:
    text = '{"job": "extension",\n\t"config": {"name": "a//b", "process": [\n\t{"train": {\t"batch_size": 4 }}]}}\n'
    after = edit(text, ("train.batch_size", 2), ("train.optimizer", "adamw8bit"), ("model.low_vram", True), name="config.json")
    assert after == text.replace('4 }', '2, "optimizer": "adamw8bit" }, "model": {"low_vram": true}')


def test_a_variable_of_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data")
    text = HEAD + "    - type: sd_trainer\n      datasets:\n        - folder_path: ${WHERE}/a\n          resolution: 1024\n"
    after = edit(text, ("datasets.0.resolution", 768))
    assert after == text.replace("1024", "768")


# Lines of a process whose keys can be edited, in many ways of writing; hypothesis puts them together.
WAYS = {
    "train.batch_size": [
        "batch_size: 4", "batch_size:   4   # four", '"batch_size": 4', "batch_size: 0x4", "batch_size: !!int 4", "batch_size: &n 4",
    ],
    "train.gradient_checkpointing": [
        "gradient_checkpointing: false", "gradient_checkpointing: no  # slow", "'gradient_checkpointing': False",
    ],
    "train.optimizer": ["optimizer: adamw", 'optimizer: "adamw"', "optimizer: 'adamw' # plain", "optimizer: >-\n          adamw"],
}  # fmt: skip
NEW: dict[str, object] = {"train.batch_size": 2, "train.gradient_checkpointing": True, "train.optimizer": "adamw8bit"}


@st.composite
def files(draw: st.DrawFn) -> str:
    keys = draw(st.permutations(list(WAYS)))
    lines = []
    for n, key in enumerate(keys):
        if draw(st.booleans()):
            lines.append(f"        {draw(st.sampled_from(WAYS[key]))}\n")
        lines.append(draw(st.sampled_from(["", "\n", "        # a comment: {\n", f"        other{n}: [1, 2]   \n", "# at the margin\n"])))
    body = "".join(lines)
    return HEAD + "    - type: sd_trainer\n      train:\n        lr: 1\n" + body + "      model: {quantize: true}\n"


@settings(max_examples=60)
@given(text=files(), windows=st.booleans(), chosen=st.sets(st.sampled_from(sorted(NEW)), min_size=1))
def test_only_the_edited_keys_change(text: str, windows: bool, chosen: set[str]) -> None:
    text = text.replace("\n", "\r\n") if windows else text
    after = edit(text, *((key, NEW[key]) for key in sorted(chosen)))
    process = as_file(after).data["config"]["process"][0]  # type: ignore[index]
    untouched = as_file(text).data["config"]["process"][0]["train"]  # type: ignore[index]
    expected = {**untouched, **{key.removeprefix("train."): NEW[key] for key in chosen}}
    assert process["train"] == expected
    names = tuple(key.removeprefix("train.") for key in chosen)
    removed, added = changed_lines(text, after)
    stray = [line for line in (*removed, *added) if not any(name in line for name in (*names, "adamw"))]
    assert not stray
    assert edit(after, *((key, NEW[key]) for key in sorted(chosen))) == after  # again: nothing more


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_lines_stay(path: Path, windows: bool) -> None:
    text = path.read_text(encoding="utf-8").replace("\n", "\r\n" if windows else "\n")
    after = edit(text, ("train.batch_size", 7), ("model.low_vram", False), ("datasets.0.resolution", (512,)), ("sample.width", 640))
    removed, added = changed_lines(text, after)
    assert all(any(key in line for key in ("batch_size", "low_vram", "resolution", "width", "768", "1024")) for line in (*removed, *added))
    train = as_file(after).data["config"]["process"][0]  # type: ignore[index]
    assert (train["train"]["batch_size"], train["model"]["low_vram"], train["sample"]["width"]) == (7, False, 640)
    assert train["datasets"][0]["resolution"] == [512]
    assert after.count("\r\n") == after.count("\n") * windows
    kept = [line for line in text.splitlines(keepends=True) if line not in removed and f"{line.rstrip()}" not in removed]
    assert [line for line in after.splitlines(keepends=True) if line in set(kept)] == kept  # byte for byte, in order
