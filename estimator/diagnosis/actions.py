"""What to do that is no change of the config: about other processes, limits, fragments, the computer's own memory, the wrong card."""

from __future__ import annotations

from estimator import crash
from estimator.crash import Diagnosis
from estimator.gpus import GIB

EXPANDABLE = "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
_FRESH = "not your config: start on a fresh worker"


def actions(found: Diagnosis) -> tuple[str, ...]:
    """First things first; none where the config alone is to blame."""
    if found.failure is not None and found.failure.what == crash.SPILLED:
        setting = "CUDA - Sysmem Fallback Policy: Prefer No Sysmem Fallback"
        return (f"in the NVIDIA control panel set {setting}; it then stops with a message instead of crawling",)
    if found.because == crash.OTHERS:
        return _others(found)
    if found.because == crash.REFUSED:
        return _refused(found)
    if found.because == crash.FRAGMENTED:
        where = "no effect on Windows: there, fewer different sizes help" if found.run.windows else "Linux, torch 2.1 or later"
        return (f"{EXPANDABLE} in the trainer's environment ({where})",)
    if found.because == crash.HOST_MEMORY:
        return _host(found)
    if found.because == crash.WRONG_DEVICE and found.failure is not None and found.failure.what != crash.DEVICE:
        return ("run it on the card you mean: set CUDA_VISIBLE_DEVICES, or choose the GPU in the UI; nvidia-smi lists them",)
    if found.because == crash.WRONG_DEVICE:
        return (
            "check which card the job ran on: CUDA_VISIBLE_DEVICES, the GPU chosen in the UI",
            "check the driver, and that torch is a CUDA build that knows this card",
        )
    if found.because == crash.DIRTY:
        return (
            f"{_FRESH}, and look with nvidia-smi that its card is empty before the start",
            "if it fails there in the same way, diagnose that log: then it was not the worker",
        )
    return ()


def _others(found: Diagnosis) -> tuple[str, ...]:
    numbers = found.failure.numbers if found.failure is not None else None
    processes = (*(numbers.others if numbers is not None else ()), *found.run.others)
    listed = ", ".join(f"process {pid} with {size / GIB:.2f} GiB" for pid, size in processes[:3])
    taken = f"{found.others_bytes / GIB:.2f} GiB" if found.others_bytes is not None else "some"
    stop = f"stop what else is on it ({listed})" if listed else "stop what else is on it; nvidia-smi shows what"
    return (f"{_FRESH}; the card had {taken} taken by others", f"or {stop}")


def _refused(found: Diagnosis) -> tuple[str, ...]:
    numbers = found.failure.numbers if found.failure is not None else None
    if numbers is not None and numbers.allowed_bytes is not None:
        return ("lift the limit that was set for the process (torch.cuda.set_per_process_memory_fraction)",)
    if found.run.windows:
        return (
            "enlarge the page file: Windows refuses memory on the card that it could not move out, even where the card has room",
            "close other programs and restart before the next try",
        )
    return (f"{_FRESH}; look for a limit on the card's memory (a slice of the card, a container's limit)",)


def _host(found: Diagnosis) -> tuple[str, ...]:
    more = "a larger page file" if found.run.windows else "more RAM or swap, or a higher limit for the container"
    lines = [f"give the machine {more}, and close what else needs RAM: settings for the card's memory do not help here"]
    model = found.run.processes[0].get("model") if found.run.processes else None
    if isinstance(model, dict) and (model.get("layer_offloading") or model.get("low_vram")):
        lines.append("layer offloading and low_vram keep weights in RAM: with room on the card, use less of them")
    return tuple(lines)
