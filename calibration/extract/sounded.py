"""Parts of video with sound (LTX-2): clips go through the VAE whole or in tiles of frames, connectors come to the card and stay.

The encoder and the decoder are parts of their own, `encode` and `decode`, of an `image` or of a `clip` of `F` latent frames: what a tile
is to them as well. Around them lie the beginning and the end of what codes, and of tiles the `join`. Texts are padded to 1024 tokens
once, in `text.padded`, which takes the place of what was encoded (LTX2Model.pad_embeds).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby, pairwise

from calibration.architectures.base import Layout
from calibration.extract.parts import MOVED, Occurrence, component
from calibration.extract.runs import Phase, Run
from estimator.features import feature, image_values

FIRST_PARTIAL, LAST_PARTIAL = 2, 3  # of what a norm makes: squares, their mean, then these or, as large as the mean, what is added to it
PARTIAL = ", partial results"
# Of the transformer's attention: module, partial results of a head, values of each (LTX2VideoTransformer3DModel)
PARTS_OF_KEYS = ((".attn1", "B*T*flash32_T", 128), (".video_to_audio_attn", "B*O*narrow32_O_T", 64))
HEADS, FP32_BYTES = 32, 4
UPDATE = "step.update/"
SOUND, PADDING = "encode_audio", "pad_embeds"  # recorded phases (calibration.trainer.launch, calibration.architectures.ltx2)


def split(run: Run, found: Iterable[Occurrence], layout: Layout) -> Iterator[Occurrence]:
    """Parts of a run, cut."""
    phases = run.root.walk()
    coders = [p for p in phases if p.name in ("vae_decoder", "vae_encoder")]
    for part in found:
        kind = part.key.split("/")[0]
        part = _without(part, [e for e in part.events if _moves(run, e)]) if not kind.startswith(("load", "setup")) else part
        if kind == "preview.prompts" or (part.key.startswith(UPDATE) and part.key.endswith("/first") and not _trains_sound(part)):
            continue  # what stays of prompts is made by the padding
        if kind in ("preview", "step.core", "step.core.sound", "cache_latents.item"):
            for inner in _inside(part, [p for p in phases if p.name in (SOUND, PADDING)]):
                if inner.last > inner.first and inner.info.get("sounds", 1) == 1:  # a batch's sounds are encoded one after the other
                    yield _apart(part, inner)
                part = _without(part, list(range(inner.first, inner.last)))
        if kind in ("preview", "step.core", "step.core.sound"):
            _tell_parts_of_keys(part)
        if kind in ("preview", "step.head") and "/cached" in part.key:
            texts = _texts(part, [p for p in phases if p.name == PADDING])
            yield from texts
            part = _without(part, [e for one in texts for e in one.events])
        if kind == "preview":
            yield from _preview(part, _inside(part, [p for p in phases if p.name == "vae_decode"])[0], _inside(part, coders), layout)
        elif kind == "cache_latents.item":
            yield from _coded(part, "latents", _inside(part, coders), layout)
        elif part.key.startswith("step.head/encoded"):
            yield from _coded(part, part.key, _inside(part, coders), layout)
        else:
            yield part


def _trains_sound(part: Occurrence) -> bool:
    """Without it the last block's layers for sound have no gradient, and an optimizer's first step makes no state for them."""
    steps = (phase for phase in part.run.root.inner if phase.name == "step")
    step = next(phase for phase in steps if phase.first <= part.events[0] < phase.last)
    return bool(step.info["buckets"][0].get("sound"))


def _texts(part: Occurrence, paddings: list[Phase]) -> list[Occurrence]:
    """What a part brings of cached texts to the card, until the padding takes its place: of a step, or prompt by prompt of a preview."""
    run, own = part.run, set(part.events)
    found: list[Occurrence] = []
    for padding in paddings:
        freed = {i for k, i in run.events[padding.first : padding.last] if k == "f"}
        if padding.last == padding.first or not part.events or padding.first < part.events[0]:
            continue
        brought = {i for i in freed if run.tensors[i].born in own}
        if not brought:
            continue
        events = [e for e in part.events if run.events[e][1] in brought]
        batch, tokens, _ = padding.info["shape"]
        key = "text.moved" if part.key.startswith("preview") else f"step.captions/{'one' if batch == 1 else 'many'}"
        found.append(Occurrence(run, key, events, {"X": tokens, "B": batch}))
    return found


def _moves(run: Run, event: int) -> bool:
    kind, index = run.events[event]
    return kind != "e" and component(run.tensors[index].name) in MOVED


def _without(part: Occurrence, left_out: list[int]) -> Occurrence:
    gone = set(left_out)
    return replace(part, events=[e for e in part.events if e not in gone])


def _inside(part: Occurrence, phases: list[Phase]) -> list[Phase]:
    if not part.events:
        return []
    return [p for p in phases if part.events[0] <= p.first <= p.last <= part.events[-1] + 1]


def _apart(part: Occurrence, inner: Phase) -> Occurrence:
    """The padding of a prompt, or of a batch's; the encoding of a sound."""
    events = [e for e in range(inner.first, inner.last) if part.run.events[e][0] != "e" and not _moves(part.run, e)]
    if inner.name == SOUND:
        return Occurrence(part.run, "sound/one", events, {"M": part.values["M"], "B": 1})
    batch, tokens, _ = inner.info["shape"]
    return Occurrence(part.run, f"text.padded/{'one' if batch == 1 else 'many'}", events, {"X": tokens, "B": batch})


