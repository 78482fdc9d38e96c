"""Which architecture a config trains, and the table of architectures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_writer import ADAPTER, FLUX_DEV, TURBO, ZIMAGE, no_answer, process, read, refusal, unmodelled_keys, write

from estimator.archs import ArchTableError, load_archs, read_archs
from estimator.errors import CannotTell, InputError
from estimator.paths import profiles_dir
from estimator.trainers import modelled, read_jobs


def arch_of(tmp_path: Path, override: str | None = None, **model: Any) -> str:
    return read(tmp_path, model=model, arch=override).arch


@pytest.mark.parametrize(
    ("model", "arch"),
    [
        ({"name_or_path": "black-forest-labs/FLUX.1-dev", "arch": "flux"}, "flux1-dev"),
        ({"name_or_path": "black-forest-labs/FLUX.1-dev", "is_flux": True}, "flux1-dev"),
        ({"name_or_path": "black-forest-labs/FLUX.1-schnell", "is_flux": True}, "flux1-schnell"),
        ({"name_or_path": "ostris/Flex.1-alpha", "arch": "flex1"}, "flex1"),
        ({"name_or_path": "ostris/Flex.1-alpha", "is_flux": True}, "flex1"),
        ({"name_or_path": "black-forest-labs/FLUX.1-dev", "arch": "flex1"}, "flux1-dev"),  # flex1 is an alias: the model's name decides
        ({"name_or_path": "/models/my-own", "arch": "flex1"}, "flex1"),
        ({"name_or_path": "C:\\models\\FLUX.1-dev", "arch": "flux"}, "flux1-dev"),
        ({"name_or_path": "someone/flux1-schnell-merge", "arch": "flux"}, "flux1-schnell"),
        ({"name_or_path": "Tongyi-MAI/Z-Image", "arch": "zimage"}, "zimage"),
        ({"name_or_path": "Tongyi-MAI/Z-Image-Turbo", "arch": "zimage:turbo"}, "zimage"),  # no adapter: plain Z-Image to the trainer
        ({"name_or_path": "Tongyi-MAI/Z-Image-Turbo", "arch": "zimage", "assistant_lora_path": ADAPTER}, "zimage-turbo"),
        ({"name_or_path": "ostris/Z-Image-De-Turbo", "arch": "zimage:deturbo"}, "zimage"),
        ({"name_or_path": "/data/z.safetensors", "arch": "zimage"}, "zimage"),
        ({"name_or_path": "lodestones/Chroma1-Radiance", "arch": "chroma_radiance"}, "chroma-radiance"),
        ({"name_or_path": "/data/radiance.safetensors", "arch": "chroma_radiance"}, "chroma-radiance"),
        ({"name_or_path": "black-forest-labs/FLUX.2-dev", "arch": "flux2"}, "flux2-dev"),
        ({"name_or_path": "black-forest-labs/FLUX.2-klein-base-4B", "arch": "flux2_klein_4b"}, "flux2-klein-4b"),
        ({"name_or_path": "/models/klein", "arch": "flux2_klein_9b"}, "flux2-klein-9b"),  # the key alone decides
    ],
)
def test_the_key_and_the_name_tell_the_architecture(tmp_path: Path, model: dict[str, Any], arch: str) -> None:
    assert arch_of(tmp_path, **model) == arch


def test_keyword_arguments_that_an_architecture_reads_are_not_called_ineffective(tmp_path: Path) -> None:
    kwargs = {"match_target_res": False, "do_random_inpainting": True}
    read_ones = {"black-forest-labs/FLUX.2-klein-base-4B": "flux2_klein_4b", "Tongyi-MAI/Z-Image": "zimage"}
    said = {
        arch: next(w for w in read(tmp_path, model={"name_or_path": name, "arch": arch, "model_kwargs": kwargs}).warnings if "kwargs" in w)
        for name, arch in read_ones.items()
    }
    assert "do_random_inpainting" in said["flux2_klein_4b"]
    assert "match_target_res" not in said["flux2_klein_4b"]
    assert "match_target_res" in said["zimage"]


def test_a_guess_from_the_name_is_said(tmp_path: Path) -> None:
    assert any("FLUX.1-dev" in w for w in read(tmp_path, model={"name_or_path": "/m/flux1-dev", "arch": "flux"}).warnings)
    assert not any("because of its name" in w for w in read(tmp_path).warnings)


def test_turbo_without_its_adapter_is_said(tmp_path: Path) -> None:
    job = read(tmp_path, model={key: value for key, value in TURBO.items() if key != "assistant_lora_path"})
    assert any("zimage:turbo" in w and "assistant_lora_path" in w for w in job.warnings)


def local_copy(tmp_path: Path, config: object) -> str:
    folder = tmp_path / "model" / "transformer"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return str(tmp_path / "model")


@pytest.mark.parametrize(
    ("blocks", "guidance", "arch"), [((19, 38), True, "flux1-dev"), ((19, 38), False, "flux1-schnell"), ((8, 38), True, "flex1")]
)
def test_a_local_copy_is_told_by_its_config(tmp_path: Path, blocks: tuple[int, int], guidance: bool, arch: str) -> None:
    config = {"num_layers": blocks[0], "num_single_layers": blocks[1], "guidance_embeds": guidance, "in_channels": 64}
    assert arch_of(tmp_path, name_or_path=local_copy(tmp_path, config), arch="flux") == arch


def test_a_local_copy_of_another_size_cannot_be_told(tmp_path: Path) -> None:
    folder = local_copy(tmp_path, {"num_layers": 5, "num_single_layers": 10, "guidance_embeds": True, "in_channels": 64, "dim": 100})
    for arch in ("flux", "zimage"):
        (problem,) = no_answer(tmp_path, model={"name_or_path": folder, "arch": arch})
        assert folder in problem.what


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, "\udcff"])
def test_a_damaged_local_config_is_no_crash(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "flux1-dev" / "transformer"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert arch_of(tmp_path, name_or_path=str(folder.parent), arch="flux") == "flux1-dev"


def test_an_unknown_flux_cannot_be_told_and_the_remedy_works(tmp_path: Path) -> None:
    model = {"name_or_path": "someone/finetune", "arch": "flux"}
    (problem,) = no_answer(tmp_path, model=model)
    assert "--arch flux1-dev" in problem.fix
    for key in ("flux1-dev", "flux1-schnell", "flex1"):
        assert f"--arch {key}" in problem.fix
        assert arch_of(tmp_path, key, **model) == key


def test_every_other_architecture_of_the_trainer_cannot_be_told_and_is_named(tmp_path: Path) -> None:
    table = load_archs()
    modelled = set(table.modelled())
    others = [key for key, entry in table.trainer.items() if not modelled & set(entry.archs)]
    assert len(others) > 20
    for key in others:
        (problem,) = no_answer(tmp_path, model={"name_or_path": "x", "arch": key})
        assert key in problem.what
        assert table.trainer[key].name in problem.what
        relative = table.nearest(key)
        assert relative is None or relative in problem.fix


@pytest.mark.parametrize(
    ("key", "relative"),
    [("zeta_chroma", "zimage")],
)
def test_relatives(tmp_path: Path, key: str, relative: str | None) -> None:
    (problem,) = no_answer(tmp_path, model={"name_or_path": "x", "arch": key})
    assert relative is None or problem.fix.endswith(f" {relative}")


@pytest.mark.parametrize(("written", "near"), [("zimag", "zimage"), ("flux1", "flux"), ("Z-Image", "zimage"), ("qwen-image", "qwen_image")])
def test_an_unknown_architecture_is_refused_with_the_nearest(tmp_path: Path, written: str, near: str) -> None:
    (problem,) = refusal(tmp_path, model={"name_or_path": "x", "arch": written})
    assert problem.place is not None
    assert problem.place.key == "model.arch"
    assert repr(near) in problem.fix


def test_no_architecture_at_all_is_stable_diffusion_and_the_remedy_says_so(tmp_path: Path) -> None:
    (problem,) = no_answer(tmp_path, model={"name_or_path": "Tongyi-MAI/Z-Image"})
    assert "sd1" in problem.what
    assert "model.arch" in problem.fix


def test_an_override_must_fit(tmp_path: Path) -> None:
    path = write(tmp_path, process())
    for override, error in [("flux9", InputError), ("zimage", InputError), ("mochi", CannotTell)]:
        with pytest.raises(error, match=override):
            read_jobs(path, arch_override=override)
    with pytest.raises(InputError, match="assistant_lora_path"):
        read(tmp_path, model=ZIMAGE, arch="zimage-turbo")


@pytest.mark.parametrize(("written", "name"), [("qwen_image", "Qwen/Qwen-Image"), ("qwen_image:2512", "me/my-own-copy")])
def test_a_key_of_one_architecture_decides_whatever_the_model_is_called(tmp_path: Path, written: str, name: str) -> None:
    job = read(tmp_path, model={"name_or_path": name, "arch": written})
    assert (job.arch, job.trainer_arch) == ("qwen-image", written)


def test_a_recovery_adapter_is_modelled_where_it_was_recorded_and_its_rank_said(tmp_path: Path) -> None:
    """It makes the weights another kind."""
    model = {"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image", "quantize": True, "qtype": "uint3|owner/repository/file.safetensors"}
    job = read(tmp_path, model=model)
    assert (job.model.weights, job.model.te_weights) == ("uint3-recovery", "qfloat8")
    assert unmodelled_keys(job) == set()
    assert any("recovery adapter is assumed to have rank 16" in text for text in job.warnings)
    assert unmodelled_keys(read(tmp_path, model=model | {"qtype": "uint4|owner/repository/other.safetensors"})) == {"model.qtype"}


def test_a_recovery_adapter_that_is_nowhere_is_said(tmp_path: Path) -> None:
    model = {"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image", "quantize": True}
    with pytest.raises(InputError, match="no accuracy recovery adapter behind the bar"):
        read(tmp_path, model=model | {"qtype": "uint3|"})
    said = read(tmp_path, model=model | {"qtype": "uint3|file.safetensors"}).warnings
    assert any("no file here" in text for text in said)
    assert not any("no file here" in text for text in read(tmp_path, model=model | {"qtype": "uint3|owner/repository/file"}).warnings)


def test_a_recovery_adapter_that_was_not_recorded_is_named(tmp_path: Path) -> None:
    wan = {"name_or_path": "Wan-AI/Wan2.1-T2V-14B-Diffusers", "arch": "wan21"}
    model = wan | {"quantize": True, "qtype": "uint4|owner/repository/file.safetensors"}
    assert unmodelled_keys(read(tmp_path, model=model)) >= {"model.qtype"}


@pytest.mark.parametrize("named", [{"qtype": "uint3|a/b/c.safetensors"}, {"accuracy_recovery_adapter": "a/b/c.safetensors"}])
def test_a_recovery_adapter_of_weights_that_are_not_quantised_is_not_loaded(tmp_path: Path, named: dict[str, str]) -> None:
    job = read(tmp_path, model={"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image", "quantize": False} | named)
    assert (job.model.weights, unmodelled_keys(job)) == ("bf16", set())
    assert any("the accuracy recovery adapter is not loaded" in text for text in job.warnings)


def test_schnell_with_its_adapter_is_modelled(tmp_path: Path) -> None:
    model = {
        "name_or_path": "black-forest-labs/FLUX.1-schnell",
        "is_flux": True,
        "assistant_lora_path": "ostris/FLUX.1-schnell-training-adapter",
    }
    job = read(tmp_path, model=model)
    assert job.model.assistant_lora == "ostris/FLUX.1-schnell-training-adapter"
    assert unmodelled_keys(job) == set()


# ---------------------------------------------------------------- the table itself


def test_the_shipped_table_is_sound() -> None:
    table = load_archs()
    flux2 = {"flux2-klein-4b", "flux2-klein-9b"}
    assert set(table.modelled()) >= {"flux1-dev", "flux1-schnell", "flex1", "zimage", "zimage-turbo", "qwen-image"} | flux2
    for arch in table.archs.values():
        assert arch.nearest is None or table.archs[arch.nearest].modelled
        assert not (arch.modelled and arch.nearest)
    for key in table.trained():
        assert any(key in entry.archs for entry in table.trainer.values()), f"{key}: no config can ask for it"


def test_names_tell_the_modelled_flux_models_apart() -> None:
    table = load_archs()
    flux = [table.archs[key] for key in table.trainer["flux"].archs]
    for arch in flux:
        for name in (*arch.hub, *arch.name_contains):
            matching = {other.key for other in flux if any(part in name.lower() for part in other.name_contains)}
            assert matching == {arch.key}, name


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"extra": 1},
        {"archs": {"a": {"name": "A", "nearset": "b"}}},
        {"archs": {"a": {}}},
        {"trainer_archs": {"x": {"name": "X", "archs": ["nothing"]}}},
        {"archs": {"a": {"name": "A", "nearest": "nothing"}}},
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "archs.yaml"
    good = {"schema": 1, "archs": {"a": {"name": "A"}}, "trainer_archs": {"x": {"name": "X", "archs": ["a"]}}}
    path.write_text(yaml.safe_dump(good))
    assert read_archs(path).archs["a"].name == "A"
    path.write_text(yaml.safe_dump({**good, "trainer_archs": {}, **change} if "archs" in change else {**good, **change}))
    with pytest.raises(ArchTableError):
        read_archs(path)


def test_the_table_ships_with_the_profiles() -> None:
    assert (profiles_dir() / "archs.yaml").is_file()


def test_offloading_is_modelled_where_the_table_says_what_it_takes() -> None:
    takes = {key for key, arch in load_archs().archs.items() if arch.layer_offloading not in (None, "nothing")}
    assert takes == modelled.OFFLOADING


UNMOVED = {
    "chroma": {"name_or_path": "lodestones/Chroma1-Base", "arch": "chroma"},
    "chroma-radiance": {"name_or_path": "lodestones/Chroma1-Radiance", "arch": "chroma_radiance"},
    "flux1-kontext": {"name_or_path": "black-forest-labs/FLUX.1-Kontext-dev", "arch": "flux_kontext"},
    "hidream": {"name_or_path": "HiDream-ai/HiDream-I1-Full", "arch": "hidream"},
    "omnigen2": {"name_or_path": "OmniGen2/OmniGen2", "arch": "omnigen2"},
}  # fmt: skip


@pytest.mark.parametrize("arch", UNMOVED)
def test_classes_without_the_memory_manager_move_nothing(tmp_path: Path, arch: str) -> None:
    """Layer offloading turns qfloat8 into float8 there; unquantised weights have previews of their own with it, which are named."""
    offloaded = UNMOVED[arch] | {"layer_offloading": True}
    quantised = read(tmp_path, model=offloaded | {"quantize": True})
    assert (quantised.arch, quantised.model.weights) == (arch, "float8")
    assert any("moves nothing off the card" in warning for warning in quantised.warnings)
    assert not {"layer_offloading", "qtype"} & {one.place.key.rpartition(".")[2] for one in quantised.unmodelled}
    plain = read(tmp_path, model=offloaded)
    assert "layer_offloading" in {one.place.key.rpartition(".")[2] for one in plain.unmodelled}


@pytest.mark.parametrize("value", [None, [1], "match_target_res"])
def test_model_kwargs_are_a_map_where_the_class_looks_into_them(tmp_path: Path, value: object) -> None:
    flux2 = {"name_or_path": "black-forest-labs/FLUX.2-dev", "arch": "flux2", "quantize": True}
    (problem,) = refusal(tmp_path, model=flux2 | {"model_kwargs": value})
    assert problem.place is not None
    assert problem.place.key.endswith("model.model_kwargs")
    assert read(tmp_path, model=FLUX_DEV | {"model_kwargs": value}).arch == "flux1-dev"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("zimage_turbo", "zimage:turbo"), ("z-image-turbo", "zimage:turbo"), ("ZImage", "zimage"), ("zimage-l2p", "zimage_l2p"),
        ("flux1-dev", "flux"), ("HiDream-I1", "hidream"), ("hidream_i1", "hidream"), ("qwen-image-edit-2511", "qwen_image_edit_plus"),
        ("wan21_14b", "wan21:14b"), ("wan22-14b", "wan22_14b"), ("wan22_14b_t2v", "wan22_14b:t2v"), ("chroma-radiance", "chroma_radiance"),
        ("LTX-2.3", "ltx2.3"), ("zimge", "zimage"), ("qwen_imag", "qwen_image"),
    ],
)  # fmt: skip
def test_what_is_no_key_is_answered_with_the_one_that_is_meant(tmp_path: Path, written: str, meant: str) -> None:
    (problem,) = refusal(tmp_path, model={"name_or_path": "/data/model", "arch": written})
    assert problem.fix == f"did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("written", "fix"),
    [
        ("wan2.2", "did you mean 'wan22_14b' or 'wan22_14b_i2v' or 'wan22_5b'?"),  # was: 'wan21'
        ("wan22_i2v", "did you mean 'wan22_14b_i2v'?"),  # was: 'wan21_i2v'
        ("flux2_klein", "did you mean 'flux2_klein_4b' or 'flux2_klein_9b'?"),
        ("klein", "did you mean 'flux2_klein_4b' or 'flux2_klein_9b'?"),
        ("flex", "did you mean 'flex1' or 'flex2'?"),
        ("flux_schnell", "did you mean 'flux'?"),
        ("cogvideo", "a run file with arch: cogvideox-2b or cogvideox-5b (docs/cli.md) has its training steps"),  # was: 'cogview4'
    ],
)
def test_several_that_may_be_meant_are_all_named_and_no_other_version(tmp_path: Path, written: str, fix: str) -> None:
    (problem,) = refusal(tmp_path, model={"name_or_path": "/data/model", "arch": written})
    assert problem.fix == fix


@pytest.mark.parametrize(("arch", "said"), [("chroma", True), ("flux2", True), ("zimage", False)])
def test_a_published_model_of_another_architecture_is_warned_of(tmp_path: Path, arch: str, said: bool) -> None:
    """Was: Chroma's figures for a config that names Z-Image's weights, in silence."""
    warnings = read(tmp_path, model={"name_or_path": "Tongyi-MAI/Z-Image", "arch": arch}).warnings
    assert any("Tongyi-MAI/Z-Image is Z-Image, and model.arch has it loaded as" in warning for warning in warnings) is said


def test_the_nearest_of_several_sizes_is_the_one_that_is_named(tmp_path: Path) -> None:
    (problem,) = no_answer(tmp_path, model={"name_or_path": "stabilityai/stable-diffusion-3-medium-diffusers", "arch": "sd3"})
    assert "arch: sd35-medium " in problem.fix


def test_an_empty_architecture_is_as_none(tmp_path: Path) -> None:
    (problem,) = no_answer(tmp_path, model={"name_or_path": "Tongyi-MAI/Z-Image", "arch": None})
    assert "set model.arch" in problem.fix


def test_every_tag_is_cut_off_as_the_trainer_does() -> None:
    trainer = load_archs().trainer
    assert {value.split(":")[0] for entry in trainer.values() for value in entry.written} == trainer.keys()


@pytest.mark.parametrize(("written", "meant"), [("zimage_turbo", "zimage-turbo"), ("ltx2_3", "ltx2.3"), ("Qwen_Image", "qwen-image")])
def test_an_override_with_other_signs_is_answered_with_ours(tmp_path: Path, written: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, model=ZIMAGE, arch=written)
    assert caught.value.problems[0].fix == f"did you mean {meant}?"
