"""The catalogue of cards and how a name finds one."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.errors import InputError
from estimator.gpu_catalogue import CatalogueError, parse_catalogue
from estimator.gpus import GIB, OSES, Gpu, all_gpus, find_gpu
from estimator.paths import profiles_dir

CATALOGUE_TEXT = (profiles_dir() / "gpus.yaml").read_text(encoding="utf-8")

# Capacities that torch printed on real cards [GiB], from public issues: the catalogue must not promise more than any of them.
TORCH_READINGS = {
    "RTX5090": 31.36,
    "RTX-A6000": 47.53,
    "A100-40G": 39.38,
    "A100-80G": 79.25,
    "RTX4090": 23.52,
    "RTX3090": 23.68,
    "L40S": 44.53,
    "L40": 44.40,
    "L4": 22.03,
    "A10G": 22.19,
    "RTX-6000-Ada": 44.43,
    "L20": 44.39,
    "H20": 95.0,
    "A30": 23.53,
    "RTX-A4000": 15.61,
    "RTX2080Ti-22G": 21.48,
    "RTX2080Ti": 10.76,
}
WINDOWS_READINGS = {"RTX5090": 31.842, "RTX3090": 24.00, "RTX3080-12G": 12.00, "RTX4080": 15.99, "RTX4090": 23.988, "T4": 15.83}


def problem_of(text: str, os: str = "linux") -> str:
    with pytest.raises(InputError) as caught:
        find_gpu(text, os)
    return str(caught.value)


def test_all_the_cards_that_people_train_on_are_there() -> None:
    names = {gpu.name for gpu in all_gpus()}
    asked = [
        "T4",
        "P100-16G",
        "V100-16G",
        "V100-32G",
        "A10G",
        "A10",
        "A30",
        "A40",
        "L4",
        "L40",
        "L40S",
        "A100-40G",
        "A100-80G",
        "H100-80G",
        "H100-NVL",
        "H200",
        "B200",
        "GH200-96G",
        "RTX2080Ti",
        "RTX3060",
        "RTX3080-10G",
        "RTX3080-12G",
        "RTX3090",
        "RTX3090Ti",
        "RTX4060Ti-16G",
        "RTX4070",
        "RTX4070TiS",
        "RTX4080",
        "RTX4090",
        "RTX5060Ti-16G",
        "RTX5070",
        "RTX5070Ti",
        "RTX5080",
        "RTX5090",
        "RTX-A4000",
        "RTX-A4500",
        "RTX-A5000",
        "RTX-A6000",
        "RTX-4000-Ada",
        "RTX-5000-Ada",
        "RTX-6000-Ada",
        "RTX-PRO-6000",
    ]
    assert not set(asked) - names
    assert len(names) >= 30


@pytest.mark.parametrize(("name", "reading_gib"), TORCH_READINGS.items())
def test_capacity_is_what_torch_reports_or_a_little_less(name: str, reading_gib: float) -> None:
    """Readings have two decimals; drivers differ by some 0.15 GiB."""
    total_gib = find_gpu(name).total_bytes / GIB
    assert reading_gib - 0.15 < total_gib <= reading_gib + 0.005


@pytest.mark.parametrize(("name", "reading_gib"), WINDOWS_READINGS.items())
def test_capacity_on_windows(name: str, reading_gib: float) -> None:
    assert find_gpu(name, "windows").total_bytes / GIB == pytest.approx(reading_gib, abs=0.006)


@pytest.mark.parametrize("os", OSES)
def test_every_card_is_sensible(os: str) -> None:
    gpus = all_gpus(os)
    assert [gpu.total_bytes for gpu in gpus] == sorted(gpu.total_bytes for gpu in gpus)
    for gpu in gpus:
        assert 0 < gpu.context_low_bytes <= gpu.context_bytes <= gpu.context_high_bytes < GIB * 1.1, gpu.name
        assert gpu.desktop_low_bytes <= gpu.desktop_bytes <= gpu.desktop_high_bytes, gpu.name
        assert gpu.usable_bytes == gpu.total_bytes - gpu.context_bytes - gpu.desktop_bytes
        assert gpu.source, gpu.name
        assert gpu.os == os
        assert re.fullmatch(r"\d+\.\d", gpu.compute_capability), gpu.name


def test_windows_keeps_a_share_for_the_desktop_and_says_what_happens_when_full() -> None:
    linux, windows = find_gpu("RTX4090"), find_gpu("RTX4090", "windows")
    assert linux.desktop_high_bytes == 0
    assert windows.desktop_low_bytes > 0
    assert windows.total_bytes > linux.total_bytes
    assert any("system RAM" in note for note in windows.notes)
    assert any("--os windows" in note for note in linux.notes)


@pytest.mark.parametrize(
    ("text", "name"),
    {
        "4090": "RTX4090",
        "RTX 4090": "RTX4090",
        "rtx4090": "RTX4090",
        "NVIDIA GeForce RTX 4090": "RTX4090",
        "4090 24GB": "RTX4090",
        "A100-80GB": "A100-80G",
        "a100 80g": "A100-80G",
        "NVIDIA A100-SXM4-40GB": "A100-40G",
        "NVIDIA H100 80GB HBM3": "H100-80G",
        "h100 pcie": "H100-80G",
        "Tesla T4": "T4",
        "NVIDIA RTX 6000 Ada Generation": "RTX-6000-Ada",
        "RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000",
        "4070 ti super": "RTX4070TiS",
        "NVIDIA RTX A6000": "RTX-A6000",
        "a6000": "RTX-A6000",
        "l40s": "L40S",
        "NVIDIA GH200 480GB": "GH200-96G",
        "3080 12GB": "RTX3080-12G",
    }.items(),
)
def test_the_names_people_and_drivers_write(text: str, name: str) -> None:
    assert find_gpu(text).name == name


@given(st.sampled_from(all_gpus()), st.data())
def test_case_spaces_and_dashes_do_not_matter(gpu: Gpu, data: st.DataObject) -> None:
    spelled = "".join(
        data.draw(st.sampled_from((char.lower(), char.upper(), f" {char}", f"-{char}", f"_{char}"))) for char in gpu.name.replace("-", "")
    )
    assert find_gpu(spelled) == gpu


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("a100", ("A100-40G", "A100-80G")),
        ("RTX 3080", ("RTX3080-10G", "RTX3080-12G")),
        ("v100", ("V100-16G", "V100-32G")),
        ("H100", ("H100-80G", "H100-NVL")),
    ],
)
def test_an_ambiguous_name_is_an_error_that_lists_the_choices(text: str, choices: tuple[str, ...]) -> None:
    message = problem_of(text)
    assert "more than one" in message
    assert all(choice in message for choice in choices)


@pytest.mark.parametrize(
    ("text", "meant"), [("RTX409O", "RTX4090"), ("A10O-40G", "A100-40G"), ("rtx 6000 aba", "RTX-6000-Ada"), ("L40SS", "L40S")]
)
def test_a_typo_is_answered_with_the_nearest_name(text: str, meant: str) -> None:
    message = problem_of(text)
    assert f"did you mean {meant}" in message
    assert "estimate gpus" in message


@pytest.mark.parametrize("text", ["", " ", "xyzzy", "радеон", "../../etc/passwd", "4090\n", "all of them"])
def test_no_name_at_all_is_an_input_error(text: str) -> None:
    if text.strip() == "4090":
        assert find_gpu(text).name == "RTX4090"
    else:
        assert "catalogue" in problem_of(text)


@pytest.mark.parametrize(
    ("text", "count_bytes"),
    [
        ("23.5GiB", 25_232_932_864),
        ("23.5 gib", 25_232_932_864),
        ("24000MiB", 25_165_824_000),
        ("24GB", 24_000_000_000),
        ("24000MB", 24_000_000_000),
    ],
)
def test_any_other_card_by_its_size(text: str, count_bytes: int) -> None:
    gpu = find_gpu(text)
    assert gpu.total_bytes == count_bytes
    assert gpu.compute_capability == "8.9"
    assert any("8.9" in note for note in gpu.notes), "what is assumed must be said"


def test_gb_is_decimal_and_said_to_be() -> None:
    assert any("decimal" in note and "22.35 GiB" in note for note in find_gpu("24GB").notes)
    assert not any("decimal" in note for note in find_gpu("24GiB").notes)


@pytest.mark.parametrize("text", ["24", "24G", "23.5", "24TB"])
def test_a_size_without_a_clear_unit_is_refused(text: str) -> None:
    assert "unit" in problem_of(text)


@pytest.mark.parametrize("text", ["0GiB", "0.5GiB", "100MiB", "5000GiB", "99999999999999999999GiB", "9" * 400 + "GiB"])
def test_an_impossible_size_is_refused(text: str) -> None:
    assert "no card's size" in problem_of(text)


def test_a_capacity_that_nobody_read_is_said_to_be_nominal() -> None:
    nominal = [gpu for gpu in all_gpus() if gpu.source.startswith("nominal")]
    assert nominal
    assert all(any("not read" in note for note in gpu.notes) for gpu in nominal)


def test_the_shipped_catalogue_loses_nothing_on_the_way() -> None:
    cards = parse_catalogue(CATALOGUE_TEXT)["cards"]
    assert {gpu.name for gpu in all_gpus()} == set(cards)
    for gpu in all_gpus():
        assert gpu.total_bytes == cards[gpu.name]["linux_mib"] * 2**20


T4 = "T4: {title: Tesla T4, linux_mib: 14909, windows_mib: 16209,"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (T4, T4.replace("linux_mib", "linux_mb"), "cards.T4.linux_mb: unknown key"),
        (T4, T4.replace("title: Tesla T4, ", ""), "cards.T4.title: missing"),
        (T4, T4.replace("14909", "'14909'"), "cards.T4.linux_mib: expected int"),
        (T4, T4.replace("14909", "yes"), "cards.T4.linux_mib: expected int"),
        (T4, T4.replace("14909", "1490"), "does not fit a card sold as 16 GB"),
        (T4, T4.replace("16209", "14000"), "cards.T4.windows_mib"),
        (T4, T4.replace("windows_mib: 16209,", ""), "come together"),
        ("  T4: {title", "  T4: {cc: '7.5', title", "written twice: cc"),
        ("  T4: {title", "  A10: {title", "written twice: A10"),
        ("  T4: {title", "  t-10: {title", None),
        ("  T4: {title", "  a-10: {title", "differ only in case"),
        ("aliases: [Tesla T4]", "aliases: [A10]", "A10 is the name of another card"),
        ('cc: "7.5", nominal_gb: 16', 'cc: "7", nominal_gb: 16', "not a compute capability"),
        ("turing: {low_mib: 110", "turing: {low_mib: 1100", "must rise"),
        ("turing: {low_mib: 110", "touring: {low_mib: 110", "no such context"),
        ("schema: 1", "schema: 2", "must have schema"),
        ("schema: 1", "schema: [", "line"),
    ],
)
def test_a_faulty_catalogue_is_refused(old: str, new: str, complaint: str | None) -> None:
    assert CATALOGUE_TEXT.count(old) >= 1, "the test must change something"
    changed = CATALOGUE_TEXT.replace(old, new, 1)
    if complaint is None:
        parse_catalogue(changed)
        return
    with pytest.raises(CatalogueError, match=re.escape(complaint)):
        parse_catalogue(changed)


def test_all_faults_are_reported_at_once() -> None:
    changed = CATALOGUE_TEXT.replace("linux_mib: 14909", "linux_mib: 1", 1).replace("linux_mib: 22587", "linux_mib: 2", 1)
    with pytest.raises(CatalogueError) as caught:
        parse_catalogue(changed)
    assert {"cards.T4", "cards.A10"} <= {line.rsplit(".", 1)[0] for line in str(caught.value).split("\n") for line in [line.split(": ")[0]]}


def test_cards_are_values() -> None:
    assert find_gpu("T4") == find_gpu("tesla t4")
    assert replace(find_gpu("T4"), total_bytes=1) != find_gpu("T4")
