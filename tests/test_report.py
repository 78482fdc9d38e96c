"""The report on the screen: what it says, in 80 columns, without and with colour."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from estimator.estimate import BORDERLINE, OOM, SAFE, UNKNOWN, Advice, Estimate, Interval, PhaseEstimate, Variant
from estimator.gpus import all_gpus, find_gpu
from estimator.job import Place, Unmodelled
from estimator.report import PLAIN, Style, render
from estimator.report_lists import render_cards, render_gpus
from estimator.report_words import gib, moment
from tests import made_estimates as made

GIB = 2**30
SNAPSHOTS = Path(__file__).parent / "data" / "reports"
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def head(estimate: Estimate) -> list[str]:
    return render(estimate).split("\n")[:2]


@pytest.mark.parametrize(("name", "estimate"), [("safe", made.estimate()), ("oom", made.oom()), ("borderline", made.borderline())])
def test_snapshot(name: str, estimate: Estimate) -> None:
    """Did the screen change? If it should have: read the new text at 80 columns, then write it to tests/data/reports."""
    assert render(estimate) == (SNAPSHOTS / f"{name}.txt").read_text(encoding="utf-8")


def test_the_first_two_lines_answer() -> None:
    first, second = head(made.estimate())
    assert first == "SAFE: corgi_flux_v1 fits on RTX4090 (23.51 GiB)"
    assert "20.75 GiB" in second  # on the card
    assert "training 1024x1024" in second
    assert "2.76 GiB left" in second


def test_what_is_lacking_is_told_when_it_does_not_fit() -> None:
    first, second = head(made.oom())
    assert first.startswith("OOM: corgi_flux_v1 does not fit on RTX4080")
    assert "needs 20.24 GiB" in second
    assert "4.68 GiB too much" in second  # 19.80 allocated + 0.44 context - 15.55


def test_what_is_lacking_leaves_out_what_torch_only_caches() -> None:
    """A phase can hold a cache far above what it needs; a full card gives that back before it fails."""
    cached = tuple(replace(each, device=Interval(70 * GIB, 71 * GIB, 72 * GIB), reserved_bytes=70 * GIB) for each in made.oom().phases)
    text = render(replace(made.oom(), phases=cached))
    assert "4.68 GiB too much" in text.split("\n")[1]
    assert ledger(text)["more than the card has"] == pytest.approx(4.68, abs=0.01)


def test_a_failure_for_want_of_a_piece_large_enough_is_told_apart() -> None:
    card = replace(find_gpu("RTX4080"), total_bytes=21 * GIB)
    text = render(replace(made.oom(), gpu=card))
    assert "too fragmented" in text.split("\n")[1]
    assert ledger(text)["left of the card, in pieces too small"] == pytest.approx(21 - 20.24, abs=0.01)


def test_the_next_failure_is_told_too() -> None:
    phases = tuple(replace(each, verdict=OOM) if each.phase in ("load", "train") else each for each in made.oom().phases)
    text = render(replace(made.oom(), phases=phases, peak=0))
    assert text.split("\n")[1].startswith("Fails loading")
    assert "training 1024x1024 would too, and needs 20.24 GiB" in text
    assert "would too" not in render(made.oom())


def test_a_safe_job_is_headed_by_what_fills_the_card_most() -> None:
    """Also where another phase allocates more: the preview's cache counts on the card."""
    preview = made.phase("sample", 18.0, 1024, cache=4.0)
    estimate = made.estimate(phases=(*made.estimate().phases, preview))
    assert "22.45 GiB" in head(estimate)[1]
    assert "previewing 1024x1024" in head(estimate)[1]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (
            "transformer.single_transformer_blocks.37.proj_out/Linear|backward MmBackward0",
            "backward of transformer.single_transformer_blocks.37.proj_out (MmBackward0)",
        ),
        ("transformer.norm|backward torch::autograd::AccumulateGrad", "backward of transformer.norm (AccumulateGrad)"),
        ("text_encoder0.lm_head|forward", "forward of text_encoder.lm_head"),
        ("text_encoder1.encoder|forward", "forward of text_encoder_2.encoder"),
        ("load: Quantizing T5", "quantizing T5"),
        ("load: T5", "T5"),
        ("optimizer_step", "the optimizer's step"),
        ("something of its own", "something of its own"),
    ],
)
def test_moments_in_words(label: str, words: str) -> None:
    assert moment(label) == words


def test_rows_that_read_the_same_are_one_and_the_largest() -> None:
    """Two folders of one resolution."""
    twins = (made.phase("cache_latents", 15.0, 512), made.phase("cache_latents", 16.0, 512))
    text = render(made.estimate(phases=(*twins, *made.estimate().phases), peak=7))
    assert text.count("cache latents 512x512") == 1
    assert re.search(r"cache latents 512x512 +16\.00", text)
    assert render(made.estimate(phases=twins, peak=1), details=True).count(" cache latents 512x512 ") == 2


