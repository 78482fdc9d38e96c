"""The page's section on other estimators: what they say of the published peaks (calibration.peers), and what the estimate says of the same.

An estimator's *false safe* here is a peak that it lies below: on a card of just that size, it would have said that the job fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from calibration import peers
from calibration.accuracy_published import Judged, Reading
from calibration.accuracy_rows import GIB
from calibration.accuracy_tables import Table, percent

NEAR = 0.05  # DESIGN, section 6: published peaks
DIGITS = 3  # of the published figures, in GiB: what is the same at these is no difference
SECTION = """
## Beside other estimators, on the same rows

{asked} of the {peaks} published peaks that are judged above were put to other estimators (`python -m calibration.peers run`). Errors in
per cent of the published figure. "Too low" counts the peaks that an estimator lies below: on a card of just that size it would have called
the job fitting. Seconds: of processor time, the median of one estimate; without imports of torch and diffusers, ours of the whole command.

{tables}

What each is, and what it was given:

- **MemTracker under FakeTensorMode** (PyTorch's own; what torchtitan's scripts/estimate was made of, until it was deleted in February
  2026): the model's real code on tensors without memory, of which it adds up those that are alive. The only one of these that is meant for
  any training step, and it was given all that our harness has: the class (of the row's version of diffusers), adapter, checkpointing,
  autocast, batch, loss, clipping, optimizer, and the models that are on the card before training. It counts no cached blocks and no
  fragments ({reserved} figures are of reserved memory), no workspaces of cuBLAS and cuDNN, no context. From the bytes that our replay
  has allocated at the same peaks, not reserved, it is {allocated} % off in the median, {allocated_worst} % at most: workspaces, and what
  the allocator does not split off a block. Its table by module refuses frozen weights, which every LoRA has, and was left out: that makes
  it faster and does not change its total. A user has to write the step as a program for it; caching, quantising and previews too.
- **accelerate estimate-memory**: the bytes of a class's weights. Meant for loading ("within a few per cent") and, as *training using
  Adam*, for training all weights of one model at batch 1: four times the weights in 16 bits. It knows no adapter, no activations, no batch
  and no size, and loads no diffusers class by itself: its functions were called on the class. *Inference* (its "total size" at float16) is
  what somebody reads who trains a LoRA over frozen weights. It was asked about every model, and those on the card together were added up.
- **Closed formula** (Korthikanti et al. 2022, arXiv 2205.05198): 34 bytes for each token, channel and layer, 2 with checkpointing, beside
  weights, gradients and states. Meant for GPT's layers in 16 bits; it knows nothing of modulation, of norms in fp32, or of what a
  checkpointed layer needs while it is computed again. Given: the models' parameters, rank, optimizer, tokens, width, layers,
  checkpointing, batch.
- **The estimate**, *likely*: the figure of the tables above, *high*: its one-sided 99 % bound, by which `safe` is decided. Its programs
  were not fitted to these rows, but they were made with these rows in view, as the peers were not; the bound is fitted, on these rows
  among others. With each source left out of its own fit: [intervals](#intervals).

Not asked:

{not_asked}
"""
OTHERS = (
    ("hf-mem", "the same bytes of weights as accelerate's inference figure, read from file headers over the network, which was not used"),
    ("torchtitan's scripts/estimate", "deleted; its mechanism is the first of the above"),
    ("xMem", "runs the first steps themselves on the host, under a profiler: tens of GB of activations there; its models are built in"),
    ("LLMem, DNNMem, SchedTune, GPUMemNet, fm-training-estimator", "language models, CNNs or synthetic networks; tied to their own models"),
    ("fitcheck-llm", "refuses all but dense decoders"),
    ("gguf-parser, llama.cpp's fit, ComfyUI's factor", "of inference"),
    ("Fizgig's plan", "constants measured for its own models, none of them among these"),
    ("AutoBatch, find_executable_batch_size and their like", "run the job on the card"),
)


@dataclass(frozen=True)
class Line:
    """One estimator on a set of rows: pairs of predicted and published bytes."""

    name: str
    pairs: tuple[tuple[int, int], ...]
    seconds: float

    @property
    def errors(self) -> list[float]:
        return [predicted / observed - 1 for predicted, observed in self.pairs]

    @property
    def too_low(self) -> int:
        return sum(round(predicted / GIB, DIGITS) < round(observed / GIB, DIGITS) for predicted, observed in self.pairs)

    def cells(self) -> tuple[str, ...]:
        sizes = [abs(error) for error in self.errors]
        return (
            self.name, str(len(sizes)), f"{100 * median(sizes):.2f}", str(sum(size <= NEAR for size in sizes)),
            percent(max(0.0, *self.errors)), percent(min(0.0, *self.errors)), f"{self.too_low} of {len(sizes)}", f"{self.seconds:.2g}",
        )  # fmt: skip


def readings(found: Sequence[Judged]) -> dict[str, Reading]:
    return {one.name: one.reading for one in found if one.reading is not None and one.wrong is not None}


def lines(training: bool, data: Sequence[peers.Said], read: dict[str, Reading]) -> list[Line]:
    """The estimators on the rows that every one of them was asked about: the peaks of training, or those before it."""
    rows = peers.peaks()
    said = {(one.row, one.peer): one for one in data}
    names = [peer.name for peer in peers.PEERS if training or not peer.steps_alone]
    names = [name for name in names if any(one.peer == name for one in data)]
    chosen = [
        row
        for row in rows
        if row in read and (peers.until(rows[row]) == peers.TRAIN) is training and all((row, name) in said for name in (*names, peers.OURS))
    ]
    if not chosen or not names:
        return []
    words = {peer.name: peer.words for peer in peers.PEERS}

    def line(words: str, predicted: list[int], timed: str) -> Line:
        observed = [read[row].observed_bytes for row in chosen]
        return Line(words, tuple(zip(predicted, observed, strict=True)), median(said[row, timed].seconds for row in chosen))

    made = [line(words[name], [said[row, name].predicted_bytes for row in chosen], name) for name in names]
    made.append(line("estimate, likely", [read[row].likely_bytes for row in chosen], peers.OURS))
    made.append(line("estimate, high", [read[row].high_bytes for row in chosen], peers.OURS))
    return made


def table(made: Sequence[Line]) -> Table:
    header = ("estimator", "rows", "median error %", "within 5 %", "worst over", "worst under", "too low", "seconds")
    return Table(header, tuple(line.cells() for line in made), frozenset(range(1, 8)))


def beside_allocated(found: Sequence[Judged], data: Sequence[peers.Said]) -> list[float]:
    """How far the tracker is from what the estimate has allocated, at each peak that it was asked about; shares."""
    allocated = {
        one.name: max(phase.allocated_bytes for phase in one.estimated.phases) for one in found if one.estimated is not None
    }  # fmt: skip
    tracked = [one for one in data if one.peer == peers.MEMTRACKER and one.row in allocated]
    return [one.predicted_bytes / allocated[one.row] - 1 for one in tracked]


def section(found: Sequence[Judged], data: Sequence[peers.Said] | None = None) -> str:
    """The section as Markdown; empty where no peer was asked about any of these rows."""
    data = peers.read() if data is None else data
    read = readings(found)
    blocks = []
    for training, title in ((True, "Peaks of training:"), (False, "Peaks before training (models loaded, adapter made):")):
        if made := lines(training, data, read):
            blocks.append(f"{title}\n\n{table(made).markdown()}")
    if not blocks:
        return ""
    off = [abs(error) for error in beside_allocated(found, data)] or [0.0]
    left: dict[str, list[str]] = {}
    for row, published in peers.peaks().items():
        if why := peers.left(published):
            left.setdefault(why, []).append(row)
    not_asked = [f"- About {', '.join(rows)}: {why}." for why, rows in left.items()] + [f"- {name}: {why}." for name, why in OTHERS]
    rows = {one.row for one in data if one.peer != peers.OURS} & set(read)
    return SECTION.format(
        reserved=f"{sum(read[row].figure == 'reserved' for row in rows)} of {len(rows)}",
        asked=len(rows), peaks=len(peers.peaks()), tables="\n\n".join(blocks),
        allocated=f"{100 * median(off):.2f}", allocated_worst=f"{100 * max(off):.2f}", not_asked="\n".join(not_asked),
    )  # fmt: skip
