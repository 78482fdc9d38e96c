"""Cut a recorded run into parts: the pieces of the timeline that the memory programs are made of.

A part is a range of events with some inner ranges left out (they are parts of their own) and the moves of whole components
left out (the estimator makes those itself, from the tables of residents). `key` is what the part's event sequence depends
on; `values` are the sizes of this occurrence, which only the events' sizes may depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from calibration.architectures.base import Layout, kind_of
from calibration.extract import conditions
from calibration.extract.runs import Phase, Run, first_preview
from estimator.controls import CONTROLLED_PREVIEW
from estimator.features import encoded_sound, image_values, spectrogram_frames
from estimator.levels import UNMERGED, levels
from estimator.operations import CONTROLLED_CORE, CORE, PREVIEW, SOUND_CORE, TIMED_CORE, TIMED_IMAGE_CORE, UNEVEN_CORE
from estimator.programs import TEXT_ENCODERS

MOVED = ("transformer", "vae", *TEXT_ENCODERS, "connectors", "vocoder", "image_encoder")
PER_SECOND = 24  # frames: default of a dataset, and what LTX-2's pipeline takes a preview to have


@dataclass
class Occurrence:
    """One recording of a part: event indices in order, its key, and the values of its features' variables."""

    run: Run
    key: str
    events: list[int]
    values: dict[str, int]


def component(name: str | None) -> str:
    return name.split(":")[0] if name else ""


def settings(run: Run) -> dict[str, Any]:
    model = run.config["model"]
    weights, text = (model.get(key, "qfloat8") if model.get("quantize") else "bf16" for key in ("qtype", "qtype_te"))
    size = {{"r": "rank", "f": "factor", "c": "conv_rank"}[name]: value for name, value in adapter(run).items()}
    if weights == UNMERGED:
        weights = text = "bf16"
    return {"weights": kind_of(weights), "text": text, "low_vram": bool(model.get("low_vram")), **size}


def of_previews(run: Run) -> str:
    """The kind of weights in keys of previews, and of what is around them."""
    return UNMERGED if run.config["model"].get("qtype") == UNMERGED else settings(run)["weights"]  # type: ignore[no-any-return]


def adapter(run: Run) -> dict[str, int]:
    """What the adapter's sizes depend on: the rank of a LoRA (on linear layers, and on convolutions), the factor of a LoKr; nothing of a
    model that is trained as a whole."""
    network = run.config.get("network")
    if network is None:
        return {}
    if network["type"] == "lokr":
        return {"f": int(network["lokr_factor"])}
    return {"r": int(network["linear"]), **({"c": int(network["conv"])} if network.get("conv") else {})}


def _outside(first: int, last: int, holes: list[tuple[int, int]]) -> list[int]:
    return [e for e in range(first, last) if not any(a <= e < b for a, b in holes)]


def without_moves(run: Run, events: list[int]) -> list[int]:
    """Without the events of whole components (in set-up and preparation these are moves) and empty_cache."""
    return [e for e in events if run.events[e][0] != "e" and component(run.tensors[run.events[e][1]].name) not in MOVED]


def setup_parts(run: Run) -> Iterator[Occurrence]:
    setup = next(p for p in run.root.inner if p.name == "setup")
    ema = [p for p in setup.inner if p.name == "setup_ema"]
    holes = [(p.first, p.last) for p in ema]
    rank = adapter(run)
    yield Occurrence(run, f"setup.network/{settings(run)['weights']}", without_moves(run, _outside(setup.first, setup.last, holes)), rank)
    for phase in ema:
        if phase.last > phase.first:
            yield Occurrence(run, "setup.ema", list(range(phase.first, phase.last)), rank)


def text_key(run: Run, phase: Phase) -> str:
    graph = "graph" if phase.info.get("autograd") else "plain"
    return f"text/{settings(run)['text']}/{graph}"


