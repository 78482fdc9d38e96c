"""A config's text as plain values with the line of each: built from a reader's events, alias by alias, within limits.

The limits keep hostile files from hanging or exhausting the machine; a real config is a few hundred values, six levels deep.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field

from estimator.errors import InputError, Problem
from estimator.job import Place

KeyPath = tuple[str | int, ...]

MAX_DEPTH = 50
MAX_VALUES = 50_000
MERGE = object()  # what the key `<<` stands for


@dataclass(slots=True, eq=False)
class Node:
    """One value of the file before aliases are followed. A map's `merges` are what its `<<` keys name."""

    kind: str  # "value" | "list" | "map"
    line: int
    value: object = None
    items: list[Node] = field(default_factory=list)
    keys: dict[str, tuple[int, Node]] = field(default_factory=dict)
    merges: list[Node] = field(default_factory=list)
    open: bool = False
    pending: tuple[object, int] | None = None  # a map's key whose value has not come yet


class Builder:
    """Collects a reader's events (values, opening and closing of lists and maps, aliases) into one tree."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Node | None = None
        self.stack: list[Node] = []
        self.anchors: dict[str, Node] = {}
        self.problems: list[Problem] = []
        self.count = 0

    def fail(self, what: str, line: int | None, why: str = "", fix: str = "") -> InputError:
        return InputError(*self.problems, Problem(what, Place(self.file, "", line), why, fix))

    def too_deep(self, line: int | None) -> InputError:
        return self.fail(f"nested more than {MAX_DEPTH} levels deep", line, fix="check the brackets and the indentation here")

    def value(self, value: object, line: int, anchor: str | None = None) -> None:
        self._add(Node("value", line, self._plain(value, line)), anchor)

    def start(self, kind: str, line: int, anchor: str | None = None) -> None:
        if len(self.stack) >= MAX_DEPTH:
            raise self.too_deep(line)
        node = Node(kind, line, open=True)
        self._add(node, anchor)
        self.stack.append(node)

    def end(self) -> None:
        self.stack.pop().open = False

    def alias(self, name: str, line: int) -> None:
        node = self.anchors.get(name)
        if node is None:
            raise self.fail(f"*{name} refers to nothing", line, fix=f"define it before with &{name}")
        if node.open:
            raise self.fail(f"*{name} refers to the very value that contains it", line, fix="write the value out")
        self._add(node, None, line)

    def _plain(self, value: object, line: int) -> object:
        if isinstance(value, (datetime.date, bytes, set)):
            kind = {"bytes": "binary data", "set": "a set"}.get(type(value).__name__, "a date")
            why = f"read as {value!r}, which the trainer cannot take"[:120]
            raise self.fail(f"{kind} is no config value", line, why, "put it in quotes to make it text")
        if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise self.fail("half a character (a lone surrogate)", line, fix="write the character itself, or both halves of its escape")
        return value

    def _add(self, node: Node, anchor: str | None, line: int | None = None) -> None:
        self.count += 1
        if self.count > MAX_VALUES:
            raise self.fail(f"more than {MAX_VALUES:,} values", node.line, "no training config is that long", "give the config file itself")
        if anchor is not None:
            self.anchors[anchor] = node
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1]
        if parent.kind == "list":
            self._reject_merge(node)
            parent.items.append(node)
        elif parent.pending is None:
            if node.kind != "value":
                raise self.fail(f"a {node.kind} stands where a key is expected", line or node.line, fix="keys are plain text: key: value")
            parent.pending = (node.value, line or node.line)
        else:
            (key, key_line), parent.pending = parent.pending, None
            self._reject_merge(node)
            self._set(parent, key, key_line, node)

    def _reject_merge(self, node: Node) -> None:
        if node.value is MERGE:
            raise self.fail("<< stands where a value is expected", node.line, fix='put it in quotes: "<<"')

    def _set(self, parent: Node, key: object, line: int, node: Node) -> None:
        if key is MERGE:
            parent.merges.append(node)
            return
        name = key_text(key)
        if name in parent.keys:
            first = parent.keys[name][0]
            where = f", in lines {first} and {line}" if first != line else f" in line {line}"
            why = "the trainer would silently take the last one"
            self.problems.append(
                Problem(f"the key {name!r} stands twice{where}", Place(self.file, name, line), why, "delete one of the two")
            )
        parent.keys[name] = (line, node)


def key_text(key: object) -> str:
    """A key as the trainer sees it after its passage through JSON: true, null and numbers become text."""
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    return key if isinstance(key, str) else repr(key)


class _Expansion:
    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.lines: dict[KeyPath, int] = {}
        self.count = 0

    def value(self, node: Node, path: KeyPath, line: int) -> object:
        self.count += 1
        if self.count > MAX_VALUES:
            what = f"its aliases expand to more than {MAX_VALUES:,} values"
            raise self.builder.fail(what, node.line, "a few lines of * can stand for billions", "write the values out")
        if len(path) > MAX_DEPTH:
            raise self.builder.fail(f"nested more than {MAX_DEPTH} levels deep", node.line, fix="write the values out")
        self.lines[path] = line
        if node.kind == "list":
            return [self.value(item, (*path, i), item.line) for i, item in enumerate(node.items)]
        if node.kind == "map":
            return {key: self.value(item, (*path, key), at) for key, (at, item) in self.entries(node, 0).items()}
        return node.value

    def entries(self, node: Node, depth: int) -> dict[str, tuple[int, Node]]:
        """A map's own keys over those that its `<<` bring in; of several, earlier ones win (as PyYAML has it)."""
        if not node.merges:
            return node.keys
        self.count += 1
        if depth > MAX_DEPTH or self.count > MAX_VALUES:
            raise self.builder.fail("its << keys lead too far", node.line, fix="write the values out")
        entries: dict[str, tuple[int, Node]] = {}
        for merge in node.merges:
            for source in reversed(merge.items) if merge.kind == "list" else [merge]:
                if source.kind != "map":
                    raise self.builder.fail("<< takes a map or a list of maps", merge.line, fix="refer to a map: <<: *name")
                self.count += len(source.keys)
                entries.update(self.entries(source, depth + 1))
        entries.update(node.keys)
        return entries


def expand(builder: Builder) -> tuple[object, Mapping[KeyPath, int]]:
    """The finished tree as dicts, lists and plain values, and the line of each by its path.

    Raises InputError with every duplicate key found, or with the limit that the aliases exceed.
    """
    if builder.problems:
        raise InputError(*builder.problems)
    if builder.root is None:
        return None, {}
    expansion = _Expansion(builder)
    return expansion.value(builder.root, (), builder.root.line), expansion.lines
