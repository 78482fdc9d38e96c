"""Features: known values, each worked out by hand from the rule that torch or the model follows, or as recorded."""

from __future__ import annotations

import numpy as np
import pytest

from estimator.features import encoded_sound, feature, image_values, reduce_blocks, round_up, spectrogram_frames, variable

JOINT = {"T": 3440, "X": 512, "B": 1, "r": 16}  # FLUX at 1280 x 688: 3952 rows of image and text together


def test_tokens_and_edge_of_an_image() -> None:
    """1024 px: a latent of 128 x 128, patches of 2 x 2: 64 x 64 tokens."""
    for side, tokens, edge in (((1024, 1024), 64 * 64, 64 + 64), ((1280, 688), 80 * 43, 80 + 43)):
        made = image_values(*side)
        assert (made["T"], made["E"]) == (tokens, edge)


def test_the_joint_sequence_and_its_tile() -> None:
    """3952 = 30.875 * 128, so 31 tiles."""
    assert feature("S", JOINT) == 3952
    assert feature("S128", JOINT) == 31 * 128
    assert feature("B*S128", {**JOINT, "B": 3}) == 3 * 31 * 128


def test_a_whole_number_of_tiles_is_not_rounded_up() -> None:
    assert feature("S128", {"T": 4096, "X": 512}) == 4608
    assert round_up(4608, 128) == 4608


def test_products_of_variables() -> None:
    assert feature("1", JOINT) == 1
    assert feature("B*r*T", {**JOINT, "B": 2}) == 2 * 16 * 3440


def test_zimage_pads_image_and_text_each_by_itself() -> None:
    """49 * 41 = 2009 image tokens to 2016, 69 text tokens to 96: 2112 together, not 2080 (the sum rounded)."""
    given = {"T": 49 * 41, "X": 69}
    assert [variable(name, given) for name in ("T32", "X32", "Z", "Z128")] == [2016, 96, 2112, 2176]


def test_rows_of_the_vaes_attention() -> None:
    """The mid-block sees a latent pixel as a row: 22 * 38 tokens are 44 * 76 = 3344 pixels, 104.5 tiles of 32."""
    assert variable("L32", {"T": 22 * 38}) == 105 * 32


def test_partial_results_of_a_column_sum_as_recorded() -> None:
    """The buffer that the emulated device recorded for the sum over 3952 rows of 3072 columns: 4 bytes, 128 threads, 62 blocks."""
    assert feature("reduce3072_S", JOINT) == 62
    assert 4 * 3072 * 62 == 761_856


@pytest.mark.parametrize(
    ("outputs", "rows", "blocks"),
    [
        (3072, 1020, 0),  # 255 values for each of 4 rows of threads: one block adds them up
        (3072, 1021, 16),  # 256 values: at least 16 values a thread give 16 blocks
        (3072, 2048, 32),
        (3072, 16384, 64),  # the device is full: 1536 resident blocks for 24 columns of blocks
        (3072, 4 * 256 * 65, 65),  # but no thread adds more than 256
        (2 * 3072, 16384, 32),  # twice the outputs leave half the blocks
        (1, 1024, 16),
    ],
)
def test_blocks_that_share_an_output(outputs: int, rows: int, blocks: int) -> None:
    assert reduce_blocks(outputs, rows) == blocks


@pytest.mark.parametrize(("cells", "recorded_bytes"), [(240, 125829120), (168, 110100480), (153, 120324096), (126, 115605504)])
def test_parts_of_a_sum_over_1024_channels_as_recorded(cells: int, recorded_bytes: int) -> None:
    """Wan 2.2 5B's decoder, first norm of its third block, four frames: partial results of 32 threads with 4 outputs of 4 bytes each."""
    assert 256 * 32 * 4 * 4 * feature("A*sums1024_256A", {"A": cells}) == recorded_bytes


def test_a_sum_over_few_channels_has_no_parts() -> None:
    assert variable("sums640_256A", {"A": 200}) == 0


@pytest.mark.parametrize(
    ("name", "workload", "recorded_bytes"),
    [
        ("norm128_30T32", {"B": 2, "T": 2745}, 100663296), ("norm128_30T32", {"B": 2, "T": 1024}, 62914560),
        ("norm3840_T32", {"B": 1, "T": 2009}, 62914560), ("norm3840_T32", {"B": 1, "T": 4096}, 102236160),
        ("norm3840_T32", {"B": 1, "T": 819}, 0), ("norm3840_T32", {"B": 3, "T": 1107}, 102236160),
    ],
)  # fmt: skip
def test_partial_results_of_a_norms_gradient_over_the_rows_of_all_samples_as_recorded(
    name: str, workload: dict[str, int], recorded_bytes: int
) -> None:
    """Z-Image, all of it trained: norms of heads (30 of 128) and of its stream; 16 KiB for each block and 128 outputs."""
    bytes_a_block = 65536 if name.startswith("norm128") else 30 * 65536
    assert bytes_a_block * feature(name, workload) == recorded_bytes


