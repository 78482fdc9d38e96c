"""LTX-2.5 beside LTX-2.3: files that come in int8 (ConvRot) whatever the config says, another text encoder, the same VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.architectures import ARCHITECTURES, ltx25
from calibration.probes import config
from estimator.archs import load_archs
from estimator.configfile import ConfigFile
from estimator.engine import estimate_job
from estimator.errors import CannotTell
from estimator.features import feature
from estimator.gpus import find_gpu
from estimator.kernels import lacks_triton
from estimator.programs import Profile, load_profile
from estimator.trainers import read_jobs
from estimator.trainers.prequantised import given_weights
from estimator.trainers.section import Findings, Section

MODEL = {"name_or_path": "Lightricks/LTX-2.5", "arch": "ltx2.5"}
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "ltx25_ui.yaml"
TEXT, IMAGE = "text/qfloat8/plain/one", "decode.image/one"


def said_of(given: dict[str, Any]) -> tuple[tuple[str, str] | None, set[str], set[str]]:
    """Kinds of weights, keys of which it is warned that they have no effect, and what is not modelled."""
    found = Findings(ConfigFile("x.yaml", {}, {}))
    kinds = given_weights(Section(found, (), MODEL | given), load_archs().archs["ltx2.5"])
    warned = {text.split(":")[0] for text in found.warnings if "comes in convrot8" in text}
    return kinds, warned, {one.place.key for one in found.unmodelled}


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ({}, set()), ({"quantize": True, "qtype": "convrot8", "quantize_te": True, "qtype_te": "convrot8"}, set()),
        ({"quantize": False, "quantize_te": False}, {"quantize", "quantize_te"}),
        ({"quantize": True, "qtype": "uint4", "quantize_te": True, "qtype_te": "qfloat8"}, {"qtype", "qtype_te"}),
    ],
)  # fmt: skip
def test_weights_are_as_the_files_have_them(given: dict[str, Any], warned: set[str]) -> None:
    """LTX25Model.load_model skips quantising where layers came quantised, and attaches those whatever model.quantize says."""
    assert said_of(given) == (("convrot8", "convrot8"), warned, set())
    assert given_weights(Section(Findings(ConfigFile("x.yaml", {}, {})), (), given), load_archs().archs["ltx2.3"]) is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"name_or_path": "Lightricks/LTX-2.5/diffusion_models/other.safetensors"}, "name_or_path"),
        ({"te_name_or_path": "/weights/gemma4.safetensors"}, "te_name_or_path"),
        ({"model_kwargs": {"dit_path": "/weights/dit.safetensors"}}, "model_kwargs"),
        ({"model_kwargs": {}}, None), ({"model_kwargs": [1]}, None),
    ],
)  # fmt: skip
def test_other_files_are_named(given: dict[str, Any], named: str | None) -> None:
    assert said_of(given)[2] == ({named} if named else set())


def test_on_windows_it_is_refused_for_want_of_triton() -> None:
    """Torch brings Triton on Linux alone, and the trainer's int8 layers make other tensors without."""
    (job,) = read_jobs(EXAMPLE)
    with pytest.raises(CannotTell, match="Triton"):
        estimate_job(job, find_gpu("RTX5090", "windows"), fast=True)
    assert estimate_job(job, find_gpu("RTX5090", "linux"), fast=True).phases
    assert lacks_triton(job, find_gpu("RTX5090", "windows"))
    (other,) = read_jobs(EXAMPLE.with_name("ltx23_ui.yaml"))
    assert not lacks_triton(other, find_gpu("RTX5090", "windows"))


def test_what_has_another_text_encoder_borrows_the_vae_alone() -> None:
    data = {"arch": "made", "relative": "ltx2", "shares": "vae", "parts": {}, "residents": {}}
    borrower = Profile("made", data, Path("nowhere"))
    assert borrower.program(IMAGE) is load_profile("ltx2").program(IMAGE)
    assert borrower.resident("vae", "bf16") == load_profile("ltx2").resident("vae", "bf16")
    for ask in (lambda: borrower.program(TEXT), lambda: borrower.resident("text_encoder0", "qfloat8")):
        with pytest.raises(CannotTell):
            ask()


@pytest.mark.parametrize(("samples", "tokens", "rows"), [(1, 1, 32), (1, 684, 704), (3, 33, 128), (2, 1024, 2048)])
def test_rows_of_an_int8_product_are_padded_for_all_samples_together(samples: int, tokens: int, rows: int) -> None:
    assert feature("rows32_T", {"B": samples, "T": tokens}) == rows
    assert feature("rows32_T", {"B": np.array([samples]), "T": np.array([tokens])}).tolist() == [rows]


@pytest.mark.parametrize(
    ("layer", "is_int8"),
    [
        ("transformer_blocks.0.attn1.to_q", True), ("transformer_blocks.47.audio_ff.net.0.proj", True),
        ("video_connector.transformer_blocks.7.ff.net.2", True), ("transformer_blocks.3.attn2.to_gate_logits", False),
        ("proj_in", False), ("time_embed.linear", False), ("video_text_proj_in", False),
    ],
)  # fmt: skip
def test_layers_of_blocks_are_quantised_but_for_the_gates(layer: str, is_int8: bool) -> None:
    assert ltx25.in_blocks(layer) == is_int8


def test_probe_jobs_ask_for_what_the_files_are(tmp_path: Path) -> None:
    model = config("ltx2.5", ltx25.QUANTISED, 1, tmp_path)["config"]["process"][0]["model"]
    assert (model["qtype"], model["qtype_te"], model["low_vram"]) == ("convrot8", "convrot8", True)
    assert load_archs().archs["ltx2.5"].prequantised == ltx25.QUANTISED
    assert ARCHITECTURES["ltx2.5"].shares == "vae"