def text_parts(run: Run, layout: Layout) -> Iterator[Occurrence]:
    """Every encode of prompts of one length. `X`: their tokens, as padded or as the tokenizer counts them; `I`: those that are images'.

    A step encodes a batch; where each prompt is tokenized on its own, only the last one's tokens are known.
    """
    for top in run.root.inner:
        batch = top.info["buckets"][0]["batch"] if top.name == "step" else 1
        for phase in top.walk():
            if phase.name == "encode_prompt" and len(set(phase.info.get("tokens", ()))) == 1:  # none where the trainer refuses to encode
                count = max(batch, len(phase.info["tokens"]))
                tokens = phase.info["tokens"][0] if layout.padded_tokens is None else layout.padded_tokens
                events = without_moves(run, list(range(phase.first, phase.last)))
                images = phase.info.get("images", [])
                events = _from_the_encoder_on(run, events) if images else events
                key = text_key(run, phase) + _batch_key(count) + (f"/{len(images)} images" if images else "")
                yield Occurrence(run, key, events, {"X": tokens, "I": sum(images), "B": count})


def _from_the_encoder_on(run: Run, events: list[int]) -> list[int]:
    """Without what scaling and cutting the images makes and lets go before the text encoder begins (10 MB beside its gigabytes).

    Images of one shape are worked on together, so that its sizes depend on which are alike.
    """
    first = next(e for e in events if run.events[e][0] == "a" and run.tensors[run.events[e][1]].label.startswith("text_encoder"))
    return [e for e in events if (run.tensors[run.events[e][1]].died or len(run.events)) > first]


def _batch_key(batch: int) -> str:
    return "/one" if batch == 1 else "/many"


def sizes_of(layout: Layout, width: int, height: int, frames: int = 1, sound: bool = False) -> dict[str, int]:
    """Values of a bucket or preview. `sound`: its own is trained, which gives a token more than silence of its length."""
    values = image_values(width, height, frames, layout.cells) | (levels(width, height) if layout.unet else {})
    spectrogram = spectrogram_frames(frames, PER_SECOND, layout.sound_per_second)
    tokens = encoded_sound(spectrogram) if sound else round(frames / PER_SECOND * layout.sound_per_second)
    return {**values, "O": tokens, "M": spectrogram} if layout.sound_per_second else values


def caching_parts(run: Run, layout: Layout) -> Iterator[Occurrence]:
    """One image's latent: between the move that brings the VAE in and the one that takes it out. A clip's first frame may follow it."""
    most = 2 if layout.video and not layout.sound_per_second else 1
    for phase in run.root.inner:
        if phase.name != "cache_latents":
            continue
        encode = [p for p in phase.inner if p.name == "vae_encode"]
        enter = [p for p in phase.inner if p.name == "set_device_state"]
        leave = [p for p in phase.inner if p.name == "restore_device_state"]
        if 1 <= len(encode) <= most and enter and leave:
            _, _, *frames, height, width = encode[0].info["shape"]
            events = list(range(enter[0].last, leave[0].first))
            yield Occurrence(run, "cache_latents.item", events, sizes_of(layout, width, height, *frames))


def cache_text_parts(run: Run) -> Iterator[Occurrence]:
    """What caching one caption does around the encode itself (copies to the host and frees)."""
    for phase in run.root.inner:
        encodes = [p for p in phase.inner if p.name == "encode_prompt"]
        if phase.name == "cache_text" and len(encodes) == 1:
            inside = encodes[0]
            events = [e for e in range(inside.last, phase.last) if run.events[e][0] != "e"]
            yield Occurrence(run, f"cache_text.after/{settings(run)['text']}", events, {"X": inside.info["tokens"][0], "B": 1})


def sample_parts(run: Run, prompt: Callable[[int], tuple[int, int]], layout: Layout) -> Iterator[Occurrence]:
    """`prompt`: number of a preview -> (tokens of its prompt, of the negative one).

    Before the previews (EMA weights in, adapter merged), each preview after its prompts, and after the last one.
    """
    kind, trained = of_previews(run), False
    for phase in run.root.inner:
        if phase.name == "step":
            trained = True
        if phase.name != "sample":
            continue
        enter = next((p for p in phase.inner if p.name == "set_device_state"), None) or first_preview(phase)
        leave = next(p for p in phase.inner if p.name == "restore_device_state")
        when, rank = "later" if trained else "first", adapter(run)
        ema = "ema" if (run.config["train"].get("ema_config") or {}).get("use_ema") else "none"
        before = without_moves(run, list(range(phase.first, enter.first)))
        yield Occurrence(run, f"sample.enter/{kind}/{ema}/{when}", before, rank)
        yield from _preview_parts(run, phase, (enter.last, leave.first), when, prompt, layout)
        after = without_moves(run, _outside(leave.first, phase.last, []))
        yield Occurrence(run, f"sample.leave/{kind}/{ema}/{when}", after, rank)


