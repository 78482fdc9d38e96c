"""`estimate plot CONFIG --gpu NAME -o FILE`: headroom curves, or the run phase by phase, as a picture."""

from __future__ import annotations

from estimator.commands import SAFE_STATUS, Answer, StyleOf, options

DESCRIPTION = """\
A picture of what a training config needs: over one of its settings, or phase
by phase. Drawn with matplotlib: pip install matplotlib.
"""
EPILOG = """\
examples:
  estimate plot config.yaml --gpu RTX4090 -o headroom.png
  estimate plot config.yaml --gpu RTX4090 -o batch.svg --over batch
  estimate plot config.yaml --gpu RTX4090 -o run.pdf --kind timeline

exit status: 0 the picture was written, 2 bad input or usage, 3 cannot tell
"""
KINDS = ("curves", "timeline")


def parser() -> options.Parser:
    """The options of `plot`."""
    made = options.Parser("estimate plot", DESCRIPTION, EPILOG)
    made.add_argument("config", metavar="CONFIG", help="a training config of AI Toolkit (YAML or JSON)")
    made.add_argument("--gpu", required=True, metavar="NAME", help="a card (see `estimate gpus`), or a size such as 23.5GiB")
    made.add_argument("-o", "--out", required=True, metavar="FILE", help="the picture: .png, .svg or .pdf")
    made.add_argument("--kind", choices=KINDS, default="curves", help="curves over a setting (default), or the run's timeline")
    overs = ("resolution", "batch", "frames", "rank", "preview")
    made.add_argument("--over", choices=overs, help="what curves run over; default resolution")
    options.add_job(made)
    options.add_trainer_version(made)
    options.add_overlay(made)
    return made


def run(arguments: list[str], style: StyleOf) -> Answer:
    """Draw one picture."""
    given = parser().parse_args(arguments)
    from estimator.errors import InputError, Problem
    from estimator.planner.subject import read_subject
    from estimator.plots.draw import check_picture, draw_curves, draw_timeline

    if given.kind == "timeline" and given.over is not None:
        raise InputError(Problem("--over belongs to curves", None, "a timeline has phases", "leave it out, or --kind curves"))
    check_picture(given.out)
    subject = options.read_beside(given, lambda: read_subject(given.config, tuple(given.set), given.arch, (), given.trainer_version))
    gpu = options.one_card(given, [subject.job])
    if given.kind == "timeline":
        from estimator.engine import estimate_job

        draw_timeline(estimate_job(subject.job, gpu), given.out)
    else:
        from estimator.plots.curves import curves

        draw_curves(curves(subject, gpu, given.over or "resolution"), given.out)
    return Answer(f"Drawn: {given.out}\n", SAFE_STATUS)
