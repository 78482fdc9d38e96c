"""Import stubs for packages that the trainer imports at module level but does not use in a LoRA run."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any, ClassVar

STUBS = {"torchaudio", "controlnet_aux", "easy_dwpose", "dadaptation", "lion_pytorch", "gradio", "hf_transfer", "modal", "wandb"}
used: set[str] = set()


class _Anything:
    """Stands for any name of a stubbed package: can be subclassed and looked into, not used."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("a stubbed package was really used")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _Module(types.ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in STUBS else None

    def create_module(self, spec: Any) -> Any:
        used.add(spec.name.split(".")[0])
        return _Module(spec.name)

    def exec_module(self, module: Any) -> None:
        module.__version__ = "0.0.0"


def install() -> None:
    """Last on the path: a stub serves only where nothing real is found."""
    sys.meta_path.append(_Finder())
