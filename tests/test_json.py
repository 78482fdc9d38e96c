"""The JSON contract, schema 1: every field there, of its type, nothing renamed. Scripts rely on it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.checked import ArchRow, Checked, TrainerRow
from estimator.errors import Problem
from estimator.estimate import OOM, SAFE, UNKNOWN, Advice, Estimate
from estimator.gpus import all_gpus
from estimator.job import Place, Unmodelled
from estimator.jsonout import archs_document, dumps, error_document, estimate_document, gpus_document, several_document
from tests import made_estimates as made

# The contract, written out once more by hand: a type, a tuple of allowed values, a mapping, or a list of one form.
VERDICT = ("safe", "borderline", "oom", "unknown")
VARIANT = {"width": (int, None), "height": (int, None), "frames": (int, None), "batch": (int, None)}
BYTES = {
    "allocated_bytes": int,
    "reserved_bytes": int,
    "device_bytes": int,
    "device_low_bytes": int,
    "device_high_bytes": int,
}
PEAK = {"phase": str, "variant": VARIANT, **BYTES, "moment": str}
PHASES = ("load", "cache_latents", "cache_text", "prepare", "sample", "train", "save")
SCHEMA_1: dict[str, Any] = {
    "schema": (1,),
    "config": str,
    "trainer": str,
    "arch": str,
    "method": str,
    "gpu": {"name": str, "total_bytes": int, "usable_bytes": int, "context_bytes": int},
    "verdict": VERDICT,
    "peak": PEAK,
    "required_bytes": (int, None),
    "phases": [{**PEAK, "phase": PHASES, "verdict": VERDICT, "components": Mapping}],
    "advice": [{"key": str, "from": object, "to": object, "saves_bytes": int, "why": str}],
    "warnings": [str],
}
PROBLEM = {"what": str, "file": (str, None), "key": (str, None), "line": (int, None), "why": str, "fix": str}


def faults(value: Any, form: Any, where: str = "document") -> list[str]:
    """What in `value` does not have `form`. Fields may have been added, so unknown ones are no fault."""
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return [f"{where}: not an object"]
        missing = [f"{where}.{key}: missing" for key in form if key not in value]
        return missing + [fault for key in form if key in value for fault in faults(value[key], form[key], f"{where}.{key}")]
    if isinstance(form, list):
        if not isinstance(value, list):
            return [f"{where}: not a list"]
        return [fault for index, each in enumerate(value) for fault in faults(each, form[0], f"{where}[{index}]")]
    if isinstance(form, tuple):
        fits = any(value == each and type(value) is type(each) if not isinstance(each, type) else type(value) is each for each in form)
        return [] if fits else [f"{where}: {value!r}"]
    fits = form is object or (type(value) is form if form in (int, str) else isinstance(value, form))
    return [] if fits else [f"{where}: {value!r} is no {form.__name__}"]


def document(estimate: Estimate) -> dict[str, Any]:
    """As a script gets it."""
    read: dict[str, Any] = json.loads(dumps(estimate_document(estimate)))
    return read


@pytest.mark.parametrize("estimate", [made.estimate(), made.oom(), made.borderline(), made.estimate(required_bytes=23 * 2**30, retries=3)])
def test_schema_1(estimate: Estimate) -> None:
    assert faults(document(estimate), SCHEMA_1) == []


def test_the_validator_can_fail() -> None:
    good = document(made.oom())
    for path, bad in (
        (("verdict",), "fine"),
        (("peak", "device_bytes"), 1.5),
        (("phases", 0, "phase"), "loading"),
        (("advice", 0, "key"), 3),
    ):
        broken = json.loads(json.dumps(good))
        node = broken
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = bad
        assert len(faults(broken, SCHEMA_1)) == 1, path
        del node[path[-1]]
        assert len(faults(broken, SCHEMA_1)) == 1, path


def test_values_come_through() -> None:
    estimate = made.oom()
    read = document(estimate)
    assert (read["config"], read["arch"], read["method"]) == ("corgi_flux_v1", "flux1-dev", "lora")
    assert read["gpu"]["total_bytes"] - read["gpu"]["context_bytes"] - read["gpu"]["desktop_bytes"] == read["gpu"]["usable_bytes"]
    assert read["peak"]["phase"] == "train"
    assert read["peak"]["variant"] == {"width": 1024, "height": 1024, "frames": 1, "batch": 1}
    assert read["peak"]["device_low_bytes"] < read["peak"]["device_bytes"] < read["peak"]["device_high_bytes"]
    assert read["advice"][0]["from"] == [512, 768, 1024]
    assert read["advice"][1]["to"] is True
    assert read["required_bytes"] is None
    for phase, shown in zip(estimate.phases, read["phases"], strict=True):
        assert sum(shown["components"].values()) == shown["allocated_bytes"] == phase.allocated_bytes


def test_an_estimate_of_nothing_says_what_is_not_modelled() -> None:
    unmodelled = (Unmodelled(Place("c.yaml", "network.type", 7), "dora", "not recorded"),)
    read = document(made.estimate(verdict=UNKNOWN, phases=(), peak=-1, job=made.job(unmodelled=unmodelled)))
    assert read["peak"] is None
    assert read["not_modelled"] == [{"file": "c.yaml", "key": "network.type", "line": 7, "value": "dora", "why": "not recorded"}]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
        lambda inner: st.lists(inner) | st.dictionaries(st.integers() | st.text(), inner),
    )
)
def test_any_value_of_a_config_makes_valid_json(value: object) -> None:
    """A config can hold dates, infinities and keys that are no strings; JSON cannot."""
    read = document(replace(made.oom(), advice=(Advice("x", value, value, 1, ""),)))
    assert faults(read, SCHEMA_1) == []
    if isinstance(value, float) and math.isfinite(value):
        assert read["advice"][0]["from"] == value


@given(st.text())
def test_any_name_comes_through_as_ascii(name: str) -> None:
    if any("\ud800" <= char <= "\udfff" for char in name):
        return
    text = dumps(estimate_document(made.estimate(job=made.job(name=name))))
    assert text.isascii()
    assert json.loads(text)["config"] == name


def test_several() -> None:
    documents = [estimate_document(made.estimate()), estimate_document(made.oom())]
    read = json.loads(dumps(several_document(documents, 1)))
    assert faults(read, {"schema": (1,), "verdict": VERDICT, "exit_status": int, "estimates": [SCHEMA_1]}) == []
    assert read["verdict"] == OOM
    assert [each["verdict"] for each in read["estimates"]] == [SAFE, OOM]


def test_errors() -> None:
    problems = [Problem("bad", Place("c.yaml", "train.steps", 3), "why", "fix"), Problem("worse")]
    read = json.loads(dumps(error_document("input", 2, problems)))
    form = {"schema": (1,), "verdict": ("unknown",), "error": {"kind": ("input",), "exit_status": (2,), "problems": [PROBLEM]}}
    assert faults(read, form) == []
    assert read["error"]["problems"][0] == {"what": "bad", "file": "c.yaml", "key": "train.steps", "line": 3, "why": "why", "fix": "fix"}


def test_lists() -> None:
    cards = json.loads(dumps(gpus_document(all_gpus())))
    form = {**SCHEMA_1["gpu"], "compute_capability": str, "aliases": [str], "source": str, "os": ("linux", "windows")}
    assert faults(cards, {"schema": (1,), "gpus": [form]}) == []
    rows = [
        ArchRow("flux1-dev", "FLUX.1-dev", True, ("flux", "flex1"), Checked(12, 166, 1, 0.0007, -0.021, 3)),
        ArchRow("sd3", "Stable Diffusion 3", False, (), Checked()),
    ]
    trained = [TrainerRow("flux", "FLUX.1", ("flux1-dev",), None), TrainerRow("sd3", "SD 3", (), "flux1-dev")]
    archs = json.loads(dumps(archs_document(rows, trained)))
    form = {
        "key": str, "name": str, "modelled": bool, "trainer_archs": [str], "checked_runs": int, "checked_phases": int, "outside": int,
        "worst_allocated": (float, None), "worst_reserved": (float, None), "published_rows": int,
    }  # fmt: skip
    of_trainer = {"key": str, "name": str, "modelled": bool, "archs": [str], "nearest": (str, None)}
    assert faults(archs, {"schema": (1,), "archs": [form], "trainer_archs": [of_trainer]}) == []
    assert (archs["archs"][0]["checked_runs"], archs["archs"][0]["worst_reserved"]) == (12, -0.021)
    assert [row["modelled"] for row in archs["trainer_archs"]] == [True, False]
