"""The profile that a job sees: its architecture's as recorded, or as its kind of adapter and offloading change it."""

from __future__ import annotations

from estimator import offload_profile
from estimator.filtered_profile import filtered, filters_of
from estimator.job import Model, Network
from estimator.optimizers import LOKR
from estimator.programs import Profile, load_profile


def profile_of(arch: str, model: Model, network: Network | None = None) -> Profile:
    """Raises CannotTell. Offloading together with another adapter than a LoRA on all layers has no model (the reader says so)."""
    if network is not None and network.kind == LOKR:
        return load_profile(f"{arch}/{LOKR}")
    filters = filters_of(network)
    if filters is not None:
        return filtered(arch, *filters)
    return offload_profile.profile_of(arch, model)
