"""`estimate archs`: the architectures that can be estimated."""

from __future__ import annotations

from estimator.commands import SAFE_STATUS, Answer, StyleOf, options


def run(arguments: list[str], style: StyleOf) -> Answer:
    """Every architecture that is known, and whether it is modelled."""
    parser = options.Parser("estimate archs", "The architectures that can be estimated.")
    options.add_output(parser)
    given = parser.parse_args(arguments)
    from estimator import jsonout, report_lists
    from estimator.archs import load_archs

    archs = [(arch.key, arch.name, arch.modelled, arch.checked_runs) for arch in load_archs().archs.values()]
    if given.json:
        return Answer(jsonout.dumps(jsonout.archs_document(archs)) + "\n", SAFE_STATUS)
    return Answer(report_lists.render_archs(archs, style(given.no_color)), SAFE_STATUS)
