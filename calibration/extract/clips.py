"""Parts of video: what a VAE does chunk by chunk, and previews that are cut where decoding begins.

AutoencoderKLWan takes a clip in chunks of one latent frame, with features kept from each chunk for the next. The first and the
second chunk differ from all that follow, and those are alike but for the result that grows: so a part in which a clip is encoded
or decoded is cut before each chunk from the second on. `first`, `second`, `next` (as many as are left, `K` latent frames being
done) and `last`, with what comes after it; a clip of two latent frames is one part, `two`; an image is one part without a suffix.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import replace

from calibration.extract.parts import MOVED, Occurrence, component
from calibration.extract.runs import Phase, Run
from estimator.features import Cells, image_values
from estimator.operations import BEGUN_PREVIEW, CORE, PREVIEW, TIMED_CORE
from estimator.wan import TILE_PIXELS, TILE_STRIDE_PIXELS

FIRST_FRAME, GIVEN_FRAME = "first_frame", "given_frame"  # the trainer's add_first_frame_conditioning, _v22 (calibration/trainer/video.py)
TWO_EXPERTS = "wan22_14b"  # in the trainer's name of an architecture
PICTURE = "picture"  # an image encoder's (Wan 2.1 I2V)
LATENTS_PER_EDGE = 2  # of a token: the transformer's patch


def split(run: Run, found: Iterable[Occurrence], cells: Cells) -> Iterator[Occurrence]:
    """Parts of a run, those cut that hold a clip's encoding or decoding."""
    phases = run.root.walk()
    encodes = [p for p in phases if p.name == "vae_encode"]
    chunks = [p for p in phases if p.name in ("vae_decoder", "vae_encoder")]
    decodes = [p for p in phases if p.name == "vae_decode"]
    singles = [p for p in phases if p.name == "generate_single_image"]
    moves = [p for p in phases if p.name == "expert_to"]
    for whole in found:
        kind, many = whole.key.split("/")[0], "many" if whole.values.get("B", 1) > 1 else "one"
        part, cut = _without_pictures(_without_experts(whole, moves) if moves else whole, whole, phases, chunks)
        yield from cut
        if kind == "preview":
            decode = _inside(whole, decodes)[0]
            single = next(p for p in singles if p.first <= decode.first < p.last)
            yield from _preview(part, single, decode, chunks, cells)
        elif kind == "cache_latents.item":
            own = _inside(part, encodes)  # the second is of the clip's first frame
            yield from _coded(part, "latents" if len(own) == 1 else "latents.begun", "encode", many, own[0].inner)
        elif part.key.startswith("step.head/encoded"):
            yield from _coded(part, part.key, "encode", many, _inside(part, chunks))
        elif kind == "load.text":  # with low_vram the transformer comes to the card here
            moved = {e for e in part.events if component(run.tensors[run.events[e][1]].name) == "transformer" and run.events[e][0] != "e"}
            yield replace(part, events=[e for e in part.events if e not in moved])
        elif kind == "text":
            yield _without_padding_loop(part)
        elif kind == "setup.network" and (reading := _reading(part)).events:
            yield from (reading, part)
        else:
            yield part


def _without_pictures(part: Occurrence, whole: Occurrence, phases: list[Phase], chunks: list[Phase]) -> tuple[Occurrence, list[Occurrence]]:
    """A step's core or a preview without what is made of the picture that a clip begins with, and the parts that it is made in."""
    kind, many = part.key.split("/")[0], "many" if part.values.get("B", 1) > 1 else "one"
    if kind not in (PREVIEW, CORE, TIMED_CORE):
        return part, []
    beginning, cut = kind.split(".")[0], list[Occurrence]()
    if kind != CORE and (held := _inside(whole, [p for p in phases if p.name == GIVEN_FRAME])):
        if kind == PREVIEW:  # with the picture's pixels
            singles = [p for p in phases if p.name == "generate_single_image"]
            held = [replace(one, first=max(p.first for p in singles if p.first <= one.first)) for one in held]
        part, given = _apart(part, held)
        part = replace(part, key=part.key.replace(f"{PREVIEW}/", f"{BEGUN_PREVIEW}/"))
        source = "" if kind == PREVIEW else "encoded/" if _inside(given, chunks) else "cached/"
        values = {key: given.values.get(key, 1) for key in ("T", "E", "A", "F", "B")}
        cut.append(replace(given, key=f"{beginning}.given_frame/{source}{many}", values=values))
    if kind != TIMED_CORE and (shown := _inside(whole, [p for p in phases if p.name == PICTURE])):
        part, given = _apart(part, shown)
        cut.append(replace(given, key=f"{beginning}.picture/{many}"))
    if kind != TIMED_CORE and (pictures := _inside(whole, [p for p in phases if p.name == FIRST_FRAME])):
        part, given = _apart(part, pictures)
        cut += _coded(given, f"{beginning}.first_frame/{many}", "encode", many, _inside(given, chunks))
    return part, cut


