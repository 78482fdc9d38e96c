"""RAM that a job needs: which moment is the highest, what counts there, and the warning."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from made_jobs import ROOT

from estimator.cli import main
from estimator.gpus import GIB
from estimator.host import PROCESS_BYTES, host_memory, latent_bytes, warning
from estimator.job import Bucket, Job
from estimator.programs import load_profile
from estimator.trainers import read_jobs

CONFIG = ROOT / "examples" / "zimage_base_ui.yaml"


def zimage(**model: object) -> Job:
    (job,) = read_jobs(CONFIG)
    return replace(job, model=replace(job.model, **model))  # type: ignore[arg-type]


def weights(component: str, kind: str) -> int:
    return sum(load_profile("zimage").resident(component, kind))


def test_unquantised_weights_are_read_one_component_after_the_other() -> None:
    """The transformer goes to the card before the text encoder is read: the larger of the two."""
    host = host_memory(zimage(weights="bf16", te_weights="bf16", low_vram=False))
    assert host is not None
    assert host.total_bytes == PROCESS_BYTES + weights("transformer", "bf16")
    assert host.moment == "loading the transformer"


def test_offloaded_layers_stay_while_the_text_encoder_is_read() -> None:
    job = zimage(weights="bf16", te_weights="bf16", low_vram=False, layer_offloading=True)
    host = host_memory(job)
    assert host is not None
    assert host.moment == "loading the text encoder"
    assert host.components["text_encoder"] == weights("text_encoder0", "bf16")
    assert weights("transformer", "bf16") * 0.99 < host.components["transformer"] < weights("transformer", "bf16")


def test_latents_count_where_they_are_kept_in_memory() -> None:
    """16 channels of 2 bytes for 8 x 8 pixels."""
    job = zimage()
    dataset = replace(job.datasets[0], buckets=(Bucket(1024, 512, count=10),), cache_latents=True, cache_latents_to_disk=False)
    assert latent_bytes(replace(job, datasets=(dataset,))) == 10 * 16 * 2 * (1024 // 8) * (512 // 8)
    assert latent_bytes(replace(job, datasets=(replace(dataset, cache_latents=False, cache_latents_to_disk=True),))) == 0


def test_latents_are_kept_in_the_compute_type() -> None:
    """Was: two bytes a value in fp32 too."""
    base = zimage()
    dataset = replace(base.datasets[0], buckets=(Bucket(1024, 512, count=10),), cache_latents=True)
    narrow, wide = (replace(base, datasets=(dataset,), model=replace(base.model, dtype=dtype)) for dtype in ("bf16", "fp32"))
    assert latent_bytes(wide) == 2 * latent_bytes(narrow) > 0


def test_latents_of_clips_are_as_long_and_wide_as_their_vae_makes_them() -> None:
    """LTX-2: 128 channels of 2 bytes for 32 x 32 pixels and 8 frames behind the first; Wan 2.2 5B: 48 for 16 x 16 pixels and 4."""
    for name, expected in (("ltx2_ui", 256 * (512 // 32) ** 2 * 7), ("wan22_5b_ui", 96 * (512 // 16) ** 2 * 13)):
        (job,) = read_jobs(ROOT / "examples" / f"{name}.yaml")
        dataset = replace(job.datasets[0], buckets=(Bucket(512, 512, 49, count=3),), cache_latents=True)
        assert latent_bytes(replace(job, datasets=(dataset,))) == 3 * expected


OF_PIXELS = {"sdxl_ui": 4 / 64, "sd15_ui": 4 / 64, "zimage_l2p_ui": 3, "chroma_radiance_24gb": 3}  # values of a latent for each


@pytest.mark.parametrize("name", OF_PIXELS)
def test_latents_of_unets_have_four_channels_and_those_on_pixels_are_the_picture(name: str) -> None:
    (job,) = read_jobs(ROOT / "examples" / f"{name}.yaml")
    dataset = replace(job.datasets[0], buckets=(Bucket(512, 512, count=3),), cache_latents=True)
    assert latent_bytes(replace(job, datasets=(dataset,))) == 3 * 2 * 512 * 512 * OF_PIXELS[name]


@pytest.mark.parametrize("resident", [("transformer",), ("transformer", "text_encoder")])
def test_a_run_file_loads_what_is_resident_one_after_the_other_and_caches_nothing(resident: tuple[str, ...]) -> None:
    """CogVideoX 5B: its transformer is the larger one, so that the text encoder makes no difference."""
    (job,) = read_jobs(ROOT / "examples" / "runs" / "cogvideox_5b_lora.yaml")
    host = host_memory(replace(job, resident=resident))
    assert host is not None
    assert host.components == {"process": PROCESS_BYTES, "transformer": sum(load_profile("cogvideox-5b").resident("transformer", "bf16"))}


def test_latents_on_disk_and_in_memory_count_once() -> None:
    """With both switches on the trainer writes them to disk and keeps them."""
    job = zimage()
    memory = replace(job.datasets[0], buckets=(Bucket(1024, 512, count=10),), cache_latents=True, cache_latents_to_disk=False)
    both = replace(memory, cache_latents_to_disk=True)
    assert latent_bytes(replace(job, datasets=(both,))) == latent_bytes(replace(job, datasets=(memory,))) > 0


def test_text_cached_by_its_datasets_is_cached() -> None:
    """The switch may stand in each dataset instead of below train."""
    job = zimage(weights="bf16", te_weights="bf16", low_vram=False, layer_offloading=True)
    by_train = replace(job, train=replace(job.train, cache_text_embeddings=True))
    by_dataset = replace(job, datasets=tuple(replace(each, cache_text_embeddings=True) for each in job.datasets))
    assert host_memory(by_dataset) == host_memory(by_train) != host_memory(job)


@pytest.mark.parametrize(("ram", "enough"), [("16GiB", False), ("64GiB", True)])
def test_a_machine_that_is_too_small_is_told(ram: str, enough: bool, capsys: pytest.CaptureFixture[str]) -> None:
    offload = ["--set", "model.layer_offloading=true", "--set", "model.quantize=false", "--set", "model.quantize_te=false"]
    main([str(CONFIG), "--gpu", "RTX4090", "--ram", ram, "--json", *offload])
    document = json.loads(capsys.readouterr().out)
    assert document["host"]["enough"] is enough
    assert document["host"]["ram_bytes"] == int(ram.removesuffix("GiB")) * GIB
    assert document["host"]["bytes"] == sum(document["host"]["components"].values())
    assert any("GiB of RAM" in each for each in document["warnings"]) is not enough


def test_without_ram_nothing_is_judged() -> None:
    host = host_memory(zimage())
    assert host is not None
    assert (host.enough, warning(host, None), warning(None, None)) == (None, None, None)


def test_where_nothing_is_known_of_ram_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    main([str(ROOT / "examples" / "ltx25_ui.yaml"), "--gpu", "RTX4090", "--fast", "--ram", "8GiB", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["host"] is None
    assert any("not known" in each for each in document["warnings"])


def test_ram_without_a_unit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CONFIG), "--gpu", "RTX4090", "--ram", "lots"]) == 2
    assert "--ram lots" in capsys.readouterr().err
