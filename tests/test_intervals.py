"""Intervals: the arithmetic of a residual, when it is wider and says why, the shipped profile, and the fit that makes it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator import intervals
from estimator.drift import recorded_versions
from estimator.engine import estimate_job
from estimator.gpus import Calibration, Gpu, find_gpu
from estimator.intervals import profile, residual_for, residual_of
from estimator.job import Job
from estimator.paths import profiles_dir
from estimator.residual import ANY_PHASE, Interval, Residual, Seen, Spread, ends, interval
from tests.made_jobs import example

MIB, GIB = 2**20, 2**30
SPREAD = Spread(low_share=0.03, high_share=0.04, low_bytes=30 * MIB, high_bytes=40 * MIB)
sizes = st.integers(0, 2**40)


# --- arithmetic --------------------------------------------------------------------------------------------------------------------


def test_the_parts_add_in_quadrature() -> None:
    found = interval(GIB, Spread(low_share=0.0, high_share=0.3 / 1024, high_bytes=round(0.4 * MIB)))
    assert found.low_bytes == found.likely_bytes == GIB
    assert found.high_bytes - GIB == pytest.approx(0.5 * MIB, abs=2)  # 0.3 and 0.4 MiB at a right angle


@given(size=sizes)
def test_an_interval_holds_its_middle_and_never_goes_below_nothing(size: int) -> None:
    found = interval(size, SPREAD)
    assert 0 <= found.low_bytes <= found.likely_bytes <= found.high_bytes
    assert found.likely_bytes == size


@given(size=sizes, more=st.integers(0, 2**36))
def test_more_is_never_less_at_the_high_end(size: int, more: int) -> None:
    assert interval(size, SPREAD).high_bytes <= interval(size + more, SPREAD).high_bytes


def test_a_bias_moves_all_three() -> None:
    moved = interval(GIB, replace(SPREAD, share=0.01, added_bytes=MIB))
    still = interval(GIB, SPREAD)
    by = {getattr(moved, end) - getattr(still, end) for end in ("low_bytes", "likely_bytes", "high_bytes")}
    assert max(by) - min(by) <= 1
    assert min(by) == pytest.approx(0.01 * GIB + MIB, abs=1)


def test_what_lies_beside_is_added_at_each_end() -> None:
    bare, whole = interval(GIB, SPREAD), interval(GIB, SPREAD, Interval(1, 20, 300))
    assert (whole.low_bytes - bare.low_bytes, whole.likely_bytes - bare.likely_bytes, whole.high_bytes - bare.high_bytes) == (1, 20, 300)


def test_a_phase_without_a_spread_of_its_own_has_the_common_one() -> None:
    other = replace(SPREAD, high_share=0.2)
    residual = Residual({ANY_PHASE: SPREAD, "train": other}, {ANY_PHASE: other}, Interval(0, 0, 0), "")
    assert residual.spread("allocated", "train") == other
    assert residual.spread("allocated", "load") == SPREAD
    assert residual.spread("reserved", "load") == other


# --- which one holds ---------------------------------------------------------------------------------------------------------------


def test_where_nothing_was_checked_the_interval_is_wider_and_says_so() -> None:
    job = example("zimage_base_ui")
    known = replace(find_gpu("A100-40G"), compute_capability="8.0")
    same = residual_for(known, job)
    assert same.reasons == ()
    for changed, word in (
        (replace(job, train=replace(job.train, optimizer="newton")), "newton"),
        (replace(job, model=replace(job.model, weights="uint1")), "uint1"),
        (replace(job, trainer="explicit"), "explicit"),
    ):
        wider = residual_for(known, changed)
        assert wider.spread("reserved", "train").high_share > same.spread("reserved", "train").high_share
        assert any(word in reason and "wider" in reason for reason in wider.reasons)


def test_an_architecture_without_a_whole_run_is_wider(monkeypatch: pytest.MonkeyPatch) -> None:
    job, card = example("zimage_base_ui"), find_gpu("A100-40G")
    before = residual_for(card, job)
    monkeypatch.setattr(intervals, "load_checked", dict)
    after = residual_for(card, job)
    assert after.spread("allocated", "load").high_share > before.spread("allocated", "load").high_share
    assert any("zimage" in reason for reason in after.reasons)


def test_a_card_generation_without_a_peak_is_wider_and_a_calibrated_card_is_not() -> None:
    job, card = example("zimage_base_ui"), find_gpu("T4")
    assert any("Turing" in reason for reason in residual_for(card, job).reasons)
    calibrated = replace(card, residual=residual_for(find_gpu("A100-40G")))
    assert residual_for(calibrated, job).reasons == ()


def calibrated(job: Job, card: Gpu, **changes: object) -> Gpu:
    """The card with eight cells of the job's architecture that were as predicted, run with the recorded software."""
    versions = recorded_versions(job.arch)
    made = Calibration("x", "2026-11-28", "580", versions["torch"] + "+cu130", False, 8, versions["diffusers"])
    seen = (Seen(job.arch, 8, Spread(0.004, 0.004), Spread(0.004, 0.004)),)
    return replace(card, residual=profile().residual, calibration=made, seen=seen, **changes)  # type: ignore[arg-type]


