"""A log's lines as the story of each job in it: config, phases as they come, steps, failures with their numbers. Constant memory.

Two jobs may stand in one log: run.py takes several configs, and people append. A job begins with the trainer's "Running N jobs" or, where
that is missing, with "# Running job: NAME".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from estimator import crash
from estimator.crash import Failure, LoggedRun
from estimator.diagnosis import marks, oomtext
from estimator.diagnosis.printed import PrintedConfig
from estimator.diagnosis.progress import StepTimes, parse_bar
from estimator.job import Bucket

MOST_FAILURES = 60
"""Failures kept of a job: the first half of them and the last."""
MOST_DATASETS, MOST_BUCKETS = 200, 2000
MOST_JOBS, MOST_PROCESSES = 1000, 10
MOST_FRAMES = 300
MOST_TEXT = 300
_WRAPPED_LINES = 12
"""Lines over which a console may have wrapped an out-of-memory message."""


def read_story(lines: Iterable[tuple[int, bytes]]) -> tuple[LoggedRun, ...]:
    """The jobs of a log, in order. At least one, also of a log that is none."""
    reader, runs = Reader(), []
    for number, line in lines:
        if reader.begins_another(line):
            runs.append(reader.finish())
            del runs[:-MOST_JOBS]
            reader = Reader(number, reader.carried)
        reader.feed(number, line)
    return (*runs, reader.finish())


class Reader:
    """One job's story while it is read."""

    def __init__(self, first_line: int = 1, carried: tuple[dict[str, object], ...] = ()) -> None:
        self.run = LoggedRun(first_line=first_line, processes=carried)
        self.carried: tuple[dict[str, object], ...] = ()
        self.line = first_line
        self.at: tuple[str, str] = ("", "")
        self.failures: list[Failure] = []
        self.left_out = 0
        self.dump: PrintedConfig | None = None
        self.frames: tuple[list[str], list[str], list[str]] | None = None
        self.oom: tuple[int, str, int] | None = None
        self.times = StepTimes()
        self.started = self.named = self.recovered = False
        self.step = 0
        self.planned: int | None = None  # of the training bar, which changes far too often for a frozen value
        self.warned: crash.OomText | None = None
        self.own_frames: tuple[list[str], list[str], list[str]] | None = None

    def begins_another(self, line: bytes) -> bool:
        """Whether this line begins a new job after one that has begun."""
        if line.startswith(b"Running ") and marks.START.match(line.decode("utf-8", "replace")):
            return self.started or self.named
        return self.named and line.startswith(b"# Running job: ") and not line.endswith(b": " + self.run.name.encode())

    def finish(self) -> LoggedRun:
        """What is known at the job's end."""
        self._end_oom()
        run = self.run
        done = self.planned is not None and self.step >= self.planned and not any(f.what != crash.OTHER for f in self.failures[-1:])
        return replace(
            run,
            last_line=self.line,
            failures=tuple(self.failures),
            failures_left_out=self.left_out,
            step=self.step,
            steps_planned=self.planned,
            recovered=self.recovered,
            phase=self.at[0],
            part=self.at[1],
            finished=run.finished or done,
            slowdown=self.times.jump,
        )

    def feed(self, number: int, line: bytes) -> None:
        """The next line. Most are passed over after a look at their beginning and a few words."""
        self.line = number
        if self.oom is not None and self._continue_oom(line):
            return
        if self.dump is not None and self._in_config(line):
            return
        if b"%|" in line and not line.startswith(b"Job process"):
            self._bar(line)
            if line.endswith(b"]"):
                return
        if self.frames is not None and self._in_traceback(line):
            return
        if line.startswith(marks.PREFIXES):
            text = line.decode("utf-8", "replace")
            self._enter(marks.phase_of(text, self.at))
            self._saw_path(text)
        if marks.HINTS.search(line):
            self._trouble(line.decode("utf-8", "replace"))
        elif line[:1] in b"{#BSRJ|0123456789 ":
            self._other(line.decode("utf-8", "replace"))

    def _other(self, text: str) -> None:
        """Lines that tell about the job, neither phase nor trouble."""
        if text == "{" and len(self.run.processes) < MOST_PROCESSES:
            self.dump = PrintedConfig(text)
        elif match := marks.JOB.match(text):
            self.named = True
            self.run = replace(self.run, name=match[1][:200], seen_trainer=True)
        elif marks.START.match(text):
            self.started = True
            self.run = replace(self.run, seen_trainer=True)
        elif text.startswith(marks.BUCKETS_OF) and len(self.run.buckets) < MOST_DATASETS:
            self.run = replace(self.run, buckets=(*self.run.buckets, ()), seen_trainer=True)
        elif (match := marks.BUCKET.match(text)) and self.run.buckets:
            self._bucket(*match.groups())
        elif match := marks.COMPLETED.match(text):
            self.run = replace(self.run, finished=int(match[1]) > 0 and not self.failures)
        elif any(word in text for word in marks.STOPPED):
            self.run = replace(self.run, stopped=True)
        elif match := marks.SMI_PROCESS.match(text):
            self.run = replace(self.run, others=(*self.run.others[:50], (int(match[2]), int(match[4]) * 2**20)))

    def _bucket(self, width: str, height: str, frames: str | None, count: str) -> None:
        *before, last = self.run.buckets
        if len(last) < MOST_BUCKETS and max(map(len, (width, height, frames or "", count))) < 8:
            one = Bucket(int(width), int(height), int(frames or 1), int(count))
            self.run = replace(self.run, buckets=(*before, (*last, one)))

    def _enter(self, phase: tuple[str, str]) -> None:
        if phase == marks.SAMPLE and self.step == 0 and self.at != marks.TRAIN:
            phase = marks.BASELINE
        self.at = phase
        if not self.run.seen_trainer:
            self.run = replace(self.run, seen_trainer=True)

    def _bar(self, line: bytes) -> None:
        bar = parse_bar(line)
        if bar is None:
            return
        name, done, total, seconds, has_loss = bar
        if has_loss or (name and name == self.run.name.encode()):
            self._training(done, total, seconds)
        elif name in (b"Generating Images", b"Generating Samples"):
            self._enter(marks.phase_of(name.decode(), self.at))
            if done == total and total:
                self.run = replace(self.run, samples_done=self.run.samples_done + 1)

    def _training(self, done: int, total: int, seconds: int) -> None:
        if done == self.step and total == self.planned:
            self.at = marks.TRAIN
            return
        self.at, self.step, self.planned = marks.TRAIN, done, total
        if self.failures and self.failures[-1].what == crash.SKIPPED and done > self.failures[-1].step + 1:
            self.recovered = True
        self.times.update(done, seconds, self.line)

    def _in_config(self, line: bytes) -> bool:
        """Whether the line belongs to a config that is being printed; the config is taken when it is whole.

        After the job's name it is that of the next job, because the trainer prints configs first.
        """
        assert self.dump is not None
        if not self.dump.takes(line.decode("utf-8", "replace")):
            self.dump = None
            return False
        config = self.dump.config
        if config is not None:
            self.dump = None
            if "type" in config:
                self._take(config)
        return True

    def _take(self, config: dict[str, object]) -> None:
        if self.named:
            self.carried = (*self.carried, config)[-MOST_PROCESSES:]
            return
        self.run = replace(self.run, processes=(*self.run.processes, config), seen_trainer=True)
        self._saw_path(str(config.get("training_folder")))

    def _saw_path(self, text: str) -> None:
        if not self.run.windows and marks.WINDOWS_PATH.search(text):
            self.run = replace(self.run, windows=True)

    # --- trouble ------------------------------------------------------------------------------------------------------------------

    def _trouble(self, text: str) -> None:
        self._saw_path(text)
        if marks.TRACEBACK in text:
            self.frames = ([], [], [])
        elif oomtext.is_warning(text):
            self.warned = oomtext.parse_warning(text)
            self.run = replace(self.run, pressed=self.run.pressed + 1)
        elif oomtext.is_oom_text(text):
            self.oom = (self.line, text, _WRAPPED_LINES)
            if oomtext.is_complete(text):
                self._end_oom()
        elif match := marks.SKIP.search(text):
            self.recovered = self.recovered or self._went_on(int(match[1]))
            self.run = replace(self.run, skips=self.run.skips + 1)
            self._enter(marks.TRAIN)
            self._fail(crash.SKIPPED, text, self.warned)
        elif marks.GIVE_UP in text:
            self._enter(marks.TRAIN)
            self._fail(crash.GAVE_UP, text, self.warned)
        elif what := marks.failure_of(text):
            self._fail(what, text, None)
        elif text.startswith(marks.JOB_ERROR):
            self._fail(crash.OTHER, text, None)
        else:
            self._other(text)

    def _went_on(self, in_a_row: int) -> bool:
        """The trainer counts failures in a row, and begins anew after a step that went through."""
        return in_a_row == 1 and any(failure.what == crash.SKIPPED for failure in self.failures)

    def _continue_oom(self, line: bytes) -> bool:
        """Whether the line belongs to an out-of-memory message that a console has wrapped."""
        assert self.oom is not None
        number, text, left = self.oom
        words = line.decode("utf-8", "replace")
        if left == 0 or not words.strip() or marks.TRACEBACK in words or words.startswith((marks.JOB_ERROR, "====", "####")):
            self._end_oom()
            return False
        self.oom = (number, f"{text} {words}", left - 1)
        if oomtext.is_complete(self.oom[1]):
            self._end_oom()
        return True

    def _end_oom(self) -> None:
        if self.oom is not None:
            number, text, _ = self.oom
            self.oom = None
            self._fail(crash.OOM_TEXT, text, oomtext.parse(text), number)

    def _in_traceback(self, line: bytes) -> bool:
        """Collects functions, files and code of a traceback; False at its end, with the frames kept for the failure that follows."""
        assert self.frames is not None
        text = line.decode("utf-8", "replace")
        if marks.TRACEBACK in text:
            return True  # on Windows two threads write it at once
        match = marks.FRAME.search(text)
        if match:
            self._saw_path(match[1])
            if len(self.frames[0]) < MOST_FRAMES:
                self.frames[0].append(match[2].partition("File")[0])
                self.frames[1].append(match[1])
            self.frames[2].clear()
            return True
        if text.startswith("  ") or not text:
            if text.strip(" ^~"):
                self.frames[2].append(text.strip()[:200])
                del self.frames[2][:-3]
            return True
        self.own_frames, self.frames = self.frames, None
        self._trouble(text)  # the exception's line, whatever words it has
        self.own_frames = None
        return True

    def _fail(self, what: str, text: str, numbers: crash.OomText | None, line: int | None = None) -> None:
        """One more failure; a traceback tells its phase better than what was printed last, and repeats what was said before it."""
        phase = self.at
        frames = self.own_frames
        if frames is not None:
            found = marks.phase_of_frames(frames[0], frames[1])
            if found is not None and (found[0] != phase[0] or found[1]):
                phase = marks.BASELINE if found == marks.SAMPLE and self.step == 0 else found
            if what == crash.CUDA_OOM and any(map(marks.PINNED.search, frames[2])):
                what = crash.HOST
        failure = Failure(what, line or self.line, _short(text), *phase, self.step, numbers)
        for index in range(len(self.failures) - 1, max(len(self.failures) - 4, -1), -1):
            if _same(self.failures[index], failure):
                known = self.failures.pop(index)  # the last one said is what ended it
                self.failures.append(known if frames is None else replace(failure, line=known.line))
                return
        self.failures.append(failure)
        if len(self.failures) > MOST_FAILURES:
            del self.failures[MOST_FAILURES // 2]
            self.left_out += 1


def _same(first: Failure, second: Failure) -> bool:
    """The trainer says what it died of, Python says it again below the traceback, and the UI once more at the end."""
    if first.step != second.step or crash.SKIPPED in (first.what, second.what):
        return False
    if first.what == second.what == crash.OOM_TEXT:
        return first.numbers == second.numbers
    return first.what == second.what or {first.what, second.what} in ({crash.CUDA_OOM, crash.HOST}, {crash.CUDA_OOM, crash.LIBRARY})


def _short(text: str) -> str:
    words = "".join(char if char.isprintable() else "?" for char in " ".join(text[:4000].split()))
    return words if len(words) <= MOST_TEXT else words[: MOST_TEXT - 3] + "..."
