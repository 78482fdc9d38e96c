"""Problems of a user's input: what, where, why, and how to fix it. Raised together, printed by the CLI alone."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.job import Place

NO_NAME = "(an empty name)"  # of a file


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the input. `fix` is what the user should do next."""

    what: str
    place: Place | None = None
    why: str = ""
    fix: str = ""

    def __str__(self) -> str:
        where = ""
        if self.place is not None:
            line = f":{self.place.line}" if self.place.line is not None else ""
            key = f": {self.place.key}" if self.place.key else ""
            where = f"{self.place.file or NO_NAME}{line}{key}: "
        text = f"{where}{self.what}"
        if self.why:
            text += f" ({self.why})"
        if self.fix:
            text += f"\n  fix: {self.fix}"
        return text


class _Refused(Exception):
    """What keeps the input from an estimate, all of it, and `warnings`: what else was noticed, so that both can be mended at once."""

    def __init__(self, *problems: Problem, warnings: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems, self.warnings = problems, warnings


class InputError(_Refused):
    """The config, an option or the machine's name cannot be used: exit status 2. Carries every problem found."""


class CannotTell(_Refused):
    """The architecture or a setting is not modelled: exit status 3. Carries what is not modelled, by name."""
