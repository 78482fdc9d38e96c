"""Plans that the trainer was made to run: the kept rows hold, and an estimate says today what it said then."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from calibration import confirm_plans, confirmed
from calibration.confirmed import Confirmed
from calibration.plan_table import confirmed_table
from estimator.engine import estimate_job
from estimator.estimate import OOM, SAFE
from estimator.planner.subject import read_subject

ROWS = confirmed.read()
FAMILIES = {"flux", "zimage", "qwen_edit", "wan"}


def plans() -> dict[tuple[object, ...], list[Confirmed]]:
    found: dict[tuple[object, ...], list[Confirmed]] = defaultdict(list)
    for row in ROWS:
        found[row.case].append(row)
    return found


def test_of_each_family_a_plan_ran_and_its_next_step_up_ran_out_of_memory() -> None:
    done = set()
    for rows in plans().values():
        said = {row.verdict: row.ran for row in rows}
        if said.get(SAFE) == confirmed.FINISHED and said.get(OOM) == confirmed.OUT_OF_MEMORY:
            done |= {family for family in FAMILIES if rows[0].example.startswith(family)}
    assert done == FAMILIES


def test_every_run_ended_as_estimated() -> None:
    assert [row for row in ROWS if not row.holds] == []
    safe = next(row for row in ROWS if row.verdict == SAFE)
    assert not replace(safe, ran=confirmed.OUT_OF_MEMORY).holds
    assert not replace(safe, verdict=OOM).holds


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row.key)))
def test_an_estimate_says_today_what_it_said_of_the_run(row: Confirmed, tmp_path: Path) -> None:
    case = confirm_plans.Case(row.example, row.card, aim=row.aim, calibrated=row.calibrated)
    job = read_subject(str(confirm_plans.write_job(row.example, tmp_path)), row.edits, None, ()).read(())
    assert job is not None
    assert estimate_job(job, case.gpu()).verdict == row.verdict


def test_the_table_has_every_run() -> None:
    lines = confirmed_table(ROWS).splitlines()
    assert len([line for line in lines if line.startswith("| ")]) == len(ROWS) + 1
    assert sum("out of memory (" in line for line in lines) == sum(row.ran == confirmed.OUT_OF_MEMORY for row in ROWS)


def test_rows_of_a_plan_are_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    confirmed.keep(ROWS, path)
    first = path.read_text(encoding="utf-8")
    again = [row for row in ROWS if row.case == ROWS[0].case]
    confirmed.keep([replace(row, commit="later") for row in again], path)
    assert len(confirmed.read(path)) == len(ROWS)
    assert {row.commit for row in confirmed.read(path) if row.case == ROWS[0].case} == {"later"}
    assert path.read_text(encoding="utf-8") != first
