"""Tensors that stay on the host once a component's layers are taken, though no layer has them: the manager's `.to` passes over them.

The trainer's MemoryManager moves the layers that it did not take, norms, embeddings and what the class names besides. A parameter of
another module never comes to the card: LTX-2.3's tables of its text's modulation (diffusers brings a copy to where they are used, 24 KiB a
block, gone at once), and a matrix of the encoder's vision, which nothing uses.

Source: toolkit/memory_management/manager.py (attach, memory_managed_to); extensions_built_in/diffusion_models/ltx2/ltx2.py (load_model:
`ignore_modules`), 27a03a91; diffusers c9438378: LTX2VideoTransformerBlock (get_mod_params).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate

from estimator.offload import PLAIN, Layer

Run = tuple[tuple[int, ...], tuple[int, ...]]
"""Bytes of tensors that follow on each other in a component's table of residents, and which of them stay on the host."""
_TABLES: Run = ((73728, 36864, 16384, 8192, 40960, 20480), (2, 3))
"""Of a block, in bf16: (9, 4096) and (9, 2048), those of the prompt's modulation (2 of each), (5, 4096) and (5, 2048)."""
_VISION: Run = ((8847360,), (0,))
"""Gemma-3's mm_input_projection_weight, 1152 x 3840 in bf16."""
RUNS: Mapping[str, Mapping[str, Run]] = {
    "ltx2": {"text_encoder0": _VISION}, "ltx2.3": {"transformer": _TABLES, "text_encoder0": _VISION}, "ltx2.5": {"transformer": _TABLES},
}  # fmt: skip


def leaves_first(arch: str, component: str) -> bool:
    """Whether the component's first parameter is among them: its `device` (save_device_state) is the host then."""
    return RUNS.get(arch, {}).get(component) == _VISION


def left(arch: str, component: str, resident: Sequence[int], layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Those of an architecture's component, each as a layer of one tensor. `resident`: the component's bytes, without offloading."""
    sizes, which = RUNS.get(arch, {}).get(component, ((), ()))
    starts = [n for n in range(len(resident)) if tuple(resident[n : n + len(sizes)]) == sizes] if sizes else []
    ordered = sorted((layer.place, len(layer.sizes) - layer.numbers) for layer in layers) if starts else []
    before = [0, *accumulate(parts for _, parts in ordered)]  # a tensor of several parts has one number
    out = []
    for place in (start + n for start in starts for n in which):
        number = place - before[bisect_left(ordered, (place, 0))]
        out.append(Layer(place, number, 1, PLAIN, (resident[place],)))
    return tuple(out)
