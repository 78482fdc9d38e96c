"""`python -m calibration.layers --trainer CHECKOUT --python CUDA_PYTHON`: what a layer of the trainer's own kinds of weights makes,
`profiles/layers.json`.

Layers are recorded on the emulated device without a model (calibration.trainer.layer_steps). Each tensor's bytes are a multiple of one
quantity of the layer and what goes through it (estimator.recipes), the same in every shape that was recorded; a kind of which one tensor is
not is refused. Partial results of reductions, of some hundred bytes, are given their largest size. The same recordings give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from calibration.extract.programs import Refused
from calibration.layer_shapes import EAGER, FEW
from calibration.trainer.__main__ import HERE, UNBOUNDED_MIB
from estimator.recipes import KINDS, SAVED, quantities

OUT = Path(__file__).resolve().parents[1] / "profiles" / "layers.json"
RECORDED = {"8.9": (*KINDS, *(f"{kind}-{EAGER}" for kind in ("nvfp4", "convrot4"))), "12.0": ("convrot4-fp4",)}
"""Compute capability of the emulated card -> what is recorded on it. Cards before 8.9 have Triton and not its kernels for fp4, so that they
unpack it as without Triton; what int8 kinds do without it, which is on Windows alone, depends on whether rows are a multiple of 32."""
STAGES = ("convert", "train", "backward", "plain", "few", "weight")
PARTIAL_BYTES = 4096  # of a reduction over a whole weight: no more than this is given its largest size


def record(capability: str, kinds: Sequence[str], args: argparse.Namespace, out: Path) -> dict[str, Any]:
    env = dict(os.environ)
    env.update(
        AITK=str(Path(args.trainer).resolve()), FAKECUDA_PYTHON=args.python, FAKECUDA_CC=capability,
        FAKECUDA_TOTAL_MIB=str(UNBOUNDED_MIB), TORCH_DISABLE_NATIVE_JIT="1", PYTHONDONTWRITEBYTECODE="1",
    )  # fmt: skip
    run = os.environ.get("EMULATED_CUDA_RUN", str(HERE.parent / "emulated_cuda" / "run.sh"))
    subprocess.run([run, str(HERE / "layer_steps.py"), str(out), *kinds], env=env, check=True, stdout=subprocess.DEVNULL)
    recorded: dict[str, Any] = json.loads(out.read_text())
    return recorded


def recipe(kind: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A kind's recipe (estimator.recipes.Recipe) from what each shape made. Raises Refused."""
    made = {stage: _stage(f"{kind}, {stage}", [row[stage] for row in rows], _known(rows, stage)) for stage in STAGES}
    places = {tuple(kept - row["convert"][0][0] for kept in row["kept"]) for row in rows}
    if len(places) != 1:
        raise Refused(f"{kind}: buffers are other tensors in other shapes")
    return {"buffers": [*places.pop()], **made}


def _known(rows: Sequence[Mapping[str, Any]], stage: str) -> list[dict[str, int]]:
    """What sizes may be multiples of, in each shape, what is likeliest first."""
    out = []
    for row in rows:
        outputs, inputs, count = row["shape"]
        given = quantities(outputs, inputs, FEW if stage == "few" else count)
        own = ("w", "o", "o5", "1") if stage in ("convert", "weight") else tuple(given)
        out.append({name: given[name] for name in own})
    return out


def _stage(what: str, recorded: Sequence[Sequence[Sequence[int]]], known: Sequence[Mapping[str, int]]) -> list[str | int]:
    """The events of a stage: bytes of what is made, the number of what is let go of (SAVED: made before)."""
    if len({len(events) for events in recorded}) != 1:
        raise Refused(f"{what}: {[len(events) for events in recorded]} events")
    out: list[str | int] = []
    first = [next((event[0] for event in events if len(event) > 1), 0) for events in recorded]
    for place in zip(*recorded, strict=True):
        numbers = {event[0] - start for event, start in zip(place, first, strict=True)}
        if len(place[0]) > 1:
            out.append(_size(what, [event[1] for event in place], known))
            continue
        out.append(max(numbers.pop(), SAVED) if len(numbers) == 1 else SAVED)
    return out


def _size(what: str, sizes: Sequence[int], known: Sequence[Mapping[str, int]]) -> str:
    for name in known[0]:
        ratios = {Fraction(size, given[name]) for size, given in zip(sizes, known, strict=True)}
        if len(ratios) == 1:
            return f"{ratios.pop()} {name}"
    if max(sizes) <= PARTIAL_BYTES:
        return f"{max(sizes)} 1"
    raise Refused(f"{what}: a tensor of {list(sizes)} bytes is no multiple of {', '.join(known[0])}")


def write(data: Mapping[str, Any], out: Path) -> None:
    """A line for each stage: readable in a diff."""
    lines = [f' "made": {json.dumps(data["made"])}']
    for kind in sorted(data["kinds"]):
        stages = ",\n".join(f"  {json.dumps(name)}: {json.dumps(stage)}" for name, stage in data["kinds"][kind].items())
        lines.append(f" {json.dumps(kind)}: {{\n{stages}}}")
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration.layers", description=__doc__)
    parser.add_argument("--trainer", default=os.environ.get("AITK"), help="checkout of ostris/ai-toolkit (default: $AITK)")
    parser.add_argument("--python", default=os.environ.get("EMULATED_CUDA_PYTHON", "python3"), help="python with the CUDA build of torch")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if not args.trainer:
        parser.error("name the trainer's checkout: --trainer or AITK")
    made: dict[str, Any] = {"command": "python -m calibration.layers", "versions": {}}
    kinds, failed = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for capability, names in RECORDED.items():
            recorded = record(capability, names, args, Path(folder) / "layers.json")
            made["versions"] = recorded["versions"]
            for kind, rows in recorded["recorded"].items():
                try:
                    kinds[kind] = recipe(kind, rows)
                    print(kind, flush=True)
                except Refused as error:
                    failed += 1
                    print(f"refused: {error}", file=sys.stderr)
    if not failed:
        write({"made": made, "kinds": kinds}, args.out)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
