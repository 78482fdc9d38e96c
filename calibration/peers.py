"""Other estimators on the published rows: what each of them says where it can be asked, beside what was measured.

    python -m calibration.peers run --python CUDA_PYTHON [--only WORD ...] [--diffusers 0.32.0]   # those that are not in the data yet
    python -m calibration.peers ours                                                              # the seconds of our own
    python -m calibration.peers left                                                              # rows no peer can be asked about, and why

calibration/data/peers.jsonl has a line for each row and peer: the key of the published row (published.jsonl), the peer and its version, the
bytes that it says, what it was given, the seconds of processor time that it took, the versions of what ran. The model, the adapter and the
inputs are those of the harness, which goes through the same rows: no peer is given less than its own users have, and none more than the row
says. What each is meant for is said on the page (calibration.accuracy_peers). `--diffusers`: the rows of an older class, which that python
must have. A row takes MemTracker 10 to 15 seconds, one thread and 2 GB of memory.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from calibration import accuracy_published
from calibration.harness import check
from calibration.harness.families import FAMILIES
from calibration.harness.jobs import environment

DATA = Path(__file__).parent / "data" / "peers.jsonl"
ROOT = Path(__file__).resolve().parents[1]
RUN = Path(__file__).parent / "emulated_cuda" / "run.sh"
PYTHON = os.environ.get("EMULATED_CUDA_PYTHON", "python3")
CAPABILITY = "8.0"  # of the A100 that all of these rows were measured on
TRAIN, PREPARE, LOAD = "train", "prepare", "load"


@dataclass(frozen=True)
class Peer:
    """`words`: its name on the page. `steps_alone`: it is of training, and says nothing of what is on the card before. `given`: what it
    gets of a row."""

    name: str
    words: str
    steps_alone: bool
    given: str


MEMTRACKER = "memtracker"
OURS = "estimate"  # kept for its seconds; what it says is computed anew for the page
PEERS = (
    Peer(MEMTRACKER, "MemTracker, FakeTensorMode", False, "the harness's job: models, adapter, checkpointing, autocast, batch, optimizer"),
    Peer("accelerate-inference", "accelerate, inference", False, "the classes on the card together, on the meta device; float16"),
    Peer("accelerate-training", "accelerate, training using Adam", True, "the transformer's class on the meta device; float16"),
    Peer("formula", "closed formula", True, "parameters, rank, optimizer, tokens, width, layers, checkpointing, batch"),
)


@dataclass(frozen=True)
class Said:
    """One line of the data: what a peer says of a published row, in bytes, and in how many seconds of processor time."""

    row: str
    peer: str
    version: str
    predicted_bytes: int
    given: str
    seconds: float
    versions: dict[str, str]


def peaks(path: Path = accuracy_published.ROWS) -> dict[str, dict[str, Any]]:
    """The published rows with a peak that is judged, by their key."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {
        row["id"]: row
        for row in rows
        if row["compare"]["kind"] == "peak" and row["evidence"] in accuracy_published.JUDGED and "unlike" not in row["compare"]
    }


def read(path: Path = DATA) -> tuple[Said, ...]:
    """The data. Raises ValueError for a line of no published peak, of an unknown peer, or that is there twice."""
    if not path.exists():
        return ()
    known, names = peaks(), {OURS, *(peer.name for peer in PEERS)}
    found = [Said(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    keys = set()
    for one in found:
        if one.row not in known:
            raise ValueError(f"{path.name}: {one.row} is no published peak that is judged")
        if one.peer not in names:
            raise ValueError(f"{path.name}: {one.peer} is no peer")
        if (one.row, one.peer) in keys:
            raise ValueError(f"{path.name}: {one.row} by {one.peer} is there twice")
        keys.add((one.row, one.peer))
    return tuple(found)


def keep(said: Said) -> None:
    with DATA.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(said)) + "\n")


def until(row: dict[str, Any]) -> str:
    """How far a row's figure reaches: loading, the adapter's making, or training."""
    phases = row["compare"].get("phases", [TRAIN])
    return next(last for last in (TRAIN, PREPARE, LOAD) if last in phases)


