"""Pictures: what they show is what estimates say; the files are written; mistakes are explained before any work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from estimator.cli import main
from estimator.engine import estimate_job
from estimator.estimate import SAFE
from estimator.gpus import GIB, find_gpu
from estimator.planner.subject import read_subject
from estimator.plots.curves import curves
from estimator.trainers import read_jobs

ZIMAGE = Path(__file__).resolve().parent.parent / "examples" / "zimage_turbo_ui.yaml"


def test_curves_show_what_estimates_say() -> None:
    gpu = find_gpu("RTX4090")
    made = curves(read_subject(str(ZIMAGE), (), None, ()), gpu, "batch")
    assert {line.label for line in made.lines} >= {"as configured", "gradient checkpointing off", "transformer unquantised"}
    assert made.own is not None
    assert made.own[0] == 1
    for line in made.lines:
        assert all(point.low_gib <= point.likely_gib <= point.high_gib for point in line.points)
    line = made.lines[0]
    (job,) = read_jobs(ZIMAGE, ("train.batch_size=4",))
    fast = estimate_job(job, gpu, fast=True)
    needs = max(phase.allocated_bytes for phase in fast.phases) + gpu.context_bytes + gpu.desktop_bytes
    assert next(point for point in line.points if point.value == 4).likely_gib == pytest.approx(needs / GIB)
    assert line.last_safe is not None
    for batch, safe in ((line.last_safe.value, True), (line.last_safe.value + 1, False)):
        (job,) = read_jobs(ZIMAGE, (f"train.batch_size={batch}",))
        assert (estimate_job(job, gpu).verdict == SAFE) is safe


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_pictures_are_written(ending: str, start: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / f"run.{ending}"
    assert main(["plot", str(ZIMAGE), "--gpu", "RTX3060", "-o", str(out), "--kind", "timeline"]) == 0
    assert out.read_bytes().startswith(start)
    assert "Drawn" in capsys.readouterr().out


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "curves.svg"
    assert main(["plot", str(ZIMAGE), "--gpu", "12GiB", "-o", str(out), "--over", "rank"]) == 0
    assert out.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "curves.bmp"), "must end in .png, .svg, .pdf"),
        (("-o", "no/such/folder/curves.png"), "no such folder"),
        (("-o", "curves.png", "--kind", "timeline", "--over", "rank"), "--over belongs to curves"),
        (("-o", "curves.png", "--kind", "timeline", "--over", "rank"), "leave it out, or --kind curves"),
        (("-o", "curves.png", "--over", "lr"), "invalid choice"),
        (("-o", "curves.png", "--over", "frames"), "one value at most is known for Z-Image Turbo"),  # was: an empty picture
        (("-o", "curves.png", "--over", "rank", "--set", "network.type=lokr"), "a LoKr of full rank has none"),
        ((), "-o"),
    ],
)
def test_bad_usage(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(ZIMAGE), "--gpu", "RTX4090", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", str(ZIMAGE), "--gpu", "RTX4090", "-o", str(tmp_path / "curves.png")]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
