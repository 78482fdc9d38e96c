"""Recorded runs of the harness -> a profile, by the same code as the trainer's (calibration.extract)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from calibration.architectures.base import Layout
from calibration.extract import build, parts
from calibration.extract.parts import Occurrence
from calibration.extract.programs import Program, Refused, extract
from calibration.extract.runs import Run, read
from calibration.extract.tables import residents
from calibration.harness.families import FAMILIES, Kind
from calibration.harness.jobs import kind_of, spec
from calibration.harness.unroll import Layers, layers_of, unrolled

SAID = ("dtype", "autocast", "full", "diffusers", "native", "rank", "optimizer")  # of each probe job, in the profile
LEFT_OUT = ("step.update/",)  # by rule: profiles/optimizers.json


def occurrences(run: Run, arch: str, kind: Kind) -> Iterator[Occurrence]:
    """The parts of a run: of the whole model the adapter's making, of one with few layers each step's head, core and end."""
    setup = next(phase for phase in run.root.inner if phase.name == "setup")
    rank, suffix = parts.settings(run)["rank"], "" if kind.dtype == "fp32" else f"/{kind.dtype}"
    if not kind.full and not any(phase.name == "step" for phase in run.root.inner):
        yield Occurrence(run, f"setup.network/bf16{suffix}", list(range(setup.first, setup.last)), {"r": rank})
    for part in parts.step_parts(run, lambda bucket: bucket["text"], FAMILIES[arch].layout_of(kind)):
        if not part.key.startswith(LEFT_OUT) and (part.key.startswith("step.core/") or not kind.core_alone):
            yield replace(part, key=part.key.replace("step.core/", f"{kind.part}/", 1))


def trained(folder: Path) -> list[list[Any]]:
    """Names and shapes of the parameters that a run trains, in order."""
    found: list[list[Any]] = json.loads((folder / "result.json").read_text())["parameters"]
    return found


def build_profile(arch: str, folders: list[Path], out: Path) -> list[str]:
    """Extract everything and write the profile. A line of report for each part. Raises Refused."""
    family = FAMILIES[arch]
    lists: dict[str, list[Layers]] = {}
    layouts: dict[str, Layout] = {}
    found: dict[str, list[Occurrence]] = defaultdict(list)
    tables: dict[str, list[int]] = {}
    made: dict[str, Any] = {"command": f"python -m calibration.harness extract {arch}", "probes": []}
    for folder in folders:
        run, job = read(folder), spec(folder)
        if run.outcome != "ok":
            raise ValueError(f"{folder}: the probe job ended with {run.outcome}")
        kind = kind_of(job)
        for part in occurrences(run, arch, kind):
            found[part.key].append(part)
            layouts[part.key] = family.layout_of(kind)
            if job["layers"] and part.key.startswith(kind.part):
                counts = {name: count for name, (_, count) in family.lists.items()}
                lists[part.key] = layers_of(counts, [name for name, *_ in trained(folder)])
        if not kind.diffusers:
            made["versions"] = run.versions
        if not job["layers"]:
            tables.update(residents(run))
        made["probes"].append({"name": folder.name, **{key: job[key] for key in SAID}})
    programs: dict[str, Program] = {}
    report, refused = [], []
    for key in sorted(found):
        try:
            program = programs[key] = unrolled(extract(key, found[key], layouts[key]), lists.get(key, []))
        except Refused as error:
            refused.append(str(error))
            continue
        quality = f"off by {program.worst_error:.3%} at most, {len(program.inexact)} inexact"
        report.append(f"{key}: {len(program.sequence.events)} events, {program.recordings} recordings, {quality}")
    if refused:
        raise Refused("\n".join(refused))
    build.write((arch, None, None), programs, tables, made, out)
    return report
