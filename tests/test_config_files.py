"""Config files as plain values: YAML and JSON as the trainer reads them, with lines, variables and aliases."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_writer import outcome
from hypothesis import given
from hypothesis import strategies as st

from estimator.configfile import MAX_CONFIG_BYTES, parse, read_config, substitute_environment
from estimator.errors import InputError
from estimator.tree import MAX_DEPTH, MAX_VALUES


def value_of(text: str) -> Any:
    data, _ = parse(f"key: {text}", "test.yaml")
    assert isinstance(data, dict)
    return data["key"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),  # PyYAML alone would make text of it; the trainer adds a pattern
        ("1e9", 1e9),
        ("-1E+3", -1000.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("010", 8),
        ("0x1F", 31),
        ("1:30", 90),
        ("on", True),
        ("No", False),
        ("y", "y"),
        ("~", None),
        ("'8'", "8"),
        ("!!str 12", "12"),
        ("! 12", 12),
        ("1e-4x", "1e-4x"),
    ],
)
def test_words_have_the_types_of_the_trainers_yaml(text: str, value: object) -> None:
    found = value_of(text)
    assert found == value
    assert type(found) is type(value)


def test_keys_become_text_as_in_json() -> None:
    data, _ = parse("{1: a, true: b, ~: c, x: d}", "test.yaml")
    assert data == {"1": "a", "true": "b", "null": "c", "x": "d"}


def test_every_value_has_its_line() -> None:
    _, lines = parse("a: 1\nb:\n  - x\n  - y: 2\n    z: 3\n", "test.yaml")
    assert lines == {(): 1, ("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 1): 4, ("b", 1, "y"): 4, ("b", 1, "z"): 5}


def test_json_has_lines_too() -> None:
    _, lines = parse('{\n "a": [1,\n  {"b": "x\\n:{}[],", "c":\n null}]\n}', "test.json", json=True)
    assert lines == {(): 1, ("a",): 2, ("a", 0): 2, ("a", 1): 3, ("a", 1, "b"): 3, ("a", 1, "c"): 3}


def test_aliases_are_copies_and_own_keys_win_over_merged_ones() -> None:
    data, _ = parse("base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo: *b\nthree: {<<: [{x: 9}, *b]}\n", "test.yaml")
    assert data == {"base": {"x": 1, "y": 2}, "one": {"x": 1, "y": 3}, "two": {"x": 1, "y": 2}, "three": {"x": 9, "y": 2}}


plain = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text()
trees = st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=15)


# 1e4 without a dot is a number to the trainer's loader, and text to PyYAML
FLOAT_WITHOUT_DOT = re.compile(r"[-+.\d_]+[eE][-+]?\d+")
ascii_text = st.text(st.characters(min_codepoint=32, max_codepoint=126)).filter(lambda text: not FLOAT_WITHOUT_DOT.fullmatch(text))
ascii_plain = st.none() | st.booleans() | st.integers() | ascii_text
ascii_keys = st.text("abcxyz_", min_size=1)
ascii_trees = st.recursive(
    ascii_plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ascii_keys, inner, max_size=4), max_leaves=15
)


@given(trees)
def test_json_reads_as_python_reads_it(tree: object) -> None:
    text = json.dumps(tree, indent=1)
    data, lines = parse(text, "test.json", json=True)
    assert data == json.loads(text)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


@given(ascii_trees)
def test_yaml_reads_as_pyyaml_reads_it(tree: object) -> None:
    text = yaml.safe_dump(tree)
    data, _ = parse(text, "test.yaml")
    assert data == yaml.safe_load(text)


# ---------------------------------------------------------------- variables of the environment


def test_variables_are_put_in_everywhere() -> None:
    text = substitute_environment("a: ${ONE}/${TWO} # ${ONE}\nb: ${}", {"ONE": "1", "TWO": "2"}, "x.yaml")
    assert text == "a: 1/2 # 1\nb: ${}"


def test_all_missing_variables_are_named_with_their_lines() -> None:
    with pytest.raises(InputError) as caught:
        substitute_environment("a: ${HERE}\nb: ${GONE}\n# ${LOST}", {"HERE": ""}, "x.yaml")
    found = [(p.place.line, name) for p in caught.value.problems for name in ("GONE", "LOST") if p.place and name in p.what]
    assert found == [(2, "GONE"), (3, "LOST")]


def test_variables_are_replaced_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH", "4")
    path = tmp_path / "a.yaml"
    path.write_text("job: extension\nbatch: ${BATCH}\n")
    assert read_config(path).data["batch"] == 4


# ---------------------------------------------------------------- what is refused, each with its line


def refused(text: str, *, is_json: bool = False) -> InputError:
    with pytest.raises(InputError) as caught:
        parse(text, "bad.json" if is_json else "bad.yaml", json=is_json)
    return caught.value


def test_duplicate_keys_are_refused_with_both_lines_all_at_once() -> None:
    error = refused("a: 1\nb: {x: 1}\na: 2\nc:\n  d: 1\n  e: 2\n  d: 3\n")
    assert len(error.problems) == 2
    assert "lines 1 and 3" in str(error.problems[0])
    assert "lines 5 and 7" in str(error.problems[1])


def test_a_byte_order_mark_in_json_is_named() -> None:
    (problem,) = refused('\ufeff{"a": 1}', is_json=True).problems
    assert "byte order mark" in problem.what
    assert "without" in problem.fix


def test_duplicate_keys_in_json_are_refused_with_both_lines() -> None:
    error = refused('{"a": 1,\n "b": 2,\n "a": 3}', is_json=True)
    assert "lines 1 and 3" in str(error)


def test_a_key_and_its_number_are_one_key() -> None:
    assert "stands twice" in str(refused("1: a\n'1': b\n"))


def test_billions_of_values_from_a_few_lines_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    assert f"{MAX_VALUES:,}" in str(refused("\n".join(lines)))


def test_billions_of_merges_are_refused() -> None:
    lines = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40)]
    refused("\n".join(lines))


def test_a_value_that_contains_itself_is_refused() -> None:
    assert "contains it" in str(refused("a: &a\n  b: *a\n"))


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 5_000, 200_000])
@pytest.mark.parametrize("is_json", [True, False])
def test_deep_nesting_is_refused(depth: int, is_json: bool) -> None:
    assert "nested" in str(refused("[" * depth + "]" * depth, is_json=is_json))


def test_nesting_through_aliases_is_refused() -> None:
    lines = ["a0: &a0 [[[x]]]"] + [f"a{i}: &a{i} [[[*a{i - 1}]]]" for i in range(1, MAX_DEPTH)]
    assert "nested" in str(refused("\n".join(lines)))


def test_as_deep_as_allowed_is_read() -> None:
    data, _ = parse("[" * MAX_DEPTH + "]" * MAX_DEPTH, "deep.yaml")
    for _ in range(MAX_DEPTH - 1):
        (data,) = data  # type: ignore[misc]
    assert data == []


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: 1\n\tb: 2\n", 2, "spaces"),
        ("a:\t1\n", 1, "spaces"),  # libyaml takes this, the trainer's parser does not
        ("a: [1, 2\nb: 3\n", 2, "not valid YAML"),
        ("a: 'x\nb: 3\n", 3, "not valid YAML"),
        ("a: *gone\n", 1, "*gone"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a: 2024-01-01\n", 1, "quotes"),
        ("a: 2024-99-99\n", 1, "quotes"),
        ("a: !!binary aGk=\n", 1, "binary"),
        ("a: !!python/object:os.system {}\n", 1, "tag"),
        ("a: !!set {x, y}\n", 1, "tag"),
        ("a: =\n", 1, "tag"),
        ("a: <<\n", 1, "<<"),
        ("- <<\n", 1, "<<"),
        ("a: {<<: 3}\n", 1, "<<"),
        ("a: !!int x\n", 1, "no int"),
        ("a: 0b_\n", 1, "no int"),
        ("{[1]: 2}\n", 1, "key is expected"),
        ('a: "\\ud800"\n', 1, ""),
        ("a: " + "1" * 5000 + "\n", 1, "5,000"),
        ("a: " + "1:" * 100_000 + "1\n", 1, "characters"),
        ("a: \x07\n", 1, "not valid YAML"),
        ('a: "C:\\Users\\me"\n', 1, "single quotes"),
        ('a: "D:\\data\\x"\n', 1, "single quotes"),
    ],
)
def test_what_is_no_yaml_for_the_trainer_is_refused_with_its_line(text: str, line: int, says: str) -> None:
    error = refused(text)
    (problem,) = error.problems
    assert problem.place is not None
    assert problem.place.line == line
    assert problem.place.file == "bad.yaml"
    assert says in str(problem)
    assert problem.fix


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"a": 1,\n}', 2),
        ('{"a": 1} x', 1),
        ("{'a': 1}", 1),
        ('{"a": 1, // no\n"b": 2}', 1),
        ('{"a": "\\ud800"}', 1),
        ('{"a": ' + "1" * 5000 + "}", None),
    ],
)
def test_what_is_no_json_is_refused_with_its_line(text: str, line: int | None) -> None:
    (problem,) = refused(text, is_json=True).problems
    assert problem.place is not None
    assert problem.place.line == line
    assert problem.fix
    assert ("comments" in problem.fix) == ("//" in text)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for is_json in (True, False):
        assert str(outcome(partial(parse, text, "any", json=is_json)))


@given(
    st.lists(
        st.sampled_from(
            ["a", "1", ":", " ", "\n", "-", "  ", "[", "]", "{", "}", "&x", "*x", "<<", "!!int", '"', "'", "#", "|", ">", ",", "?", "\t"]
        ),
        max_size=40,
    )
)
def test_any_pieces_of_yaml_are_read_or_refused(pieces: list[str]) -> None:
    assert str(outcome(lambda: parse("".join(pieces), "any.yaml")))


def test_the_size_limit_leaves_room_for_any_real_config() -> None:
    prompts = "".join(f'        - prompt: "{"a very long prompt about a bear building a log cabin, " * 10}"\n' for _ in range(1000))
    assert len(prompts) < MAX_CONFIG_BYTES
    data, _ = parse("samples:\n" + prompts, "long.yaml")
    assert isinstance(data, dict)
    assert len(data["samples"]) == 1000
