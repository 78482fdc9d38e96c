"""At installation: compile the allocator's replay, if there is a C compiler. Without one the package is pure Python, and slower.

The library is plain C, loaded with ctypes: the wheel is for one platform and for every Python.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("estimator", "allocator_core.c")
LIBRARY = Path("estimator", "allocator_core.bin")
WITHOUT = "VRAM_PREFLIGHT_PURE_PYTHON"
"""Set in the environment: do not compile."""


def compile_core(root: Path) -> bool:
    """Compile SOURCE to LIBRARY below `root` with $CC, Python's own compiler or cc; whether that worked."""
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    made = (root / LIBRARY).with_suffix(f".{os.getpid()}")
    for command in dict.fromkeys((compiler, "cc", "gcc", "clang")):
        try:
            subprocess.run(
                [*shlex.split(command), "-O2", "-std=c11", "-shared", "-fPIC", "-fvisibility=hidden", "-o", str(made), str(root / SOURCE)],
                check=True, capture_output=True,
            )  # fmt: skip
        except (OSError, subprocess.CalledProcessError):
            continue
        made.replace(root / LIBRARY)
        return True
    made.unlink(missing_ok=True)
    return False


class CompileCore(BuildHookInterface):
    """hatchling's hook, for wheels and editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling: what is built is added to the wheel, which then has the platform's tag."""
        if os.environ.get(WITHOUT) or sys.platform == "win32" or not compile_core(Path(self.root)):
            (Path(self.root) / LIBRARY).unlink(missing_ok=True)  # never one of another version
            return
        build_data["pure_python"] = False
        build_data["artifacts"].append(LIBRARY.as_posix())
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