def _preview_parts(
    run: Run, phase: Phase, span: tuple[int, int], when: str, prompt: Callable[[int], tuple[int, int]], layout: Layout
) -> Iterator[Occurrence]:
    chosen, kind, (first, last), apart = settings(run), of_previews(run), span, layout.tiled_vae or layout.decode_apart
    decodes = [p for p in phase.walk() if p.name == "vae_decode"]
    encodes = [p for p in phase.inner if p.name == "encode_prompt"]
    cuts = [e for e in range(first, last) if run.events[e][0] == "e"]
    start = first
    for number, (sample, decode) in enumerate(zip(phase.info["samples"], decodes, strict=True)):
        end = next(e for e in cuts if e >= decode.last)
        own = [p for p in encodes if start <= p.first < end]
        begin = own[-1].last if own else start
        if apart:
            yield _decode_part(run, decode, end, image_values(sample["width"], sample["height"]))
        events = [e for e in range(begin, decode.first if apart else end) if run.events[e][0] != "e"]
        cfg = "cfg" if layout.guidance != "none" and (layout.always_guided or sample["cfg"] > 1) else "plain"
        batch = 2 if cfg == "cfg" and layout.guidance == "batched" else 1
        values = {**sizes_of(layout, sample["width"], sample["height"], sample["frames"]), **adapter(run), "B": batch}
        values["X"], values["N"] = prompt(number)
        source = "encoded" if own else "cached"
        if layout.prompts_apart and not own:
            kept = [e for e in events if _outlives(run, e, phase.last)]
            events = [e for e in events if e not in kept]
            if kept:  # the first round only: they are there after that
                yield Occurrence(run, "preview.prompts", kept, values)
        if kind == "bf16":  # the adapter is merged into the weights once it is not all zero
            source += "/" + when
        if layout.pipeline_apart and chosen["low_vram"]:
            source += "/low_vram"
        name = CONTROLLED_PREVIEW if layout.beside is not None and sample.get("control") else PREVIEW
        yield Occurrence(run, f"{name}/{kind}/{cfg}/{source}", events, values)
        start = end + 1


def _decode_part(run: Run, decode: Phase, end: int, values: dict[str, int]) -> Occurrence:
    """The VAE's part of a preview. Of a tiled decode the first tile and the joined image.

    Left out are the other tiles, whose number depends on the size: their results and the rows that are joined, some 17 bytes a pixel.
    """
    tiles = [p for p in decode.inner if p.name == "vae_decoder"]
    events = [e for e in range(decode.first, end) if run.events[e][0] != "e"]
    if len(tiles) <= 1:
        return Occurrence(run, "decode/plain", events, values)
    second = _allocation_after(run, tiles[0].last, 1)
    last = _allocation_after(run, tiles[-1].last, 1)
    joined = [e for e in events if e >= last and run.events[e][0] == "a"]
    large = max(run.tensors[run.events[e][1]].size for e in joined) // 2
    kept = {run.events[e][1] for e in joined if run.tensors[run.events[e][1]].size > large}
    kept |= {run.events[e][1] for e in events if e < second and run.events[e][0] == "a"}
    return Occurrence(run, "decode/tiled", [e for e in events if run.events[e][1] in kept], values)


def _allocation_after(run: Run, first: int, skipped: int) -> int:
    """The event of an allocation at or after `first`, so many of them left out."""
    found = (e for e in range(first, len(run.events)) if run.events[e][0] == "a")
    return [next(found) for _ in range(skipped + 1)][-1]


def _outlives(run: Run, event: int, end: int) -> bool:
    """An allocation that is still there at the event `end`."""
    kind, index = run.events[event]
    died = run.tensors[index].died if kind == "a" else -1
    return died is None or died >= end


