"""JSON as the trainer reads it (Python's json: NaN and Infinity allowed, comments not), with the line of every key."""

from __future__ import annotations

import json
import re

from estimator.tree import MAX_DEPTH, Builder

_COMMENTS = ("//", "/*", "#")
_TOKEN = re.compile(r'[\s:,]*(?:([{\[])|([}\]])|("(?:[^"\\]|\\.)*"|[^\s:,{}\[\]"]+))')


def read_json(text: str, builder: Builder) -> None:
    """Feed the document `text` to `builder`. Raises InputError where it is no JSON.

    Python's parser judges the syntax; what it has accepted is then walked token by token, for the lines and for keys that stand twice.
    """
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        if text.startswith("\ufeff"):
            what, fix = "a byte order mark before the JSON", "save it as UTF-8 without one (BOM)"
            raise builder.fail(what, 1, "the trainer stops on it", fix) from None
        where, fix = f"column {error.colno}", "check commas, quotes and brackets here"
        if text.startswith(_COMMENTS, error.pos):
            fix = "remove the comments: the trainer reads .jsonc as plain JSON too"
        raise builder.fail(f"not valid JSON: {error.msg}", error.lineno, where, fix) from None
    except RecursionError:
        raise builder.fail(f"nested more than {MAX_DEPTH} levels deep", None, fix="check the brackets") from None
    except ValueError as error:
        raise builder.fail("a number is too long", None, str(error), "put it in quotes if it is text") from None
    line, last, end = 1, 0, len(text.rstrip())
    while last < end:
        match = _TOKEN.match(text, last)
        if match is None:
            raise builder.fail("not valid JSON", line, fix="check commas, quotes and brackets here")
        line += text.count("\n", last, match.start(match.lastindex or 0))
        opening, closing, value = match.groups()
        if opening:
            builder.start("map" if opening == "{" else "list", line)
        elif closing:
            builder.end()
        else:
            builder.value(json.loads(value), line)
        line += text.count("\n", match.start(match.lastindex or 0), match.end())
        last = match.end()
