"""YAML as the trainer reads it: PyYAML's rules of YAML 1.1 (`on` is true, 010 is eight), and numbers such as 1e-4 besides.

Source: ostris/ai-toolkit 27a03a91, toolkit/config.py, `fixed_loader`: PyYAML's SafeLoader (through oyaml) with one more pattern for floats.
Parsed with libyaml where PyYAML has it (five times as fast); a file with tabs goes through PyYAML's own parser, because libyaml lets
tabs pass that stop the trainer.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from estimator.tree import MERGE, Builder

_TAG = "tag:yaml.org,2002:"
_MAX_NUMBER_LENGTH = 64  # digits and colons of base 60 cost the square of their number
_QUICK = (f"{_TAG}int", f"{_TAG}float", f"{_TAG}timestamp")


class _Resolver(yaml.resolver.Resolver):  # type: ignore[misc, unused-ignore]
    """Which type an unquoted word has. The added pattern is the trainer's."""


_Resolver.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |\.[0-9_]+(?:[eE][-+][0-9]+)?
        |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)

_resolver: Any = _Resolver()
_constructor: Any = yaml.constructor.SafeConstructor()


def read_yaml(text: str, builder: Builder) -> None:
    """Feed the one document of `text` to `builder`. Raises InputError where it is no YAML."""
    loader: Any = yaml.SafeLoader if "\t" in text else getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    documents = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise builder.fail("a second document begins (---)", _line(event), "the trainer takes one", "keep one document")
            else:
                _feed(event, builder)
    except yaml.YAMLError as error:
        raise _explain(error, text, builder) from None
    except (UnicodeError, RecursionError) as error:
        raise builder.fail("cannot be read as YAML", None, str(error), "check the file") from None


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _feed(event: Any, builder: Builder) -> None:
    if isinstance(event, yaml.ScalarEvent):
        builder.value(_scalar(event, builder), _line(event), event.anchor)
    elif isinstance(event, yaml.MappingStartEvent):
        _check_tag(event, f"{_TAG}map", builder)
        builder.start("map", _line(event), event.anchor)
    elif isinstance(event, yaml.SequenceStartEvent):
        _check_tag(event, f"{_TAG}seq", builder)
        builder.start("list", _line(event), event.anchor)
    elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
        builder.end()
    elif isinstance(event, yaml.AliasEvent):
        builder.alias(str(event.anchor), _line(event))


def _check_tag(event: Any, expected: str, builder: Builder) -> None:
    if event.tag not in (None, "!", expected):
        raise builder.fail(f"the YAML tag {event.tag} is not supported", _line(event), fix="remove the tag")


def _scalar(event: Any, builder: Builder) -> object:
    tag = event.tag
    if tag is None or tag == "!":
        tag = _resolver.resolve(yaml.ScalarNode, event.value, event.implicit)
    if tag == f"{_TAG}str":
        return event.value
    if tag == f"{_TAG}merge":
        return MERGE
    if tag in _QUICK and len(event.value) > _MAX_NUMBER_LENGTH:
        raise builder.fail(f"a number of {len(event.value):,} characters", _line(event), fix="put it in quotes if it is text")
    construct = _constructor.yaml_constructors.get(tag)
    if construct is None or tag in (f"{_TAG}seq", f"{_TAG}map", f"{_TAG}set", f"{_TAG}omap", f"{_TAG}pairs"):
        raise builder.fail(f"the YAML tag {tag} is not supported", _line(event), fix="remove the tag")
    try:
        return construct(_constructor, yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark))
    except (ValueError, ArithmeticError, LookupError, yaml.YAMLError):
        kind = tag.removeprefix(_TAG)
        raise builder.fail(f"{event.value!r} is no {kind}", _line(event), fix="put it in quotes if it is text") from None


def _explain(error: Any, text: str, builder: Builder) -> Exception:
    """The parser's own words, with the place and what usually helps. What comes with PyYAML 6.0.4 refuses deep nesting by itself."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = mark.line + 1 if mark is not None else None
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
    context = getattr(error, "context", None) or ""
    if "nesting depth" in str(what):
        return builder.too_deep(line)
    lines = text.split("\n")
    bad = lines[line - 1] if line is not None and line <= len(lines) else ""
    if line is None and isinstance(getattr(error, "position", None), int):
        line = text.count("\n", 0, error.position) + 1
    fix = "check quotes, colons and indentation here and in the line above"
    if "\t" in bad or "\\t" in str(what):
        fix = "YAML is indented with spaces: replace the tab by spaces"
    elif "quoted scalar" in context and "\\" in bad:
        fix = "a backslash in double quotes begins an escape: put a Windows path in single quotes, or write it with /"
    return builder.fail(f"not valid YAML: {what}", line, context, fix)
