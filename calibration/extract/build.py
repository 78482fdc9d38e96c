"""Recorded probe runs of an architecture -> its profile: `profiles/<arch>/profile.json` and `programs.bin`, the same bytes each time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.architectures import ARCHITECTURES
from calibration.architectures.base import Architecture, Layout, words_of
from calibration.extract import casts, clips, heads, loading, padded, parts, ranks, requantised, sounded, whole, written
from calibration.extract.parts import Occurrence
from calibration.extract.programs import Program, Refused, extract
from calibration.extract.runs import Run, read
from calibration.extract.stored import Stored
from calibration.extract.tables import layers, places, residents
from estimator import archive
from estimator.layer_calls import NONE, STAYS
from estimator.parameters import LOKR, WHOLE


def occurrences(run: Run, layout: Layout, only_text: bool = False) -> Iterator[Occurrence]:
    """All parts of a run, or those of the text encoder (of a probe job with control images), or of loading, where it stopped then."""
    if only_text:
        yield from loading.load_parts(run, replace(layout, load={"load.text": layout.load["load.text"]}))
        yield from parts.text_parts(run, layout)
        return
    yield from loading.load_parts(run, layout)
    if run.stopped:
        return
    words = {}
    for entry in run.config["datasets"]:
        folder = run.path / "data" / Path(entry["folder_path"]).name
        width, height = (int(n) for n in folder.name.split("b")[0].split("x"))
        told = sorted(folder.glob("*.txt")) if run.config["train"].get("unload_text_encoder") is not True else ()
        words[width, height, entry["batch_size"]] = [words_of(path.read_text()) for path in told] or [0]  # unloaded: the empty prompt
    prompts = [(words_of(s["prompt"]), words_of(s.get("neg", ""))) for s in run.config["sample"]["samples"]]
    yield from parts.setup_parts(run)
    yield from parts.text_parts(run, layout)
    yield from parts.caching_parts(run, layout)
    yield from parts.cache_text_parts(run)
    yield from parts.sample_parts(run, lambda i: tuple(map(layout.caption_tokens, prompts[i])), layout)
    yield from parts.step_parts(run, lambda b: [*map(layout.caption_tokens, words[b["width"], b["height"], b["batch"]])], layout)
    yield from parts.save_parts(run)


def build(arch: str, folders: list[Path], out: Path, command: str, kept: Stored | None = None) -> list[str]:
    """Extract everything and write the profile. Returns a line of report for each part. Raises Refused.
    `kept`: what the profile has already: its parts stay, others are added."""
    kept = kept or Stored()
    family = ARCHITECTURES[arch]
    layout = family.layout
    found: dict[str, list[Occurrence]] = defaultdict(list)
    tables, offload = dict(kept.tables), {name: dict(table) for name, table in kept.offload.items()}
    made: dict[str, Any] = {"command": command, "probes": list(kept.made["probes"])}
    for folder in folders:
        run = read(folder)
        if run.outcome != "ok":
            raise ValueError(f"{folder}: the probe job ended with {run.outcome}")
        found_here = occurrences(run, layout, bool(family.texts))
        unloaded = bool(family.unloaded) and run.config["train"].get("unload_text_encoder", False)
        for part in _cut(run, found_here, layout):
            elsewhere = part.key in kept.programs or part.key.startswith(family.left) or family.by_rule(part.key, parts.settings(run))
            if elsewhere or (unloaded and "/unloaded/" not in part.key):
                continue
            for key in _keys(family, part.key):
                found[key].append(part)
        if unloaded or (run.stopped and run.config["model"].get("low_vram")):  # what is loaded without low_vram is on the card
            continue
        if run.versions != kept.made.get("versions", run.versions):
            raise ValueError(f"{folder}: recorded with other versions than what the profile has: {run.versions}")
        tables.update({**own_of(family, residents(run)), **kept.tables})
        for name, table in (("layers", layers(run)), ("places", places(run))):
            offload[name].update({**own_of(family, table), **kept.offload[name]})
        made["versions"] = run.versions
        made["probes"].append({"name": folder.name, **parts.settings(run), "optimizer": run.config["train"]["optimizer"]})
    found = {key: recorded for key, recorded in found.items() if not (layout.video and clips.too_few(recorded))}
    programs = kept.programs | _extracted(found, layout)
    report = [_quality(key, programs[key]) for key in sorted(found)]
    ranks.mended(programs, made["probes"], found)
    report += requantised.add(family.quantised, programs, tables, offload)
    programs = {key: casts.corrected(heads.corrected(key, one)) for key, one in sorted(programs.items())}
    shapes = whole.table(found) if family.beside == WHOLE else None
    write((arch, family.relative, family.shares), programs, tables, made, out, _beside(family, programs, offload) or shapes)
    return report


def _extracted(found: dict[str, list[Occurrence]], layout: Layout) -> dict[str, Program]:
    """The program of each part. Raises Refused with all that have none."""
    programs, refused = dict[str, Program](), list[str]()
    for key in sorted(found):
        try:
            programs[key] = extract(key, found[key], layout)
        except Refused as error:
            refused.append(str(error))
    if refused:
        raise Refused("\n".join(refused))
    return programs


def _quality(key: str, program: Program) -> str:
    """A line of the report."""
    quality = f"off by {program.worst_error:.3%} at most, {len(program.inexact)} inexact"
    return f"{key}: {len(program.sequence.events)} events, {program.recordings} recordings, {quality}"


def _keys(family: Architecture, key: str) -> tuple[str, ...]:
    """The parts that a recording serves. Where cached prompts are of one job, previews of cached and of encoded ones are taken as alike."""
    if (family.factors or (family.captioned and family.captioned[1])) and key.startswith(("preview/", "preview.padded/")):
        return tuple(key.replace("/cached", source).replace("/encoded", source) for source in ("/cached", "/encoded"))
    return (key,) if family.owns(key) else ()


def _beside(family: Architecture, programs: dict[str, Program], offload: dict[str, Any]) -> dict[str, Any] | None:
    """What a profile says besides: layers that offloading can take (of UNets none), or, of a LoKr, with which it has no model, its kind."""
    if not family.factors and not family.layout.unet:
        return offload if offload["layers"] else None
    for program in programs.values():
        program.sequence.calls.clear()
    return {"adapter": LOKR} if family.factors else None


def _cut(run: Run, found: Iterator[Occurrence], layout: Layout) -> Iterator[Occurrence]:
    """Parts of video cut further, and those of padded pictures apart."""
    if layout.sound_per_second:
        return sounded.split(run, found, layout)
    found = padded.split(found, layout) if layout.padded_to else found
    return clips.split(run, found, layout.cells) if layout.video else found


def own_of(family: Architecture, tables: dict[str, Any]) -> dict[str, Any]:
    """Those of the tables by component that are not the relative's."""
    return {key: table for key, table in tables.items() if not family.own or _owned(key, family.own)}


