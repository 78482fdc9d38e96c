"""A config with errors shows what it is warned of too: a mistyped key comes to light in the same run as the mistake beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_writer import FLUX_DEV, outcome, process, read, train, write

from estimator import cli
from estimator.errors import CannotTell, InputError
from estimator.trainers.section import MAX_REPORTED

MISTYPED = {"folder_path": "/nowhere/images", "resoluton": 512}
BETTER = "datasets.0.resoluton (line 16): unknown key here, the trainer ignores it; did you mean 'resolution'?"
STOPS = {"batch_size": "2"}


def refused(folder: Path, **sections: Any) -> InputError | CannotTell:
    found = outcome(lambda: read(folder, **sections))
    assert isinstance(found, (InputError, CannotTell))
    return found


def test_a_mistyped_key_is_shown_beside_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path, process(datasets=[MISTYPED], train=train(**STOPS))))
    assert cli.main([path, "--gpu", "RTX4090", "--json"]) == 2
    streams = capsys.readouterr()
    document = json.loads(streams.out)
    assert [problem["key"] for problem in document["error"]["problems"]] == ["train.batch_size"]
    assert BETTER in document["warnings"]
    assert f"estimate: warning: {BETTER}\n" in streams.err
    assert streams.err.index("train.batch_size") < streams.err.index("warning")


def test_beside_what_is_not_modelled_too(tmp_path: Path) -> None:
    found = refused(tmp_path, datasets=[MISTYPED], model={"name_or_path": "x", "arch": "cogview4", "quantise": True})
    assert isinstance(found, CannotTell)
    assert any("'quantize'" in warning for warning in found.warnings)


def test_where_the_architecture_is_not_known_all_that_holds_of_any(tmp_path: Path) -> None:
    found = refused(tmp_path, datasets=[MISTYPED], model=FLUX_DEV | {"arch": "flx"}, sample={"widht": 512})
    assert {text.split(" ")[0] for text in found.warnings} >= {"datasets.0.resoluton", "sample.widht"}
    assert not any("captions of" in text for text in found.warnings), "how long captions are differs by architecture"


def test_where_a_section_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("job: extension\nconfg: {name: x}\n")
    found = outcome(lambda: cli_read(path))
    assert isinstance(found, InputError)
    assert found.warnings == ("confg (line 2): unknown key here, the trainer ignores it; did you mean 'config'?",)


def cli_read(path: Path) -> object:
    from estimator.trainers import read_jobs

    return read_jobs(path)


def test_very_many_unknown_keys_are_counted_and_not_each_shown(tmp_path: Path) -> None:
    """The nearest known key of each of 20,000 took 40 seconds."""
    found = refused(tmp_path, train=train(**STOPS, **{f"batch_siz{n}": 1 for n in range(MAX_REPORTED + 1950)}))
    assert sum("did you mean" in warning for warning in found.warnings) == MAX_REPORTED
    assert "train (line 19): 1,950 further unknown keys, which the trainer ignores" in found.warnings


def test_a_grid_takes_axes_of_each_time_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    """Of two --grid the first was not looked at."""
    config = str(Path(__file__).parents[1] / "examples" / "zimage_turbo_ui.yaml")
    grid = ["plan", config, "--gpu", "RTX4090", "--grid", "batch=1,2", "--grid"]
    assert cli.main([*grid, "rank=4,8"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("batch,rank,")
    assert cli.main([*grid, "batch=3"]) == 2
    assert "this axis stands twice" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["gradient_checkpointing", "autocast", "optimizer_on_host"])
def test_a_switch_of_a_run_file_that_is_none_says_what_to_write(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(Path(__file__).parents[1] / "examples" / "runs" / "sana_lora.yaml")
    assert cli.main([config, "--gpu", "H200", "--fast", "--set", f"run.{key}=yes please"]) == 2
    assert f"fix: write {key}: true, or {key}: false" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["", "--gpu", "RTX4090"], ["diagnose", ""]])
def test_an_empty_name_is_said(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command) == 2
    assert capsys.readouterr().err.startswith("estimate: (an empty name): no such file")


def test_nothing_is_warned_of_where_nothing_is_odd(tmp_path: Path) -> None:
    datasets = [{"folder_path": str(tmp_path), "resolution": 512}]
    found = refused(tmp_path, datasets=datasets, train=train(**STOPS))
    assert not any("unknown key" in warning for warning in found.warnings)
