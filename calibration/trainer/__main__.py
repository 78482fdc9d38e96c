"""`python -m calibration.trainer --trainer CHECKOUT --python CUDA_PYTHON CONFIG OUT_DIR`: one recorded run of the trainer.

Writes OUT_DIR/result.json (every phase's peaks), OUT_DIR/trace.npz (every allocator event, with --events) and OUT_DIR/log.txt.
The config is any AI Toolkit YAML; its training_folder should lie in OUT_DIR. Capacity and device: --capacity-mib, --cc.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
UNBOUNDED_MIB = 1_000_000


def environment(args: argparse.Namespace) -> dict[str, str]:
    """Environment of the run. The malloc settings keep freed host memory from staying with the process (untouched weights)."""
    env = dict(os.environ)
    env.update(
        AITK=str(Path(args.trainer).resolve()), FAKECUDA_PYTHON=args.python, FAKECUDA_CC=args.cc,
        FAKECUDA_TOTAL_MIB=str(args.capacity_mib), FAKECUDA_CUDNN_WS=args.cudnn_workspace,
        TRAINER_WEIGHTS=str(Path(args.weights).resolve()), TRAINER_EVENTS="1" if args.events else "0",
        TRAINER_PROBE="1" if args.probe else "0", TRAINER_STOP=args.stop_after, TORCH_DISABLE_NATIVE_JIT="1", PYTHONDONTWRITEBYTECODE="1",
        MALLOC_MMAP_THRESHOLD_="1048576", MALLOC_TRIM_THRESHOLD_="1048576", MALLOC_ARENA_MAX="2", OMP_NUM_THREADS="2",
    )  # fmt: skip
    return env


def run(args: argparse.Namespace) -> int:
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    command = [os.environ.get("EMULATED_CUDA_RUN", str(HERE.parent / "emulated_cuda" / "run.sh")), str(HERE / "launch.py")]
    with (out / "log.txt").open("w") as log:
        done = subprocess.run([*command, args.config, str(out)], env=environment(args), stdout=log, stderr=log, timeout=args.timeout)
    lines = (out / "log.txt").read_text(errors="replace").strip().splitlines()
    print(lines[-1][:300] if lines else "no output")
    return done.returncode if (out / "result.json").exists() else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration.trainer", description=__doc__)
    parser.add_argument("config")
    parser.add_argument("out")
    parser.add_argument("--trainer", default=os.environ.get("AITK"), help="checkout of ostris/ai-toolkit (default: $AITK)")
    parser.add_argument("--python", default=os.environ.get("EMULATED_CUDA_PYTHON", "python3"), help="python with the CUDA build of torch")
    parser.add_argument("--weights", default="weights", help="folder of stand-in adapter files (calibration.trainer.adapters)")
    parser.add_argument("--capacity-mib", type=int, default=UNBOUNDED_MIB)
    parser.add_argument("--cc", default="8.9", help="compute capability")
    parser.add_argument("--cudnn-workspace", default="0", help="0 or layout")
    parser.add_argument("--events", action="store_true", help="record every allocator event")
    parser.add_argument("--probe", action="store_true", help="each step twice: gradient checkpointing on, then off")
    parser.add_argument("--stop-after", default="", choices=["", "load", "prepare"], help="stop after this phase")
    parser.add_argument("--timeout", type=float, default=1500)
    args = parser.parse_args()
    if not args.trainer:
        parser.error("name the trainer's checkout: --trainer or AITK")
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