def _owned(key: str, own: tuple[str, ...]) -> bool:
    """Whether a table of residents belongs to parts that are recorded for the architecture itself: the text encoder's to `text`, the
    transformer's to its loading."""
    return (key.startswith("text_encoder") and "text" in own) or (key.startswith("transformer") and "load.transformer" in own)


def write(
    arch: tuple[str, str | None, str | None], programs: dict[str, Program], tables: dict[str, list[int]], made: dict[str, Any], out: Path,
    offload: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """`arch`: its name, its relative, and what of that one serves it (`shares`, estimator.shared; see Architecture). `offload`: layers that
    offloading can take, and their places."""
    out.mkdir(parents=True, exist_ok=True)
    used = {f for p in programs.values() for f, column in zip(p.features, _matrix(p).T, strict=True) if column.any()}
    features = tuple(sorted(used, key=lambda name: (name != "1", name)))
    pool: dict[tuple[int, ...], int] = {}
    labels: dict[str, int] = {}
    names: dict[str, int] = {}
    arrays: dict[str, np.ndarray | Sequence[str]] = {}
    described: dict[str, Any] = {}
    for number, (key, program) in enumerate(programs.items()):
        matrix = _matrix(program)
        columns = [program.features.index(f) if f in program.features else -1 for f in features]
        wide = np.stack([matrix[:, c] if c >= 0 else np.zeros(len(matrix), dtype=np.int64) for c in columns], axis=1)
        order = order_of(program)
        arrays[f"{archive.EVENTS}{number}"], arrays[f"{archive.TENSORS}{number}"] = coded(program, order), np.array([
            (pool.setdefault(tuple(wide[k].tolist()), len(pool)), labels.setdefault(program.sequence.labels[k], len(labels)),
             -1 if program.sequence.names[k] is None else names.setdefault(str(program.sequence.names[k]), len(names)))
            for k in order], dtype=np.int32).reshape(-1, 3)  # fmt: skip
        if program.sequence.calls:
            arrays[f"{archive.CALLS}{number}"] = calls_of(program, order)
        described[key] = {"number": number, **_described(program)}
    arrays |= {archive.COEFFICIENTS: np.array(list(pool), dtype=np.int64), archive.LABELS: list(labels), archive.NAMES: list(names)}
    profile = {
        "arch": arch[0], "relative": arch[1], **({"shares": arch[2]} if arch[2] else {}), "made": made,
        "features": list(features), "parts": described,
        "residents": {key: written.folded(sizes) for key, sizes in sorted(tables.items())}, **(offload or {}),
    }  # fmt: skip
    written.write(out, profile, arrays)


def _described(program: Program) -> dict[str, Any]:
    """What the profile says of a part, besides its number in the archive."""
    described: dict[str, Any] = {
        "imports": sum(program.sequence.imported), "recordings": program.recordings,
        "worst_error": round(program.worst_error, 6), "inexact": sorted(set(program.inexact)),
        **({"made_of": program.made_of} if program.made_of else {}),
    }  # fmt: skip
    if program.sequence.workspace_at is not None:
        described["workspace_at"] = {program.sequence.workspace_thread: program.sequence.workspace_at}
    return described


def _matrix(program: Program) -> np.ndarray:
    return np.array(program.coefficients, dtype=np.int64).reshape(-1, len(program.features))


def order_of(program: Program) -> list[int]:
    """Tensors in order of allocation, imports last."""
    imported = program.sequence.imported
    own = [e for e in program.sequence.events if e is not None and e >= 0]
    return own + [k for k in range(len(imported)) if imported[k]]


def coded(program: Program, order: list[int]) -> np.ndarray:
    place = {k: i for i, k in enumerate(order)}
    own = len(order) - sum(program.sequence.imported)
    codes, born = [], 0
    for event in program.sequence.events:
        if event is None:
            codes.append(-1)
        elif event >= 0:
            codes.append(0)
            born += 1
        else:
            k = place[~event]
            codes.append(born - k if k < own else -2 - (k - own))
    return np.array(codes, dtype=np.int32)


def calls_of(program: Program, order: list[int]) -> np.ndarray:
    """Uses of layers (estimator/offload.py reads them): layer, then tensors by their place: first, last, input, output, backward, until."""
    place = {k: i for i, k in enumerate(order)}
    end = len(order) - sum(program.sequence.imported)
    rows = []
    for call in program.sequence.calls:
        backward = NONE if call.backward is None else place[call.backward]
        until = NONE if not call.saved else STAYS if call.stays else end if call.until is None else place[call.until]
        last = end if call.last is None else place[call.last]
        given, made = (NONE if k is None else place[k] for k in (call.input, call.output))
        rows.append((call.layer, place[call.first], last, given, made, backward, until))
    return np.array(rows, dtype=np.int32)
