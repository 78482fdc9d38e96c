"""The rows that the residual is fitted on, as data: what each says of an estimate, and what it is one row of.

    python -m calibration.residual_rows            # works the estimates out (minutes) and writes calibration/data/residual_rows.jsonl.xz

Three kinds of experiment:
- `emulated`: phases of whole runs of the trainer on the emulated device beside their estimates; a source is a run.
- `step`: a training step published for a real card, gone through on the emulated device (published_steps), whose figure stands where the
  estimate stands in the others; a source is the publication. Only where no estimate is held against the row.
- `card`: figures and outcomes published for real cards beside their estimates (published.jsonl); a source is the publication. A fit or an
  OOM is one-sided: its figure is what the card had for torch.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlparse

PATH = Path(__file__).parent / "data" / "residual_rows.jsonl.xz"
PEAK, FITS, OOM = "peak", "fits", "oom"


@dataclass(frozen=True)
class Row:
    """`replayed_bytes`: the estimate's (or the device's) figure; `observed_bytes`: the figure observed, or the bound that an outcome sets.

    `outcome`: "peak" | "fits" (the figure was at most this) | "oom" (it was more). `figure`: "allocated" | "reserved".
    """

    kind: str
    source: str
    row: str
    figure: str
    phase: str
    outcome: str
    replayed_bytes: int
    observed_bytes: int
    arch: str
    weights: str
    optimizer: str
    trainer: str
    generation: str


def read(path: Path = PATH) -> tuple[Row, ...]:
    """The kept rows."""
    names, *lines = lzma.decompress(path.read_bytes()).decode().splitlines()
    return tuple(Row(**dict(zip(json.loads(names), json.loads(line), strict=True))) for line in lines)


def write(rows: Sequence[Row], path: Path = PATH) -> None:
    """The names of the fields, then a line for each row; packed, as it is ten times as long and nobody writes in it."""
    lines = [list(Row.__dataclass_fields__), *(list(asdict(row).values()) for row in rows)]
    path.write_bytes(lzma.compress("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()))


def emulated() -> Iterator[Row]:
    """Every phase of every whole run on a card with room to spare."""
    from calibration.accuracy_compare import Row as Compared
    from calibration.accuracy_compare import compare
    from calibration.accuracy_rows import read_job, read_rows
    from estimator.intervals import generation

    for run in read_rows():
        if run.total_bytes is not None:
            continue
        job = read_job(run)
        for one in compare(run):
            if not isinstance(one, Compared):
                continue
            for figure in ("allocated", "reserved"):
                yield Row(
                    "emulated", run.name, f"{one.phase} {one.label}".strip(), figure, one.phase, PEAK,
                    getattr(one, f"estimated_{figure}_bytes"), getattr(one, f"{figure}_bytes"),
                    job.arch, job.model.weights, job.train.optimizer, job.trainer, generation("8.9"),
                )  # fmt: skip


def stepped(judged: Collection[str] = ()) -> Iterator[Row]:
    """Published training steps that were gone through on the emulated device, but for those `judged` by an estimate."""
    from calibration.published_steps import RESULTS, SOURCE, results
    from estimator.intervals import generation

    for step in (one for one in results(RESULTS) if one.row not in judged):
        yield Row(
            "step", SOURCE, step.row, "reserved", "train", PEAK, step.emulated_reserved_bytes, round(step.published_gib * 2**30),
            f"cogvideox-{step.model}", "fp16", step.optimizer, "cogvideox-factory", generation("8.0"),
        )  # fmt: skip


def published() -> Iterator[Row]:
    """Published rows that can be compared and that count as evidence."""
    from calibration.accuracy_published import evaluate
    from estimator.intervals import generation
    from estimator.outside import outside

    for one in evaluate():
        if one.wrong is None or one.estimated is None:
            continue
        job, gpu = one.estimated.job, one.estimated.gpu
        of = (job.arch, job.model.weights, job.train.optimizer, job.trainer, generation(gpu.compute_capability))
        worst = max(one.estimated.phases, key=lambda phase: phase.allocated_bytes)
        if one.reading is not None:
            size = max(getattr(phase, f"{one.reading.figure}_bytes") for phase in one.estimated.phases)
            yield Row("card", publisher(one.source), one.name, one.reading.figure, worst.phase, PEAK, size, one.reading.observed_bytes, *of)
        else:
            room = gpu.total_bytes - outside(gpu).likely_bytes
            yield Row("card", publisher(one.source), one.name, "allocated", worst.phase, one.outcome, worst.allocated_bytes, room, *of)


def publisher(url: str) -> str:
    """Host, owner and repository of an address: who published it."""
    parts = urlparse(url)
    return "/".join([parts.netloc, *parts.path.strip("/").split("/")[:2]])


def main() -> int:
    argparse.ArgumentParser(prog="python -m calibration.residual_rows", description=(__doc__ or "").partition("\n")[0]).parse_args()
    cards = list(published())
    rows = [*emulated(), *stepped({row.row for row in cards}), *cards]
    write(rows)
    print(f"{len(rows)} rows written: {PATH.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
