"""The profile that a job sees: its architecture's as recorded, or as its kind of adapter and offloading change it."""

from __future__ import annotations

from estimator.job import Model, Network
from estimator.parameters import DORA, LOKR, WHOLE
from estimator.programs import Profile
from estimator.typed_profile import typed

QUANTISED = ("float8", "qfloat8")  # kinds of weights of a whole model (estimator.whole_quantised)


def profile_of(arch: str, model: Model, network: Network | None = None) -> Profile:
    """Raises CannotTell. Offloading together with another adapter than a LoRA on all layers has no model (the reader says so).

    What rewrites programs is read only where a job needs it: start-up counts.
    """
    if network is not None and network.kind == LOKR:
        from estimator.lokr_profile import lokr

        return lokr(arch)
    if network is not None and network.kind == DORA:
        from estimator.dora_profile import dora

        return dora(arch, network.ignore_if_contains, network.only_if_contains)
    if network is not None and network.kind == WHOLE:
        return _of_whole(arch, model, network)
    if network is not None and network.texted:
        from estimator.texted import texted

        return texted(arch)
    if network is not None and network.conv:
        from estimator.convolved import convolved

        return convolved(arch, model.dtype)
    if network is not None and network.dropout:
        from estimator.dropout_profile import with_dropout

        return with_dropout(arch, network.ignore_if_contains, network.only_if_contains)
    if network is not None and (network.ignore_if_contains or network.only_if_contains):
        from estimator.filtered_profile import filtered

        return filtered(arch, network.ignore_if_contains, network.only_if_contains or None)
    if model.layer_offloading:
        from estimator import offload_profile

        return offload_profile.profile_of(arch, model)
    return typed(arch, model.dtype)


def _of_whole(arch: str, model: Model, network: Network) -> Profile:
    """Of a job that trains the transformer itself, or some of its parameters."""
    if model.weights in QUANTISED:
        from estimator.whole_quantised import quantised

        return quantised(arch, model.weights, network.bypassed)
    if network.ignore_if_contains or network.only_if_contains:
        from estimator.whole_filtered import partly

        return partly(arch, network.ignore_if_contains, network.only_if_contains, network.bypassed)
    from estimator.whole_profile import whole

    return whole(arch, network.bypassed)
