"""Extraction on small made-up recordings: exact fits are found, the rest is refused by name, and bytes are the same each time."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import pytest

from calibration.architectures.flux import LAYOUT as FLUX
from calibration.extract import build, stored
from calibration.extract.affine import solve
from calibration.extract.align import WORKSPACE_BYTES, LayerCall, Misaligned, canonical, overlay
from calibration.extract.calls import laid
from calibration.extract.parts import Occurrence
from calibration.extract.programs import Refused, extract
from calibration.extract.runs import Phase, Run, Tensor
from estimator.archive import described
from estimator.paths import profiles_dir
from estimator.programs import Profile

KEY = "step.core/bf16/checkpointed/one"
MIB = 2**20
SIZES = ((1024, 64, 8), (1920, 88, 24), (4096, 128, 8), (836, 60, 24), (3952, 129, 16))  # tokens, edge, rank
JOBS = tuple({"T": t, "E": e, "X": 512, "B": 1, "r": r} for t, e, r in SIZES)

Script = list[tuple[str, str, int]]
"""("a", tensor, bytes), ("f", tensor, 0) or ("e", "", 0); a tensor is called "label", or "label=name"."""


def recorded(script: Script, before: Script = ()) -> Run:  # type: ignore[assignment]
    """A run with the tensors of `before` on the card already."""
    tensors: list[Tensor] = []
    events: list[tuple[str, int]] = []
    known: dict[str, int] = {}
    for action, what, size in (*before, *script):
        label, _, name = what.partition("=")
        if action == "a":
            known[what] = len(tensors)
            tensors.append(Tensor(size, len(events), label.split("#")[0], None, [name] if name else []))
            events.append(("a", known[what]))
        elif action == "f":
            tensors[known[what]].died = len(events)
            events.append(("f", known[what]))
        else:
            events.append(("e", -1))
    return Run(Path("made"), tensors, events, Phase("run", 0, {}), {}, {}, "ok")


def part(script: Script, values: dict[str, int], before: Script = ()) -> Occurrence:  # type: ignore[assignment]
    run = recorded(script, before)
    return Occurrence(run, KEY, list(range(len(before), len(run.events))), values)


def block(values: dict[str, int], extra: int = 0) -> Script:
    """A layer: its output stays, what it needs in between goes."""
    tokens, rank = values["T"] + values["X"], values["r"]
    return [
        ("a", "norm", 6144 * tokens),
        ("a", "proj", 12288 * tokens + extra),
        ("a", "lora", 4 * rank * tokens),
        ("f", "norm", 0),
        ("f", "lora", 0),
        ("a", "out", 6400 * tokens),
        ("f", "proj", 0),
    ]


# ---- sizes


def test_an_exact_formula_is_found() -> None:
    """Seven bytes for each token and rank, and a constant of 1000."""
    sizes = tuple(7 * v["T"] * v["r"] + 1000 for v in JOBS)
    features = ("1", "r", "T", "r*T")
    assert solve(features, list(JOBS), [sizes, tuple(2 * v["r"] for v in JOBS)]) == [(1000, 0, 0, 7), (0, 2, 0, 0)]


def test_no_average_is_taken() -> None:
    sizes = [7 * v["T"] for v in JOBS]
    sizes[2] += 1
    assert solve(("1", "r", "T", "r*T"), list(JOBS), [tuple(sizes)]) == [None]


def test_as_many_features_as_recordings_prove_nothing() -> None:
    """Any two sizes lie on some line: the third recording is what says that it is the right one."""
    sizes = [5 * v["T"] + 4096 for v in JOBS]
    assert solve(("1", "T"), list(JOBS), [tuple(sizes)]) == [(4096, 5)]
    assert solve(("1", "T"), list(JOBS[:2]), [tuple(sizes[:2])]) == [None]


def test_a_formula_that_goes_negative_is_a_coincidence() -> None:
    """Exact at every recording, and less than nothing for a small image."""
    sizes = tuple(7 * v["T"] - 3500 for v in JOBS)
    assert min(sizes) > 0
    assert solve(("1", "T"), list(JOBS), [sizes]) == [None]


def test_a_program_is_found_and_holds_elsewhere() -> None:
    program = extract(KEY, [part(block(v), v) for v in JOBS], FLUX)
    elsewhere = {"T": 2304, "E": 96, "X": 512, "B": 1, "r": 40}
    assert program.sizes(elsewhere).tolist() == [size for action, _, size in block(elsewhere) if action == "a"]
    assert (program.worst_error, program.inexact) == (0.0, [])


def test_a_tensor_without_a_formula_is_refused_by_name() -> None:
    odd = [part(block(v, extra=(n % 2) * 31 * MIB + n * n * 977), v) for n, v in enumerate(JOBS)]
    with pytest.raises(Refused, match=r"step\.core/bf16.*proj"):
        extract(KEY, odd, FLUX)


# ---- sequences


def test_a_burst_of_frees_in_any_order_is_the_same_program() -> None:
    made: Script = [("a", "one", 512), ("a", "two", 1024), ("a", "three", 2048)]
    first = canonical(part([*made, ("f", "one", 0), ("f", "two", 0), ("a", "four", 512), ("f", "three", 0)], JOBS[0]))
    second = canonical(part([*made, ("f", "two", 0), ("f", "one", 0), ("a", "four", 512), ("f", "three", 0)], JOBS[0]))
    other = canonical(part([*made, ("f", "one", 0), ("a", "four", 512), ("f", "two", 0), ("f", "three", 0)], JOBS[0]))
    assert first == second
    assert first != other


def test_the_library_workspace_is_taken_out() -> None:
    """It is made once in a process, by whichever part comes first: the thread and the place are kept."""
    script: Script = [("a", "one", 512), ("a", "linear|backward", WORKSPACE_BYTES), ("a", "two", 512)]
    sequence = canonical(part(script, JOBS[0]))
    assert sequence.sizes == [512, 512]
    assert (sequence.workspace_at, sequence.workspace_thread) == (1, "backward")


def test_a_tensor_of_that_size_that_is_freed_is_none() -> None:
    script: Script = [("a", "one", WORKSPACE_BYTES), ("f", "one", 0)]
    assert canonical(part(script, JOBS[0])).sizes == [WORKSPACE_BYTES]


def test_tensors_of_other_parts_are_imported_if_they_have_a_name() -> None:
    before: Script = [("a", "backward=gradient:7", 4096), ("a", "batch", 8192)]
    script: Script = [("a", "one", 512), ("f", "backward=gradient:7", 0), ("f", "batch", 0), ("e", "", 0)]
    sequence = canonical(part(script, JOBS[0], before))
    assert sequence.names == [None, "gradient:7"]
    assert sequence.imported == [False, True]
    assert sequence.events == [0, ~1, None]


def test_a_buffer_that_only_large_sizes_need_is_no_other_structure() -> None:
    small = canonical(part(block(JOBS[0]), JOBS[0]))
    large = canonical(part([*block(JOBS[2])[:2], ("a", "reduce", 512), ("f", "reduce", 0), *block(JOBS[2])[2:]], JOBS[2]))
    assert overlay(large, small) == [0, 1, None, 2, 3]


def test_another_structure_is_refused_and_the_event_named() -> None:
    usual = canonical(part(block(JOBS[0]), JOBS[0]))
    long = canonical(part([*block(JOBS[0]), *(("a", f"copy#{n}", MIB) for n in range(60))], JOBS[0]))
    with pytest.raises(Misaligned, match=r"60 tensors missing.*'copy'"):
        overlay(long, usual)


def test_a_scalar_is_never_matched_with_a_large_tensor() -> None:
    usual = canonical(part([("a", "one", 4)], JOBS[0]))
    large = canonical(part([("a", "one", 64 * MIB)], JOBS[0]))
    assert overlay(large, usual) == [None]


# ---- the profile


def written(folder: Path, jobs: tuple[dict[str, int], ...] = JOBS) -> Path:
    before: Script = [("a", "backward=gradient:0", 4096)]
    scripts = [[*block(v), ("f", "backward=gradient:0", 0), ("a", "kept=optimizer:0", 8192)] for v in jobs]
    program = extract(KEY, [part(script, v, before) for script, v in zip(scripts, jobs, strict=True)], FLUX)
    build.write(("made", None, None), {KEY: program}, {"vae": [512, 512, 1024]}, {"command": "made", "probes": []}, folder)
    return folder


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    digests = [digest(written(tmp_path / name)) for name in ("one", "two")]
    assert set(digests[0]) == {"profile.json", "programs.bin"}
    assert all(a == b for a, b in pairwise(digests))


def test_what_was_written_is_what_the_estimator_reads(tmp_path: Path) -> None:
    folder = written(tmp_path)
    profile = Profile("made", described(folder), folder)
    program = profile.program(KEY)
    assert profile.resident("vae", "bf16") == [512, 512, 1024]
    assert program.names == (None, None, None, None, "optimizer:0", "gradient:0")
    assert program.imports == 1
    assert program.exported == (3, 4)  # the layer's output and the optimizer's state
    assert program.sizes(JOBS[4]).tolist()[:4] == [size for action, _, size in block(JOBS[4]) if action == "a"]
    assert program.peak(JOBS[0]) == ((12288 + 6400) * (1024 + 512), "out")


def rewritten(folder: Path, out: Path) -> Path:
    data, kept = described(folder), stored.read(folder)
    offload = kept.offload if kept.offload["layers"] else None
    build.write((data["arch"], data["relative"], data.get("shares")), kept.programs, kept.tables, kept.made, out, offload)
    return out


def test_a_profile_read_back_is_written_the_same(tmp_path: Path) -> None:
    """So that what is added to it leaves what it has as it was."""
    source = profiles_dir() / "wan22-i2v-14b"
    assert digest(rewritten(source, tmp_path / "again")) == digest(source)


def test_uses_of_layers_are_read_back_too(tmp_path: Path) -> None:
    program = extract(KEY, [part([*block(v), ("e", "", 0), ("a", "kept=optimizer:0", 8192)], v) for v in JOBS], FLUX)
    program.sequence.calls = [
        LayerCall(0, first=0, last=1, input=None, output=0),
        LayerCall(1, first=1, last=2, input=0, output=1, backward=3, until=4, saved=True),
        LayerCall(1, first=1, last=None, input=0, output=1, backward=3, until=None, saved=True),
        LayerCall(0, first=2, last=3, input=1, output=2, saved=True, stays=True),
    ]
    offload = {"layers": {"transformer": ["a", "b"]}, "places": {"transformer/bf16": [[0, 1, 0, 0], [1, 1, 1, 0]]}}
    build.write(("made", "other", "all"), {KEY: program}, {"vae": [512, 512]}, {"command": "made", "probes": []}, tmp_path / "one", offload)
    assert stored.read(tmp_path / "one").programs[KEY].sequence.calls == program.sequence.calls
    assert digest(rewritten(tmp_path / "one", tmp_path / "two")) == digest(tmp_path / "one")


def test_calls_of_a_recording_that_differs_in_a_scalar_are_those_of_the_program() -> None:
    """Laid on the program's tensors: what is before the scalar is before the next tensor that both have."""
    program = extract(KEY, [part(block(v), v) for v in JOBS], FLUX)
    small = [*block(JOBS[1])[:2], ("a", "scalar", 4), ("f", "scalar", 0), *block(JOBS[1])[2:]]
    sequence = canonical(part(small, JOBS[1]))
    scalar = sequence.sizes.index(4)
    sequence.calls = [LayerCall(5, first=scalar, last=scalar + 1, input=0, output=scalar + 1, backward=scalar + 1, until=None, saved=True)]
    found = laid(program, sequence, JOBS[1])
    assert found == (1, [LayerCall(5, first=scalar, last=scalar, input=0, output=scalar, backward=scalar, until=None, saved=True)])
    sequence.calls = [LayerCall(5, first=0, last=1, input=None, output=scalar)]
    assert laid(program, sequence, JOBS[1]) is None


def test_the_highest_rows_name_their_moment(tmp_path: Path) -> None:
    folder = written(tmp_path)
    program = Profile("made", described(folder), folder).program(KEY)
    assert [row.moment for row in program.peaks] == ["lora", "out"]  # at high ranks the one, at low ones the other
    assert [program.peak({**JOBS[0], "r": rank})[1] for rank in (1, 512)] == ["out", "lora"]
