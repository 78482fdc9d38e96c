"""What to change where no prediction can be made: the guide's order, without what the config already has."""

from __future__ import annotations

from estimator import crash

_IMAGE = (
    ("train.gradient_checkpointing: true", "much less memory in training, each step about a third longer"),
    ("train.batch_size: 1", "train.gradient_accumulation keeps the effective batch"),
    ("datasets: take the largest resolution out", "1536 and 1024 first; keep 512 and 768 until a run is stable"),
    ("sample: smaller width and height, or train.disable_sampling: true", "training is the same"),
    ("model.low_vram: true, model.quantize: true", "the model's low-memory path"),
)
_NOTHING_LEFT = "all that helps here is set already: try a fresh worker once, then a larger card"
_FRAMES = ("datasets.num_frames and sample.num_frames: fewer frames", "for video models before everything else")


def general_remedies(timing: str, process: dict[str, object] | None, video: bool) -> tuple[str, ...]:
    """The guide's list for this kind of failure, most useful first; what the config has already is left out."""
    lines = [_FRAMES, *_IMAGE] if video else list(_IMAGE)
    previews, low = _IMAGE[3], _IMAGE[4]
    if timing == crash.KIND_A:
        lines = [low, previews]
    elif timing == crash.KIND_C:
        lines = [previews, *([_FRAMES] if video else []), low]
    left = tuple(f"{what} ({why})" for what, why in lines if not _set_already(what, process))
    return left or (_NOTHING_LEFT,)


def _set_already(what: str, process: dict[str, object] | None) -> bool:
    if process is None:
        return False
    train, model = _section(process, "train"), _section(process, "model")
    if what.startswith("train.gradient_checkpointing"):
        return train.get("gradient_checkpointing", True) is True
    if what.startswith("train.batch_size"):
        return train.get("batch_size", 1) == 1
    if what.startswith("model.low_vram"):
        return model.get("low_vram") is True and model.get("quantize") is True
    if what.startswith("datasets: take"):
        return not _several_sizes(process)
    return what.startswith("sample") and train.get("disable_sampling") is True


def _section(process: dict[str, object], name: str) -> dict[str, object]:
    found = process.get(name)
    return found if isinstance(found, dict) else {}


def _several_sizes(process: dict[str, object]) -> bool:
    sizes: set[str] = set()
    datasets = process.get("datasets")
    for dataset in datasets if isinstance(datasets, list) else []:
        size = dataset.get("resolution", 512) if isinstance(dataset, dict) else 512
        sizes |= set(map(str, size if isinstance(size, list) else [size]))
    return len(sizes) > 1 or any(int(size) > 512 for size in sizes if size.isdigit())
