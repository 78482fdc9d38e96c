"""Edits in the text of a config: only what is edited changes; comments, order, quotes and line ends stay byte for byte.

Every edit is checked: the edited text must read as the old values with the edits applied. Where an anchor, a merge key or an odd
layout makes that impossible, the edit is refused with its place, and nothing is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import yaml

from estimator.configfile import ConfigFile, key_name, parse
from estimator.errors import InputError, Problem
from estimator.job import Place
from estimator.planner.edits import Edit
from estimator.planner.textnodes import TextNode, text_nodes
from estimator.trainers.aitoolkit import PROCESS
from estimator.trainers.aitoolkit_keys import READ
from estimator.tree import KeyPath

Splice = tuple[int, int, str]
"""(start, end, what takes the place of the text between)."""


def edited(text: str, file: ConfigFile, edits: Sequence[Edit], substitute: Any) -> str:
    """`text`, that of `file`, with the edits made. `substitute` puts in environment variables, as reading does.

    Raises InputError naming what could not be edited in place.
    """
    as_json = file.name.endswith((".json", ".jsonc"))
    expected: Any = _plain_copy(file.data)
    for edit in edits:
        path, value = _path(edit.key), list(edit.value) if isinstance(edit.value, tuple) else edit.value
        text = _one(text, file, path, value, as_json)
        _put(expected, path, value)
    try:
        now, _ = parse(substitute(text), file.name, json=as_json)
    except InputError:
        now = None
    if now != expected:
        raise _refused(file, edits, "an anchor or a merge key shares it with other places")
    return text


def _path(key: str) -> KeyPath:
    """From the top where the key names what stands there (`config.name`), else from the process."""
    words = tuple(int(word) if word.isdigit() else word for word in key.split("."))
    return words if words[0] in READ["file"] else (*PROCESS, 0, *words)


def _plain_copy(value: object) -> object:
    return json.loads(json.dumps(value))


def _put(data: Any, path: KeyPath, value: object) -> None:
    for word in path[:-1]:
        if isinstance(data, dict) and data.get(str(word)) is None:
            data[str(word)] = {}
        data = data[word]
    data[path[-1]] = value


def _refused(file: ConfigFile, edits: Sequence[Edit], why: str) -> InputError:
    changes = ", ".join(edit.override for edit in edits)
    what = "the edit cannot be made in this file's text without changing more than it should"
    return InputError(Problem(what, Place(file.name, ", ".join(edit.key for edit in edits)), why, f"change it by hand: {changes}"))


def _one(text: str, file: ConfigFile, path: KeyPath, value: object, as_json: bool) -> str:
    """The text with one edit."""
    try:
        key: TextNode | None = None
        node = text_nodes(text.replace("\t", " ") if as_json else text)  # YAML has JSON in it, but for tabs
        for depth, word in enumerate(path):
            key, child = _key(node, word), _child(node, word)
            if child is None:
                splice = _insert(text, node, path[depth:], value, as_json)
                break
            node = child
        else:
            splice = _replace(text, node, key, value)
    except (yaml.YAMLError, LookupError, TypeError) as error:
        raise _refused(file, [Edit(key_name(path), value)], str(error).splitlines()[0][:100]) from None
    start, end, new = splice
    return text[:start] + new + text[end:]


def _child(node: TextNode, word: str | int) -> TextNode | None:
    if node.kind == "list":
        return node.items[int(word)]
    if node.kind == "map":
        return node.get(str(word))
    if node.kind == "value":
        return None
    raise LookupError("an alias (*name) stands on the way")


def _key(node: TextNode, word: str | int) -> TextNode | None:
    return next((key for key, _ in reversed(node.keys) if key.text == str(word)), None)


def shown(value: object) -> str:
    """A value as YAML and JSON both read it; words without quotes are for `_like`."""
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    return json.dumps(value)


def _like(old: str, value: object) -> str:
    """The value in the old one's way of writing: its quotes, or none; its `True` or `on`."""
    if isinstance(value, str):
        quote = old[:1] if old[:1] in ("'", '"') else ""
        return f"{quote}{value}{quote}"
    if isinstance(value, bool) and old in ("True", "False"):
        return str(value)
    return shown(value)


def _replace(text: str, node: TextNode, key: TextNode | None, value: object) -> Splice:
    if node.kind == "list" and isinstance(value, list):
        return _relist(text, node, value)
    if node.kind in ("map", "list") and not node.flow:
        if node.kind == "map" or key is None or node.anchored:
            raise LookupError("a block of several lines stands there")
        return key.end, _line_end(text, node.end), f": {shown(value)}"
    new = _like(text[node.body : node.end], value)
    return node.body, node.end, new if node.end > node.start or text[node.start - 1 : node.start] == " " else f" {new}"


