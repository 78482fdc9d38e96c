"""Which settings of each architecture whole emulated runs cover: the table "What the runs cover" of docs/accuracy.md.

    python -m calibration.accuracy_matrix           # prints it

A cell counts the runs whose job has the setting, as the estimator reads it. Where none has, the setting is put into the configs of the
architecture's runs: if the estimator can tell one of those, it is modelled and no run covers it (NONE); else it is refused (REFUSED).
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from calibration.accuracy_rows import Run, read_job, read_rows, write_files
from calibration.accuracy_tables import Table
from calibration.architectures import ARCHITECTURES
from calibration.architectures.base import Architecture
from calibration.validation import put
from estimator.archs import PICTURED, Arch, load_archs
from estimator.controls import CHANNELS, MOST_IMAGES
from estimator.errors import CannotTell, InputError
from estimator.job import Job
from estimator.programs import load_profile
from estimator.rows import bound
from estimator.trainers import read_jobs

NONE, REFUSED = "none", "-"
SIZES_WANTED = 3  # training sizes of each architecture that no probe job had
SIZES = "other sizes"
LOKR = "-lokr"  # behind the name of an architecture: its probes with another adapter
Settings = Mapping[str, Any]  # dotted keys of a process section; `datasets.` for every entry; None removes one


RESIDENT = {"train.unload_text_encoder": False, "train.cache_text_embeddings": False, "datasets.cache_text_embeddings": None}
UNLOADED = RESIDENT | {"train.unload_text_encoder": True}
CACHED = RESIDENT | {"train.cache_text_embeddings": True}
OWN = "OWN"  # in a way: the folder of the dataset itself


@dataclass(frozen=True)
class Cell:
    """A setting. `has`: whether a job has it. `ways`: settings that put it into a config, tried one after the other; `of`: the
    architectures that it is a setting of.
    """

    name: str
    has: Callable[[Job], bool]
    ways: tuple[Settings, ...]
    of: Callable[[Arch], bool] = field(default=lambda arch: True)


def _weights(kind: str) -> Cell:
    both = {"model.quantize": True, "model.qtype": kind}
    plain: Settings = {"model.quantize": False, "model.quantize_te": False}
    ways = (plain, {"model.quantize": False}) if kind == "bf16" else (both, both | {"model.quantize_te": True, "model.qtype_te": kind})
    return Cell(kind, lambda job: job.model.weights == kind, ways)


def _frames(count: int) -> Cell:
    return Cell(
        f"{count} frame{'s' * (count > 1)}", lambda job: any(b.frames == count for d in job.datasets for b in d.buckets),
        ({"datasets.num_frames": count, "datasets.auto_frame_count": None},), lambda arch: arch.video,
    )  # fmt: skip


def _controls(count: int) -> Cell:
    """So many control images beside the picture of a dataset that has most."""
    none = {f"datasets.{key}": None for key in ("control_path", *(f"control_path_{k}" for k in range(1, MOST_IMAGES + 1)))}
    given = none | ({"datasets.control_path": [OWN] * count} if count > 1 else {"datasets.control_path": OWN} if count else {})
    return Cell(
        f"{count} control{'s' * (count != 1)}", lambda job: any(_most_controls(d.buckets) == count for d in job.datasets),
        (given, given | UNLOADED | {"train.disable_sampling": True}),  # what encodes a prompt may not do without
        lambda arch: arch.control_images not in (None, CHANNELS, *PICTURED),
    )  # fmt: skip


def _offloading(share: float) -> Cell:
    def has(job: Job) -> bool:
        unmoved = load_archs().archs[job.arch].layer_offloading == "nothing"  # whatever the share
        return job.model.layer_offloading and (unmoved or job.model.layer_offloading_transformer_percent == share)

    key, of_text = "model.layer_offloading", "model.layer_offloading_text_encoder_percent"
    ways = tuple({key: True, f"{key}_transformer_percent": share, of_text: text} for text in (share, 0))
    return Cell(f"offloading {share:.1f}", has, ways)


CELLS = (
    Cell("checkpointing", lambda job: job.train.gradient_checkpointing, ({"train.gradient_checkpointing": True},)),
    Cell("without", lambda job: not job.train.gradient_checkpointing, ({"train.gradient_checkpointing": False},)),
    *(_weights(kind) for kind in ("bf16", "qfloat8", "float8", "uint4")),
    Cell("batch 1", lambda job: any(d.batch_size == 1 for d in job.datasets), ({"train.batch_size": 1},)),
    Cell("batch 2 or more", lambda job: any(d.batch_size > 1 for d in job.datasets), ({"train.batch_size": 2},)),
    *(_frames(count) for count in (1, 33, 81)),
    *(_controls(count) for count in (0, 1, MOST_IMAGES)),
    Cell("low_vram", lambda job: job.model.low_vram, ({"model.low_vram": True}, {"model.low_vram": True, "train.disable_sampling": True})),
    Cell("with room", lambda job: not job.model.low_vram, ({"model.low_vram": False},)),
    _offloading(0.5),
    _offloading(1.0),
    Cell("text resident", lambda job: not (job.text_cached or job.train.unload_text_encoder), (RESIDENT,)),
    Cell("unloaded", lambda job: job.train.unload_text_encoder, (UNLOADED,)),
    Cell("cached", lambda job: job.text_cached, (CACHED,)),
)


def _most_controls(buckets: Sequence[Any]) -> int:
    return max((len(bucket.controls) for bucket in buckets), default=0)


# --- counting ----------------------------------------------------------------------------------------------------------------------


def counts(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """Of each architecture, what stands in the columns: SIZES, then CELLS. In the order of profiles/archs.yaml."""
    jobs = [(run, read_job(run)) for run in runs if run.total_bytes is None]
    found = {}
    for name, arch in load_archs().archs.items():
        own = [(run, job) for run, job in jobs if job.arch == name]
        if own:
            found[name] = (_sizes(name, own), *(_entry(cell, arch, own) for cell in CELLS))
    return found


def _sizes(arch: str, own: Sequence[tuple[Run, Job]]) -> str:
    probed = probe_sizes(arch)
    return str(len({(b[0], b[1], b[4]) for run, _ in own for peak in run.peaks for b in peak.buckets} - probed))


@cache
def probe_sizes(arch: str) -> frozenset[tuple[int, int, int]]:
    """Width, height and frames of all buckets that an architecture's programs were extracted from, its relatives' too."""
    names: dict[str, None] = {}
    relative: str | None = arch
    while relative is not None and relative not in names:
        names[relative] = None
        relative = load_profile(relative).data.get("relative")
    families = [one for name, one in ARCHITECTURES.items() if name in names or name.removesuffix(LOKR) == arch]
    return frozenset(
        (width, height, *(frames[:1] or [1])) for one in families for buckets in _buckets(one) for width, height, _, _, *frames in buckets
    )


def _buckets(family: Architecture) -> tuple[tuple[tuple[int, ...], ...], ...]:
    return (
        family.buckets, family.unloaded, *family.other_buckets.values(), *((family.second[0],) if family.second else ()),
        *family.uncontrolled,
    )  # fmt: skip


def _entry(cell: Cell, arch: Arch, own: Sequence[tuple[Run, Job]]) -> str:
    if not cell.of(arch):
        return ""
    covered = sum(cell.has(job) for _, job in own)
    if covered:
        return str(covered)
    return NONE if any(modelled(run, cell) for run, _ in own) else REFUSED


def modelled(run: Run, cell: Cell) -> bool:
    """Whether the estimator can tell the run's config with the setting put in."""
    return any(_told(changed(run, way), cell) for way in cell.ways)


