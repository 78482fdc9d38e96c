"""A process of its own that passes on what a training run prints: `python relay.py LOG FROM:TO ...`, numbers of open files.

What comes from each FROM goes to its TO unchanged, and a copy of all into LOG. It belongs to no terminal and ignores what stops others, so
that the run can go on printing when `estimate watch` is gone; it ends when the run has closed its last end. A TO that nobody
reads any more, or a full disk below LOG, is given up; the run is never held up by that.
"""

from __future__ import annotations

import os
import select
import signal
import sys

CHUNK_BYTES = 2**16


def put(file: int, data: bytes) -> bool:
    """Write all; False if that is not possible any more."""
    try:
        while data:
            data = data[os.write(file, data) :]
    except OSError:
        return False
    return True


def main(log: int, ways: dict[int, int]) -> None:
    """Until every FROM is at its end. A terminal's other side says so by an error."""
    gone: set[int] = set()
    while ways:
        ready, _, _ = select.select(list(ways), [], [])
        for source in ready:
            try:
                data = os.read(source, CHUNK_BYTES)
            except OSError:
                data = b""
            if not data:
                del ways[source]
                continue
            for target in (ways[source], log):
                if target not in gone and not put(target, data):
                    gone.add(target)


if __name__ == "__main__":
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGPIPE", "SIGTSTP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    main(int(sys.argv[1]), {int(source): int(target) for source, _, target in (pair.partition(":") for pair in sys.argv[2:])})