def width(residual: Residual, phase: str = "train") -> float:
    return residual.spread("allocated", phase).low_share + residual.spread("allocated", phase).high_share


def test_a_card_with_cells_of_the_architecture_is_sure_of_it_alone() -> None:
    job, card = example("zimage_turbo_ui"), find_gpu("RTX4090")
    known = calibrated(job, card)
    residual = residual_for(known, job)
    assert width(residual) < width(profile().residual) / 3
    assert residual.reasons == ()
    assert f"8 step cells of zimage-turbo on this card and {profile().runs.source}" in residual.source
    assert width(residual_for(known)) <= width(residual), "without a job: the narrowest of all"
    assert width(residual, "cache_text") == width(profile().residual, "cache_text"), "no cell runs a text encoder"


def test_what_the_cells_do_not_cover_keeps_the_width_and_says_why() -> None:
    job, card = example("zimage_turbo_ui"), find_gpu("RTX4090")
    known = calibrated(job, card)
    other = residual_for(known, example("flux_dev_24gb"))
    assert width(other) == width(profile().residual)
    assert any("no step cells of flux1-dev" in reason for reason in other.reasons)
    assert known.calibration is not None
    older = replace(known, calibration=replace(known.calibration, torch="2.9.1+cu128"))
    assert width(residual_for(older, job)) == width(profile().residual)
    assert any("torch 2.9.1" in reason for reason in residual_for(older, job).reasons)
    assert width(residual_for(known, replace(job, trainer="explicit"))) > width(profile().residual)
    assert width(residual_for(known, replace(job, trainer_version="99"))) > 3 * width(residual_for(known, job))


def test_cells_of_the_programs_that_an_architecture_borrows_are_its_own() -> None:
    edit, image = example("qwen_edit_2509_ui"), example("qwen_image_ui")
    known = calibrated(image, find_gpu("RTX4090"))
    assert width(residual_for(known, edit)) == width(residual_for(known, image)) < width(profile().residual)


def test_few_cells_never_make_an_interval_wider() -> None:
    job, card = example("zimage_turbo_ui"), find_gpu("RTX4090")
    known = calibrated(job, card)
    one = replace(known, seen=(replace(known.seen[0], cells=1, allocated=Spread(0.5, 0.5)),))
    assert width(residual_for(one, job)) == width(profile().residual)


def test_the_middle_of_the_cells_is_a_bias_of_steps_only() -> None:
    job, card = example("zimage_turbo_ui"), find_gpu("RTX4090")
    known = calibrated(job, card)
    off = replace(known, seen=(replace(known.seen[0], allocated=Spread(0.004, 0.004, share=0.002)),))
    before, after = residual_for(known, job), residual_for(off, job)
    assert after.spread("allocated", "train").share == pytest.approx(0.002)
    assert after.spread("allocated", "sample").share == 0
    assert after.spread("allocated", "sample").high_share > before.spread("allocated", "sample").high_share
    assert after.spread("allocated", "sample").low_share == before.spread("allocated", "sample").low_share