def test_the_parts_of_a_phase_fit_their_column() -> None:
    variant = Variant(1216, 832, 1, 2)
    phases = (
        replace(made.phase("cache_latents", 15.0), variant=Variant(1216, 832, 1, 1), detail="resolution 1024"),
        replace(made.phase("sample", 16.0), variant=variant, detail="with optimizer state"),
    )
    text = render(made.estimate(phases=phases, peak=1))
    assert "cache latents 1216x832 of 1024 " in text
    assert "sample 1216x832 batch 2 later " in text


def test_borderline_tells_both_ends() -> None:
    assert "0.25 GiB left, or 0.25 too much" in head(made.borderline())[1]


def test_a_job_that_no_phase_keeps_from_being_safe_fails_nowhere_first() -> None:
    """Borderline for another reason, such as an attention kernel that was not recorded."""
    assert "> marks the highest" in render(replace(made.estimate(), verdict=BORDERLINE))
    assert "> marks where it fails first" in render(made.borderline())


def test_fast_is_said_to_be_a_lower_bound() -> None:
    text = render(made.estimate(lower_bound=True))
    assert "at least 20.75 GiB" in text
    assert "lower bound" in text
    assert "may fit on RTX4090" in text
    assert "lower bound" not in render(made.estimate())


def test_fast_is_said_to_be_a_lower_bound_on_all_cards_too() -> None:
    """Was: "SAFE: ... fits on 37 of 54 cards", and nothing that these were peak rows."""
    fast = [made.estimate(card, lower_bound=True) for card in all_gpus()]
    text = render_cards(fast)
    assert f"may fit on {len(fast)} of {len(fast)} cards" in text
    assert "a lower bound; safe is not certain" in text
    whole = render_cards([replace(each, lower_bound=False) for each in fast])
    assert f"SAFE: {fast[0].job.name} fits on" in whole
    assert "lower bound" not in whole


def test_the_smallest_safe_capacity_is_told_where_it_was_asked_for() -> None:
    assert "21.50 GiB" in render(made.estimate(required_bytes=round(21.5 * GIB)))


def test_survival_by_releasing_cached_memory_is_said() -> None:
    text = render(made.estimate(retries=3))
    assert "releases cached memory 3 times" in text
    assert "releases" not in render(made.estimate())


def test_on_windows_it_is_said_what_is_moved_to_ram() -> None:
    small = replace(find_gpu("RTX4090", "windows"), total_bytes=20 * GIB)
    job = made.oom(small)
    text = " ".join(render(job).split())
    assert job.spilled_bytes == 20.3 * GIB // 1 - small.usable_bytes  # 19.8 allocated and half a GiB cached, beside context and desktop
    assert f"moves {job.spilled_bytes / GIB:.2f} GiB to the machine's RAM (training 1024x1024), and it will run many times slower" in text
    assert "many times slower" not in render(replace(job, gpu=replace(small, os="linux")))
    assert "many times slower" not in render(made.estimate(find_gpu("RTX4090", "windows")))


def test_what_is_not_modelled_is_named_with_its_place() -> None:
    unmodelled = (Unmodelled(Place("config.yaml", "model.compile", 71), True, "no profile was recorded with it"),)
    text = render(made.estimate(verdict=UNKNOWN, job=made.job(unmodelled=unmodelled), phases=(), peak=-1))
    assert text.startswith("UNKNOWN: corgi_flux_v1 cannot be told for RTX4090")
    assert "model.compile = true (config.yaml:71): no profile was recorded with it" in text


def test_what_is_not_modelled_is_named_on_all_cards_too() -> None:
    unmodelled = (Unmodelled(Place("config.yaml", "model.compile", 71), True, "no profile was recorded with it"),)
    job = made.job(unmodelled=unmodelled)
    cards = [made.estimate(find_gpu(name), UNKNOWN, job=job, phases=(), peak=-1) for name in ("RTX4090", "A100-40G")]
    text = render_cards(cards)
    assert "cannot be told" in text
    assert "model.compile = true (config.yaml:71)" in text
    assert "RTX4090" not in text


def test_long_tables_are_cut_to_the_worst_of_each_phase_unless_details_are_asked_for() -> None:
    many = tuple(made.phase("train", 10 + size / 1000, size) for size in range(512, 1024, 16))
    estimate = made.estimate(phases=(*many, made.phase("save", 9)), peak=len(many) - 1)
    short, long = render(estimate), render(estimate, details=True)
    assert short.count("\n  train ") + short.count("\n> train ") == 1
    assert "1008x1008" in short
    assert "--details" in short
    assert long.count("\n  train ") + long.count("\n> train ") == len(many)


