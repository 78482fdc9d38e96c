"""The profile of a job in another compute type than bf16 (train.dtype).

In fp16 all is as large as in bf16, and most programs are the architecture's own. Where a class does something else in fp16, that was
recorded, and lies beside the architecture's profile (FLUX.1 and Qwen-Image clip what their blocks put out, and the clip keeps what goes
into it; T5 clamps). In fp32 everything was recorded anew. There, as everywhere, "bf16" names the kind of unquantised weights.
Source: diffusers 0.39, transformer_flux.py and transformer_qwenimage.py (clip of fp16), transformers 5.5, modeling_t5.py (T5Block.forward);
ostris/ai-toolkit 27a03a91, toolkit/pipelines.py (upcast_vae).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from estimator.archs import load_archs
from estimator.dtypes import FP16, FP32, RECORDED
from estimator.errors import CannotTell, Problem
from estimator.programs import Profile, load_profile
from estimator.recorded_beside import BesideProfile, recorded_beside

OTHERWISE = "choose train.dtype: bf16"
DECODES = "decode/plain"  # a part that a VAE in fp32 makes, where a pipeline brings it to fp32 for that


@dataclass(frozen=True)
class FullProfile(BesideProfile):
    """Recorded in fp32: what a relative lends is in fp32 too."""

    @cached_property
    def relative(self) -> Profile | None:
        base = load_profile(self.arch).relative
        try:
            return None if base is None else typed(base.arch, FP32)
        except CannotTell:
            return None

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class DecodedInFull(Profile):
    """An architecture's own programs, but for previews, which a VAE in fp32 decodes."""

    def _recorded_by(self, key: str, arch: str = "") -> Profile | None:
        return typed(self.arch, FP32)._recorded_by(key, arch) if key == DECODES else super()._recorded_by(key, arch)

    def __hash__(self) -> int:
        return id(self)


@cache
def typed(arch: str, dtype: str) -> Profile:
    """The profile of an architecture in a compute type. Raises CannotTell where it has none."""
    base = load_profile(arch)
    if dtype == RECORDED:
        return base
    if dtype == FP32:
        return recorded_beside(FullProfile, arch, FP32, Problem(f"{arch} in {dtype} was never recorded", None, "", OTHERWISE))
    if dtype == FP16 and load_archs().archs[arch].decodes_in_fp32:
        return DecodedInFull(arch, base.data, base.folder)
    if dtype == FP16 and (base.folder / FP16).exists():
        return recorded_beside(BesideProfile, arch, FP16, Problem(f"{arch} in {dtype} was never recorded", None, "", OTHERWISE))
    return base
