"""`estimate archs`: the architectures that can be estimated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from estimator.commands import SAFE_STATUS, Answer, StyleOf, options

if TYPE_CHECKING:
    from estimator.checked import ArchRow, TrainerRow


def run(arguments: list[str], style: StyleOf) -> Answer:
    """Every architecture that is known: whether it is modelled, and how far it was checked."""
    parser = options.Parser("estimate archs", "The architectures that can be estimated.")
    options.add_output(parser)
    given = parser.parse_args(arguments)
    from estimator import jsonout, report_lists
    archs, trained = _rows()
    if given.json:
        return Answer(jsonout.dumps(jsonout.archs_document(archs, trained)) + "\n", SAFE_STATUS)
    return Answer(report_lists.render_archs(archs, trained, style(given.no_color)), SAFE_STATUS)


def _rows() -> tuple[list[ArchRow], list[TrainerRow]]:
    """The architectures, and every value of the trainer's model.arch, in the order of profiles/archs.yaml."""
    from estimator.archs import load_archs
    from estimator.checked import NOTHING, ArchRow, TrainerRow, load_checked

    known, checked = load_archs(), load_checked()
    keys = {key: tuple(name for name, entry in known.trainer.items() if key in entry.archs) for key in known.archs}
    archs = [ArchRow(arch.key, arch.name, arch.modelled, keys[arch.key], checked.get(arch.key, NOTHING)) for arch in known.archs.values()]
    modelled = frozenset(known.modelled())
    trained = [
        TrainerRow(entry.key, entry.name, tuple(key for key in entry.archs if key in modelled), known.nearest(entry.key))
        for entry in known.trainer.values()
    ]
    return archs, trained