def ledger(text: str) -> dict[str, float]:
    """The rows of the ledger: label -> GiB."""
    rows = re.findall(r"^  (.{49}) *(-?\d+\.\d\d)(?: #*)?$", text, re.MULTILINE)
    return {label.strip(): float(value) for label, value in rows}


def test_the_ledger_adds_up() -> None:
    rows = ledger(render(made.estimate()))
    parts = rows["transformer"] + rows["text encoder"] + rows["activations"]
    assert parts == pytest.approx(rows["= allocated (torch.cuda.max_memory_allocated)"], abs=0.02)
    reserved = rows["= allocated (torch.cuda.max_memory_allocated)"] + rows["torch's cache: reserved, not allocated"]
    assert reserved == pytest.approx(rows["= reserved, if the card had room to spare"], abs=0.02)
    device = reserved + rows["outside torch: CUDA context"] + rows["allowance for what is not known exactly"]
    assert device == pytest.approx(rows["= on the card (nvidia-smi)"], abs=0.02)
    assert rows["left of the card"] == pytest.approx(23.51 - device, abs=0.03)


def test_memory_given_back_on_a_full_card_is_shown_as_such() -> None:
    full = made.phase("train", 22.5, 1024, cache=2.0, device=Interval(23 * GIB, round(23.3 * GIB), round(23.5 * GIB)))
    rows = ledger(render(made.estimate(phases=(full,), peak=0)))
    assert rows["cached memory given back: the card is full"] == pytest.approx(23.3 - 24.5 - 0.44, abs=0.01)