def left(row: dict[str, Any]) -> str | None:
    """Why no peer can be asked about a row; None where they can."""
    if "run" not in row["compare"]["config"]:
        return (
            "a whole run of AI Toolkit, with its own FLUX.2 class and with transformer and text encoder quantised by optimum-quanto: the "
            "harness, which the peers are given their models by, does not build it"
        )
    arch = row["compare"]["config"]["run"]["arch"]
    return None if arch in FAMILIES else f"{arch} is no architecture of the harness"


def asked(key: str, row: dict[str, Any], peer: Peer) -> dict[str, Any]:
    """A line for the process that has the device."""
    job = check.read(row["compare"]["config"]["run"])
    return {"row": key, "peer": peer.name, "until": until(row), "on_host": job.optimizer_on_host, "job": check.spec(job)}


def missing(kept: Sequence[Said], diffusers: str, only: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What is to be asked and was not yet, of one version of diffusers."""
    done = {(one.row, one.peer) for one in kept}
    for peer in PEERS:
        for key, row in peaks().items():
            if left(row) or (key, peer.name) in done or (peer.steps_alone and until(row) != TRAIN):
                continue
            one = asked(key, row, peer)
            if one["job"]["diffusers"] == diffusers and (not only or any(word in f"{key} {peer.name}" for word in only)):
                yield one


def run(args: argparse.Namespace) -> int:
    """Ask, and keep each answer as it comes."""
    lines = list(missing(read(), args.diffusers, args.only))[: args.most]
    if not lines:
        return 0
    given = {peer.name: peer.given for peer in PEERS}
    command = [str(RUN), "-m", "calibration.peers_worker"]
    with subprocess.Popen(
        command, env=environment(args.python, CAPABILITY), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=ROOT,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        for line in lines:
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            if not (answer := process.stdout.readline()):
                break
            said = Said(**json.loads(answer), given=given[line["peer"]])
            if not said.versions["diffusers"].startswith(args.diffusers):
                raise SystemExit(f"these rows are of diffusers {args.diffusers}: here is {said.versions['diffusers']}")
            keep(said)
            print(f"{said.row} {said.peer}: {said.predicted_bytes / 2**30:.3f} GiB, {said.seconds} s", flush=True)
        process.stdin.close()
    return process.returncode


def children_seconds() -> float:
    """Processor time of the processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def time_ours(_: argparse.Namespace) -> int:
    """Time our own estimate on each row: the whole command in a process of its own, its start and imports included."""
    done = {one.row for one in read() if one.peer == OURS}
    for key, row in peaks().items():
        if key in done or left(row):
            continue
        reading, compare = accuracy_published.judge(row).reading, row["compare"]
        if reading is None:
            raise ValueError(f"{key}: no estimate")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.yaml"
            path.write_text(yaml.safe_dump(compare["config"]), encoding="utf-8")
            begun = children_seconds()
            command = [sys.executable, "-m", "estimator", str(path), "--gpu", compare["card"]]
            status = subprocess.run(command, stdout=subprocess.DEVNULL, cwd=ROOT, check=False).returncode
            seconds = round(children_seconds() - begun, 2)
        if status not in (0, 1):
            raise ValueError(f"{key}: exit status {status}")
        version = "estimate " + importlib.metadata.version("vram-preflight")
        keep(Said(key, OURS, version, reading.likely_bytes, "the run file", seconds, {"python": platform.python_version()}))
    return 0


def show_left(_: argparse.Namespace) -> int:
    for key, row in peaks().items():
        if why := left(row):
            print(f"{key}: {why}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration.peers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("run")
    command.set_defaults(function=run)
    command.add_argument("--python", default=PYTHON, help="python with the CUDA build of torch")
    command.add_argument("--only", nargs="*", default=[], help="rows or peers with one of these words")
    command.add_argument("--diffusers", default="", help="the rows of an older version, which that python must have")
    command.add_argument("--most", type=int, help="so many at most")
    commands.add_parser("ours").set_defaults(function=time_ours)
    commands.add_parser("left").set_defaults(function=show_left)
    args = parser.parse_args()
    code: int = args.function(args)
    return code


if __name__ == "__main__":
    sys.exit(main())