def test_any_length_can_be_rounded_up_to_a_multiple() -> None:
    """3440 + 512 = 3952 = 61.75 * 64; beside a negative prompt of 21 tokens 3461, to 3488 by 32 and 3520 by 64; 4 * 3440 is whole."""
    given = {**JOINT, "N": 21}
    assert [variable(name, given) for name in ("S64", "G", "G32", "G64", "L", "L32")] == [3968, 3461, 3488, 3520, 13760, 13760]


@pytest.mark.parametrize(
    ("batch", "keys", "parts"),
    [(1, 1041, 8), (2, 1069, 4), (3, 1140, 2), (4, 1566, 2), (5, 1566, 1), (9, 1566, 1), (16, 1566, 1), (1, 256, 4), (1, 257, 5)],
)
def test_parts_of_the_keys_of_24_heads(batch: int, keys: int, parts: int) -> None:
    """As recorded of Qwen-Image's first four; 200 parts for all heads, 64 keys or more to each, one at least."""
    assert feature("splits24_S", {"T": keys - 20, "X": 20, "B": batch}) == parts


@pytest.mark.parametrize(("batch", "parts"), [(1, 6), (2, 3), (3, 2), (4, 1)])
def test_parts_of_keys_whose_number_is_fixed(batch: int, parts: int) -> None:
    """LTX-2's 1024 text tokens: as recorded with 1 and 3 samples (15731712 and 31475712 bytes less the rows' part)."""
    assert feature("splits32_1024", {"B": batch}) == parts


@pytest.mark.parametrize(
    ("name", "places", "recorded_bytes"),
    [
        ("mean2048_T", {"T": 560, "A": 140}, 9_175_040),  # four outputs a thread
        ("mean2048_T", {"T": 234, "A": 117}, 958_464),  # two
        ("mean2048_T", {"T": 891, "A": 99}, 0),  # one
        ("mean1024_W2", {"T": 3060, "A": 340}, 106_536_960),  # so many outputs that fewer blocks share each
        ("mean1024_W2", {"T": 891, "A": 99}, 55_148_544),
        ("mean1024_T", {"T": 234, "A": 117}, 0),
    ],
)
def test_partial_results_of_a_mean_over_channels_as_recorded(name: str, places: dict[str, int], recorded_bytes: int) -> None:
    assert 4 * feature(name, places) == recorded_bytes
    several = {key: np.array([value, value]) for key, value in places.items()}
    assert (4 * feature(name, several) == recorded_bytes).all()


@pytest.mark.parametrize(("batch", "sound", "tokens", "recorded_bytes"), [(2, 51, 1008, 3_342_336), (1, 18, 117, 0)])
def test_sound_looks_at_pictures_in_parts_as_recorded(batch: int, sound: int, tokens: int, recorded_bytes: int) -> None:
    """Each part has a result of its own: 32 heads of 64 values of 4 bytes for each row."""
    assert 32 * 64 * 4 * feature("B*O*narrow32_O_T", {"B": batch, "O": sound, "T": tokens}) == recorded_bytes


@pytest.mark.parametrize(
    ("tokens", "of_its_own", "of_the_text"),
    [(768, 14_155_776, 18_874_368), (792, 14_598_144, 19_464_192), (920, 22_609_920, 22_609_920), (1530, 0, 0)],
)
def test_a_short_clip_goes_through_keys_in_parts_as_recorded(tokens: int, of_its_own: int, of_the_text: int) -> None:
    """Wan 2.1 1.3B: each part has a result of its own, 12 heads of 128 values of 4 bytes for each row."""
    sizes = (12 * 128 * 4 * feature(name, {"T": tokens}) for name in ("T*flash12_T", "T*flash12_T_512"))
    assert tuple(sizes) == (of_its_own, of_the_text)


@pytest.mark.parametrize(("frames", "spectrogram", "tokens"), [(9, 38, 10), (17, 71, 18), (25, 105, 27), (65, 271, 68)])
def test_the_sound_of_a_clip_begins_a_token_with_every_fourth_frame_of_its_spectrogram(frames: int, spectrogram: int, tokens: int) -> None:
    """LTX-2 at 24 frames a second: 100 spectrogram frames a second and one more."""
    assert spectrogram_frames(frames, 24, 25) == spectrogram
    assert encoded_sound(spectrogram) == tokens


@pytest.mark.parametrize("name", ["R", "B*R", "R64", "6Q", ""])
def test_an_unknown_variable_is_an_error(name: str) -> None:
    with pytest.raises(KeyError):
        feature(name, JOINT)


def test_a_variable_that_the_workload_lacks_is_an_error() -> None:
    with pytest.raises(KeyError):
        feature("B*T", {"B": 1})