def changed(run: Run, settings: Settings) -> Run:
    """The run with other settings in its config."""
    config = copy.deepcopy(run.config)
    process = config["config"]["process"][0]
    for path, value in settings.items():
        if path.startswith("datasets."):
            for entry in process["datasets"]:
                put(entry, path.removeprefix("datasets."), _with_folder(value, entry["folder_path"]))
        else:
            put(process, path, value)
    return replace(run, config=config)


def _with_folder(value: Any, folder: str) -> Any:
    return [folder for _ in value] if isinstance(value, list) else folder if value == OWN else value


def _told(run: Run, cell: Cell) -> bool:
    try:
        with tempfile.TemporaryDirectory() as folder:
            (job,) = read_jobs(write_files(run, Path(folder)))
        if job.unmodelled or not cell.has(job):
            return False
        bound(job)
    except (InputError, CannotTell):
        return False
    return True


# --- the table -----------------------------------------------------------------------------------------------------------------------


def table(found: Mapping[str, Sequence[str]]) -> Table:
    """A row for each architecture."""
    header = ("architecture", SIZES, *(cell.name for cell in CELLS))
    return Table(header, tuple((name, *entries) for name, entries in found.items()), frozenset(range(1, len(header))))


def gaps(found: Mapping[str, Sequence[str]]) -> list[str]:
    """What is modelled and not covered: "architecture: setting" of each; fewer than SIZES_WANTED other sizes too."""
    names = (SIZES, *(cell.name for cell in CELLS))
    return [
        f"{arch}: {name}" for arch, entries in found.items() for name, entry in zip(names, entries, strict=True)
        if entry == NONE or (name == SIZES and int(entry) < SIZES_WANTED)
    ]  # fmt: skip


def main() -> int:
    found = counts(read_rows())
    print(table(found).text())
    print("\n".join(gaps(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