def test_small_components_are_summed_not_dropped() -> None:
    tiny = {f"buffer_{number}": GIB // 400 for number in range(8)}
    phase = made.phase("train", 1.0)
    phase = replace(phase, components={**tiny, "transformer": phase.allocated_bytes - sum(tiny.values())})
    assert ledger(render(made.estimate(phases=(phase,), peak=0)))["smaller parts"] == 0.02


def test_advice_is_numbered_and_says_whether_it_is_enough() -> None:
    only = replace(made.oom(), advice=made.oom().advice[:1])
    text = render(only)
    assert "1. datasets.*.resolution: [512, 768, 1024] -> [512, 768]" in text
    assert "saves 0.91 GiB, not enough alone" in text


def test_what_is_enough_alone_comes_first_and_the_rest_is_named() -> None:
    text = render(made.oom())
    assert "1. model.low_vram: false -> true  saves 2.00 GiB, probably enough" in text
    assert "Not enough alone: datasets.*.resolution" in text


def test_a_key_whose_second_step_is_enough_is_not_called_not_enough() -> None:
    """Was: "1. datasets.*.num_frames: 81 -> 17" above "Not enough alone: datasets.*.num_frames"."""
    first = Advice("datasets.*.num_frames", 81, 41, GIB, "clips of 41 frames", OOM)
    further, other = replace(first, after=17, verdict=SAFE), replace(first, key="train.disable_sampling")
    text = render(replace(made.oom(), advice=(first, other, further)))
    assert "1. datasets.*.num_frames: 81 -> 17  saves 1.00 GiB, probably enough" in text
    assert "Not enough alone: train.disable_sampling" in text
    assert "Not enough alone" not in render(replace(made.oom(), advice=(first, further)))


def test_no_advice_on_a_safe_job_and_a_way_out_where_none_was_found() -> None:
    assert "What to change" not in render(made.estimate())
    assert "larger card" in render(replace(made.oom(), advice=()))


@pytest.mark.parametrize("estimate", [made.estimate(), made.oom(), made.borderline()])
def test_colour_says_nothing_that_words_do_not(estimate: Estimate) -> None:
    coloured = render(estimate, Style(colour=True))
    assert ANSI.search(coloured)
    assert ANSI.sub("", coloured) == render(estimate, PLAIN)
    cards = [replace(estimate, gpu=gpu) for gpu in all_gpus()]
    assert ANSI.sub("", render_cards(cards, Style(colour=True))) == render_cards(cards, PLAIN)


names = st.text(max_size=200)
sizes = st.integers(0, 290 * GIB)


@st.composite
def any_phases(draw: st.DrawFn) -> PhaseEstimate:
    low, likely, high = sorted(draw(st.lists(sizes, min_size=3, max_size=3)))
    allocated = draw(sizes)
    sides = st.none() | st.integers(16, 8192)
    return PhaseEstimate(
        phase=draw(st.sampled_from(("load", "cache_latents", "cache_text", "prepare", "sample", "train", "save"))),
        variant=Variant(width := draw(sides), width, draw(st.none() | st.integers(1, 999)), draw(st.none() | st.integers(1, 64))),
        allocated_bytes=allocated,
        reserved_bytes=allocated + draw(sizes),
        device=Interval(low, likely, high),
        verdict=draw(st.sampled_from((SAFE, BORDERLINE, OOM))),
        moment=draw(names),
        components={draw(st.text(max_size=30)): allocated},
        detail=draw(names),
    )


@settings(max_examples=60)
@given(
    phases=st.lists(any_phases(), min_size=1, max_size=16),
    verdict=st.sampled_from((SAFE, BORDERLINE, OOM, UNKNOWN)),
    name=names,
    gpu=st.sampled_from(all_gpus()),
    why=names,
    details=st.booleans(),
)
def test_eighty_columns_of_ascii_less_a_name_whatever_comes(
    phases: list[PhaseEstimate], verdict: str, name: str, gpu: object, why: str, details: bool
) -> None:
    advice = (Advice("datasets.*.resolution", [512] * 20, why, 3 * GIB, why, OOM),)
    estimate = made.estimate(
        gpu=gpu, verdict=verdict, job=made.job(name=name), phases=tuple(phases), peak=len(phases) - 1, advice=advice, warnings=(why,)
    )
    for text in (render(estimate, details=details), render_cards([estimate, made.estimate()])):
        # a table counts columns of the screen (a combining mark takes none, a wide character two), wrapped text counts characters
        assert max(min(len(line), cell_len(line)) for line in text.split("\n")) <= 80
        assert all(char == "\n" or char.isprintable() for char in text)


def test_names_cannot_move_the_cursor() -> None:
    text = render(made.estimate(job=made.job(name="\x1b[2Jgone\r\n"), warnings=("\x1b]0;title\x07",)))
    assert "\x1b" not in text
    assert "\r" not in text
    assert "?[2Jgone??" in text


def test_cards_come_smallest_first_and_name_the_smallest_that_is_safe() -> None:
    estimates = [made.estimate(gpu, SAFE if gpu.total_bytes > 23 * GIB else OOM) for gpu in reversed(all_gpus())]
    lines = render_cards(estimates).split("\n")
    assert "the smallest is RTX4090" in lines[0]
    rows = [line.split() for line in lines if re.match(r"  \S+ +\d+\.\d\d ", line)]
    assert len(rows) == len(estimates)
    capacities = [float(row[1]) for row in rows]
    assert capacities == sorted(capacities)


def test_cards_where_nothing_is_safe_say_so() -> None:
    first = render_cards([made.estimate(gpu, OOM) for gpu in all_gpus()[:3]]).split("\n")[0]
    assert first == "OOM: corgi_flux_v1 is not safe on any of 3 cards"


def test_the_catalogue_fits_the_screen() -> None:
    text = render_gpus(all_gpus())
    assert max(map(len, text.split("\n"))) <= 80
    assert all(gpu.name in text for gpu in all_gpus())


@pytest.mark.parametrize(("count", "text"), [(0, "0.00"), (-1, "0.00"), (GIB, "1.00"), (-GIB, "-1.00"), (GIB * 3 // 2, "1.50")])
def test_gib(count: int, text: str) -> None:
    assert gib(count) == text


def test_edits_put_together_are_shown_pair_by_pair() -> None:
    both = Advice("model.low_vram + network.linear", [False, 16], [True, 8], 3 * GIB, "slower; smaller", SAFE)
    text = render(replace(made.oom(), advice=(*made.oom().advice[:1], both)))
    assert "1. together: model.low_vram: false -> true; network.linear: 16 -> 8" in text


@pytest.mark.parametrize("size", [7 * GIB, 43 * GIB, 1440 * GIB, 17_521 * GIB, 175_218 * GIB])
def test_figures_of_any_size_stand_whole_in_their_columns(size: int) -> None:
    """A column that is too narrow cut digits off: 1711.05-1795.36 was shown as 1711.05-1795."""
    low, high = size - GIB // 3, size + GIB // 3
    wide = made.phase("train", 1.0, 1024, allocated_bytes=size, reserved_bytes=size, device=Interval(low, size, high))
    estimate = made.estimate(phases=(wide,), peak=0)
    for text in (render(estimate), render_cards([estimate])):
        (span,) = re.findall(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?) .*safe", text)
        assert [float(end) * GIB for end in span] == [pytest.approx(low, abs=GIB / 2), pytest.approx(high, abs=GIB / 2)]
    (row,) = [line for line in render(estimate).split("\n") if line.startswith("> train")]
    assert [float(figure) * GIB for figure in row.split()[3:6]] == pytest.approx([size] * 3, abs=GIB / 2)
