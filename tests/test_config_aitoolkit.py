"""AI Toolkit's configs as the trainer reads them: defaults, aliases, coercions, traps. The expected values are the trainer's own.

They were compared with what its classes (toolkit/config_modules.py, 27a03a91) make of 3,400 random configs: no difference.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_writer import ADAPTER, FLUX_DEV, TURBO, ZIMAGE, process, read, refusal, train, unmodelled_keys, write

from estimator.errors import CannotTell, InputError
from estimator.job import Network, Sample
from estimator.trainers import read_jobs

CONFIGS = Path(__file__).parent / "data" / "configs"


# ---------------------------------------------------------------- whole files


def test_the_24_gb_flux_example() -> None:
    (job,) = read_jobs(CONFIGS / "flux_dev_24gb.yaml")
    assert (job.name, job.trainer, job.arch, job.trainer_arch, job.method) == ("corgi_flux", "ai-toolkit", "flux1-dev", "flux", "lora")
    assert (job.model.dtype, job.model.weights, job.model.te_weights, job.model.low_vram) == ("bf16", "qfloat8", "qfloat8", False)
    assert job.network == Network(kind="lora", rank=16)
    assert (job.train.optimizer, job.train.ema, job.train.gradient_checkpointing, job.train.batch_size) == ("adamw8bit", True, True, 1)
    assert [(d.resolution, d.buckets[0].width, d.buckets[0].height) for d in job.datasets] == [
        (512, 512, 512),
        (768, 768, 768),
        (1024, 1024, 1024),
    ]
    assert all(d.cache_latents_to_disk and not d.cache_latents and not d.cache_text_embeddings and not d.scanned for d in job.datasets)
    assert all(d.text_tokens == 512 for d in job.datasets)
    assert job.samples == (Sample(1024, 1024, cfg=4.0, text_tokens=512, negative_tokens=512),) * 3
    assert (job.sample_every, job.save_every) == (250, 250)
    assert job.unmodelled == ()


def test_the_web_uis_zimage_turbo() -> None:
    (job,) = read_jobs(CONFIGS / "zimage_turbo_ui.yaml")
    assert (job.arch, job.trainer_arch) == ("zimage-turbo", "zimage:turbo")
    assert (job.model.weights, job.model.te_weights, job.model.low_vram, job.model.assistant_lora) == ("float8", "qfloat8", True, ADAPTER)
    assert job.network is not None
    assert job.network.rank == 32
    assert job.train.ema is False
    assert [d.text_tokens for d in job.datasets] == [None] * 3  # the folder is not here: captions unknown
    assert [s.batch for s in job.samples] == [1, 1]
    assert job.unmodelled == ()
    assert len(job.warnings) == 1  # the absent folder, and nothing else: the UI's keys are all known
    assert "512 tokens" in job.warnings[0]


@pytest.mark.parametrize(("device", "heard"), [("cuda", True), ("cuda:0", True), ("cuda:1", False), ("mps", False), ("cpu", False)])
def test_the_trainer_asks_accelerate_for_the_card(tmp_path: Path, device: object, heard: bool) -> None:
    """Was: silence, whatever device was written."""
    warnings = read(tmp_path, f"device={device}").warnings
    assert any("has no effect: the trainer takes the first card" in warning for warning in warnings) is not heard


@pytest.mark.parametrize("qtype", ["int8", "qint2", "orbit3", "uint8"])
def test_another_quantisation_names_those_that_are_known(tmp_path: Path, qtype: str) -> None:
    job = read(tmp_path, "model.quantize=true", f"model.qtype={qtype}", "model.quantize_te=false")
    assert any("known: " in each.why and "float8, nvfp4, qfloat8" in each.why for each in job.unmodelled)


def test_two_processes_make_two_jobs(tmp_path: Path) -> None:
    path = write(tmp_path, process(), process(model=ZIMAGE, name="second"))
    jobs = read_jobs(path)
    assert [(job.name, job.arch) for job in jobs] == [("test", "flux1-dev"), ("second", "zimage")]


def test_problems_of_all_processes_come_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, process(train=train(batch_size=0)), process(train=train(optimizer="adamz")))
    with pytest.raises(InputError) as caught:
        read_jobs(path)
    assert [p.place.key for p in caught.value.problems if p.place] == ["train.batch_size", "config.process.1.train.optimizer"]


def test_yaml_and_json_of_the_same_config_are_the_same_job(tmp_path: Path) -> None:
    import yaml

    path = write(tmp_path, process(), name="a.json")
    other = tmp_path / "a.yaml"
    other.write_text(yaml.safe_dump(json.loads(path.read_text())))
    (one,), (two,) = read_jobs(path), read_jobs(other)
    assert (one.model, one.network, one.train, one.datasets, one.samples) == (two.model, two.network, two.train, two.datasets, two.samples)


def test_the_name_stands_for_its_tag(tmp_path: Path) -> None:
    job = read(tmp_path, datasets=[{"folder_path": "/nowhere/[name]"}])
    assert job.datasets[0].folder == "/nowhere/test"


# ---------------------------------------------------------------- dtype and quantisation


def test_a_missing_dtype_is_fp32_and_named_with_its_remedy(tmp_path: Path) -> None:
    job = read(tmp_path, train={"noise_scheduler": "flowmatch"})
    assert (job.model.dtype, job.model.weights) == ("fp32", "fp32")
    (entry,) = job.unmodelled
    assert entry.place.key == "train.dtype"
    assert "train.dtype: bf16" in entry.why


@pytest.mark.parametrize(("written", "short"), [("bfloat16", "bf16"), ("bf16", "bf16"), ("half", "fp16"), ("float", "fp32")])
def test_dtypes_have_aliases(tmp_path: Path, written: str, short: str) -> None:
    assert read(tmp_path, train=train(dtype=written)).model.dtype == short


@pytest.mark.parametrize(
    ("base", "settings", "weights", "te_weights"),
    [
        (FLUX_DEV, {}, "bf16", "bf16"),
        (FLUX_DEV, {"quantize": True}, "qfloat8", "qfloat8"),  # quantize_te follows quantize
        (FLUX_DEV, {"quantize": True, "quantize_te": False}, "qfloat8", "bf16"),
        (FLUX_DEV, {"quantize_te": True}, "bf16", "qfloat8"),
        (FLUX_DEV, {"quantize": True, "qtype": "uint4", "qtype_te": "float8"}, "uint4", "uint4"),  # T5 takes model.qtype
        (FLUX_DEV, {"quantize": True, "layer_offloading": True}, "float8", "float8"),
        (FLUX_DEV, {"quantize": True, "auto_memory": True}, "float8", "float8"),
        (FLUX_DEV, {"quantize": True, "auto_memory": True, "layer_offloading": False}, "qfloat8", "qfloat8"),
        (ZIMAGE, {"quantize": True, "qtype": "uint4", "qtype_te": "float8"}, "uint4", "float8"),
        (ZIMAGE, {"quantize": True}, "qfloat8", "qfloat8"),
        (TURBO, {"quantize": True}, "float8", "qfloat8"),  # the training adapter turns qfloat8 into float8
        (TURBO, {"quantize": True, "qtype": "uint4"}, "uint4", "qfloat8"),
        (TURBO, {}, "bf16", "bf16"),
        (FLUX_DEV, {"quantize": "false"}, "qfloat8", "qfloat8"),  # a text is true
        (FLUX_DEV, {"quantize": None, "qtype": ""}, "bf16", "bf16"),  # what the web UI writes for "none"
    ],
)
def test_what_the_weights_are_after_loading(
    tmp_path: Path, base: dict[str, Any], settings: dict[str, Any], weights: str, te_weights: str
) -> None:
    job = read(tmp_path, model=base | settings)
    assert (job.model.weights, job.model.te_weights) == (weights, te_weights)


def test_a_text_encoder_type_without_effect_is_warned_of(tmp_path: Path) -> None:
    job = read(tmp_path, model=FLUX_DEV | {"quantize": True, "qtype": "uint4", "qtype_te": "float8"})
    assert any("model.qtype_te" in w and "no effect" in w for w in job.warnings)


def test_the_flex_examples_unquantised_embedder(tmp_path: Path) -> None:
    model = {
        "name_or_path": "ostris/Flex.1-alpha",
        "is_flux": True,
        "quantize": True,
        "quantize_kwargs": {"exclude": ["*time_text_embed*"]},
    }
    job = read(tmp_path, model=model)
    assert job.arch == "flex1"
    assert job.model.quantize_exclude == ("*time_text_embed*",)
    assert job.unmodelled == ()


def test_other_unquantised_modules_are_not_modelled(tmp_path: Path) -> None:
    model = FLUX_DEV | {"quantize": True, "quantize_kwargs": {"exclude": ["*ff*"]}}
    assert unmodelled_keys(read(tmp_path, model=model)) == {"model.quantize_kwargs.exclude"}


# ---------------------------------------------------------------- training settings


@pytest.mark.parametrize(
    ("ema", "on"),
    [
        ({"use_ema": True}, True),
        ({"use_ema": False}, False),
        ({"ema_decay": 0.99}, False),
        ({}, False),
        (None, False),
        ({"use_ema": "false"}, True),
    ],
)
def test_ema_is_on_only_if_its_section_says_so(tmp_path: Path, ema: object, on: bool) -> None:
    assert read(tmp_path, train=train(ema_config=ema)).train.ema is on


def test_empty_means_off_even_where_the_default_is_on(tmp_path: Path) -> None:
    job = read(tmp_path, train=train(gradient_checkpointing=None))
    assert job.train.gradient_checkpointing is False
    assert any("gradient_checkpointing" in w for w in job.warnings)


def test_the_text_false_is_true_and_warned_of(tmp_path: Path) -> None:
    job = read(tmp_path, train=train(disable_sampling="false"))
    assert job.train.disable_sampling is True
    assert any("disable_sampling" in w and "quotes" in w for w in job.warnings)


@pytest.mark.parametrize(
    ("written", "name"),
    [("AdamW8bit", "adamw8bit"), ("prodigyopt", "prodigy"), ("Prodigy8bit_x", "prodigy8bit"), ("automagic", "automagic")],
)
def test_optimizers_have_aliases(tmp_path: Path, written: str, name: str) -> None:
    assert read(tmp_path, train=train(optimizer=written)).train.optimizer == name


@pytest.mark.parametrize(
    ("network", "rank"),
    [({}, 4), ({"linear": 32}, 32), ({"rank": 8, "linear": 32}, 8), ({"linear": None}, 4), ({"rank": None, "linear": 16}, 16)],
)
def test_the_rank_of_a_lora(tmp_path: Path, network: dict[str, Any], rank: int) -> None:
    job = read(tmp_path, network=network)
    assert job.network is not None
    assert (job.network.kind, job.network.rank) == ("lora", rank)


def test_without_a_network_section_the_whole_model_is_trained(tmp_path: Path) -> None:
    for network in (..., None):
        job = read(tmp_path, network=network)
        assert job.network is not None
        assert (job.method, job.network.kind) == ("full", "whole")


def test_starting_late_skips_the_baseline_previews(tmp_path: Path) -> None:
    assert read(tmp_path, train=train(start_step=500)).train.skip_first_sample is True
    assert read(tmp_path, train=train(start_step=500, force_first_sample=True)).train.skip_first_sample is False
    assert read(tmp_path, train=train(start_step=1)).train.skip_first_sample is False


# ---------------------------------------------------------------- previews


def previews(tmp_path: Path, model: dict[str, Any] = FLUX_DEV, **sample: Any) -> list[tuple[int, int, float, int]]:
    return [(s.width, s.height, s.cfg, s.batch) for s in read(tmp_path, model=model, sample=sample).samples]


def test_previews_have_the_trainers_defaults(tmp_path: Path) -> None:
    assert previews(tmp_path, prompts=["a"]) == [(512, 512, 7.0, 1)]
    job = read(tmp_path, sample={"prompts": ["a"]}, save={})
    assert (job.sample_every, job.save_every) == (100, 1000)


def test_entries_win_over_the_section_and_flags_over_both(tmp_path: Path) -> None:
    samples = [{"prompt": "a", "width": 640}, {"prompt": "b --w 704 --h 320 --cfg 2 --s 9 --foo x", "width": 640}, {"prompt": "c"}]
    found = previews(tmp_path, width=1024, height=768, guidance_scale=3, samples=samples)
    assert found == [(640, 768, 3.0, 1), (704, 320, 2.0, 1), (1024, 768, 3.0, 1)]


def test_samples_win_over_prompts(tmp_path: Path) -> None:
    assert len(previews(tmp_path, prompts=["a", "b"], samples=[{"prompt": "c"}])) == 1


@pytest.mark.parametrize(("asked", "made"), [(1024, 1024), (1000, 992), (1337, 1328), (60, 64), (1, 64), (1024.0, 1024), (72, 64)])
def test_sizes_are_rounded_as_the_pipelines_do(tmp_path: Path, asked: float, made: int) -> None:
    for model in (FLUX_DEV, ZIMAGE):
        assert previews(tmp_path, model, width=asked, height=asked, prompts=["a"])[0][:2] == (made, made)


def test_guidance_doubles_the_batch_of_zimage_alone(tmp_path: Path) -> None:
    assert previews(tmp_path, ZIMAGE, guidance_scale=4, prompts=["a"])[0][3] == 2
    assert previews(tmp_path, ZIMAGE, guidance_scale=1, prompts=["a"])[0][3] == 1
    assert previews(tmp_path, FLUX_DEV, guidance_scale=4, prompts=["a"])[0][3] == 1


def test_text_lengths_of_prompts(tmp_path: Path) -> None:
    prompts = ["a red fox", "a red fox in fresh snow at the edge of a forest --n blurry", "[trigger] x"]
    short, long, trigger = read(
        tmp_path, model=ZIMAGE, sample={"prompts": prompts, "guidance_scale": 4}, trigger_word="one two three four"
    ).samples
    assert short.text_tokens is not None
    assert long.text_tokens is not None
    assert trigger.text_tokens is not None
    assert short.text_tokens < long.text_tokens < 40
    assert trigger.text_tokens > short.text_tokens
    assert short.negative_tokens is not None
    assert long.negative_tokens is not None
    assert long.negative_tokens > short.negative_tokens
    flux = read(tmp_path, sample={"prompts": prompts}).samples
    assert {s.text_tokens for s in flux} == {512}  # padded, whatever is written


def test_entries_without_a_prompt_are_left_out_but_sizes_go_by_position(tmp_path: Path) -> None:
    samples = [{"prompt": None, "width": 640}, {"prompt": "b", "width": 704}]
    assert previews(tmp_path, samples=samples) == [(640, 512, 7.0, 1)]


def test_no_sample_section_means_no_previews(tmp_path: Path) -> None:
    assert read(tmp_path).samples == ()


# ---------------------------------------------------------------- settings of a dataset entry


def test_how_often_may_be_a_decimal_number(tmp_path: Path) -> None:
    """The trainer takes the remainder of a division by it, which it does with 250.0 as well."""
    job = read(tmp_path, sample={"prompts": ["a"], "sample_every": 250.0}, save={"save_every": 500.0})
    assert (job.sample_every, job.save_every) == (250, 500)


@pytest.mark.parametrize(("share", "warned"), [(0.7, False), (1.0, False), (70, True)])
def test_a_percentage_of_offloading_is_a_share(tmp_path: Path, share: float, warned: bool) -> None:
    job = read(tmp_path, model={**ZIMAGE, "layer_offloading": True, "layer_offloading_transformer_percent": share})
    assert any("a share is wanted" in text for text in job.warnings) == warned


def test_resolutions_make_a_dataset_each(tmp_path: Path) -> None:
    job = read(
        tmp_path,
        datasets=[{"folder_path": "/nowhere", "resolution": [512, 1024]}, {"folder_path": "/nowhere", "batch_size": 4}],
        train=train(batch_size=2),
    )
    assert [(d.resolution, d.batch_size) for d in job.datasets] == [(512, 2), (1024, 2), (512, 4)]


def test_caching_text_for_training_caches_it_in_every_dataset(tmp_path: Path) -> None:
    job = read(tmp_path, train=train(cache_text_embeddings=True), datasets=[{"folder_path": "/a"}, {"folder_path": "/b"}])
    assert [d.cache_text_embeddings for d in job.datasets] == [True, True]


def test_augmentations_switch_latent_caching_off(tmp_path: Path) -> None:
    job = read(tmp_path, datasets=[{"folder_path": "/a", "cache_latents_to_disk": True, "augments": ["ColorJitter"]}])
    assert job.datasets[0].cache_latents_to_disk is False
    assert any("augmentations" in w for w in job.warnings)


# ---------------------------------------------------------------- nothing is silently ignored


def test_unknown_keys_are_warned_of_with_the_nearest(tmp_path: Path) -> None:
    job = read(
        tmp_path,
        train=train(gradient_checkpoint=True),
        model=FLUX_DEV | {"quantise": True},
        datasets=[{"folder_path": "/nowhere", "resolutions": [512]}],
        sample={"widht": 512, "samples": [{"prompt": "a", "heigth": 3}]},
        sampel={},
    )
    expected = {
        "train.gradient_checkpoint": "gradient_checkpointing", "model.quantise": "quantize", "datasets.0.resolutions": "resolution",
        "sample.widht": "width", "sample.samples.0.heigth": "height", "sampel": "sample",
    }  # fmt: skip
    for key, near in expected.items():
        assert any(w.startswith(f"{key} ") and f"did you mean {near!r}" in w for w in job.warnings), key


def test_a_key_in_the_wrong_section_is_told_where_it_belongs(tmp_path: Path) -> None:
    """A batch size beside `train:` is no typing error: the trainer trains with 1."""
    job = read(tmp_path, batch_size=8, model=FLUX_DEV | {"gradient_checkpointing": False}, train=train(quantize=True))
    assert job.train.batch_size == 1
    for key, section in (("batch_size", "train"), ("model.gradient_checkpointing", "train"), ("train.quantize", "model")):
        assert any(w.startswith(f"{key} ") and f"belongs below {section}" in w for w in job.warnings), key


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        ("train", {"train_text_encoder": True}),
        ("train", {"train_unet": False}),
        ("train", {"attention_backend": "flash"}),
        ("train", {"loss_type": "something"}),
        ("train", {"timestep_type": "next_sample"}),
        ("train", {"optimizer": "lion"}),
        ("train", {"optimizer_params": {"amsgrad": True}}),
        ("train", {"single_item_batching": True}),
        ("model", {"compile": True}),
        ("model", {"quantize": True, "qtype": "uint8"}),
        ("model", {"quantize": True, "qtype": "uint3|ostris/ara/x.safetensors"}),
        ("model", {"quantize": True, "accuracy_recovery_adapter": "ostris/ara/x.safetensors"}),
        ("model", {"lora_path": "x.safetensors"}),
        ("model", {"assistant_lora_path": "x/y"}),  # on FLUX.1-dev
        ("model", {"use_flux_cfg": True}),
        ("model", {"layer_offloading": True}),  # unquantised: no qfloat8 to turn into float8, merging changes
        ("network", {"type": "lokr", "lokr_full_rank": False}),
        ("network", {"dropout": 1.0}),
        ("network", {"transformer_only": False}),
        ("network", {"network_kwargs": {"rank_dropout": 0.1}}),
        ("datasets", {"control_path": "/x"}),
        ("datasets", {"control_path_2": "/x"}),
        ("datasets", {"controls": ["depth"]}),
        ("datasets", {"is_reg": True}),
        ("datasets", {"num_frames": 41}),
        ("adapter", {"type": "ip"}),
        ("first_sample", {"width": 2048}),
    ],
)
def test_what_changes_memory_and_has_no_model_is_named(tmp_path: Path, section: str, settings: dict[str, Any]) -> None:
    bases: dict[str, Any] = {"train": train(), "model": FLUX_DEV, "network": {"linear": 16}, "datasets": {"folder_path": "/nowhere"}}
    value: Any = bases.get(section, {}) | settings
    job = read(tmp_path, **{section: [value] if section == "datasets" else value})
    last = list(settings)[-1]
    assert any(last in key or key == section for key in unmodelled_keys(job))
    assert all(entry.why for entry in job.unmodelled)


def test_switched_off_settings_are_no_obstacle(tmp_path: Path) -> None:
    job = read(
        tmp_path,
        train=train(
            do_cfg=False,
            validation_config=None,
            attention_backend="native",
            loss_type="mae",
            max_loss=None,
            train_unet=True,
            optimizer_params={"weight_decay": 1e-4},
        ),
        model=FLUX_DEV | {"compile": False, "lora_path": None, "layer_offloading": False, "model_kwargs": {}},
        network={"linear": 16, "dropout": 0, "transformer_only": True, "network_kwargs": {"ignore_if_contains": []}},
        datasets=[{"folder_path": "/nowhere", "controls": [], "control_path": None, "num_frames": 1, "mask_path": None}],
        adapter=None,
    )
    assert job.unmodelled == ()


# ---------------------------------------------------------------- what the trainer would refuse


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("train.batch_size", {"train": train(batch_size=-1)}),
        ("train.batch_size", {"train": train(batch_size="8")}),
        ("train.batch_size", {"train": train(batch_size=1e9)}),
        ("train.batch_size", {"train": train(batch_size=10**9)}),
        ("train.batch_size", {"train": train(batch_size=10**400)}),
        ("train.batch_size", {"train": train(batch_size=True)}),
        ("train.batch_size", {"train": train(batch_size=None)}),
        ("train.batch_size", {"train": train(batch_size=[1])}),
        ("train.gradient_accumulation", {"train": train(gradient_accumulation=0)}),
        ("train.gradient_accumulation_steps", {"train": train(gradient_accumulation=2, gradient_accumulation_steps=2)}),
        ("train.dtype", {"train": train(dtype="bf61")}),
        ("train.optimizer", {"train": train(optimizer="adamw9bit")}),
        ("train.timestep_type", {"train": train(timestep_type="sigmod")}),
        ("train.ema_config", {"train": train(ema_config=True)}),
        ("train", {"train": ["batch_size"]}),
        ("train.do_guidance_loss", {"train": train(do_guidance_loss=True, bypass_guidance_embedding=True)}),
        ("train.blank_prompt_preservation", {"train": train(diff_output_preservation=True, blank_prompt_preservation=True)}),
        ("train.unload_text_encoder", {"train": train(train_text_encoder=True, unload_text_encoder=True)}),
        ("network", {"network": "lora"}),
        ("network.type", {"network": {"type": "lorra"}}),
        ("network.linear", {"network": {"linear": 0}}),
        ("network.linear", {"network": {"linear": "16"}}),
        ("network.rank", {"network": {"rank": 16.0}}),
        ("model.name_or_path", {"model": {"arch": "flux"}}),
        ("model.name_or_path", {"model": None}),
        ("model.qtype", {"model": FLUX_DEV | {"quantize": True, "qtype": "qfloat9"}}),
        ("model.qtype", {"model": FLUX_DEV | {"qtype": 8}}),
        ("model.qtype", {"model": FLUX_DEV | {"quantize": True, "qtype": "uint4|a|b"}}),
        ("model.qtype_te", {"model": ZIMAGE | {"quantize": True, "qtype_te": "int3"}}),
        ("model.split_model_over_gpus", {"model": FLUX_DEV | {"split_model_over_gpus": True}}),
        ("model.split_model_over_gpus", {"model": FLUX_DEV | {"is_flux": True, "split_model_over_gpus": True}}),
        ("model.assistant_lora_path", {"model": TURBO | {"qtype": "uint3|a/b/c", "quantize": True}}),
        ("model.inference_lora_path", {"model": FLUX_DEV | {"assistant_lora_path": "a/b", "inference_lora_path": "c/d"}}),
        ("model.arch", {"model": {**FLUX_DEV, "arch": 5}}),
        ("datasets", {"datasets": []}),
        ("datasets", {"datasets": None}),
        ("datasets", {"datasets": {"folder_path": "/x"}}),
        ("datasets.0", {"datasets": ["/x"]}),
        ("datasets.0.folder_path", {"datasets": [{}]}),
        ("datasets.0.resolution", {"datasets": [{"folder_path": "/x", "resolution": "1024"}]}),
        ("datasets.0.resolution", {"datasets": [{"folder_path": "/x", "resolution": None}]}),
        ("datasets.0.resolution", {"datasets": [{"folder_path": "/x", "resolution": []}]}),
        ("datasets.0.resolution", {"datasets": [{"folder_path": "/x", "resolution": float("nan")}]}),
        ("datasets.0.resolution.1", {"datasets": [{"folder_path": "/x", "resolution": [512, 1e9]}]}),
        ("datasets.0.resolution.0", {"datasets": [{"folder_path": "/x", "resolution": [[512]]}]}),
        ("datasets.0.batch_size", {"datasets": [{"folder_path": "/x", "batch_size": 2, "buckets": False}]}),
        ("datasets.1.buckets", {"datasets": [{"folder_path": "/x"}, {"folder_path": "/x", "buckets": False}]}),
        ("datasets.1.cache_text_embeddings", {"datasets": [{"folder_path": "/x", "cache_text_embeddings": True}, {"folder_path": "/x"}]}),
        ("datasets.0.type", {"datasets": [{"folder_path": "/x", "type": "video"}]}),
        ("datasets.0.poi", {"datasets": [{"folder_path": "/x", "poi": "face"}]}),
        ("datasets.0.scale", {"datasets": [{"folder_path": "/x", "scale": 0}]}),
        ("sample.width", {"sample": {"width": "1024", "prompts": ["a"]}}),
        ("sample.guidance_scale", {"sample": {"guidance_scale": float("inf"), "prompts": ["a"]}}),
        ("sample.neg", {"sample": {"neg": 5, "prompts": ["a"]}}),
        ("sample.prompts", {"sample": {"prompts": None}}),
        ("sample.samples", {"sample": {"samples": None}}),
        ("sample.samples.0", {"sample": {"samples": ["a prompt"]}}),
        ("sample.prompts.0", {"sample": {"prompts": ["a --w wide"]}}),
        ("sample.prompts.0", {"sample": {"prompts": ["a --h 99999"]}}),
        ("sample.prompts.0", {"sample": {"prompts": ["a --cfg nan"]}}),
        ("sample.prompts.0", {"sample": {"prompts": ["a --ev 1,x"]}}),
        ("sample.prompts.0", {"sample": {"prompts": [5]}}),
        ("train.gradient_accumulation_steps", {"train": train(gradient_accumulation_steps="4")}),
        ("sample.samples.0.prompt", {"sample": {"samples": [{"prompt": 5}]}}),
        ("type", {"type": "sd_trainner"}),
        ("type", {"type": ...}),
    ],
)  # fmt: skip
def test_what_the_trainer_would_stop_on_is_refused_with_place_and_remedy(tmp_path: Path, key: str, sections: dict[str, Any]) -> None:
    problems = refusal(tmp_path, **sections)
    assert key in [p.place.key for p in problems if p.place]
    for problem in problems:
        assert problem.place is not None
        assert problem.place.file.endswith("job.json")
        assert problem.place.line is not None
        assert problem.what
        assert problem.fix


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    problems = refusal(
        tmp_path,
        train=train(batch_size=0, optimizer="x"),
        network={"linear": 0},
        model=FLUX_DEV | {"quantize": True, "qtype": "x"},
        datasets=[],
    )
    assert {p.place.key for p in problems if p.place} == {
        "train.batch_size",
        "train.optimizer",
        "network.linear",
        "model.qtype",
        "datasets",
    }
    unknown = refusal(tmp_path, model={"name_or_path": "x", "arch": "zimag"}, datasets=[{}], sample={"width": "1"})
    assert {p.place.key for p in unknown if p.place} == {"model.arch", "datasets.0.folder_path", "sample.width"}


def test_a_quoted_number_is_answered_with_the_number(tmp_path: Path) -> None:
    (problem,) = refusal(tmp_path, train=train(batch_size="8"))
    assert "batch_size: 8" in problem.fix


def test_lines_point_at_the_key(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "job: extension\nconfig:\n  name: x\n  process:\n  - type: sd_trainer\n    training_folder: o\n    network: {linear: 16}\n"
        "    train:\n      dtype: bf16\n      batch_size: -1\n    model: {name_or_path: black-forest-labs/FLUX.1-dev, arch: flux}\n"
        "    datasets:\n    - folder_path: /x\n"
    )
    with pytest.raises(InputError) as caught:
        read_jobs(path)
    (problem,) = caught.value.problems
    assert problem.place is not None
    assert (problem.place.file, problem.place.key, problem.place.line) == (str(path), "train.batch_size", 10)


# ---------------------------------------------------------------- structure


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("config: {name: a, process: [{type: sd_trainer}]}", "job"),
        ("job: extensoin\nconfig: {name: a, process: [{type: sd_trainer}]}", "job"),
        ("job: extension", "config"),
        ("job: extension\nconfig: []", "config"),
        ("job: extension\nconfig: {process: [{type: sd_trainer}]}", "config.name"),
        ("job: extension\nconfig: {name: 5, process: [{type: sd_trainer}]}", "config.name"),
        ("job: extension\nconfig: {name: a}", "config.process"),
        ("job: extension\nconfig: {name: a, process: []}", "config.process"),
        ("job: extension\nconfig: {name: a, process: {type: sd_trainer}}", "config.process"),
        ("job: extension\nconfig: {name: a, process: [~]}", "config.process.0"),
        ("job: extension\nconfig: {name: 'a\"b', process: [{type: sd_trainer, training_folder: '[name]'}]}", "config.name"),
        ("type: sd_trainer\nmodel: {}\ntrain: {}", ""),
        ("hello: world", ""),
        ("{}", ""),
        ("run: {}\njob: extension", "run"),
    ],
)
def test_a_broken_structure_is_refused(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_jobs(path)
    assert key in [p.place.key for p in caught.value.problems if p.place]
    assert all(p.fix for p in caught.value.problems)


@pytest.mark.parametrize("job", ["train", "extract", "generate", "mod"])
def test_jobs_that_are_no_training_of_these_models_cannot_be_told(tmp_path: Path, job: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"job: {job}\nconfig: {{name: a, process: [{{type: x}}]}}")
    with pytest.raises(CannotTell, match=job):
        read_jobs(path)


def test_other_processes_cannot_be_told(tmp_path: Path) -> None:
    with pytest.raises(CannotTell, match="concept_replacer"):
        read_jobs(write(tmp_path, process(type="concept_replacer")))


def test_a_quantisation_type_that_nothing_asks_for_is_told(tmp_path: Path) -> None:
    job = read(tmp_path, model=FLUX_DEV | {"qtype": "uint4"})
    assert job.model.weights == "bf16"
    assert any("model.qtype" in text and "no effect without quantize: true" in text for text in job.warnings)
    said_so = read(tmp_path, model=FLUX_DEV | {"quantize": False, "qtype": "uint4"})  # as the web UI writes it
    assert not any("model.qtype" in text for text in said_so.warnings)


def test_the_embedder_may_stay_unquantised(tmp_path: Path) -> None:
    excluded = {"quantize_kwargs": {"exclude": ["*time_text_embed*"]}}
    job = read(tmp_path, model=FLUX_DEV | {"quantize": True} | excluded)
    assert job.model.quantize_exclude == ("*time_text_embed*",)
    assert not any("exclude" in text for text in job.warnings)
    assert read(tmp_path, model=FLUX_DEV | {"quantize": False} | excluded).model.quantize_exclude == ()