def test_a_phase_is_judged_by_its_own_low_end() -> None:
    """What is uncertain of text caching, long over when training begins, leaves no doubt about training's failure."""
    job, card = example("zimage_base_ui"), find_gpu("A100-40G")
    sure, unsure = Spread(0.0, 0.0), Spread(0.9, 0.0)
    phases = {ANY_PHASE: sure, "cache_text": unsure}
    own = Residual(phases, phases, Interval(0, 0, 0), "made up")
    peak = max(phase.allocated_bytes for phase in estimate_job(job, card).phases if phase.phase == "train")
    small = replace(card, residual=own, total_bytes=peak - 512 * MIB, context_low_bytes=0, context_bytes=0, context_high_bytes=0)
    for fast in (True, False):
        found = estimate_job(job, small, fast=fast)
        assert found.verdict == "oom"
        assert "oom" in {phase.verdict for phase in found.phases if phase.phase == "train"}


def test_reasons_reach_the_estimate_and_the_bounds_the_verdict() -> None:
    job, card = example("zimage_base_ui"), find_gpu("A100-40G")
    tight = Residual({ANY_PHASE: Spread(0, 0)}, {ANY_PHASE: Spread(0, 0)}, Interval(0, 0, 0), "none")
    plain = estimate_job(job, replace(card, residual=tight))
    peak = plain.peak_phase
    assert peak is not None
    assert plain.verdict == "safe"
    full = Spread(low_share=0.0, high_share=card.total_bytes / peak.allocated_bytes)
    wide = estimate_job(job, replace(card, residual=replace(tight, allocated={ANY_PHASE: full}, reasons=("because",))))
    assert wide.verdict == "borderline"
    assert "because" in wide.assumptions
    assert [p.allocated_bytes for p in wide.phases] == [p.allocated_bytes for p in plain.phases]


# --- the shipped profile -----------------------------------------------------------------------------------------------------------


def test_the_shipped_profile_says_what_it_rests_on() -> None:
    raw = json.loads((profiles_dir() / "residuals.json").read_text(encoding="utf-8"))
    assert raw["made"]["command"].startswith("python -m calibration.fit")
    assert min(raw["made"]["rows"][kind] for kind in ("emulated", "card")) > 0  # no published step needs the device in between any more
    assert raw["made"]["versions"]["torch"]
    assert "bounds" in residual_of(raw).source
    shipped = profile()
    for figure in ("allocated", "reserved"):
        for phase in ("load", "cache_latents", "cache_text", "prepare", "sample", "train", "save"):
            spread = shipped.residual.spread(figure, phase)
            assert 0.005 < spread.high_share < 0.1, "a bound from few cards is neither sharp nor useless"
    assert all(share > 0 for share in shipped.unchecked.values())


def test_every_setting_of_the_profile_can_be_asked_for() -> None:
    job = example("flux_dev_24gb")
    assert {*profile().checked, "arch"} == set(profile().unchecked)
    assert profile().cells["worth"] > 0
    assert residual_for(find_gpu("RTX4090"), job).source == profile().residual.source


# --- the fit -----------------------------------------------------------------------------------------------------------------------


def made_rows(count: int, share: float, seed: int = 1, **changes: object) -> list[object]:
    rows = pytest.importorskip("calibration.residual_rows")
    drawn = np.random.default_rng(seed).standard_normal(count)
    return [
        rows.Row(
            **{
                "kind": "emulated", "source": f"run{n}", "row": f"row{n}", "figure": "reserved", "phase": "train", "outcome": "peak",
                "replayed_bytes": 20 * GIB, "observed_bytes": round(20 * GIB * (1 + share * drawn[n])), "arch": f"a{n % 4}",
                "weights": "bf16", "optimizer": "adamw", "trainer": "t", "generation": "g",
            }
            | changes
        )
        for n in range(count)
    ]  # fmt: skip


def spread_of(rows: list[object]) -> float:
    pytest.importorskip("scipy")
    from calibration import residual_model

    fitted = residual_model.fit(rows, ("arch",), ("train",), residual_model.REPLAY["reserved"])  # type: ignore[arg-type]
    return float(2.718281828 ** fitted.error("log_share/train")[0])


def test_the_fit_finds_the_spread_of_many_sources() -> None:
    assert spread_of(made_rows(200, 0.02)) == pytest.approx(0.02, rel=0.35)
    assert spread_of(made_rows(200, 0.001)) < 0.003


def test_many_rows_of_one_source_weigh_as_one() -> None:
    """200 rows of one source with a wide spread leave the fit near what 40 sources say."""
    several, table = made_rows(40, 0.001), made_rows(200, 0.05, seed=2, source="table")
    alone = spread_of([replace(row, source=f"s{n}") for n, row in enumerate(table)])  # type: ignore[type-var]
    assert spread_of(several + table) < 0.004 < alone