def step_parts(run: Run, captions: Callable[[dict[str, Any]], list[int]], layout: Layout) -> Iterator[Occurrence]:
    """Head (batch to the device), core (forward, loss, backward), and what follows. `captions`: tokens of one for a batch, or of each."""
    rank, weights = adapter(run), settings(run)["weights"]
    unloaded, when = run.config["train"].get("unload_text_encoder", False), "first"
    for step in (p for p in run.root.inner if p.name == "step"):
        (bucket,) = step.info["buckets"]
        batch, inner = bucket["batch"], {p.name: p for p in step.inner}
        sizes = sizes_of(layout, bucket["width"], bucket["height"], bucket["frames"], bool(bucket.get("sound")))
        values = {**sizes, "B": batch, **rank, "X": max(captions(bucket))}
        checkpointing = "checkpointed" if step.info["gradient_checkpointing"] else "full"
        cached = "cached" if bucket["latents"] else "encoded"
        text = "encoded" if "encode_prompt" in inner else "unloaded" if layout.unloaded_apart and unloaded else "cached"
        predict = inner["predict_noise"]
        condition = inner.get("condition", Phase("condition", predict.first, {}, predict.first))  # control images, just before
        controlled = any(run.events[e][0] == "a" for e in range(condition.first, condition.last))  # or what the step before left goes
        holes = [(p.first, p.last) for p in step.inner if p.name == "encode_prompt"]
        clip = inner.get("clip_grad", inner["optimizer_step"])
        if step.info["gradient_checkpointing"]:  # a probe's second pass over a batch finds it on the device already
            apart = text == "encoded" and layout.prompts_apart
            end = holes[0][0] if apart else condition.first
            yield Occurrence(run, f"step.head/{cached}/{text}{_batch_key(batch)}", _outside(step.first, end, holes), values)
            if apart:
                yield Occurrence(run, f"step.prompts{_batch_key(batch)}", _outside(end, condition.first, holes), values)
            if controlled:
                beside, *events = conditions.cut(condition, layout.conditioned)
                yield Occurrence(run, beside + _batch_key(batch), without_moves(run, list(range(*events))), values)
        own = UNEVEN_CORE if len({*captions(bucket)}) > 1 else SOUND_CORE if bucket.get("sound") else CORE
        kind = CONTROLLED_CORE if controlled and not layout.conditioned else own
        if bucket.get("begins"):
            kind = TIMED_CORE if bucket["frames"] > 1 else TIMED_IMAGE_CORE
        core = f"{kind}/{weights}/{checkpointing}{_batch_key(batch)}"
        yield Occurrence(run, core, list(range(condition.last, clip.first)), values)
        yield from _update_parts(run, step, clip, when)
        when = "later"


def _update_parts(run: Run, step: Phase, clip: Phase, when: str) -> Iterator[Occurrence]:
    """What follows a step's backward pass; `clip` is where that ends, `when` "first" of a run's first step, which makes the state."""
    rank, inner = adapter(run), {p.name: p for p in step.inner}
    ema = inner.get("ema_update")
    released = ema.first if ema else _gradients_gone(run, inner["optimizer_step"].last, step.last)
    yield Occurrence(run, f"step.update/{run.config['train']['optimizer']}/{when}", list(range(clip.first, released)), rank)
    if ema is not None:
        yield Occurrence(run, "step.ema", list(range(ema.first, ema.last)), rank)
    yield Occurrence(run, "step.end", list(range(ema.last if ema else released, step.last)), {})


def _gradients_gone(run: Run, first: int, last: int) -> int:
    """The event after the last gradient is freed: the end of zero_grad."""
    frees = [e for e in range(first, last) if run.events[e][0] == "f" and component(run.tensors[run.events[e][1]].name) == "gradient"]
    return frees[-1] + 1 if frees else first


def save_parts(run: Run) -> Iterator[Occurrence]:
    ema = "ema" if (run.config["train"].get("ema_config") or {}).get("use_ema") else "none"
    for phase in run.root.inner:
        if phase.name == "save":
            yield Occurrence(run, f"save/{ema}", list(range(phase.first, phase.last)), adapter(run))
