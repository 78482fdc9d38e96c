"""The edits that can make a job smaller: for each setting its alternatives, cheapest first, as far as they are modelled and not pinned.

Losses are counted in the planner's own points. Only their order matters, and it is that of the guides: what merely takes time first,
then previews, then the precision of frozen weights; what is learned (buckets, frames, captions) last.
"""

from __future__ import annotations

from collections.abc import Iterator

from estimator.archs import load_archs
from estimator.planner.buckets import bucket_levels, frame_levels
from estimator.planner.edits import Dimension, Edit, Level, Loss
from estimator.planner.subject import Subject
from estimator.planner.typed import narrower
from estimator.recipes import kind_named
from estimator.trainers import modelled

AIMS = ("quality", "speed", "batch", "resolution", "frames")

LATENTS, LOW_VRAM, TEXT, CHECKPOINTING, OPTIMIZER = 1, 3, 4, 6, 5
FACTORED, OTHER_OPTIMIZER = "adafactor", 20  # of a whole model, whose state is as large as itself; more than no previews
SMALLER_CONTROLS = 5  # less than any bucket
UNLOADED_TEXT_LEARNED = 100  # captions are ignored then: as bad as no bucket at all
BATCH_WITH_ACCUMULATION, BATCH_WITHOUT = 2, 8  # for each halving
WEIGHTS_8, WEIGHTS_4, TEXT_8, TEXT_4 = 10, 40, 4, 12
WEIGHTS_LEARNED, TEXT_LEARNED = {3: 60, 2: 95}, {3: 30, 2: 60}
"""Below 4 bit what is learned suffers: in 3 bit somewhat more than without the buckets above 768 of 1024 px (44)."""
OTHER_KIND, OTHERWISE = 1, "frozen weights of as many bits, quantised another way, which takes less memory while the model is loaded"
PREVIEW_LEAST, PREVIEW_SCALE, NO_PREVIEWS, OFFLOADING_LEAST, OFFLOADING_SCALE = 2, 8, 14, 12, 20

PREVIEW_STEP, PREVIEW_SMALLEST = 64, 512  # px; the trainer's default previews are 512
QTYPES = ("qfloat8", "uint7", "uint6", "uint5", "uint4", "uint3", "uint2")
"""Quantisations that are tried, widest first, of those that are modelled."""
SMALLER_STATE = {"adam": "adam8bit", "adamw": "adamw8bit", "lion": "lion8bit", "prodigy": "prodigy8bit"}
"""The same rule of optimisation with its state in 8 bit (the trainer's toolkit/optimizer.py)."""
OFFLOADING_STEPS = 10


def dimensions(subject: Subject, aim: str) -> tuple[Dimension, ...]:
    """The settings that can be changed and their alternatives. Those that the reader or the profile does not know are left out."""
    made = [
        Dimension("latents", tuple(_latents(subject))),
        Dimension("dtype", tuple(narrower(subject))),
        Dimension("text", tuple(_text(subject))),
        Dimension("low_vram", tuple(_low_vram(subject))),
        Dimension("checkpointing", tuple(_checkpointing(subject))),
        Dimension("optimizer", tuple(_optimizer(subject))),
        Dimension("batch", tuple(_batch(subject, aim == "batch"))),
        Dimension("controls", tuple(_controls(subject))),
        Dimension("previews", tuple(_previews(subject))),
        Dimension("weights", tuple(_weights(subject))),
        Dimension("offloading", tuple(_offloading(subject))),
        Dimension("buckets", tuple(bucket_levels(subject, aim == "resolution"))),
        Dimension("frames", tuple(frame_levels(subject, aim == "frames"))),
    ]
    usable = (Dimension(each.name, _usable(subject, each.levels)) for each in made)
    return tuple(each for each in usable if len(each.levels) > 1)


