"""The training run as a child that does not depend on us: its streams, its signals, its end.

Streams. The child's output must reach the terminal live and unchanged, must be readable for its phases, and must not break when `watch`
is killed. A pipe to `watch` would break; so the other end belongs to a relay, a small process in a session of its own (relay.py), which
outlives us, and `watch` reads the copy that it writes. Where stdout or stderr is a terminal the child gets a pseudo-terminal, so that its
progress bars stay alive; both on one terminal, or in one file, are one stream, so that their order is kept. stdin is the child's own.

Signals. The child leads a session of its own: killing our process group does not reach it. What a keyboard sends to all processes in the
foreground (interrupt, quit, stop) is passed on to its whole group, other signals to the child alone, once each.

Where there are no pseudo-terminals (Windows) or the run writes a log of its own (`--log`), the child has our streams themselves.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

OUT, ERR = 1, 2
_TO_GROUP = ("SIGINT", "SIGQUIT")
_TO_CHILD = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_DRAIN_SECONDS = 5.0
"""How long we wait for the last words; a worker that outlives the run may keep its stream open."""


@dataclass
class Child:
    """A run that was started. `terminals`: our side of its pseudo-terminals, for their size."""

    process: subprocess.Popen[bytes]
    relay: subprocess.Popen[bytes] | None = None
    terminals: list[int] = field(default_factory=list)
    _woken: int = -1

    @property
    def pid(self) -> int:
        return self.process.pid

    def pause(self, seconds: float) -> bool:
        """Sleep, but no longer than the child lives. Whether it still does."""
        if self.process.poll() is not None:
            return False
        if self._woken >= 0:
            select.select([self._woken], [], [], seconds)
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 512)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        return self.process.poll() is None

    def finish(self) -> int:
        """The exit status as a shell has it (128 + signal), after the last words went out."""
        status = self.process.wait()
        if self.relay is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.relay.wait(_DRAIN_SECONDS)
        return status if status >= 0 else 128 - status

    def listen(self) -> None:
        """Pass signals on from now on; ours have no other effect. POSIX only."""
        self._woken, writes = os.pipe()
        os.set_blocking(writes, False)
        os.set_blocking(self._woken, False)
        signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        for name in (*_TO_GROUP, *_TO_CHILD, "SIGTSTP", "SIGCONT", "SIGWINCH", "SIGCHLD"):
            signal.signal(getattr(signal, name), self._heard)

    def _heard(self, number: int, _: object) -> None:
        name = signal.Signals(number).name
        with contextlib.suppress(ProcessLookupError):
            if name in _TO_GROUP:
                os.killpg(self.pid, number)
            elif name in _TO_CHILD:
                os.kill(self.pid, number)
            elif name == "SIGTSTP":  # a group without a terminal cannot be stopped by one
                os.killpg(self.pid, signal.SIGSTOP)
                os.kill(os.getpid(), signal.SIGSTOP)
            elif name == "SIGCONT":
                os.killpg(self.pid, signal.SIGCONT)
            elif name == "SIGWINCH":
                for terminal in self.terminals:
                    _same_size(terminal)


def start(command: Sequence[str], log: Path | None) -> Child:
    """Start the command with its output copied to `log`, or (None) with our own streams. Raises OSError where it cannot be started."""
    if not hasattr(os, "openpty"):
        return Child(subprocess.Popen(list(command)))
    if log is None:
        child = Child(subprocess.Popen(list(command), start_new_session=True))
    else:
        child = _relayed(command, log)
    child.listen()
    return child


def _relayed(command: Sequence[str], log: Path) -> Child:
    environment, ours, theirs, ways = dict(os.environ), list[int](), dict[int, int](), list[str]()
    one_stream = _same_file(OUT, ERR)
    terminals: list[int] = []
    for stream in (OUT, ERR):
        if stream == ERR and one_stream:
            theirs[ERR] = theirs[OUT]
            continue
        if os.isatty(stream):
            source, end = _terminal(stream)
            terminals.append(source)
        else:
            source, end = os.pipe()
            environment.setdefault("PYTHONUNBUFFERED", "1")  # else phases are printed long after they began
        ours.append(source)
        theirs[stream] = end
        ways.append(f"{source}:{stream}")
    copy = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(list(command), stdout=theirs[OUT], stderr=theirs[ERR], start_new_session=True, env=environment)
        relay = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("relay.py")), str(copy), *ways],
            pass_fds=(copy, *ours, OUT, ERR), start_new_session=True,
        )  # fmt: skip
    finally:
        for end in {copy, *theirs.values(), *(one for one in ours if one not in terminals)}:
            os.close(end)
    return Child(process, relay, terminals)


def _same_file(one: int, other: int) -> bool:
    first, second = os.fstat(one), os.fstat(other)
    return (first.st_dev, first.st_ino, first.st_rdev) == (second.st_dev, second.st_ino, second.st_rdev)


def _terminal(like: int) -> tuple[int, int]:
    """Both ends of a pseudo-terminal that passes bytes on as they are and has the size of the terminal `like`."""
    import termios

    ours, theirs = os.openpty()
    settings = termios.tcgetattr(theirs)
    settings[1] &= ~termios.OPOST  # the real terminal adds what lines need at their ends
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    _same_size(ours, like)
    os.set_inheritable(ours, False)
    return ours, theirs


def _same_size(terminal: int, like: int = OUT) -> None:
    import fcntl
    import termios

    like = like if os.isatty(like) else ERR
    with contextlib.suppress(OSError):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, fcntl.ioctl(like, termios.TIOCGWINSZ, b"\0" * 8))
