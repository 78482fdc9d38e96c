"""Explicit run files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from config_writer import outcome
from hypothesis import given
from hypothesis import strategies as st

from estimator.errors import CannotTell, InputError, Problem
from estimator.job import Bucket, Job, Network, Sample
from estimator.trainers import read_jobs
from estimator.trainers.explicit import RUN_KEYS

CONFIGS = Path(__file__).parent / "data" / "configs"
RUN: dict[str, Any] = {
    "arch": "zimage", "method": "lora", "lora": {"rank": 32}, "weights": "qfloat8", "width": 768, "height": 512, "batch_size": 2,
}  # fmt: skip


def write(folder: Path, run: object) -> Path:
    path = folder / "row.yaml"
    path.write_text(yaml.safe_dump({"run": run}))
    return path


def read(folder: Path, *overrides: str, arch_option: str | None = None, **changes: Any) -> Job:
    run = {key: value for key, value in (RUN | changes).items() if value is not ...}
    (job,) = read_jobs(write(folder, run), overrides, arch_option)
    return job


def problems(folder: Path, **changes: Any) -> tuple[Problem, ...]:
    with pytest.raises(InputError) as caught:
        read(folder, **changes)
    return caught.value.problems


def test_everything_is_taken_as_said() -> None:
    (job,) = read_jobs(CONFIGS / "explicit_run.yaml")
    assert (job.name, job.trainer, job.arch, job.method) == ("explicit_run", "explicit", "zimage", "lora")
    assert (job.model.weights, job.network) == ("bf16", Network(rank=128))
    (dataset,) = job.datasets
    assert (dataset.buckets, dataset.batch_size, dataset.text_tokens, dataset.scanned) == ((Bucket(768, 512, count=1),), 2, 256, True)
    assert (job.train.gradient_checkpointing, job.train.optimizer) == (False, "adamw8bit")
    assert job.resident == ("transformer", "vae")
    assert (dataset.cache_latents, dataset.cache_text_embeddings) == (False, True)
    assert job.samples == (Sample(1024, 640, cfg=2.0, batch=2, guided=True),)
    assert job.unmodelled == ()


def test_what_may_be_left_out(tmp_path: Path) -> None:
    job = read(tmp_path)
    assert (job.train.gradient_checkpointing, job.train.optimizer, job.resident, job.attention) == (True, "adamw", ("transformer",), "sdpa")
    assert (job.samples, job.control_images, job.optimizer_state_dtype) == ((), 0, None)
    assert job.datasets[0].text_tokens is None  # the architecture's maximum
    assert read(tmp_path, arch_option="flux1-dev").datasets[0].text_tokens == 512


def test_unknown_keys_are_errors_with_the_nearest(tmp_path: Path) -> None:
    found = problems(tmp_path, widht=3, lora={"rank": 4, "alpha": 4}, sample={"width": 64, "height": 64, "cgf": "none"})
    assert {p.place.key for p in found if p.place} == {"run.widht", "run.lora.alpha", "run.sample.cgf"}
    assert any("'width'" in p.fix for p in found)


def test_keys_beside_run_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "row.yaml"
    path.write_text(yaml.safe_dump({"run": RUN, "rnu": {}}))
    with pytest.raises(InputError, match="rnu"):
        read_jobs(path)


@pytest.mark.parametrize("key", ["arch", "method", "lora", "weights", "width", "height", "batch_size"])
def test_what_must_be_said(tmp_path: Path, key: str) -> None:
    (problem,) = problems(tmp_path, **{key: ...})
    assert problem.place is not None
    assert problem.place.key == f"run.{key}"
    assert problem.fix


@pytest.mark.parametrize("key", ["arch", "method", "weights", "width", "height", "batch_size"])
def test_a_key_without_a_value_is_not_said(tmp_path: Path, key: str) -> None:
    """`arch:` with nothing behind it once gave no job at all, and an exit status of 0."""
    (problem,) = (one for one in problems(tmp_path, **{key: None}) if one.place is not None and one.place.key == f"run.{key}")
    assert "missing" in problem.what


def test_the_documented_file_is_read_as_it_stands(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    sample = text[text.index("```yaml\nrun:") + len("```yaml\n") :]
    path = tmp_path / "run.yaml"
    path.write_text(sample[: sample.index("```")], encoding="utf-8")
    (job,) = read_jobs(path)
    assert (job.arch, job.unmodelled) == ("zimage", ())
    assert any("as AI Toolkit does" in text for text in job.warnings)


def test_nothing_is_assumed_so_no_default_is_named(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, width=99_999)
    assert "default" not in problem.fix


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, width="768", batch_size=0, weights="qfloat9", optimizer="adam9", lora={}, resident=["unet"], x=1)
    keys = {"width", "batch_size", "weights", "optimizer", "lora.rank", "resident", "x"}
    assert {p.place.key for p in found if p.place} == {f"run.{key}" for key in keys}


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing": "yes"},
        {"gradient_checkpointing": 1},
        {"text_tokens": 0},
        {"text_tokens": 1.5},
        {"frames": 0},
        {"attention": "magic"},
        {"resident": "transformer"},
        {"resident": ["vae"]},
        {"resident": [["vae"]]},
        {"lora": {"rank": 0}},
        {"lora": {"rank": 4, "dtype": "int3"}},
        {"lora": {"rank": 4, "targets": 3}},
        {"lora": {"rank": 4, "targets": []}},
        {"lora": []},
        {"sample": {"width": 64}},
        {"sample": 3},
        {"sample": {"width": 64, "height": 64, "cfg": "double"}},
        {"optimizer_state_dtype": "fp33"},
        {"method": "lokr"},
        {"arch": 5},
        {"arch": "zimag"},
        {"method": "full"},
        {"width": 10**9},
        {"width": 1000},
        {"sample": {"width": 64, "height": 90}},
        {"arch": "ltx2", "width": 784},
        {"batch_size": True},
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    for problem in problems(tmp_path, **changes):
        assert problem.place is not None
        assert problem.place.line is not None


def test_parts_of_a_token_are_refused_and_the_whole_ones_below_named(tmp_path: Path) -> None:
    found = problems(tmp_path, width=1000, height=520, sample={"width": 8, "height": 64})
    assert {p.place.key: p.fix for p in found if p.place} == {
        "run.width": "write 992", "run.height": "write 512", "run.sample.width": "write 16",
    }  # fmt: skip


@pytest.mark.parametrize("width", ["768", 768.0, "wide"])
def test_a_run_file_is_no_trainers_matter(tmp_path: Path, width: object) -> None:
    (problem,) = problems(tmp_path, width=width)
    assert "trainer" not in problem.why
    assert problem.fix


def test_text_tokens_have_no_default_that_is_a_number(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, text_tokens=0)
    assert "default" not in problem.fix


@pytest.mark.parametrize("run", [None, [], 3, {}])
def test_an_empty_run_is_refused(tmp_path: Path, run: object) -> None:
    with pytest.raises(InputError):
        read_jobs(write(tmp_path, run))


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("run.frames", {"frames": 49}),
        ("run.control_images", {"control_images": 1}),
        ("run.attention", {"attention": "xformers"}),
        ("run.weights", {"weights": "fp32"}),
        ("run.weights", {"weights": "int8"}),
        ("run.optimizer", {"optimizer": "lion"}),
        ("run.optimizer_state_dtype", {"optimizer_state_dtype": "bf16"}),
        ("run.lora.dtype", {"lora": {"rank": 4, "dtype": "bf16"}}),
        ("run.lora.targets", {"lora": {"rank": 4, "targets": ["to_q"]}}),
        ("run.lora.targets", {"lora": {"rank": 4, "targets": "all-linear"}}),
        ("run.method", {"method": "full", "lora": ...}),
        ("run.method", {"method": "inference", "lora": ...}),
        ("run.sample.cfg", {"sample": {"width": 64, "height": 64, "cfg": "sequential"}}),
        ("run.sample.cfg", {"arch": "flux1-dev", "sample": {"width": 64, "height": 64, "cfg": "batched"}}),
        ("run.sample.vae_tiling", {"sample": {"width": 64, "height": 64, "vae_tiling": True}}),
    ],
)
def test_what_has_no_model_is_named(tmp_path: Path, key: str, changes: dict[str, Any]) -> None:
    changes = dict(changes)
    path = write(tmp_path, {k: v for k, v in (RUN | changes).items() if v is not ...})
    (job,) = read_jobs(path)
    assert [entry.place.key for entry in job.unmodelled] == [key]


def test_architectures_without_a_model_cannot_be_told(tmp_path: Path) -> None:
    with pytest.raises(CannotTell, match="mochi"):
        read_jobs(write(tmp_path, RUN | {"arch": "mochi"}))


@pytest.mark.parametrize(
    ("written", "meant"),
    [("flux", ("flux1-dev", "flux1-schnell", "flex1")), ("sana-1.6b", ("sana",)), ("wan22_14b", ("wan22-14b",)), ("zimag", ("zimage",))],
)
def test_what_is_no_architecture_names_those_that_may_be_meant(tmp_path: Path, written: str, meant: tuple[str, ...]) -> None:
    """`flux`, AI Toolkit's key of three of them, was answered with flex2, and sana-1.6b with wan21-1.3b."""
    (problem,) = problems(tmp_path, arch=written)
    assert all(key in problem.fix for key in meant)
    assert "wan21" not in problem.fix