def test_an_oom_that_was_predicted_to_fit_raises_the_fit() -> None:
    pytest.importorskip("scipy")
    from calibration import residual_model

    def bias(outcome: str) -> float:
        more = made_rows(10, 0.0, outcome=outcome, observed_bytes=round(20 * GIB * 1.002))
        rows = [replace(row, source=f"o{n}") for n, row in enumerate(more)] + made_rows(10, 0.002)  # type: ignore[type-var]
        return residual_model.fit(rows, (), ("train",), residual_model.REPLAY["reserved"]).error("bias/train")[0]  # type: ignore[arg-type]

    assert bias("oom") > bias("fits")


def between(rows: list[object]) -> float:
    """The 99 % point, as a share, of how far apart groups that were seen are."""
    pytest.importorskip("scipy")
    from calibration import residual_model

    fitted = residual_model.fit(rows, ("arch",), ("train",), residual_model.REPLAY["allocated"])  # type: ignore[arg-type]
    drawn = fitted.draws(4000, 1)
    effects = [drawn[f"arch/{group}"] * np.exp(drawn["log_between/arch"]) + drawn["bias/train"] for group in fitted.groups["arch"]]
    return float(np.quantile(np.concatenate(effects), 0.99))


def test_groups_that_agree_are_known_to_agree() -> None:
    """The spread between groups follows the rows, not its prior of half a percent."""
    alike = made_rows(120, 0.0001)
    assert between(alike) < 0.0003
    apart = [replace(row, observed_bytes=round(row.observed_bytes * (1 + 0.004 * (n % 4 - 1.5)))) for n, row in enumerate(alike)]  # type: ignore[attr-defined,type-var]
    assert 0.004 < between(apart) < 0.012


def test_a_run_is_one_observation_and_its_worst_row_stands_for_it() -> None:
    pytest.importorskip("scipy")
    from calibration.fit import farthest

    rows = [replace(row, source=f"run{n % 3}", phase=("train", "save")[n % 2]) for n, row in enumerate(made_rows(30, 0.01))]  # type: ignore[type-var]
    runs, phases = farthest(rows, by_phase=False), farthest(rows, by_phase=True)  # type: ignore[arg-type]
    assert (len(runs), len(phases)) == (3, 6)
    for one in runs:
        off = [abs(row.observed_bytes / row.replayed_bytes - 1) for row in rows if row.source == one.source]  # type: ignore[attr-defined]
        assert abs(one.observed_bytes / one.replayed_bytes - 1) == max(off)


def test_the_bounds_of_runs_alone_hold_on_kept_rows() -> None:
    """What a calibrated card's interval is made of: each end holds for at least 98 % of rows, both of allocated bytes for 97 % of runs."""
    rows = [row for row in pytest.importorskip("calibration.residual_rows").read() if row.kind == "emulated"]
    for figure in ("allocated", "reserved"):
        own = [row for row in rows if row.figure == figure]
        bounds = [ends(row.replayed_bytes, profile().runs.spread(figure, row.phase)) for row in own]
        below = [row for row, (low, _, _) in zip(own, bounds, strict=True) if row.observed_bytes < low]
        above = [row for row, (_, _, high) in zip(own, bounds, strict=True) if row.observed_bytes > high]
        assert max(len(below), len(above)) <= 0.02 * len(own)
        out = [*below, *above]
        assert figure == "reserved" or len({row.source for row in out}) <= 0.03 * len({row.source for row in own})


def test_rates_have_exact_intervals() -> None:
    pytest.importorskip("scipy")
    from calibration.residual_check import clopper_pearson

    assert clopper_pearson(0, 0) == (0.0, 1.0)
    low, high = clopper_pearson(12, 12)
    assert (round(low, 3), high) == (0.735, 1.0)  # twelve of twelve shows no more than that 73.5 % hold
    low, high = clopper_pearson(0, 299)
    assert low == 0.0
    assert high == pytest.approx(0.0123, abs=0.0002)


def test_kept_rows_read_back(tmp_path: Path) -> None:
    from calibration import residual_rows

    rows = residual_rows.read()[:5]
    residual_rows.write(rows, tmp_path / "rows.jsonl.xz")
    assert residual_rows.read(tmp_path / "rows.jsonl.xz") == rows
