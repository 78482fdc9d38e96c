"""What users install: the wheel holds everything that runs need, and asks for no more than it uses."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORT_NAMES = {"pyyaml": "yaml", "pillow": "PIL"}  # where a distribution's import name is not its own
MIB = 2**20


def distribution(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def third_party_imports(folder: Path) -> set[str]:
    tops: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                tops |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                tops.add((node.module or "").split(".")[0])
    return tops - set(sys.stdlib_module_names) - {"estimator", "calibration", "__future__"}


def test_core_dependencies_are_what_the_product_imports() -> None:
    core = {IMPORT_NAMES.get(d, d) for d in map(distribution, PROJECT["dependencies"])}
    video = set(map(distribution, PROJECT["optional-dependencies"]["video"]))  # imported where a clip is opened, if it is there
    assert third_party_imports(ROOT / "estimator") == core | video


def test_the_tests_install_no_torch() -> None:
    needed = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    assert not {"torch", "torchvision", "diffusers", "transformers"} & set(map(distribution, needed))


def test_the_console_script_is_there() -> None:
    module, function = PROJECT["scripts"]["estimate"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_changelog_has_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert first is not None
    assert first.group(1) == PROJECT["version"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built without an environment of its own: no network."""
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_is_complete_and_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        infos = {i.filename: i for i in archive.infolist()}
    shipped = {f"estimator/_profiles/{p.relative_to(ROOT / 'profiles')}" for p in (ROOT / "profiles").rglob("*") if p.is_file()}
    assert shipped
    assert shipped <= infos.keys()
    assert ("estimator/allocator_core.bin" in infos) == (ROOT / "estimator" / "allocator_core.bin").exists()  # as compiled
    assert {"estimator/py.typed", "calibration/emulated_cuda/device.h", "calibration/emulated_cuda/Makefile"} <= infos.keys()
    assert (infos["calibration/emulated_cuda/run.sh"].external_attr >> 16) & stat.S_IXUSR
    assert not [n for n in infos if n.endswith((".so", ".o", ".pyc")) or "/build/" in n], "build artefacts"
    assert {n.split("/")[0] for n in infos if ".dist-info" not in n} == {"estimator", "calibration"}
    assert wheel.stat().st_size < 8 * MIB


def test_an_installed_wheel_finds_its_profiles_and_a_broken_one_says_so(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    ask = [
        sys.executable,
        "-I",
        "-c",
        f"import sys; sys.path.insert(0, {str(site)!r}); from estimator.paths import profiles_dir; print(profiles_dir())",
    ]
    found = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True)
    assert Path(found.stdout.strip()) == (site / "estimator" / "_profiles").resolve()
    shutil.rmtree(site / "estimator" / "_profiles")
    broken = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True)
    assert broken.returncode != 0
    assert "reinstall vram-preflight" in broken.stderr


def test_a_checkout_uses_its_own_profiles() -> None:
    from estimator.paths import profiles_dir

    assert profiles_dir() == ROOT / "profiles"
