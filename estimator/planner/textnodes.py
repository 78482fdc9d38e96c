"""A YAML (or JSON) text as nodes with their places in it, so that a value can be edited and every other byte stays.

Aliases stay aliases here, and merge keys are ordinary entries: what they stand for is checked afterwards, on the edited text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml


@dataclass(slots=True)
class TextNode:
    """`kind`: "value" | "map" | "list" | "alias". `start`/`end`: offsets in the text, anchors and tags included; `body`: without them.

    `flow`: in brackets. The end of a block map or list is that of its last value. `column` of where it starts.
    """

    kind: str
    start: int
    end: int
    body: int
    column: int
    flow: bool = False
    anchored: bool = False
    items: list[TextNode] = field(default_factory=list)
    keys: list[tuple[TextNode, TextNode]] = field(default_factory=list)
    text: str = ""

    def get(self, key: str) -> TextNode | None:
        """The value under a key of a map; the last one, as readers have it."""
        for name, value in reversed(self.keys):
            if name.text == key:
                return value
        return None


def text_nodes(text: str) -> TextNode:
    """The tree of the one document in `text`. Raises yaml.YAMLError; the text has been read before, so only odd files do."""
    builder = _Builder(text)
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        builder.feed(event)
    if builder.root is None:
        raise yaml.YAMLError("no document")
    return builder.root


class _Builder:
    def __init__(self, text: str) -> None:
        self.text = text
        self.root: TextNode | None = None
        self.stack: list[TextNode] = []
        self.pending: list[TextNode | None] = []

    def feed(self, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent):
            self.add(self.node("alias", event))
        elif isinstance(event, yaml.ScalarEvent):
            made = self.node("value", event)
            made.text = event.value
            if event.style in ("|", ">"):  # its text runs to the line of what follows
                made.end = made.start + len(self.text[made.start : made.end].rstrip())
            self.add(made)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            made = self.node("map" if isinstance(event, yaml.MappingStartEvent) else "list", event)
            made.flow = bool(event.flow_style)
            self.add(made)
            self.stack.append(made)
            self.pending.append(None)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            closed = self.stack.pop()
            self.pending.pop()
            inner = closed.items[-1:] or [value for _, value in closed.keys[-1:]]
            mark: Any = event.end_mark
            closed.end = mark.index if closed.flow or not inner else inner[0].end

    def node(self, kind: str, event: Any) -> TextNode:
        mark: Any = event.start_mark
        last: Any = event.end_mark
        start, end = mark.index, last.index
        anchored = kind != "alias" and event.anchor is not None
        properties = re.compile(r"(?:[&!]\S*\s+)*").match(self.text, start)
        tagged = anchored or getattr(event, "tag", None) is not None
        body = properties.end() if properties is not None and kind != "alias" and tagged else start
        return TextNode(kind, start, end, min(body, end) if kind == "value" else body, mark.column, anchored=anchored)

    def add(self, node: TextNode) -> None:
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1]
        if parent.kind == "list":
            parent.items.append(node)
        elif self.pending[-1] is None:
            self.pending[-1] = node
        else:
            parent.keys.append((self.pending[-1], node))
            self.pending[-1] = None
