"""`--set path.to.key=value`."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
from config_writer import FLUX_DEV, outcome, process, read, refusal, train, write
from hypothesis import given
from hypothesis import strategies as st

from estimator.configfile import read_config
from estimator.errors import InputError
from estimator.job import Job
from estimator.trainers import read_jobs
from estimator.trainers.aitoolkit import overridden
from estimator.trainers.overrides import MAX_OVERRIDES

TWO_DATASETS = [{"folder_path": "/a", "resolution": 512}, {"folder_path": "/b", "resolution": [512, 768]}]


def resolutions(job: Job) -> list[tuple[str, int]]:
    return [(d.folder, d.resolution) for d in job.datasets]


@pytest.mark.parametrize(
    "override",
    [
        "train.gradient_checkpointing=false",
        "config.process.0.train.gradient_checkpointing=false",
        "config.process[0].train.gradient_checkpointing=false",
        " train.gradient_checkpointing = false ",
        "train={dtype: bf16, noise_scheduler: flowmatch, gradient_checkpointing: false}",
    ],
)
def test_paths_count_from_the_process_or_from_the_top(tmp_path: Path, override: str) -> None:
    assert read(tmp_path).train.gradient_checkpointing is True
    assert read(tmp_path, override).train.gradient_checkpointing is False


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("datasets.0.resolution=[1536]", [("/a", 1536), ("/b", 512), ("/b", 768)]),
        ("datasets[1].resolution=1536", [("/a", 512), ("/b", 1536)]),
        ("datasets.*.resolution=[1024, 1280]", [("/a", 1024), ("/a", 1280), ("/b", 1024), ("/b", 1280)]),
        ("datasets.1.resolution.0=640", [("/a", 512), ("/b", 640), ("/b", 768)]),
        ("datasets=[{folder_path: /c}]", [("/c", 512)]),
    ],
)
def test_entries_of_lists(tmp_path: Path, override: str, expected: list[tuple[str, int]]) -> None:
    assert resolutions(read(tmp_path, override, datasets=TWO_DATASETS)) == expected


def test_what_is_set_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """Maps and lists that nothing is set in are shared with it: one override, or planning's next, must not be seen in another."""
    file = read_config(write(tmp_path, process(train=train(batch_size=1))))
    before = deepcopy(file.data)
    both = overridden(file, ("train.batch_size=2", "datasets.*.resolution=[512, 640]", "sample.width=640", "datasets.0.resolution=768"))
    assert file.data == before
    assert both.data != before
    assert overridden(file, ()).data == before


def test_values_are_yaml_as_in_the_file(tmp_path: Path) -> None:
    job = read(tmp_path, "network.linear=64", "train.optimizer=Prodigy", "train.ema_config.use_ema=yes", "model.quantize=true")
    assert job.network is not None
    assert (job.network.rank, job.train.optimizer, job.train.ema, job.model.weights) == (64, "prodigy", True, "qfloat8")


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("batch_size=2", "datasets.0.batch_size or train.batch_size?"),
        ("qtype=uint4", "model.qtype?"),
        ("config.process.0.linear=8", "network.linear?"),
        ("trian=1", "'train'?"),
    ],
)
def test_a_key_without_its_section(tmp_path: Path, override: str, meant: str) -> None:
    """Was: a list of what a process may hold, from adapter to lorm_extract_mode_param."""
    with pytest.raises(InputError) as raised:
        read(tmp_path, override)
    assert raised.value.problems[0].fix == f"did you mean {meant}"


def test_later_ones_win_and_missing_sections_are_made(tmp_path: Path) -> None:
    job = read(tmp_path, "sample.width=640", "sample.width=768", "sample.prompts=[a cat]", "sample.prompts.0=a dog", sample=...)
    assert [(s.width, s.height) for s in job.samples] == [(768, 512)]


def test_an_empty_value_is_null(tmp_path: Path) -> None:
    assert read(tmp_path, "network=").method == "full"


