"""Versions that a run file may say: of diffusers, whose class of a model may be another one, and of torch, whose allocator may."""

from __future__ import annotations

import re

from estimator.archs import Arch
from estimator.trainers.section import Section, shown

_VERSION = re.compile(r"\d{1,3}\.\d{1,3}(\.\d{1,3})?(\+\w{1,20})?")


def torch(run: Section) -> str:
    """torch's version; "": the recorded one. See estimator.allocator_state, ties_by_address."""
    version = run.values.get("torch")
    if version is None:
        return ""
    if not isinstance(version, str) or _VERSION.fullmatch(version) is None:
        run.found.problem(run.at("torch"), f"expected a version, got {shown(version)}", fix='write it in quotes, such as torch: "2.9.1"')
        return ""
    return version


def older_diffusers(run: Section, arch: Arch | None) -> str:
    """The version of diffusers whose class the transformer is, where that is none that the profile is of."""
    version = run.values.get("diffusers")
    if version is None:
        return ""
    if arch is None or version not in arch.older_diffusers:
        known = ", ".join(arch.older_diffusers) if arch and arch.older_diffusers else "none"
        run.found.not_modelled(run.at("diffusers"), shown(version), f"the class of another version than was recorded (besides: {known})")
        return ""
    return str(version)