def _apart(part: Occurrence, pictures: list[Phase]) -> tuple[Occurrence, Occurrence]:
    """A part without what encodes the clip that begins with a given picture, and that."""
    inside = {e for picture in pictures for e in range(picture.first, picture.last)}
    given = [e for e in part.events if e in inside]
    own = {part.run.events[e][1] for e in given if part.run.events[e][0] == "a"}  # what it leaves is let go later: its scope says when
    rest = [e for e in part.events if e not in inside and part.run.events[e][1] not in own]
    return replace(part, events=rest), replace(part, events=given)


def _without_experts(part: Occurrence, moves: list[Phase]) -> Occurrence:
    """Without the moves of Wan 2.2's experts, which the estimator makes itself."""
    inside = {e for move in moves for e in range(move.first, move.last)}
    return replace(part, events=[e for e in part.events if e not in inside])


def _without_padding_loop(part: Occurrence) -> Occurrence:
    """Without what comes and goes outside the encoder: prompts are padded one by one, in tensors for each of them.

    They are 16 MiB a prompt, after the encoder's own activations, which are many times that, are gone.
    """
    tensors, last = part.run.tensors, part.events[-1]
    passing = {k for e in part.events if (k := part.run.events[e][1]) >= 0 and tensors[k].label == "encode_prompt"}
    passing = {k for k in passing if tensors[k].died is not None and tensors[k].died <= last}
    return replace(part, events=[e for e in part.events if part.run.events[e][1] not in passing])


def _reading(part: Occurrence) -> Occurrence:
    """Of Wan 2.2's adapter, what comes before any of its tensors: layers' weights are read, and the trainer's own quantised ones rebuilt.

    A part of its own, since the adapter is made by one expert's program for each. No events: they are on the host, or nothing is rebuilt.
    """
    tensors, events = part.run.tensors, part.run.events
    two = str(part.run.config["model"].get("arch", "")).startswith(TWO_EXPERTS)
    first = next((n for n, e in enumerate(part.events) if component(tensors[events[e][1]].name) == "adapter"), 0)
    return replace(part, key=part.key.replace("setup.network", "setup.read"), events=part.events[:first] if two else [], values={})


def too_few(recorded: list[Occurrence]) -> bool:
    """A part of one picture size only: nothing tells what its sizes depend on. It is left out, and what needs it cannot be told."""
    sizes = {(one.values["A"], one.values["E"]) for one in recorded if "A" in one.values}
    return len(sizes) == 1


def _inside(part: Occurrence, phases: list[Phase]) -> list[Phase]:
    if not part.events:
        return []
    return [p for p in phases if part.events[0] <= p.first <= p.last <= part.events[-1] + 1]


def _coded(part: Occurrence, key: str, coder: str, many: str, chunks: list[Phase]) -> Iterator[Occurrence]:
    """A part with one encode or decode, cut at its chunks."""
    cuts = [bisect_left(part.events, chunk.first) for chunk in chunks]
    sizes = {key: part.values.get(key, 1) for key in ("T", "E", "A", "F", "B")}

    def piece(name: str, first: int, last: int, **more: int) -> Occurrence:
        return Occurrence(part.run, name, part.events[first:last], {**sizes, **more})

    if len(cuts) < 2:
        yield piece(key, 0, len(part.events))
    elif len(cuts) == 2:
        yield piece(f"{key}/two", 0, len(part.events))
    else:
        _name_what_crosses(part, cuts[1], cuts[-1])
        yield piece(f"{key}/first", 0, cuts[1])
        yield piece(f"{coder}.second/{many}", cuts[1], cuts[2])
        for done in range(2, len(cuts) - 1):
            yield piece(f"{coder}.next/{many}", cuts[done], cuts[done + 1], K=done)
        yield piece(f"{key}/last", cuts[-1], len(part.events))


def _name_what_crosses(part: Occurrence, first: int, last: int) -> None:
    """Names for what is made before the second chunk and let go behind the last one (a clip's pixels), which links the pieces."""
    tensors, born = part.run.tensors, dict[int, None]()
    for e in part.events[:first]:
        if part.run.events[e][0] == "a":
            born[part.run.events[e][1]] = None
    freed = {part.run.events[e][1] for e in part.events[last:] if part.run.events[e][0] == "f"}
    for number, k in enumerate(k for k in born if k in freed and not tensors[k].names):
        tensors[k].names.append(f"clip:whole{number}")


