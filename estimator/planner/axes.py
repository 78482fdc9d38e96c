"""The axes of a grid, as `--grid` writes them: `resolution=512,768 batch=1-8 frames=1-121:4 train.optimizer=adamw,adafactor`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from estimator.configfile import parse
from estimator.errors import InputError, Problem
from estimator.planner.edits import Edit
from estimator.planner.subject import Subject
from estimator.trainers.section import nearest

MAX_CELLS = 1_000_000
_RANGE = re.compile(r"(\d{1,9})-(\d{1,9})(?::(\d{1,9}))?", re.ASCII)
NAMES = ("resolution", "batch", "frames", "rank", "preview", "checkpointing")
"""Short names of axes; any other is a key as `--set` takes it."""
EXAMPLES = {"resolution": "512,768", "batch": "1-8", "frames": "1-121:4", "rank": "8,16,32", "preview": "512,1024"}


@dataclass(frozen=True, slots=True)
class Axis:
    """`name` as given, its values in the order given."""

    name: str
    values: tuple[object, ...]


def read_axes(texts: Sequence[str]) -> tuple[Axis, ...]:
    """Raises InputError with every mistake: no "=", no values, ranges the wrong way round, an axis twice, too many cells."""
    axes: list[Axis] = []
    problems: list[Problem] = []
    for text in texts:
        try:
            axes.append(_axis(text))
        except InputError as error:
            problems += error.problems
    for name in dict.fromkeys(axis.name for axis in axes if sum(other.name == axis.name for other in axes) > 1):
        problems.append(Problem(f"--grid {name}: this axis stands twice", None, "", "give it once, with all its values"))
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MAX_CELLS and not problems:
        problems.append(Problem(f"--grid: {count:,} cells", None, f"at most {MAX_CELLS:,}", "take fewer values, or a step: 1-121:4"))
    if problems:
        raise InputError(*problems)
    return tuple(axes)


def _fail(text: str, what: str, fix: str) -> InputError:
    return InputError(Problem(f"--grid {text[:80]}: {what}", None, "", fix))


def _axis(text: str) -> Axis:
    name, equals, rest = text.partition("=")
    name = name.strip()
    if not equals or not name:
        raise _fail(text, "not of the form name=values", "for instance resolution=512,768 or batch=1-8")
    if name not in NAMES and "." not in name:
        near = nearest(name, NAMES)
        choices = f"use {', '.join(NAMES)}, or a key such as train.optimizer"
        raise _fail(text, f"unknown axis {name!r}", f"did you mean {near}?" if near else choices)
    values: dict[object, None] = {}
    for piece in rest.split(","):
        found = _RANGE.fullmatch(piece.strip())
        if found is not None:
            values.update(dict.fromkeys(_range(text, found)))
        else:
            values[_value(text, piece.strip())] = None
    if name in NAMES and name != "checkpointing" and not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
        raise _fail(text, "expected whole numbers above 0", f"for instance {name}={EXAMPLES[name]}")
    if name == "checkpointing" and not all(isinstance(value, bool) for value in values):
        raise _fail(text, "expected true or false", "write checkpointing=true,false")
    return Axis(name, tuple(values))


def _range(text: str, found: re.Match[str]) -> range:
    first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
    if last < first or step < 1:
        raise _fail(text, f"{found[0]} holds nothing", "the smaller number first, and a step above 0")
    if (last - first) // step >= MAX_CELLS:
        raise _fail(text, f"{found[0]} has more than {MAX_CELLS:,} values", "take a larger step: 1-121:4")
    return range(first, last + 1, step)


def _value(text: str, piece: str) -> object:
    if not piece:
        raise _fail(text, "an empty value", "remove the comma, or give a value behind the =")
    value, _ = parse(piece, "--grid")
    if isinstance(value, (list, dict)):
        raise _fail(text, "a list or map as one value", "give plain values with commas between")
    return value


def edits_of(subject: Subject, name: str, value: object) -> tuple[Edit, ...]:
    """The edits for one value of an axis: in every dataset, every preview. Raises InputError where the config has nothing of the kind."""
    datasets = range(len(subject.entries()))
    if name == "resolution":
        return tuple(Edit(f"datasets.{n}.resolution", value) for n in datasets)
    if name == "frames":
        return tuple(Edit(f"datasets.{n}.num_frames", value) for n in datasets)
    if name == "batch":
        own = [n for n in datasets if subject.entries()[n].get("batch_size") is not None]
        return (Edit("train.batch_size", value), *(Edit(f"datasets.{n}.batch_size", value) for n in own))
    if name == "rank":
        if subject.job.method == "full":
            raise InputError(Problem("rank: no adapter is trained", None, "the config has no network section", "add network: {type: lora}"))
        if subject.job.network is not None and subject.job.network.factor is not None:
            why, fix = "its large matrix is not decomposed (lokr_full_rank)", "take network.lokr_factor, or network.type: lora"
            raise InputError(Problem("rank: a LoKr of full rank has none", None, why, fix))
        return (Edit(f"network.{'rank' if subject.section('network').get('rank') is not None else 'linear'}", value),)
    if name == "preview":
        entries = subject.section("sample").get("samples") or []
        own = [n for n, each in enumerate(entries) if isinstance(each, dict) and each.keys() & {"width", "height"}]
        places = ["sample", *(f"sample.samples.{n}" for n in own)]
        return tuple(Edit(f"{place}.{side}", value) for place in places for side in ("width", "height"))
    if name == "checkpointing":
        return (Edit("train.gradient_checkpointing", value),)
    return tuple(Edit(path, value) for path in subject.paths(name))
