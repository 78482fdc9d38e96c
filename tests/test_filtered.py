"""Adapters on some layers: programs made by rule from those of an adapter on all of them."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from estimator.errors import CannotTell
from estimator.filtered_profile import FilteredProfile, filtered
from estimator.filtered_programs import core
from estimator.program import ALLOCATE, EMPTY_CACHE, Program
from estimator.programs import load_profile
from estimator.rows import bound
from estimator.trainers import read_jobs
from estimator.trainers.modelled import FILTERED, PRESERVING
from tests.golden import ROOT

WORKLOAD = {"T": 1024, "X": 96, "B": 1, "r": 16, "E": 64, "N": 20}
CORES = ("step.core/bf16/full/many/weighed", "step.core/qfloat8/checkpointed/one")
README = ("transformer.single_transformer_blocks.7.proj_out", "transformer.single_transformer_blocks.20.proj_out")


def totals(program: Program, values: dict[str, int]) -> np.ndarray:
    """Running totals over the events. Fails where a tensor is freed that is not there."""
    sizes, live, total, out = program.sizes(values), set(range(len(program.names) - program.imports, len(program.names))), 0, []
    for code, k in zip(program.events.tolist(), program.tensor_of_event.tolist(), strict=True):
        if code == EMPTY_CACHE:
            continue
        if code == ALLOCATE:
            assert k not in live
            live.add(k)
        else:
            live.remove(k)
        total += int(sizes[k]) * (1 if code == ALLOCATE else -1)
        out.append(total)
    return np.array(out)


def gradients(program: Program) -> list[str]:
    return sorted(name for name in program.names if name is not None and name.startswith("gradient:"))


@pytest.mark.parametrize("arch", ["flux1-dev", "zimage"])
@pytest.mark.parametrize("key", CORES)
def test_with_all_layers_kept_it_is_the_recorded_program(arch: str, key: str) -> None:
    profile = load_profile(arch)
    base = profile.program(key)
    same = core(base, profile.program(key.replace("/full/", "/checkpointed/")), frozenset(range(len(profile.adapter) // 2)))
    assert (same.events == base.events).all()
    assert (same.coefficients == base.coefficients).all()
    assert same.names == base.names


@pytest.mark.parametrize("arch", ["flux1-dev", "zimage"])
@pytest.mark.parametrize("key", CORES)
def test_fewer_layers_never_need_more_and_free_what_they_make(arch: str, key: str) -> None:
    profile = load_profile(arch)
    base, twin, random = profile.program(key), profile.program(key.replace("/full/", "/checkpointed/")), Random(7)
    values = WORKLOAD | ({"B": 3} if "/many" in key else {})
    kept = list(range(len(profile.adapter) // 2))
    before = int(totals(base, values).max())
    left = len(base.exported) - len(gradients(base))
    for share in (0.9, 0.5, 0.1, 0.02):
        kept = sorted(random.sample(kept, max(1, round(len(profile.adapter) // 2 * share))))
        program = core(base, twin, frozenset(kept))
        run = totals(program, values)
        assert run.max() <= before
        assert len(gradients(program)) == 2 * len(kept)
        assert len(program.exported) - len(gradients(program)) <= left
        before = int(run.max())


def test_blocks_before_the_first_trained_one_keep_nothing_and_have_no_backward_pass() -> None:
    profile = filtered("flux1-dev", (), README)
    for key in CORES:
        program = profile.program(key)
        moments = [program.moments[row] for row in program.labels]
        late = [moment for moment in moments if "|backward" in moment or "|recompute" in moment]
        assert not any("transformer.transformer_blocks." in moment for moment in late)
        assert not any(f"single_transformer_blocks.{n}." in moment for moment in late for n in range(7))
        assert any("single_transformer_blocks.8." in moment for moment in late)
        assert any("single_transformer_blocks.7.proj_out/Linear" in moment for moment in late)


def test_a_layer_is_left_out_by_any_word_and_ignoring_comes_first() -> None:
    profile = FilteredProfile("zimage", {}, load_profile("zimage").folder, load_profile("zimage"), ("layers.3.",), ("attention", "w1"))
    assert profile.adapts("transformer.layers.4.attention.to_q")
    assert profile.adapts("transformer.layers.4.feed_forward.w1")
    assert not profile.adapts("transformer.layers.3.attention.to_q")
    assert not profile.adapts("transformer.layers.4.feed_forward.w2")


def test_names_with_dollars_for_dots_are_found_too() -> None:
    """toolkit/lora_special.py looks for only_if_contains in the name that it saves under as well."""
    profile = filtered("flux1-dev", (), ("single_transformer_blocks$$7$$",))
    assert {layer.split(".")[2] for layer, n in profile.layers.items() if n in profile.adapted} == {"7"}


def test_parts_beside_the_step_have_the_kept_layers_alone() -> None:
    profile, whole = filtered("zimage", (), ("layers.5.", "layers.17.attention.to_v")), load_profile("zimage")
    widths = [width for n in sorted(profile.adapted) for width in whole.adapter[2 * n : 2 * n + 2]]
    assert list(profile.adapter) == widths
    for key in ("setup.network/qfloat8", "setup.ema", "sample.enter/qfloat8/ema/first"):
        component = {"setup.network": "adapter", "setup.ema": "ema"}.get(key.split("/")[0], "ema_copy")
        assert list(profile.program(key).stay_bytes(component, {"r": 1})) == widths
    update = profile.program("step.update/adamw/first")
    assert sum(update.stay_bytes("optimizer", {"r": 4})) == pytest.approx(2 * 4 * sum(widths), rel=0.01)


def adapters(program: Program) -> int:
    """Tensors that matrices of adapters make."""
    return sum(program.moments[row].split("|")[0].endswith("/Linear") for row in program.labels)


@pytest.mark.parametrize(
    ("arch", "key", "word", "kept"),
    [
        ("flux1-schnell", "preview/qfloat8/plain/cached", "single_transformer_blocks.3.", 6),
        ("zimage-turbo", "preview/float8/plain/encoded", "layers.3.", 8),
        ("zimage-turbo", "preview/uint4/cfg/cached", "layers.3.attention.to_q", 1),
        ("zimage", "preview/qfloat8/cfg/cached", "layers.3.attention.to_q", 1),
        ("zimage-turbo", "preview/bf16/plain/cached/later", "layers.3.", 0),
    ],
)  # fmt: skip
def test_a_preview_loses_what_other_layers_adapters_make_and_keeps_the_training_adapters(arch: str, key: str, word: str, kept: int) -> None:
    """A distilled model's previews have a training adapter on all layers within the one that is trained (bf16: that is merged)."""
    every, some, whole = filtered(arch, (), ("transformer",)).program(key), filtered(arch, (), (word,)).program(key), load_profile(arch)
    recorded = whole.program(key)
    assert (every.events == recorded.events).all()
    trained = len(whole.adapter) // 2 if kept else 0
    assert adapters(recorded) - adapters(some) == 2 * (trained - kept)
    run, before = totals(some, WORKLOAD), totals(recorded, WORKLOAD)
    assert run.max() <= before.max()
    assert run[-1] == before[-1]