def test_the_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, process())
    before = path.read_bytes()
    read_jobs(path, ["train.batch_size=4"])
    assert path.read_bytes() == before


def test_free_sections_take_any_key(tmp_path: Path) -> None:
    read(tmp_path, "train.optimizer_params.weight_decay=0.1", "model.model_kwargs.anything=1", "meta.name=x")


def test_keys_that_only_the_file_has_can_be_set(tmp_path: Path) -> None:
    assert any("my_own" in w for w in read(tmp_path, "train.my_own=2", train=train(my_own=1)).warnings)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.batchsize=2", "'batch_size'"),
        ("tarin.batch_size=2", "'train'"),
        ("datasets.0.resolutoin=2", "'resolution'"),
        ("sample.samples.0.widht=2", "no entries"),
        ("train.ema_config.use_emma=true", "'use_ema'"),
        ("config.proces.0.train.steps=2", "'process'"),
        ("train.batch_size", "key=value"),
        ("=2", "key=value"),
        ("train..steps=2", "key=value"),
        ("train.batch_size=[", "not valid YAML"),
        ("train.batch_size={a: 1, a: 2}", "twice"),
        ("datasets.7.resolution=2", "2 entries"),
        ("datasets.resolution=2", "datasets.*.resolution"),
        ("datasets.-1.resolution=2", "datasets.*"),
        ("datasets.²=2", "datasets.*"),
        ("train.batch_size.x=2", "single value"),
        ("config.process.3.train.steps=1", "1 entries"),
        ("", "key=value"),
    ],
)
def test_mistakes_are_refused_with_a_remedy(tmp_path: Path, override: str, says: str) -> None:
    (problem,) = refusal(tmp_path, override, datasets=TWO_DATASETS, train=train(batch_size=1))
    assert says in str(problem)
    assert problem.fix
    assert problem.place is not None
    assert problem.place.file.startswith("--set")


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, "train.batchsize=2", "modle.arch=flux")) == 2


def test_a_bad_value_is_reported_as_set(tmp_path: Path) -> None:
    (problem,) = refusal(tmp_path, "train.batch_size=-1")
    assert problem.place is not None
    assert (problem.place.file, problem.place.key, problem.place.line) == ("--set", "train.batch_size", None)
    (entry,) = read(tmp_path, "train.single_item_batching=true").unmodelled
    assert (entry.place.file, entry.place.key) == ("--set", "train.single_item_batching")


def test_other_processes_by_their_full_path(tmp_path: Path) -> None:
    path = write(tmp_path, process(), process())
    one, two = read_jobs(path, ["config.process.1.train.batch_size=3", "config.process.*.train.steps=7"])
    assert (one.train.batch_size, two.train.batch_size, one.train.steps, two.train.steps) == (1, 3, 7, 7)


def test_processes_may_be_named_without_config(tmp_path: Path) -> None:
    path = write(tmp_path, process(), process())
    one, two = read_jobs(path, ["process.1.train.batch_size=3", "process[0].train.batch_size=2"])
    assert (one.train.batch_size, two.train.batch_size) == (2, 3)


def test_more_overrides_than_are_taken_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--set"):
        read_jobs(write(tmp_path, process()), ["train.steps=7"] * (MAX_OVERRIDES + 1))


set_paths = st.sampled_from(
    [
        "train",
        "train.batch_size",
        "datasets.*",
        "model.arch",
        "datasets.0.resolution",
        "sample.samples",
        "config",
        "config.process",
        "config.name",
    ]
)
set_values = st.text(max_size=12) | st.sampled_from(["[]", "{}", "1e9", "~", "[{}]", "-1"])


@given(st.lists(st.text(max_size=30) | st.builds("{}={}".format, set_paths, set_values), max_size=3))
def test_any_override_is_applied_or_refused(tmp_path_factory: pytest.TempPathFactory, overrides: list[str]) -> None:
    path = write(tmp_path_factory.getbasetemp(), process(model=FLUX_DEV), name="any.json")
    assert str(outcome(lambda: read_jobs(path, overrides)))
