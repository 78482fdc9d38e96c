"""What a recorded run had on the card and where its layers are: tables of a profile besides its programs."""

from __future__ import annotations

from collections import defaultdict

from calibration.extract import clips, parts
from calibration.extract.runs import Run


def residents(run: Run) -> dict[str, list[int]]:
    """Component (and kind of weights) -> bytes of its tensors in the order in which `.to()` moves them. A stand-in for a VAE has none."""
    chosen = parts.settings(run)
    latest: dict[str, dict[tuple[int, int], int]] = defaultdict(dict)
    for tensor in run.tensors:
        for name in tensor.names[:1]:
            component, _, place = name.partition(":")
            if component in parts.MOVED:
                index, _, inner = place.partition(".")
                latest[component][int(index), int(inner or 0)] = tensor.size
    kind = {"transformer": chosen["weights"], **dict.fromkeys(parts.TEXT_ENCODERS, chosen["text"])}
    keyed = {f"{c}/{kind[c]}" if c in kind else c: table for c, table in latest.items()}
    out = {"vae": list[int]()} | {key: [table[place] for place in sorted(table)] for key, table in keyed.items()}
    if str(run.config["model"].get("arch", "")).startswith(clips.TWO_EXPERTS):
        key = f"transformer/{chosen['weights']}"
        out[key] = _first_expert(out[key])
    return out


def _first_expert(sizes: list[int]) -> list[int]:
    """Of two alike, both or one of which were on the card."""
    half = len(sizes) // 2
    return sizes[:half] if sizes[:half] == sizes[half:] else sizes


def layers(run: Run) -> dict[str, list[str]]:
    """Names of the layers that offloading can take, by component, in the order in which it goes through them."""
    out: dict[str, list[str]] = {}
    for row in run.layers:
        out.setdefault(row["component"], []).append(row["name"])
    return out


def places(run: Run) -> dict[str, list[list[int]]]:
    """Component/kind -> for each of its layers: its first tensor's place among the residents, how many it has, the number of that
    tensor in names, and what the layer is.

    0: a plain weight, 1: a wrapper of two tensors (torchao), 2: the trainer's own (OstrisLinear). No tensors: its weight is another's too.
    """
    chosen = parts.settings(run)
    kind = {"transformer": chosen["weights"], **dict.fromkeys(parts.TEXT_ENCODERS, chosen["text"])}
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for tensor in run.tensors:
        component, _, place = (tensor.name or "").partition(":")
        if component in kind:
            index, _, inner = place.partition(".")
            found[component].add((int(index), int(inner or 0)))
    ordered = {component: sorted(numbers) for component, numbers in found.items()}
    out: dict[str, list[list[int]]] = {}
    for row in run.layers:
        own = [n for n, (index, _) in enumerate(ordered.get(row["component"], [])) if index in row["tensors"]]
        wrapped = [1 for index, inner in ordered.get(row["component"], []) if index in row["tensors"] and inner]
        what = 2 if row["class"] == "OstrisLinear" else 1 if wrapped else 0
        out.setdefault(f"{row['component']}/{kind[row['component']]}", []).append(
            [own[0] if own else 0, len(own), min(row["tensors"], default=0), what]
        )
    return out
