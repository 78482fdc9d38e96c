"""`estimate gpus`: the cards that --gpu knows."""

from __future__ import annotations

from estimator.commands import SAFE_STATUS, Answer, StyleOf, options


def run(arguments: list[str], style: StyleOf) -> Answer:
    """The catalogue, smallest first."""
    parser = options.Parser("estimate gpus", "The cards that --gpu knows, smallest first.")
    options.add_os(parser, "capacities on this system; default linux")
    options.add_output(parser)
    given = parser.parse_args(arguments)
    from estimator import gpus, jsonout, report_lists

    cards = gpus.all_gpus(given.os or options.LINUX)
    if given.json:
        return Answer(jsonout.dumps(jsonout.gpus_document(cards)) + "\n", SAFE_STATUS)
    return Answer(report_lists.render_gpus(cards, style(given.no_color)), SAFE_STATUS)
