"""LTX-2.3 beside LTX-2: the same text encoder, previews that are always guided, another transformer and VAE."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.architectures import ARCHITECTURES
from calibration.extract import sounded
from calibration.extract.parts import Occurrence
from estimator.archs import load_archs
from estimator.errors import CannotTell
from estimator.features import feature
from estimator.programs import Profile, load_profile
from tests.test_extract import recorded

TEXT, IMAGE = "text/qfloat8/plain/one", "decode.image/one"


def borrower(shares: str | None) -> Profile:
    data = {"arch": "made", "relative": "ltx2", "parts": {}, "residents": {}, **({"shares": shares} if shares else {})}
    return Profile("made", data, Path("nowhere"))


def test_what_shares_the_text_encoder_alone_borrows_no_part_of_the_vae() -> None:
    assert borrower("text").program(TEXT) is load_profile("ltx2").program(TEXT)
    assert borrower("text").resident("text_encoder0", "qfloat8") == load_profile("ltx2").resident("text_encoder0", "qfloat8")
    for ask in (lambda: borrower("text").program(IMAGE), lambda: borrower("text").resident("vae", "bf16")):
        with pytest.raises(CannotTell):
            ask()
    assert borrower(None).program(IMAGE) is load_profile("ltx2").program(IMAGE)


def test_parts_of_keys_are_told_in_forwards_of_one_prompt_too() -> None:
    """A sum and a result of each part, one behind the other, of sound that looks at pictures; what is as large elsewhere is left."""
    values = {"T": 1000, "A": 1000, "O": 25, "F": 1, "E": 60, "B": 2}
    sizes = {batch: 32 * 4 * feature("B*O*narrow32_O_T", values | {"B": batch}) for batch in (2, 1)}
    assert len({*sizes.values(), 0}) == 3
    events = [("a", "blocks.0.video_to_audio_attn|forward#rotated", 64 * sizes[1])]
    for batch, size in sizes.items():
        label = f"blocks.{batch}.video_to_audio_attn|forward"
        events += [("a", f"{label}#sums", size), ("a", f"{label}#results", 64 * size)]
    run = recorded(events)
    sounded._tell_parts_of_keys(Occurrence(run, "preview", list(range(len(events))), values))
    assert [tensor.label.endswith("partial results") for tensor in run.tensors] == [False, True, True, True, True]


def test_calibration_and_the_table_say_the_same_of_guidance() -> None:
    for key, family in ARCHITECTURES.items():
        arch = load_archs().archs.get(key)
        if arch is not None:
            assert family.layout.always_guided == arch.always_guided, key