def _coded(part: Occurrence, key: str, coders: list[Phase], layout: Layout) -> Iterator[Occurrence]:
    """What lies before the first use of the encoder, its uses, and what lies behind the last; between tiles nothing does."""
    run, first, last = part.run, coders[0].first, coders[-1].last
    sizes = {name: part.values.get(name, 1) for name in ("T", "E", "A", "F", "B")}
    behind = {run.events[e][1] for e in part.events if e >= last and run.events[e][0] == "f"}
    for number, index in enumerate(sorted(i for i in behind if run.tensors[i].born < first and run.tensors[i].born in set(part.events))):
        run.tensors[index].names = [f"clip:{number}"]  # pixels, which are let go behind the encoder
    yield Occurrence(run, f"{key}/first", [e for e in part.events if e < first], sizes)
    yield from _tiles(part, "encode", coders, layout)
    yield Occurrence(run, f"{key}/last", [e for e in part.events if e >= last], sizes)


def _tiles(part: Occurrence, coder: str, coders: list[Phase], layout: Layout) -> Iterator[Occurrence]:
    for one in coders:
        _tell_partial_results(part.run, one)
        batch, _, frames, height, width = one.info["shape"]
        if coder == "decode":
            step = layout.cells
            frames, height, width = (frames - 1) * step.frames + 1, height * step.edge, width * step.edge
        sizes = {**image_values(width, height, frames, layout.cells), "B": batch}
        kind = "image" if sizes["F"] == 1 else "clip"
        yield Occurrence(part.run, f"{coder}.{kind}/{'one' if batch == 1 else 'many'}", list(range(one.first, one.last)), sizes)


def _tell_parts_of_keys(part: Occurrence) -> None:
    """Where FlashAttention goes through the keys in parts, each has a sum and a result of its own, made one after the other, with a label
    of their own here. A guided preview may have forwards of one prompt alone besides (LTX-2.3)."""
    made = [part.run.tensors[index] for kind, index in map(part.run.events.__getitem__, part.events) if kind == "a"]
    for module, results, width in PARTS_OF_KEYS:
        sums = {HEADS * FP32_BYTES * feature(results, {**part.values, "B": batch}) for batch in {part.values.get("B", 1), 1}} - {0}
        for pair in pairwise(made):
            if all(module in tensor.label for tensor in pair) and pair[0].size in sums and pair[1].size == width * pair[0].size:
                for tensor in pair:
                    tensor.label += PARTIAL


def _tell_partial_results(run: Run, coder: Phase) -> None:
    """A mean over channels makes squares, its result and, on some sizes, partial results and their counters: with a label of their own they
    are laid on nothing else."""
    tensors = (run.tensors[i] for kind, i in run.events[coder.first : coder.last] if kind == "a")
    for label, group in groupby(tensors, key=lambda tensor: tensor.label):
        made = list(group)
        if "norm" in label and len(made) > LAST_PARTIAL and made[FIRST_PARTIAL].size != made[FIRST_PARTIAL - 1].size:
            for tensor in made[FIRST_PARTIAL : LAST_PARTIAL + 1]:
                tensor.label += PARTIAL


def _preview(part: Occurrence, decode: Phase, coders: list[Phase], layout: Layout) -> Iterator[Occurrence]:
    """Prompts, denoising, decoding of pictures, decoding of sound."""
    run = part.run
    name, weights, guidance, _, *when = part.key.split("/")
    sound = next(p for p in run.root.walk() if p.name == "sound_decode" and p.first >= decode.last)
    sizes = {key: part.values[key] for key in ("T", "E", "A", "F")}
    yield Occurrence(run, "/".join((name, weights, guidance, *when)), [e for e in part.events if e < decode.first], part.values)
    yield Occurrence(run, "decode/first", list(range(decode.first, coders[0].first)), sizes)
    yield from _tiles(part, "decode", coders, layout)
    shown = [e for e in part.events if decode.last <= e < sound.first]
    if len(coders) > 1:
        yield Occurrence(run, "decode.joined", _joined(run, coders[-1].last, decode.last), sizes)
        yield Occurrence(run, "decode.shown/tiles", shown, sizes)
    else:
        yield Occurrence(run, "decode.shown/whole", list(range(coders[-1].last, decode.last)) + shown, sizes)
    yield Occurrence(run, "decode.sound", [e for e in part.events if e >= sound.first], {"O": part.values["O"]})


def _joined(run: Run, first: int, last: int) -> list[int]:
    """From where tiles are brought together on. Left out is what comes before: tiles are blended into each other frame by frame, through
    tensors of one frame that are gone at once, and are fewer bytes than what comes then."""
    made = [e for e in range(first, last) if run.events[e][0] == "a"]
    return list(range(max(made, key=lambda e: run.tensors[run.events[e][1]].size), last))
