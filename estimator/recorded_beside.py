"""Profiles of jobs that have a recording of their own beside the architecture's, in a folder below it, and are that one's in all else."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from estimator import rebuilt_profile
from estimator.archive import described
from estimator.errors import CannotTell, Problem
from estimator.program import Program
from estimator.programs import Profile, load_profile

P = TypeVar("P", bound="BesideProfile")


@dataclass(frozen=True)
class BesideProfile(Profile):
    """`data`, `folder`: of what was recorded for such a job; all else is the architecture's own profile's, or that in a compute type
    (`base`)."""

    base: Profile | None = field(default=None, kw_only=True)

    @cached_property
    def relative(self) -> Profile | None:
        return self.base or load_profile(self.arch)

    def _by_rule(self, key: str) -> Program:
        """Of another kind of weights than the recorded one, what lies in the architecture's own profile is made there."""
        if self._is_relatives(key) and self.relative is not None and rebuilt_profile.base_key(self.relative, key) is not None:
            return self.relative.program(key)
        return super()._by_rule(key)

    def __hash__(self) -> int:
        return id(self)


def recorded_beside(
    kind: type[P], arch: str, name: str, otherwise: Problem, alike: str | None = None, base: Profile | None = None
) -> P:
    """The profile in the folder `name` below an architecture's (`base`, in another compute type), or below that of one of the same class
    and configuration (`alike`). Raises CannotTell with `otherwise` where nothing was recorded."""
    folder = (base or load_profile(alike or arch)).folder / name
    try:
        data = described(folder)
    except FileNotFoundError:
        raise CannotTell(otherwise) from None
    return kind(arch, data, folder, base=base)
