"""A LoRA merged into unquantised weights that wait on the host (Wan 2.2 14B's experts with low_vram), from the merge on the card.

Either way a layer's weight is cast to fp32 and comes to where the adapter is, the card; the product of the two matrices is made there (as
large, in fp32), scaled, and added. On the card the sum is cast back to the layer's type there; one that waits on the host goes back to it
in fp32 and is cast there. So what is as large as the weight in bf16 is not made.

Source: ostris/ai-toolkit 27a03a91, toolkit/network_mixins.py (ToolkitModuleMixin.merge_in: `weight.to(weight_device, orig_dtype)`).
"""

from __future__ import annotations

from estimator.arrays import among
from estimator.program import ALLOCATE, Program
from estimator.rewriting import widened, written

FROM_HOST = "/from_host"  # behind the key of a part that merges an adapter, or takes it out
_HALVED = 2  # bytes of an element in fp32 over those in the layer's type


def from_host(base: Program) -> Program:
    """The part of a layer that is on the card, without what is cast back. The highest moments have none of it: its peak rows hold."""
    tensors, births = base.tensor_of_event, base.events == ALLOCATE
    stays = ~among(tensors, _cast_back(base))
    return written(base, base.key + FROM_HOST, (tensors[stays], births[stays]), (base.features, widened(base, base.features, 0)), ())


def _cast_back(base: Program) -> set[int]:
    """Tensors with half the bytes of the one made before them, after which they are the last to be made of their layer."""
    sizes, own = base.constants, len(base.names) - base.imports
    return {k for k in range(1, own) if sizes[k] > 0 and sizes[k] * _HALVED == sizes[k - 1] and base.names[k] is None}
