"""What many readings of one config have in common: read once. Planning reads hundreds of configs that differ in a few settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

_T = TypeVar("_T")

_memory: ContextVar[dict[Any, Any] | None] = ContextVar("memory", default=None)


@contextmanager
def remembered(memory: dict[Any, Any]) -> Iterator[None]:
    """Within: folders, captions and sections that `memory` has are not read again, and what is read goes there."""
    token = _memory.set(memory)
    try:
        yield
    finally:
        _memory.reset(token)


def once(key: object, read: Callable[[], _T]) -> _T:
    """What `read` gives; within `remembered` that of the first time with this key."""
    memory = _memory.get()
    if memory is None:
        return read()
    if key not in memory:
        memory[key] = read()
    found: _T = memory[key]
    return found
