"""`python -m calibration.optimizers --trainer CHECKOUT --python CUDA_PYTHON`: the rules of all optimizers, `profiles/optimizers.json`.

Each optimizer's steps are recorded on the emulated device without a model (calibration.trainer.optimizer_steps) and made a rule
(calibration.extract.optimizers) that gives every recorded list of parameters exactly, or is refused. `--only` replaces those named
and keeps the others. The same recordings give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from calibration.extract.optimizers import extract
from calibration.extract.programs import Refused
from calibration.trainer.__main__ import HERE, UNBOUNDED_MIB
from estimator.optimizer_rules import GRADIENT

OUT = Path(__file__).resolve().parents[1] / "profiles" / "optimizers.json"
NAMES = (
    "adagrad", "adam", "adam8", "adam8bit", "adamw", "adamw8", "adamw8bit", "adafactor", "ademamix8bit", "automagic", "automagic2",
    "automagic3", "lion8bit", "prodigy", "prodigy8bit", "adamw+bf16", "adamw8bit+bf16", "adafactor+bf16", "adagrad+bf16", "adam+bf16",
    "adam8bit+bf16", "ademamix8bit+bf16", "automagic+bf16", "automagic2+bf16", "lion8bit+bf16", "prodigy+bf16",
)  # fmt: skip; behind a plus the parameters' type, where that is not fp32: adapters of our own harness, models that are trained as a whole
# Their stretches begin with the hooks that autograd calls for each gradient
FUSED = ("automagic2", "automagic3", "adafactor+bf16", "automagic+bf16", "automagic2+bf16")
DECAY = "+weight_decay"
# Of a weight that quanto makes of a layer in qfloat8, which are all matrices: in bf16
CAST, REMADE, WEIGHT_SIZE = "quanto cast", "quanto weight", {"kind": "each", "size": [["matrix", "elements", 2]]}
REMAKING, OF_WHICH = "adamw8bit+qfloat8", "adamw8bit+bf16"
# Of other trainers: torchao's CPUOffloadOptimizer with offload_gradients (torchao 0.5, prototype/low_bit_optim/cpu_offload.py). Parameters,
# their state and the step are the host's; a hook copies each gradient there as soon as it has been accumulated, and lets go of it.
ON_HOST = {
    "adamw+host": {
        "fused": True, "slots": {"gradient": {"kind": "each", "size": [["", "elements", 4]]}},
        "stages": {
            "created": [], "first": [{"each": True, "events": [["f", "gradient", "own"]]}],
            "later": [{"each": True, "events": [["f", "gradient", "own"]]}],
        },
    },
}  # fmt: skip


def record(name: str, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    env = dict(os.environ)
    env.update(
        AITK=str(Path(args.trainer).resolve()), FAKECUDA_PYTHON=args.python, FAKECUDA_CC="8.9", FAKECUDA_TOTAL_MIB=str(UNBOUNDED_MIB),
        TORCH_DISABLE_NATIVE_JIT="1", PYTHONDONTWRITEBYTECODE="1",
    )  # fmt: skip
    run = os.environ.get("EMULATED_CUDA_RUN", str(HERE.parent / "emulated_cuda" / "run.sh"))
    subprocess.run([run, str(HERE / "optimizer_steps.py"), name, str(out)], env=env, check=True, stdout=subprocess.DEVNULL)
    recorded: dict[str, Any] = json.loads(out.read_text())
    return recorded


def rules_of(name: str, recorded: dict[str, Any]) -> dict[str, Any]:
    """The rule without and, where it is another one, with weight decay."""
    rules = {name + (DECAY if label else ""): extract(name, runs) for label, runs in recorded.items()}
    if rules[name + DECAY] == rules[name]:
        del rules[name + DECAY]
    for rule in rules.values() if name in FUSED else ():
        mark_copies(rule)
    return {key: {**rule, "fused": name in FUSED} for key, rule in rules.items()}


def mark_copies(rule: dict[str, Any]) -> None:
    """What hooks make of each gradient and the end of the step lets go of is the gradient still: a copy that is to be added to."""
    for stage in rule["stages"].values():
        made = {e[1] for stretch in stage[:1] for e in stretch["events"] if e[0] == "a"}
        gone = {e[1] for stretch in stage[1:][-1:] for e in stretch["events"] if e[0] == "f"}
        for slot in made & gone:
            if rule["slots"][slot]["size"] == rule["slots"][GRADIENT]["size"]:
                rule["slots"][slot]["holds"] = GRADIENT


def in_qfloat8(rule: dict[str, Any]) -> dict[str, Any]:
    """bitsandbytes on a whole model in qfloat8: for whatever it does with a parameter, making a state as large or writing to it, quanto
    makes the weight (a cast, the weight; the cast goes), and drops it behind. Read off a recorded step of Z-Image (docs/log.md)."""
    slots = {**rule["slots"], CAST: WEIGHT_SIZE, REMADE: WEIGHT_SIZE}
    stages = {name: [dict(stretch) for stretch in stage] for name, stage in rule["stages"].items()}
    used = [["a", CAST], ["a", REMADE], ["f", CAST, "own"], ["f", REMADE, "own"]]
    for stage in (stages["first"], stages["later"]):
        last = next(i for i, stretch in enumerate(stage) if ["f", GRADIENT, "own"] in stretch["events"])
        if not stage[last - 1]["each"]:
            stage.insert(last, {"each": True, "events": []})
            last += 1
        events: list[list[str]] = []
        for event in stage[last - 1]["events"]:
            alike = event[0] == "a" and "zeros_like" in event[1]
            events += [*used[:3], event, used[3]] if alike else [event]
        stage[last - 1] = {"each": True, "events": [*events, *used]}
    return {**rule, "stages": stages, "slots": slots}


def write(data: dict[str, Any], out: Path) -> None:
    """A line for each stage and each slot's size: readable in a diff."""
    lines = [f' "made": {json.dumps(data["made"])}']
    for name in sorted(data["rules"]):
        rule = data["rules"][name]
        stages = ",\n".join(f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in rule["stages"].items())
        slots = json.dumps(rule["slots"])
        lines.append(f' {json.dumps(name)}: {{"fused": {json.dumps(rule["fused"])},\n  "stages": {{\n{stages}}},\n  "slots": {slots}}}')
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration.optimizers", description=__doc__)
    parser.add_argument("--trainer", default=os.environ.get("AITK"), help="checkout of ostris/ai-toolkit (default: $AITK)")
    parser.add_argument("--python", default=os.environ.get("EMULATED_CUDA_PYTHON", "python3"), help="python with the CUDA build of torch")
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if not args.trainer:
        parser.error("name the trainer's checkout: --trainer or AITK")
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    rules = {key: rule for key, rule in known.items() if key != "made" and key.removesuffix(DECAY) not in args.only} | ON_HOST
    made, failed = {"command": "python -m calibration.optimizers", "versions": {}}, 0
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            recorded = record(name, args, Path(folder) / "steps.json")
            made["versions"] = recorded["versions"]
            try:
                rules.update(rules_of(name, recorded["recorded"]))
                print(name, flush=True)
            except Refused as error:
                failed += 1
                print(f"refused: {error}", file=sys.stderr)
    if OF_WHICH in rules:
        rules[REMAKING] = in_qfloat8(rules[OF_WHICH])
    if not failed:
        write({"made": made, "rules": rules}, args.out)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
