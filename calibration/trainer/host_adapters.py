"""What adapters compute on the host while the network is made, left out: the card sees none of it."""

from __future__ import annotations

from typing import Any

import torch

from calibration.trainer.patches import note


def factored() -> None:
    """A LoKr makes each layer's whole product once, on the host, to look for nan in it: minutes of arithmetic that no card sees."""
    from toolkit.models import lokr

    real_init, real_kron = lokr.LokrModule.__init__, lokr.make_kron

    def init(self: Any, *a: Any, **k: Any) -> None:
        lokr.make_kron = lambda small, _large, _scale: small
        try:
            real_init(self, *a, **k)
        finally:
            lokr.make_kron = real_kron

    lokr.LokrModule.__init__ = init
    note("LokrModule: the product that it makes on the host to look for nan is left out")


def unnormed() -> None:
    """A DoRA makes the norms of each layer's weight on the host: minutes of arithmetic that no card sees. What is unpacked for it stays."""
    from toolkit.models import DoRA

    module = DoRA.DoRAModule
    real_init, real_weight, real_norm, product = module.__init__, module.get_orig_weight, module._get_weight_norm, torch.Tensor.__matmul__

    def on_host(one: Any, other: Any) -> Any:
        return product(one, other) if one.is_cuda else one.new_zeros(()).expand(one.shape[0], other.shape[-1])

    def first_row(self: Any) -> Any:
        weight = real_weight(self)
        return weight[:1] if type(weight) is torch.Tensor else weight

    def ones(self: Any, weight: Any, update: Any) -> Any:
        return real_norm(self, weight, update) if update.is_cuda else update.new_ones(update.shape[0])

    def init(self: Any, *a: Any, **k: Any) -> None:
        torch.Tensor.__matmul__, module.get_orig_weight, module._get_weight_norm = on_host, first_row, ones
        try:
            real_init(self, *a, **k)
        finally:
            torch.Tensor.__matmul__, module.get_orig_weight, module._get_weight_norm = product, real_weight, real_norm

    module.__init__ = init
    note("DoRAModule: the norms that it makes on the host are ones")
