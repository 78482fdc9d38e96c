"""Optimizers' steps: rules against what the real trainer did on the emulated device, and what they mean for a job."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from estimator import optimizers
from estimator.archs import load_archs
from estimator.grid import grid
from estimator.optimizer_rules import load_rules
from estimator.program import ALLOCATE, FIRST_IMPORT, Program
from estimator.programs import load_profile
from estimator.reductions import partials
from estimator.residents import PhasePeak
from estimator.timeline import simulate
from tests.made_jobs import job

UNIT_BYTES = 512
# Read off traces of the real trainer (AI Toolkit 0.12.26, torch 2.14.1) on the emulated device, Z-Image and FLUX.1-dev: architecture,
# optimizer, step, rank, events (frees in a row as one), highest and final running total of blocks rounded to 512 bytes
RECORDED = [
    ("zimage", "adamw8bit", "first", 16, 2414, 86_448_128, -83_617_792),
    ("zimage", "adamw8bit", "later", 16, 491, 253_440, -170_065_920),
    ("zimage", "adamw8bit", "first", 24, 2414, 129_701_888, -125_396_992),
    ("zimage", "adamw8bit", "later", 24, 491, 257_536, -255_098_880),
    ("zimage", "adamw", "first", 8, 1932, 255_098_880, 85_032_960),
    ("zimage", "adamw", "later", 8, 972, 85_032_960, -85_032_960),
    ("zimage", "adafactor", "first", 8, 12000, 12_165_632, -73_912_320),
    ("zimage", "adafactor", "later", 8, 11040, 1_044_992, -85_032_960),
    ("zimage", "adafactor", "first", 24, 12900, 14_131_712, -243_978_240),
    ("zimage", "adafactor", "later", 24, 11940, 3_011_072, -255_098_880),
    ("flux1-dev", "adamw8bit", "first", 16, 4954, 174_950_400, -168_720_384),
    ("flux1-dev", "adamw8bit", "later", 16, 999, 525_824, -343_670_784),
]
# Reductions of one optimizer's step on the emulated device: kind, rows, columns, bytes of partial results and semaphores
REDUCTIONS = [
    ("along rows", 10240, 64, 1_310_720, 4),
    ("along rows", 3840, 128, 3_932_160, 4),
    ("along rows", 15360, 24, 46_080, 8),
    ("along rows", 10240, 32, 163_840, 4),
    ("whole", 128, 3840, 240, 4),
    ("whole", 12288, 128, 768, 4),
    ("whole", 12288, 24, 144, 4),
    ("whole", 10240, 64, 320, 4),
    ("whole", 64, 64, 0, 0),
    ("whole", 16, 256, 0, 0),
    ("along columns", 3840, 4, 0, 0),
    ("along columns", 4, 12288, 0, 0),
]
PARAMETER_BYTES = 16 * sum(load_profile("zimage").adapter)  # of the adapter of `job`: rank 16
EVERY = [name for name in load_rules() if not name.endswith(optimizers.DECAY)]


def update(arch: str, optimizer: str, when: str) -> Program:
    return load_profile(arch).program(f"step.update/{optimizer}/{when}")


def bursts(program: Program, rank: int) -> tuple[int, int, int]:
    """Events, frees in a row as one; the highest and the final running total, rounded as the allocator does."""
    sizes = program.sizes({"r": rank}).tolist()
    count = total = highest = 0
    freeing = False
    for event, tensor in zip(program.events.tolist(), program.tensor_of_event.tolist(), strict=True):
        block = -(-sizes[tensor] // UNIT_BYTES) * UNIT_BYTES
        if not block:
            continue
        count += not (freeing and event != ALLOCATE)
        freeing = event != ALLOCATE
        total += block if event == ALLOCATE else -block
        highest = max(highest, total)
    return count, highest, total


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: "-".join(map(str, row[:4])))
def test_rules_give_what_the_trainer_did(row: tuple[str, str, str, int, int, int, int]) -> None:
    arch, optimizer, when, rank, *recorded = row
    assert bursts(update(arch, optimizer, when), rank) == tuple(recorded)


@pytest.mark.parametrize("row", REDUCTIONS, ids=lambda row: f"{row[0]}-{row[1]}x{row[2]}")
def test_reductions_keep_what_torch_keeps(row: tuple[str, int, int, int, int]) -> None:
    kind, rows, columns, *recorded = row
    made = {
        "whole": lambda: partials(1, rows * columns, contiguous=True),
        "along columns": lambda: partials(rows, columns, contiguous=True),
        "along rows": lambda: partials(columns, rows, contiguous=False),
    }[kind]()
    assert list(made) == recorded


@pytest.mark.parametrize("optimizer", [*load_rules()])
def test_events_are_well_formed(optimizer: str) -> None:
    """Tensors are freed after they were made and once, and what the first step leaves is what later steps free and leave."""
    left: dict[str, set[str]] = {}
    for when in ("first", "later"):
        program = update("zimage", optimizer, when)
        own = len(program.names) - program.imports
        live: set[int] = set()
        freed: set[int] = set()
        for event, tensor in zip(program.events.tolist(), program.tensor_of_event.tolist(), strict=True):
            if event == ALLOCATE:
                live.add(tensor)
            elif event > 0:
                live.remove(tensor)
            else:
                assert event <= FIRST_IMPORT
                assert own <= tensor not in freed
                freed.add(tensor)
        assert tuple(sorted(live)) == program.exported
        names = [program.names[k] or "" for k in sorted(freed)]
        assert all(names)
        assert len(set(names)) == len(names)
        left[when] = {program.names[k] or "" for k in live}
        replaced = {name for name in names if name.startswith("optimizer:")}
        if when == "later" and not optimizers.is_fused(optimizer.removesuffix(optimizers.DECAY)):
            assert left["later"] == replaced, "a later step neither leaks nor loses state"
            assert replaced <= left["first"], "and finds it under the names that the first gave"


def test_an_optimizer_has_no_peak_rows_and_a_grid_says_so() -> None:
    with pytest.raises(ValueError, match="no peak rows"):
        grid(update("zimage", "adamw", "first"), {"r": np.array([8, 16])})


@cache
def phases(optimizer: str, arch: str = "zimage", decay: bool = False) -> tuple[PhasePeak, ...]:
    made = job(arch)
    return simulate(replace(made, train=replace(made.train, optimizer=optimizer, weight_decay=decay, cache_text_embeddings=True))).phases


def held(optimizer: str) -> int:
    """Bytes of state and gradients when the previews after training begin or, of gradients, at the peak of a later step."""
    last = phases(optimizer)[-1].components
    return last.get("optimizer", 0)


@pytest.mark.parametrize("optimizer", [name for name in EVERY if name != "automagic3"])
def test_what_later_steps_let_go_was_left_by_the_first(optimizer: str) -> None:
    """State that each step makes anew takes the place of the one before, also in the second step. (automagic3 votes from its eighth on.)"""
    widths = load_profile("zimage").adapter
    first, later = (optimizers.program(f"step.update/{optimizer}/{when}", widths) for when in ("first", "later"))
    left = {name for k in first.exported if (name := first.names[k]) is not None}
    taken = {name for name, component in later.imported if component == "optimizer"}
    assert taken <= left


def test_states_are_ordered_as_their_bytes_a_parameter() -> None:
    """One byte and a scale, two, four, eight, up to sixteen bytes a parameter."""
    states = [held(name) for name in ("adafactor", "lion8bit", "adamw8bit", "prodigy8bit", "adamw", "prodigy")]
    assert all(a < b for a, b in pairwise(states))
    adapter = PARAMETER_BYTES
    assert held("adamw") == 2 * adapter
    assert adapter / 4 < held("lion8bit") < 1.02 * adapter / 4


def test_adagrad_has_its_state_before_the_first_step() -> None:
    for name, state in (("adagrad", PARAMETER_BYTES), ("adamw", 0)):
        baseline = next(p for p in phases(name) if p.phase == "sample")
        assert baseline.components.get("optimizer", 0) == state


@pytest.mark.parametrize("optimizer", ["automagic2", "automagic3"])
def test_fused_optimizers_keep_no_gradients(optimizer: str) -> None:
    """Each parameter is updated as soon as its gradient is there, which is then freed."""
    plain = [p for p in phases("adamw8bit") if p.phase == "train"]
    fused = [p for p in phases(optimizer) if p.phase == "train"]
    adapter = fused[0].components["adapter"]
    for ordinary, row in zip(plain, fused, strict=True):
        assert row.components.get("gradients", 0) < adapter / 20
        assert row.allocated_bytes < ordinary.allocated_bytes
        assert row.allocated_bytes == sum(row.components.values())


def test_weight_decay_is_a_rule_of_its_own_where_it_changes_the_step() -> None:
    """torch's Adam adds it to a copy of all gradients, and Automagic makes two tensors for it; AdamW's is done in place."""
    assert optimizers.rule_name("adamw", True) == "adamw"
    for name in ("adam", "automagic"):
        own = optimizers.rule_name(name, True)
        assert own != name
        assert (update("zimage", own, "later").events == ALLOCATE).sum() > (update("zimage", name, "later").events == ALLOCATE).sum()


@pytest.mark.parametrize("optimizer", EVERY)
def test_every_optimizer_runs_and_its_ledger_adds_up(optimizer: str) -> None:
    assert all(p.allocated_bytes == sum(p.components.values()) for p in phases(optimizer))
    assert all(size >= 0 for p in phases(optimizer) for size in p.components.values())


@pytest.mark.parametrize("arch", [key for key in load_archs().modelled() if load_profile(key).data.get("shares") != "all"])
def test_parameters_without_gradients_are_those_that_no_recorded_step_gives_one(arch: str) -> None:
    profile = load_profile(arch)
    given: set[int] = set()
    for key in {key.split("/")[0]: key for key in profile.data["parts"] if key.startswith("step.core")}.values():
        (names,) = (names for group, _, names in profile.program(key).kept if group == "gradient")
        given |= {int(name.partition(":")[2]) for name in names}
    assert tuple(sorted(set(range(len(profile.adapter))) - given)) == load_archs().archs[arch].without_gradient


def test_no_state_is_made_for_parameters_without_gradients() -> None:
    whole, without = (optimizers.program("step.update/adamw/first", (1024, 4096) * 4, optimizers.LORA, idle) for idle in ((), (2, 3, 7)))
    states = [sum(each.stay_bytes("optimizer", {"r": 16})) for each in (whole, without)]
    assert states[0] - states[1] == 2 * 16 * (1024 + 4096 + 4096)