def _preview(part: Occurrence, single: Phase, decode: Phase, chunks: list[Phase], cells: Cells) -> Iterator[Occurrence]:
    """Prompts, denoising without moves of components, decoding."""
    run = part.run
    events = [e for e in part.events if component(run.tensors[run.events[e][1]].name) not in MOVED]
    events = _without_vae_moves(part, events)
    head, body = bisect_left(events, single.first), bisect_left(events, decode.first)
    name, weights, guidance, source, *when = part.key.split("/")
    stay = [e for e in events[:head] if run.events[e][0] == "a" and run.tensors[run.events[e][1]].died is None]
    if source == "cached" and stay:  # cached prompts move to the card for the first round, and stay there
        yield Occurrence(run, "preview.prompts", stay, {"X": part.values["X"], "N": part.values["N"]})
    yield Occurrence(run, "/".join((name, weights, guidance, *when)), events[head:body], part.values)
    sizes = {key: part.values[key] for key in ("T", "E", "A", "F")}
    end = Occurrence(run, "decode", events[body:], sizes)
    width, height = (decode.info["shape"][axis] * cells.edge // LATENTS_PER_EDGE for axis in (-1, -2))
    inside = _inside(end, chunks)
    if len(inside) > part.values["F"]:  # each tile's chunks
        yield from _tiled(end, decode, (width, height), inside, cells)
    else:
        yield from _coded(end, "decode", "decode", "one", inside)


def _without_vae_moves(part: Occurrence, events: list[int]) -> list[int]:
    """Without the VAE's move to the card between denoising and decoding, found by its sizes in their order.

    It goes and comes back between two marks (AggressiveWanUnloadPipeline), perhaps to the same addresses: no mark sees that it moved.
    """
    run = part.run
    sizes = [size for _, size in sorted({(_place(t.name), t.size) for t in run.tensors if component(t.name) == "vae"})]
    made = [run.events[e][1] for e in part.events if run.events[e][0] == "a"]
    where = [run.tensors[k].size for k in made]
    start = next((i for i in range(len(made) - len(sizes) + 1) if where[i : i + len(sizes)] == sizes), None)
    moved = set() if start is None else set(made[start : start + len(sizes)])
    return [e for e in events if run.events[e][1] not in moved]


def _place(name: str | None) -> tuple[int, ...]:
    return tuple(int(n) for n in (name or ":0").split(":")[1].split("."))


def _tiled(part: Occurrence, decode: Phase, size: tuple[int, int], chunks: list[Phase], cells: Cells) -> Iterator[Occurrence]:
    """Decoding in tiles, as low_vram has it: each tile like a small clip, joined; rows of tiles; the whole; and what is made of it.

    Blending writes into the tiles, through small tensors for each line of pixels: those are left out.
    """
    run, count = part.run, part.values["F"]
    places = tiles(*size)
    for number, (width, height) in enumerate(places):
        own = chunks[number * count : (number + 1) * count]
        area = image_values(width, height, cells=cells)
        values = {"T": area["A"] * count, "E": area["E"], "A": area["A"], "F": count}
        for done, chunk in enumerate(own):
            name = ("first", "second")[done] if done < 2 else "next"
            yield Occurrence(run, f"tile.{name}", list(range(chunk.first, chunk.last)), values)
        after = range(own[-1].last, chunks[(number + 1) * count].first if number + 1 < len(places) else decode.last)
        whole = next(e for e in after if _allocates(run, e, _pixel_bytes(width, height, count)))
        yield Occurrence(run, "tile.join", [whole], values)
    width, height = size
    made = [e for e in range(chunks[-1].last, decode.last) if run.events[e][0] == "a"]
    for row in [min(TILE_STRIDE_PIXELS, height - y) for y in range(0, height, TILE_STRIDE_PIXELS)]:
        event = next(e for e in made if _allocates(run, e, _pixel_bytes(width, row, count)))
        made.remove(event)
        area = image_values(width, row, cells=cells)
        yield Occurrence(run, "tile.row", [event], {**area, "T": area["A"] * count, "F": count})
    large = {run.events[e][1] for e in made if _allocates(run, e, _pixel_bytes(width, height, count))}
    joined = [e for e in range(chunks[-1].last, decode.last) if run.events[e][1] in large]
    yield Occurrence(run, "decode.joined", joined, part.values)
    yield Occurrence(run, "decode.shown", [e for e in part.events if e >= decode.last], part.values)


def _allocates(run: Run, event: int, size_bytes: int) -> bool:
    kind, index = run.events[event]
    return kind == "a" and run.tensors[index].size == size_bytes


def _pixel_bytes(width: int, height: int, latent_frames: int) -> int:
    """Of a decoded clip in bf16."""
    return width * height * (4 * latent_frames - 3) * 3 * 2


def tiles(width: int, height: int) -> list[tuple[int, int]]:
    """Sizes of the tiles of a picture, row by row."""
    starts = [(y, x) for y in range(0, height, TILE_STRIDE_PIXELS) for x in range(0, width, TILE_STRIDE_PIXELS)]
    return [(min(TILE_PIXELS, width - x), min(TILE_PIXELS, height - y)) for y, x in starts]