def _usable(subject: Subject, levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """The config as it stands, and the alternatives that touch nothing pinned and can be read, cheapest first."""
    found = [level for level in levels if not any(subject.kept(edit.key) for edit in level.edits) and subject.read(level.edits)]
    return (Level(), *sorted(found, key=lambda level: (level.loss.order, len(level.edits))))


def _latents(subject: Subject) -> Iterator[Level]:
    missing = [
        n for n, entry in enumerate(subject.entries()) if not (entry.get("cache_latents") or entry.get("cache_latents_to_disk"))
    ]
    if missing:
        why = "images are encoded once, ahead of training, and the VAE leaves the card"
        edits = subject.allowed(Edit(f"datasets.{n}.cache_latents_to_disk", True) for n in missing)
        if edits:
            yield Level(edits, Loss(trouble=LATENTS), why)


def _text(subject: Subject) -> Iterator[Level]:
    train = subject.job.train
    if not train.cache_text_embeddings:
        why = "captions are encoded once and the text encoder leaves the card: they can no longer be dropped out or changed while training"
        yield _or_without_previews(subject, Level((Edit("train.cache_text_embeddings", True),), Loss(trouble=TEXT), why))
        if not train.unload_text_encoder:
            why = "captions are ignored: only the trigger word is learned"
            unloaded = Level((Edit("train.unload_text_encoder", True),), Loss(learned=UNLOADED_TEXT_LEARNED), why)
            yield _or_without_previews(subject, unloaded)


def _or_without_previews(subject: Subject, level: Level) -> Level:
    """The level, with previews off where the config is refused as long as it makes them (a UNet's, without its text encoders)."""
    both = (*level.edits, Edit("train.disable_sampling", True))
    if not _makes_previews(subject) or subject.read(level.edits) or not subject.read(both):
        return level
    loss = Loss(learned=level.loss.learned, trouble=level.loss.trouble + NO_PREVIEWS)
    return Level(both, loss, f"{level.why}; no previews, on which the trainer stops with it")


def _makes_previews(subject: Subject) -> bool:
    return bool(subject.job.samples) and not subject.job.train.disable_sampling


def _low_vram(subject: Subject) -> Iterator[Level]:
    if not subject.job.model.low_vram:
        why = "weights are quantised on the CPU and wait there while not needed: slower to load"
        if load_archs().archs[subject.job.arch].low_vram_previews or not _makes_previews(subject):
            yield Level((Edit("model.low_vram", True),), Loss(trouble=LOW_VRAM), f"{why} and to make previews")
        else:  # the trainer stops on previews then
            both = Edit("model.low_vram", True), Edit("train.disable_sampling", True)
            yield Level(both, Loss(trouble=LOW_VRAM + NO_PREVIEWS), f"{why}; no previews, on which the trainer stops with it")


def _checkpointing(subject: Subject) -> Iterator[Level]:
    if not subject.job.train.gradient_checkpointing:
        why = "the same result; activations are computed twice"
        yield Level((Edit("train.gradient_checkpointing", True),), Loss(trouble=CHECKPOINTING), why)


def _optimizer(subject: Subject) -> Iterator[Level]:
    smaller = SMALLER_STATE.get(subject.job.train.optimizer)
    if smaller in modelled.OPTIMIZERS:
        yield Level((Edit("train.optimizer", smaller),), Loss(trouble=OPTIMIZER), "the optimizer's state in 8 bit: hardly a loss")
    train = subject.job.train
    if subject.job.method == "full" and train.optimizer != FACTORED and train.gradient_accumulation == 1 and not train.gradients_stay:
        why = "state of rows and columns in place of two values a weight: another optimizer, learning rates need another look"
        yield Level((Edit("train.optimizer", FACTORED),), Loss(trouble=OTHER_OPTIMIZER), why)


def batch_edits(subject: Subject, batch: int) -> tuple[Edit, ...]:
    """`batch` images a step, in all datasets that have no pinned number of their own."""
    edits = [Edit("train.batch_size", batch)]
    for n, entry in enumerate(subject.entries()):
        if entry.get("batch_size") is not None:
            edits.append(Edit(f"datasets.{n}.batch_size", batch))
    return subject.allowed(edits)


def largest_batch(subject: Subject) -> int:
    return max((each.batch_size for each in subject.job.datasets), default=subject.job.train.batch_size)


def _batch(subject: Subject, aimed: bool) -> Iterator[Level]:
    """Fewer images at a time; where it can be, as many more times, so that each step still learns from as many."""
    largest, count = largest_batch(subject), subject.job.train.gradient_accumulation
    accumulates = not subject.kept("train.gradient_accumulation") and subject.section("train").get("gradient_accumulation_steps", 1) == 1
    for batch in range(largest - 1, 0, -1):
        exact = largest % batch == 0
        if not (exact or aimed or not accumulates):
            continue
        halvings = (largest / batch - 1).__ceil__().bit_length()
        edits = batch_edits(subject, batch)
        if accumulates:
            more = -(-largest * count // batch)
            edits = (*edits, Edit("train.gradient_accumulation", more))
            why = f"each step learns from {more * batch} images as before, {batch} at a time"
            if not exact:
                why = f"each step learns from {more * batch} images instead of {largest * count}, {batch} at a time"
        else:
            why = f"each step learns from {batch * count} images instead of {largest * count}: noisier steps, more of them are needed"
        points = halvings * (BATCH_WITH_ACCUMULATION if accumulates else BATCH_WITHOUT)
        if edits:
            yield Level(edits, Loss(aimed=largest - batch if aimed else 0, trouble=points), why)


def _controls(subject: Subject) -> Iterator[Level]:
    job = subject.job
    if not job.model.match_target_res and any(bucket.controls for each in job.datasets for bucket in each.buckets):
        why = "control images are seen at the size of the trained image, not at a megapixel: less of their detail"
        yield Level((Edit("model.model_kwargs.match_target_res", True),), Loss(learned=SMALLER_CONTROLS), why)


def _previews(subject: Subject) -> Iterator[Level]:
    job = subject.job
    if job.train.disable_sampling or not job.samples:
        return
    longest = max(max(each.width, each.height) for each in job.samples)
    for side in range((longest - 1) // PREVIEW_STEP * PREVIEW_STEP, PREVIEW_SMALLEST - 1, -PREVIEW_STEP):
        edits = preview_edits(subject, side)
        if edits:
            points = PREVIEW_LEAST + round(PREVIEW_SCALE * (longest - side) / longest)
            yield Level(edits, Loss(trouble=points), f"previews of at most {side} px; training is the same")
    yield Level((Edit("train.disable_sampling", True),), Loss(trouble=NO_PREVIEWS), "no previews; training is the same")


def preview_edits(subject: Subject, side: int) -> tuple[Edit, ...]:
    """Previews of at most `side` px, shape kept, wherever the config gives a size: the section and its entries, not flags in prompts."""
    return scaled_previews(subject, side, side)


def scaled_previews(subject: Subject, side: int, above: int) -> tuple[Edit, ...]:
    """Previews larger than `side` px shrunk to it, shape kept; with `side` above `above`, those of `above` px or more grown to it."""
    section = subject.section("sample")
    places: list[tuple[str, dict[str, object]]] = [("sample", section)]
    places += [(f"sample.samples.{n}", entry) for n, entry in enumerate(section.get("samples") or []) if isinstance(entry, dict)]
    edits = []
    for path, values in places:
        sides = {key: value for key in ("width", "height") if isinstance(value := values.get(key), (int, float))}
        top = max(sides.values(), default=0)
        if top > side or (side > above and top >= above):
            edits += [Edit(f"{path}.{key}", _shrunk(value, side / top)) for key, value in sides.items()]
    return subject.allowed(edits)


def _shrunk(value: float, factor: float) -> int:
    return max(PREVIEW_STEP, int(value * factor) // PREVIEW_STEP * PREVIEW_STEP)


def _bits(weights: str) -> int:
    """Bits of a weight: "uint4" has 4, "qfloat8" 8, "convrotbitnet" 2 (five codes to a byte); unquantised ones 16 or 32."""
    named = weights.replace("bitnet", "2").removesuffix("_e4m3fn").removesuffix("_e5m2")
    return int("".join(char for char in named if char.isdigit()) or 16)


def _weights(subject: Subject) -> Iterator[Level]:
    """Each quantisation of the transformer with each of the text encoder, as the trainer understands them; never a wider one."""
    now = subject.job.model
    seen = {(now.weights, now.te_weights)}
    known = [None, *(q for q in QTYPES if q in modelled.WEIGHTS and subject.job.method != "full")]  # a whole model would train others
    for transformer in known:
        for text in [None, *(q for q in QTYPES if q in modelled.TE_WEIGHTS)]:
            edits = quantised(subject, transformer, text)
            job = subject.read(edits)
            if job is None or (job.model.weights, job.model.te_weights) in seen:
                continue
            seen.add((job.model.weights, job.model.te_weights))
            bits, text_bits = _bits(job.model.weights), _bits(job.model.te_weights)
            if bits > _bits(now.weights) or text_bits > _bits(now.te_weights):
                continue
            points = _points(_bits(now.weights), bits, WEIGHTS_8, WEIGHTS_4) + _points(_bits(now.te_weights), text_bits, TEXT_8, TEXT_4)
            learned = WEIGHTS_LEARNED.get(bits, 0) * (bits < _bits(now.weights))
            learned += TEXT_LEARNED.get(text_bits, 0) * (text_bits < _bits(now.te_weights))
            words = [*_precision("frozen weights", _bits(now.weights), bits), *_precision("text encoder", _bits(now.te_weights), text_bits)]
            other = kind_named(now.weights) and bits == _bits(now.weights) and job.model.weights != now.weights
            if points or other:
                yield Level(edits, Loss(learned=learned, trouble=points or OTHER_KIND), "; ".join(words or (OTHERWISE,)))


def unquantised(subject: Subject) -> Level | None:
    """The transformer's weights unquantised: more exact, and nothing to unpack in each pass; None where they come quantised."""
    if subject.arch.prequantised:
        return None
    edits = [Edit("model.quantize", False)]
    follows = not subject.arch.text_as_transformer and "quantize_te" not in subject.section("model")
    if follows and subject.job.model.te_weights != subject.job.model.dtype:
        edits.append(Edit("model.quantize_te", True))  # it followed quantize
    job = None if subject.job.model.weights == subject.job.model.dtype else subject.read(edits)
    if job is None or subject.allowed(edits) != tuple(edits):
        return None
    return Level(tuple(edits), why="frozen weights unquantised: exact, and nothing to unpack in each pass")


def quantised(subject: Subject, transformer: str | None, text: str | None) -> tuple[Edit, ...]:
    """The edits that ask for these types; None leaves one as it is. FLUX has one key for both."""
    model, own_key = subject.section("model"), subject.arch.te_qtype_key
    if subject.arch.text_as_transformer:  # one switch and one type for both
        asked = {} if transformer is None or text not in (None, transformer) else {"quantize": True, "qtype": transformer}
        return tuple(Edit(f"model.{key}", value) for key, value in asked.items() if model.get(key) != value)
    edits: dict[str, object] = {}
    if transformer is not None:
        edits |= {"quantize": True, "qtype": transformer}
        if text is None and "quantize_te" not in model and not model.get("quantize"):
            edits["quantize_te"] = False  # it would follow quantize
    if text is not None:
        edits["quantize_te"] = True
        if own_key not in edits:
            edits[own_key] = text
        elif edits[own_key] != text:
            return ()
    return tuple(Edit(f"model.{key}", value) for key, value in edits.items() if key not in model or model[key] != value)


def _points(before: int, after: int, to_8: int, to_4: int) -> int:
    def total(bits: int) -> int:
        return 0 if bits > 8 else to_8 + (to_4 - to_8) * (8 - bits) // 4

    return total(after) - total(before)


def _precision(what: str, before: int, after: int) -> list[str]:
    if after >= before:
        return []
    if after < 4:
        return [f"{what} in {after} bit: so much less exact that what is learned suffers"]
    return [f"{what} in {after} bit: " + ("hardly a loss" if after >= 8 else "clearly less exact than in 8")]


def _offloading(subject: Subject) -> Iterator[Level]:
    """A share of the transformer's layers waits on the CPU, the least that is needed; at last the text encoder's. Some move nothing."""
    arch = subject.arch
    if subject.job.model.layer_offloading or arch.te_qtype_key == "qtype" or arch.layer_offloading == "nothing":
        return
    shares = [(tenth / OFFLOADING_STEPS, 0.0) for tenth in range(1, OFFLOADING_STEPS + 1)]
    for share, of_text in (*shares, (1.0, 1.0)):
        edits = (
            Edit("model.layer_offloading", True),
            Edit("model.layer_offloading_transformer_percent", share),
            Edit("model.layer_offloading_text_encoder_percent", of_text),
        )
        also = " and of the text encoder's" if of_text else ""
        why = f"{share:.0%} of the transformer's layers{also} wait on the CPU and are copied for each pass"
        yield Level(edits, Loss(trouble=OFFLOADING_LEAST + round(OFFLOADING_SCALE * (share + of_text / OFFLOADING_STEPS))), why)
