"""The `sample` section of AI Toolkit: the previews, in the sizes that are really made.

Source: ostris/ai-toolkit 27a03a91: toolkit/config_modules.py (SampleConfig, SampleItem, GenerateImageConfig with its prompt flags),
jobs/process/BaseSDTrainProcess.py (sample), toolkit/prompt_utils.py (trigger words); diffusers c9438378 (the pipelines' rounding).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from estimator.archs import Arch
from estimator.controls import Size
from estimator.job import Sample
from estimator.trainers.aitoolkit_controls import Absent, sample_controls, warn_of
from estimator.trainers.aitoolkit_keys import check_keys
from estimator.trainers.aitoolkit_video import MAX_FRAMES, SOUND_PER_SECOND, preview_frames
from estimator.trainers.section import Findings, Section, shown
from estimator.tree import KeyPath

DEFAULT_SIDE = 512
DEFAULT_GUIDANCE = 7.0
MAX_SIDE = 16_384
MIN_SIDE, SIDE_STEP = 64, 8  # GenerateImageConfig rounds down to multiples of 8, and never below 64
MAX_EVERY = 10**9


@dataclass(frozen=True, slots=True)
class _Request:
    """A preview as asked for, before rounding."""

    prompt: str
    negative: str
    width: int
    height: int
    guidance: float
    frames: int = 1
    controls: tuple[tuple[Size, ...], tuple[Size, ...]] = ((), ())


def read_samples(sample: Section, arch: Arch, trigger: str | None, low_vram: bool = False) -> tuple[Sample, ...]:
    """One entry per preview, in order. Flags inside a prompt ("--w 1024 --cfg 4") win over the entry, the entry over the section."""
    check_keys(sample, "sample")
    base = _Request(
        "", _negative(sample, ""), *_size(sample, DEFAULT_SIDE, DEFAULT_SIDE), sample.number("guidance_scale", DEFAULT_GUIDANCE),
        sample.whole("num_frames", 1, 1, MAX_FRAMES),
    )
    requests: list[_Request] = []
    prompts: list[tuple[str, KeyPath]] = []
    absent: Absent = {}
    for path, item in _items(sample):
        section = Section(sample.found, path, item)
        prompt = item.get("prompt")
        requests.append(replace(_entry(section, base), controls=sample_controls(section, arch, dict(_flags(prompt)[1]), absent)))
        where = (*path, "prompt") if path[-2] == "samples" else path
        if isinstance(prompt, str):
            prompts.append((prompt, where))
        elif prompt is not None:
            sample.found.problem(where, f"expected text, got {shown(prompt)}", "the trainer stops on it", "put it in quotes")
    warn_of(absent, sample)
    # Entries without a prompt are left out, but the settings are taken by position, as the trainer does.
    pairs = zip(prompts, requests, strict=False)
    whole = [_with_flags(replace(request, prompt=_trigger(text, trigger)), path, sample.found) for (text, path), request in pairs]
    return tuple(_sample(request, arch, low_vram) for request in whole)


def check_sides(sample: Section, samples: tuple[Sample, ...], arch: Arch) -> None:
    """Sides that the pipeline does not round: the trainer stops when it comes to such a preview (diffusers' check_inputs)."""
    odd = next((one for one in samples if one.width % arch.preview_sides or one.height % arch.preview_sides), None)
    if odd is not None:
        what = f"{arch.name} makes no previews of {odd.width}x{odd.height}"
        why = f"sides must be multiples of {arch.preview_sides}: its pipeline stops on others"
        width, height = (max(arch.preview_sides, side // arch.preview_sides * arch.preview_sides) for side in (odd.width, odd.height))
        sample.found.problem(sample.path, what, why, f"{width}x{height}, or train.disable_sampling: true")


def read_every(section: Section | None, key: str, default: int) -> int:
    """Every how many steps; 0 for never (missing section: the default)."""
    if section is None or key not in section.values:
        return default
    return section.whole(key, default, 0, MAX_EVERY, floats=True) if section.values[key] else 0


def _items(sample: Section) -> list[tuple[KeyPath, dict[str, object]]]:
    """The entries of `samples`, or the prompts as entries. The trainer reads both lists, and null fails where a list is expected."""
    result: list[tuple[KeyPath, dict[str, object]]] = []
    for key in ("prompts", "samples"):
        if key in sample.values and not isinstance(sample.values[key], (list, str if key == "prompts" else list)):
            what = f"expected a list, got {shown(sample.values[key])}"
            sample.found.problem(sample.at(key), what, "the trainer stops on it", f"remove the key, or write {key}: []")
            return []
    if "samples" not in sample.values:
        prompts = sample.values.get("prompts", [])
        if isinstance(prompts, str):
            sample.found.warn(sample.at("prompts"), "one text instead of a list: the trainer makes a preview of every single letter")
        assert isinstance(prompts, (list, str))
        return [((*sample.at("prompts"), i), {"prompt": prompt}) for i, prompt in enumerate(prompts)]
    entries = sample.values["samples"]
    assert isinstance(entries, list)
    for i, entry in enumerate(entries):
        path = (*sample.at("samples"), i)
        if isinstance(entry, dict):
            check_keys(Section(sample.found, path, entry), "sample.samples")
            result.append((path, entry))
        else:
            sample.found.problem(path, f"expected an entry with a prompt, got {shown(entry)}", fix="write - prompt: ...")
    return result


def _entry(section: Section, base: _Request) -> _Request:
    width, height = _size(section, base.width, base.height)
    return replace(
        base,
        width=width,
        height=height,
        guidance=section.number("guidance_scale", base.guidance),
        frames=section.whole("num_frames", base.frames, 1, MAX_FRAMES),
        negative=_negative(section, base.negative),
    )


def _size(section: Section, width: int, height: int) -> tuple[int, int]:
    return (
        section.whole("width", width, 1, MAX_SIDE, floats=True),
        section.whole("height", height, 1, MAX_SIDE, floats=True),
    )


def _negative(section: Section, default: str) -> str:
    value = section.values.get("neg", default)
    if value is not None and not isinstance(value, str):
        section.found.problem(section.at("neg"), f"expected text, got {shown(value)}", "the trainer stops on it", "put it in quotes")
    return value if isinstance(value, str) else ""


def _trigger(prompt: str, trigger: str | None) -> str:
    """The trigger word in place of [trigger]; it is not added where the prompt has none."""
    return prompt.replace("[trigger]", trigger).replace("[name]", trigger) if trigger is not None else prompt


def _flags(prompt: object) -> tuple[str, list[tuple[str, str]]]:
    """A prompt without its flags, and the flags: name and what follows it (GenerateImageConfig._process_prompt_string)."""
    if not isinstance(prompt, str):
        return "", []
    text, *flags = prompt.strip().split("--")
    names = [flag.split(" ")[0].strip() for flag in flags]
    return text.strip(), [(name, flag[len(name) :].strip()) for name, flag in zip(names, flags, strict=True)]


def _with_flags(request: _Request, path: KeyPath, found: Findings) -> _Request:
    """What the flags in the prompt change. Unknown flags are dropped with their text, as the trainer does."""
    text, flags = _flags(request.prompt)
    request = replace(request, prompt=text)
    for name, content in flags:
        try:
            if name == "w":
                request = replace(request, width=_whole(content, MAX_SIDE))
            elif name == "h":
                request = replace(request, height=_whole(content, MAX_SIDE))
            elif name in ("l", "cfg"):
                request = replace(request, guidance=_finite(content))
            elif name == "n":
                request = replace(request, negative=content)
            elif name in ("frames", "num_frames"):
                request = replace(request, frames=_whole(content, MAX_FRAMES))
            elif name in ("d", "seed", "s", "steps", "fps", "ctrl_idx"):
                int(content)
            elif name in ("m", "network_multiplier", "gr", "a", "ref"):
                float(content)
            elif name in ("ev", "extra_values"):
                [float(each) for each in content.split(",")]
        except _TooLarge as most:
            found.problem(path, f"--{name} in the prompt is out of range, got {shown(content)}", f"at most {most}", "make it smaller")
        except ValueError:
            what = f"--{name} in the prompt takes a number, got {shown(content)}"
            fix = f"write a number behind --{name}, or remove it"
            found.problem(path, what, "the trainer stops when it comes to this preview", fix)
    return request


class _TooLarge(Exception):
    """Carries the largest number that is taken."""


def _whole(text: str, most: int) -> int:
    value = int(text)
    if value > most:
        raise _TooLarge(f"{most:,}")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _TooLarge("a finite number")
    return value


def _sample(request: _Request, arch: Arch, low_vram: bool) -> Sample:
    guided = arch.guidance != "none" and (arch.always_guided or request.guidance > 1)
    controls, seen = request.controls
    frames = preview_frames(request.frames, arch, low_vram)
    width, height = arch.preview_size(*(_rounded(side, arch.sample_divisor) for side in (request.width, request.height)))
    return Sample(
        width=width,
        height=height,
        frames=frames,
        sound_tokens=arch.sound_tokens(frames, SOUND_PER_SECOND),
        cfg=request.guidance,
        text_tokens=arch.text_tokens(request.prompt, seen),
        negative_tokens=arch.text_tokens(request.negative, seen),
        batch=2 if guided and arch.guidance == "batched" else 1,
        guided=guided,
        controls=controls,
        seen=seen,
    )


def _rounded(side: int, divisor: int) -> int:
    side = max(MIN_SIDE, side - side % SIDE_STEP)
    return side // divisor * divisor