def test_what_is_no_component_is_named(tmp_path: Path) -> None:
    for key in ("resident", "given_back"):
        (problem,) = problems(tmp_path, **{"arch": "sdxl", key: ["unet"], "weights": "bf16", "width": 1024, "height": 1024})
        assert "'unet'" in problem.what
        assert "vae" in problem.fix


@pytest.mark.parametrize(("frames", "counted"), [(49, None), (50, "49"), (52, "49"), (1, None)])
def test_frames_that_make_no_latent_frame_are_said_not_to_count(tmp_path: Path, frames: int, counted: str | None) -> None:
    job = read(tmp_path, arch="wan21-14b", width=832, height=480, frames=frames)
    assert [text for text in job.warnings if "counted as" in text] == [text for text in job.warnings if f"counted as {counted}" in text]
    assert any("counted as" in text for text in job.warnings) == (counted is not None)


def test_overrides_and_arch(tmp_path: Path) -> None:
    job = read(tmp_path, "batch_size=4", "run.lora.rank=8", "sample={width: 512, height: 512}", arch_option="flux1-dev")
    assert (job.arch, job.train.batch_size, job.network, len(job.samples)) == ("flux1-dev", 4, Network(rank=8), 1)
    with pytest.raises(InputError, match="batch_size"):
        read(tmp_path, "batchsize=4")


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["lora", "zimage", "bf16"])
keys = st.sampled_from(["rank", "width", "cfg", "x"])
trees = st.recursive(values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6)


@given(st.dictionaries(st.sampled_from(sorted(RUN_KEYS)), trees))
def test_any_run_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]) -> None:
    path = write(tmp_path_factory.getbasetemp(), RUN | changes)
    assert str(outcome(lambda: read_jobs(path)))