@pytest.mark.parametrize("arch", ["flux1-dev", "zimage"])
@pytest.mark.parametrize("part", ["step.core", "step.core.preserving"])
def test_weights_that_are_derived_have_programs_too(arch: str, part: str) -> None:
    """qint8 casts nothing as it rebuilds a weight: some tensors less, all else alike."""
    for profile in (filtered(arch, (), ("attn.to_q", "attention.to_q")), load_profile(arch)):
        base, derived = (profile.program(f"{part}/{kind}/checkpointed/one") for kind in ("qfloat8", "qint8"))
        values = WORKLOAD | {"W": 64}
        assert len(derived.names) < len(base.names)
        assert totals(derived, values).max() <= totals(base, values).max()
        assert totals(derived, values)[-1] == totals(base, values)[-1]


EXAMPLES = {
    "flux1-dev": "flux_dev_24gb", "flux1-schnell": "flux_schnell_24gb", "flex1": "flex1_24gb", "zimage": "zimage_base_ui",
    "zimage-turbo": "zimage_turbo_ui",
}  # fmt: skip


@pytest.mark.parametrize("arch", sorted(FILTERED | PRESERVING))
@pytest.mark.parametrize("set_", ["network.network_kwargs={only_if_contains: [attn, attention]}", "train.blank_prompt_preservation=true"])
def test_every_phase_of_a_whole_job_has_its_programs(arch: str, set_: str) -> None:
    """Loading to the last preview, on each architecture that the settings are said to be modelled for."""
    plain, job = (read_jobs(ROOT / "examples" / f"{EXAMPLES[arch]}.yaml", sets)[0] for sets in ((), (set_,)))
    assert (job.arch, job.unmodelled) == (arch, ())
    assert [(p.phase, p.detail) for p in bound(job).phases] == [(p.phase, p.detail) for p in bound(plain).phases]


def test_no_layer_left_is_refused() -> None:
    with pytest.raises(CannotTell, match="leave no layer"):
        filtered("zimage", (), ("no such layer",)).program("step.core/bf16/full/one")