def _relist(text: str, node: TextNode, value: list[object]) -> Splice:
    """Drop entries of a list, or put some behind its last; the others stay as they are written."""
    olds = [yaml.safe_load(text[item.body : item.end]) if item.kind == "value" else None for item in node.items]
    if not olds:
        return node.body, node.end, shown(value)
    if value[: len(olds)] == olds:
        extra, last = value[len(olds) :], node.items[-1]
        if node.flow:
            return last.end, last.end, "".join(f", {shown(each)}" for each in extra)
        end = _line_end(text, last.end)
        return end, end, "".join(f"{_newline(text)}{' ' * node.column}- {shown(each)}" for each in extra)
    if [each for each in olds if each in value] == value and value:
        return _drop(text, node, [each in value for each in olds])
    if node.flow:
        return node.body, node.end, shown(value)
    first, last = node.items[0], node.items[-1]
    return first.start, last.end, _block_items(text, node, value)


def _block_items(text: str, node: TextNode, value: list[object]) -> str:
    return f"{_newline(text)}{' ' * node.column}- ".join(map(shown, value))


def _drop(text: str, node: TextNode, keep: list[bool]) -> Splice:
    """The text of a list without some of its items, separators and line ends of those that stay untouched."""
    items = node.items
    if not node.flow:
        bounds = [*(text.rindex("-", 0, item.start) for item in items), _line_end(text, items[-1].end)]
        kept = "".join(text[bounds[n] : bounds[n + 1]] for n in range(len(items)) if keep[n])
        return bounds[0], bounds[-1], kept if keep[-1] else kept.rstrip()
    start = items[0].start
    end = items[-1].end
    out, last_kept = "", None
    for n, item in enumerate(items):
        if not keep[n]:
            continue
        between = "" if last_kept is None else text[items[n - 1].end : item.start]
        out += between + text[item.start : item.end]
        last_kept = n
    return start, end, out


def _insert(text: str, node: TextNode, rest: KeyPath, value: object, as_json: bool) -> Splice:
    """A key that is not there yet, behind the last entry of its map that fits on a line; with its section where that is missing too."""
    if node.kind == "value":
        if text[node.body : node.end].strip() not in ("", "~", "null", "Null", "NULL"):
            raise LookupError("a single value stands where a section is expected")
        inner = "{" + _flow_entry(rest, value, as_json) + "}"
        return node.body, node.end, inner if node.end > node.start else f" {inner}"
    if node.kind != "map":
        raise LookupError("a list stands where a section is expected")
    if node.flow:
        entry = _flow_entry(rest, value, as_json)
        if not node.keys:
            return node.end - 1, node.end - 1, entry
        end = node.keys[-1][1].end
        return end, end, f", {entry}"
    newline, indent = _newline(text), " " * node.column
    entry = f"{rest[0]}: {shown(value) if len(rest) == 1 and not isinstance(value, str) else _scalar_or_flow(rest[1:], value)}"
    for key, each in reversed(node.keys):
        one_line = each.kind in ("value", "alias") and "\n" not in text[key.start : each.end] and not re.match(r"[|>]", text[each.body :])
        if one_line and each.end > each.start:
            at = _line_end(text, each.end)
            return at, at, f"{newline}{indent}{entry}"
    first = node.keys[0][0].start
    return first, first, f"{entry}{newline}{indent}"


def _scalar_or_flow(rest: KeyPath, value: object) -> str:
    if not rest:
        return value if isinstance(value, str) else shown(value)
    return "{" + _flow_entry(rest, value, False) + "}"


def _flow_entry(rest: KeyPath, value: object, as_json: bool) -> str:
    key = json.dumps(str(rest[0])) if as_json else str(rest[0])
    return f"{key}: " + (shown(value) if len(rest) == 1 else "{" + _flow_entry(rest[1:], value, as_json) + "}")


def _line_end(text: str, at: int) -> int:
    """Before the line's end, whatever it is made of."""
    end = text.find("\n", at)
    end = len(text) if end < 0 else end
    return end - 1 if end > at and text[end - 1] == "\r" else end


def _newline(text: str) -> str:
    first = text.find("\n")
    return "\r\n" if first > 0 and text[first - 1] == "\r" else "\n"
