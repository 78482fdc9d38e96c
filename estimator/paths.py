"""Where the shipped data are. `profiles/` stands beside the package in a checkout and inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def profiles_dir() -> Path:
    """The folder of the shipped profiles: `estimator/_profiles` (installed wheel), else `profiles/` beside the package (checkout).

    Plain path arithmetic rather than importlib.resources, whose import alone costs several milliseconds of every start.
    Raises FileNotFoundError if neither exists: a broken installation, not a user's mistake.
    """
    candidates = (_PACKAGE / "_profiles", _PACKAGE.parent / "profiles")
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no profiles in {' or '.join(map(str, candidates))}: the installation is incomplete, reinstall vram-preflight")


def installed_version() -> str:
    """The version of this package as installed; "source" for a checkout that is not."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vram-preflight")
    except PackageNotFoundError:
        return "source"
