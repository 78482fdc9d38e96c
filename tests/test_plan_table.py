"""Plans of examples against `check`, as calibration.plan_table does it for all on five cards: a slice of it, and that it can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calibration import plan_table
from estimator.planner.plans import Plan


@pytest.mark.parametrize(("example", "card"), [("zimage_turbo_ui", "RTX3060"), ("flux_dev_24gb", "RTX4090"), ("qwen_image_ui", "L40S")])
def test_what_is_planned_is_safe_and_the_next_step_is_not(example: str, card: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_table.main(["--only", example, "--cards", card]) == 0
    assert "1 of 1 hold" in capsys.readouterr().out


def test_a_plan_that_does_too_much_or_too_little_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = plan_table.make_plan

    def too_little(*given: object) -> Plan:
        plan = made(*given)  # type: ignore[arg-type]
        return replace(plan, edits=())

    def too_much(*given: object) -> Plan:
        plan = made(*given)  # type: ignore[arg-type]
        return replace(plan, changes=tuple(replace(change, weaker=plan.edits) for change in plan.changes))

    for wrong, words in ((too_little, "the plan is borderline"), (too_much, "low_vram a step back is safe")):
        monkeypatch.setattr(plan_table, "make_plan", wrong)
        assert plan_table.main(["--only", "flux_dev", "--cards", "RTX4090"]) == 1
        assert words in capsys.readouterr().out
