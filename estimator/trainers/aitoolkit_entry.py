"""Settings of one entry of AI Toolkit's `datasets` that need nothing but the entry.

Source: ostris/ai-toolkit 27a03a91: toolkit/config_modules.py (DatasetConfig), toolkit/data_loader.py, toolkit/dataloader_mixins.py.
"""

from __future__ import annotations

from estimator.trainers.section import Section, shown, whole_number

DEFAULT_RESOLUTION = 512
MAX_RESOLUTION = 16_384
MAX_REPEATS = 10**6


def resolutions(section: Section) -> tuple[int, ...]:
    """One resolution, or a list of them: the trainer makes a dataset of each."""
    value = section.values.get("resolution", DEFAULT_RESOLUTION)
    values = value if isinstance(value, list) else [value]
    path = section.at("resolution")
    if not values:
        section.found.problem(path, "an empty list", "the entry then holds nothing", "for instance [512, 768, 1024]")
    result = []
    for i, one in enumerate(values):
        where = (*path, i) if isinstance(value, list) else path
        number = whole_number(one, floats=True)
        if number is None:
            fix = f"remove the quotes: {one}" if isinstance(one, str) and one.strip().isdigit() else "for instance 1024"
            section.found.problem(where, f"expected a whole number of pixels, got {shown(one)}", "", fix)
        elif not 1 <= number <= MAX_RESOLUTION:
            section.found.problem(
                where, f"{shown(one)} pixels are out of range", f"must be from 1 to {MAX_RESOLUTION:,}", "for instance 1024"
            )
        else:
            result.append(number)
    return tuple(result)


def scale(section: Section) -> float:
    scale = section.number("scale", 1.0)
    if not 0 < scale <= 1000:
        section.found.problem(
            section.at("scale"), f"{shown(section.values['scale'])} is out of range", "must be above 0", "the default is 1"
        )
        return 1.0
    return scale


def copies(section: Section) -> int:
    """How often each image counts: repeats, and once more for each flip."""
    repeats = section.whole("num_repeats", 1, 0, MAX_REPEATS)
    return max(1, repeats) * (2 if section.truth("flip_x", False) else 1) * (2 if section.truth("flip_y", False) else 1)


def caption_ending(section: Section) -> str:
    legacy = section.text("caption_type")
    if legacy:
        return legacy  # taken as it is, without a dot being added
    ending = section.text("caption_ext", ".txt") or ""
    return ending if not ending or ending.startswith(".") else f".{ending}"
