"""The quantities that sizes of allocations depend on: products of a few integer variables of a workload.

Variables that a job gives: `B` samples in one forward, `T` image tokens of a sample (width * height / 256), `E` the image's
edge ((width + height) / 16, which padded convolutions add), `X` text tokens of a sample, `N` those of the negative prompt, `W` those of
a prompt whose output a step preserves (estimator.preservation), `I` those of `X` that are cells of control images (a text encoder with a
vision tower), `r` the adapter's rank (`f`: a LoKr's factor), `Q` image tokens of the picture that is trained where `T` counts those of
control images as well (FLUX.2). Of video, `T` and the text encoder's count are of the whole clip, and there are besides: `A` tokens of
one latent frame (of an image: T), `F` latent frames (1 + (frames - 1) / 4), `K` latent frames that a VAE has done already,
`O` tokens of a clip's sound, `M` frames of the spectrogram that they are encoded from. LTX-2's tokens are of 32 pixels each way, and its
latent frames of 8 (`Cells`). Of a step that counts its samples twice in `B`, `b` is their number (estimator.guided_step). Derived ones:

- `S` = T + X, the joint sequence; `G` = T + N, that of the negative prompt where it has a forward of its own;
- `SX` = T + 3 X, where each block has three texts beside the image (HiDream-I1: T5's, Llama's, and another of Llama's layers);
- `U` = 2 T, an image and a control image of the same size (FLUX.1 Kontext); `J` = 2 T + X, the joint sequence with both, `JG` = 2 T + N;
- `Z` = T32 + X32, where both are padded to 32 (Z-Image); `L` = 4 T, the latent pixels: rows of the VAE's mid-block attention, `P` = 4 A
  those of one frame; where `T` is of a UNet's lowest level, `L`, `LL` and `LLL` are of those above it, each twice as wide and high;
- `u`, `v`: places of a UNet's third and fourth levels, 32 and 64 pixels each way, rounded up (`T` is of its second, `L` of its latents);
  `c`: rank of the adapter on its convolutions;
- `Sw`, `Jw`, `Zw`: S, J and Z with W in place of X;
- `V` = 4 T - 3 A: pixels of a whole clip, in tokens of a frame (the first latent frame is of one frame, the others of four);
- `C1`, `C2`, `C4`, `C8`: pixels of a frame, of one half, a quarter, an eighth as wide, that a convolution pads by one on each side; `D1`,
  `D2`, `D4`: padded on two sides only, before a convolution of stride 2;
- any other of these with a number behind it is rounded up to a multiple of that: `S128` to FlashAttention's tile (dq accumulator,
  logsumexp), `S32` and `L32` to the memory-efficient kernel's (logsumexp), `X32` to Z-Image's padding;
- `M8`: S where it is no multiple of 8, else 0: rows of an attention mask of which memory-efficient attention makes a padded copy (Chroma);
  `MQ8` the same of Q (HunyuanVideo 1.5);
- `Q` = X + T + 985: tokens of HunyuanVideo 1.5, whose every prompt has 256 of glyphs and 729 of a picture beside it;
- `H1`, `H2`, `H4`, `H8`: a latent frame, so many times as wide, padded by one on each side (LTX-2's decoder);
- `W2`: places of a clip in LTX-2's encoder where it is twice as wide and long as its latents (the first frame is one everywhere);
- `B>2`: 1 where a forward has more than 2 samples, else 0: what is made for the third one alone (FLUX.2 places tokens sample by sample);
- `reduceD_V` (D a width, V a variable): partial results of one column sum over V rows of a [B, V, D] tensor, such as the gradient of a
  gate, that torch's reduction kernel keeps in global memory. 0 where it needs none. It is the number of blocks that share an output in
  torch's `setReduceConfig` (ATen/native/cuda/Reduce.cuh) for 2-byte inputs: 128-thread blocks of 32 x 4, 4 outputs a thread, at least 16
  values a thread.

- `normD_kV` (D a width, k times a variable V): the same of one column sum over k V rows of all samples together, such as the gradient of a
  norm's weight or of a bias, where these are trained; `normD_k`: of k rows of each sample;
- `sumsC_kV` (C channels, k times a variable V): the same of one sum over C channels at each of k V places, fp32 (the norms of Wan 2.2 5B's
  decoder, of 1024 channels; one block is enough for fewer than a thousand);

- `Y` = X + 64: text tokens with those of Qwen-Image-Edit's template, which the pipeline drops behind the text encoder; `Yi` = X + 34: of
  Qwen-Image's;
- `flashH_V` (H attention heads, V a length): the parts in which FlashAttention's forward goes through the keys where heads and rows alone
  would leave multiprocessors idle, each with a result of its own in fp32 until they are joined; 0 where it does not. `narrowH_R_V`: of
  heads no wider than 64, of R rows and V keys (sound that looks at pictures); `wideH_R_V`: of heads wider than 128;
- `kron1_IxO`, `kron2_IxO`, `kron3_IxO` (I inputs, O outputs of a layer): of a LoKr of factor `f` on it, elements of the small and of the
  large matrix, and of what a token is between the two (estimator.kronecker);
- `splitsH_V` (H attention heads, V a length): the parts in which memory-efficient attention's backward goes through the keys, each with
  scratch memory of its own for gk and gv: at most one for 64 keys, and as many as 200 for all heads of all samples together (V may be a
  number);
- `tiles64_V` (V a length): blocks of 64 rows of the queries, each with scratch memory for gq (the same kernel, kBlockSizeI);
- `rows32_kV` (k times a length V): rows of all samples together, rounded up to 32 for an int8 product (the trainer's convrot_quant.py);
  `lone32_kV`: of so many rows, whatever the number of samples;
- `meanC_V` (C channels, V places): elements of the partial results of a mean over the channels of [B, C, V], by the rule of `reduceD_V`.
  Outputs are many here and values few: there are some where a thread has four outputs (V a multiple of 4) or two, none where it has one.

A feature is a product, written `B*T`; `1` is the constant. Every function takes plain integers and returns one, or takes
integer arrays and returns an array (estimator.grid).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, overload

from estimator import kronecker
from estimator.attention_parts import KEYS_OF, IntOrInts, flash_parts, key_splits, larger, smaller
from estimator.attention_parts import Ints as Ints

# Sums that names stand for. Roundings that occur: 128, FlashAttention-2's rows (flash_api.cpp: seqlen rounded to 128); 32, Z-Image's
# padding (ZImageTransformer2DModel: SEQ_MULTI_OF) and the logsumexp rows of memory-efficient attention (attention.cu: kAlignLSE)
_SUMS = {
    "S": {"T": 1, "X": 1}, "Y": {"X": 1, "1": 64}, "Yi": {"X": 1, "1": 34}, "G": {"T": 1, "N": 1}, "U": {"T": 2},
    "J": {"T": 2, "X": 1}, "JG": {"T": 2, "N": 1}, "SX": {"T": 1, "X": 3},
    "Q": {"T": 1, "X": 1, "1": 985}, "Z": {"T32": 1, "X32": 1}, "L": {"T": 4}, "LL": {"T": 16}, "LLL": {"T": 64},
    "P": {"A": 4}, "V": {"T": 4, "A": -3},
    "Sw": {"T": 1, "W": 1}, "Jw": {"T": 2, "W": 1}, "Zw": {"T32": 1, "W32": 1},
    **{f"C{s}": {"A": (16 // s) ** 2, "E": 2 * 16 // s, "1": 4} for s in (1, 2, 4, 8)},
    **{f"D{s}": {"A": (16 // s) ** 2, "E": 16 // s, "1": 1} for s in (1, 2, 4)},
    **{f"H{s}": {"A": s**2, "E": 2 * s, "1": 4} for s in (1, 2, 4, 8)}, "W2": {"T": 8, "A": -4},
}  # fmt: skip
PRESERVED = {"X": "W", "S": "Sw", "J": "Jw", "Z": "Zw"}  # of the prompts that a step preserves, in place of those that it trains
MASKED = {"M8": "S", "MQ8": "Q"}
MASK_TILE = 8  # rows of a mask are padded to multiples of it for memory-efficient attention (aten/native/transformers/attention.cpp)

REDUCE_BLOCK_WIDTH, REDUCE_BLOCK_HEIGHT = 32, 4  # threads of a reduction block: over outputs, over rows
REDUCE_OUTPUTS_PER_THREAD = 4  # vectorised outputs of 2-byte inputs
REDUCE_MIN_VALUES, REDUCE_MAX_VALUES = 16, 256  # values a thread adds up before more blocks share an output
# Blocks of 128 threads that the device holds at once. Of the device that the programs were recorded on (128 SMs of 1536
# threads, compute capability 8.9); a larger card has more, which matters from 4096 rows on.
REDUCE_RESIDENT_THREADS = 128 * 1536
REDUCE_RESIDENT_BLOCKS = REDUCE_RESIDENT_THREADS // (REDUCE_BLOCK_WIDTH * REDUCE_BLOCK_HEIGHT)
REDUCE_THREADS = REDUCE_BLOCK_WIDTH * REDUCE_BLOCK_HEIGHT * REDUCE_OUTPUTS_PER_THREAD  # of a block, where each has one output

PIXELS_PER_EDGE = 16  # of a token: VAE factor 8, patch 2, of FLUX.1, Flex.1, Z-Image, Qwen-Image and Wan 2.1
FRAMES_PER_LATENT = 4  # temporal compression of Wan's VAE (AutoencoderKLWan: scale_factor_temporal); the first frame is one of its own


@dataclass(frozen=True, slots=True)
class Cells:
    """What a token is of pixels: `edge` of them each way, and `frames` to a latent frame behind the first, which is one of its own."""

    edge: int = PIXELS_PER_EDGE
    frames: int = FRAMES_PER_LATENT

IMAGE_CELLS = Cells()
SPECTRUM_PER_TOKEN = 4  # frames of a spectrogram to a token of sound (diffusers c9438378: AutoencoderKLLTX2Audio, LATENT_DOWNSAMPLE_FACTOR)

def latent_frames(frames: int, cells: Cells = IMAGE_CELLS) -> int:
    """Latent frames of a clip; what is left over at its end is dropped."""
    return 1 + (frames - 1) // cells.frames


def image_values(width: int, height: int, frames: int = 1, cells: Cells = IMAGE_CELLS) -> dict[str, int]:
    """`T`, `E`, `A` and `F` of an image or clip of so many pixels."""
    area, count = width * height // cells.edge**2, latent_frames(frames, cells)
    return {"T": area * count, "E": (width + height) // cells.edge, "A": area, "F": count}


def spectrogram_frames(frames: int, per_second: float, sound_per_second: int) -> int:
    """Frames of the spectrogram of a clip's own sound, so many times as many as its tokens, and one more (its windows are centred)."""
    return int(frames * sound_per_second * SPECTRUM_PER_TOKEN / per_second) + 1


def encoded_sound(spectrogram: int) -> int:
    """Tokens that the encoder of sound makes of a spectrogram: what is left over at its end makes one more."""
    return -(-spectrogram // SPECTRUM_PER_TOKEN)


def round_up(value: IntOrInts, multiple: int) -> IntOrInts:
    return -(-value // multiple) * multiple


def reduce_blocks(outputs: IntOrInts, rows: IntOrInts) -> IntOrInts:
    """Blocks that share an output of a column sum (0: one block does it, without partial results in memory)."""
    values = -(-rows // REDUCE_BLOCK_HEIGHT)
    grid = -(-outputs // (REDUCE_BLOCK_WIDTH * REDUCE_OUTPUTS_PER_THREAD)) + (outputs == 0) * 1  # of none there is nothing to add up
    fill, least, most = -(-REDUCE_RESIDENT_BLOCKS // grid), -(-values // REDUCE_MAX_VALUES), -(-values // REDUCE_MIN_VALUES)
    blocks = larger(smaller(fill, most), least)
    shared: IntOrInts = blocks * (blocks > 1) * (values >= REDUCE_MAX_VALUES) * (outputs > 0)
    return shared


def mean_partials(channels: int, samples: IntOrInts, places: IntOrInts) -> IntOrInts:
    """Elements of the partial results of a mean over the channels of [samples, channels, places]; 0 where one block adds up an output.

    The rule of `reduce_blocks`, where outputs lie side by side: a thread takes 4, 2 or 1 of them, whichever divides the places.
    """
    vector = 1 + (places % 2 == 0) * 1 + (places % REDUCE_OUTPUTS_PER_THREAD == 0) * 2
    outputs, threads = samples * places, REDUCE_THREADS // vector
    width = 1 + sum(2**k * (outputs // vector >= 2 ** (k + 1)) for k in range(REDUCE_BLOCK_WIDTH.bit_length() - 1))
    values, grid = -(-channels // (threads // width)), -(-outputs // (width * vector))
    fill, least, most = -(-(REDUCE_RESIDENT_THREADS // threads) // grid), -(-values // REDUCE_MAX_VALUES), -(-values // REDUCE_MIN_VALUES)
    blocks = larger(smaller(fill, most), least)
    partials: IntOrInts = outputs * width * vector * blocks * (blocks > 1) * (values >= REDUCE_MAX_VALUES)
    return partials


@overload
def variable(name: str, given: Mapping[str, int]) -> int: ...
@overload
def variable(name: str, given: Mapping[str, Ints]) -> Ints: ...
def variable(name: str, given: Mapping[str, Any]) -> Any:
    """The value of a variable, given or derived. Raises KeyError for an unknown one."""
    if name in given:
        return given[name]
    if name.isdigit():
        return int(name)
    if name in _SUMS:
        return sum(times * variable(term, given) for term, times in _SUMS[name].items())
    if name.startswith("B>"):
        return (given["B"] > int(name[2:])) * 1
    if (base := MASKED.get(name)) is not None:
        return variable(base, given) * (variable(base, given) % MASK_TILE != 0)
    if name.startswith(tuple(KEYS_OF)):
        heads, rows, keys, block = _attention(name)
        return flash_parts(given.get("B", 1) * heads, variable(rows, given), variable(keys, given), block)
    if name.startswith("splits"):
        heads, over = _of(name, "splits")
        return key_splits(given.get("B", 1) * heads, variable(over, given))
    if name.startswith("tiles"):
        return -(-variable(_of(name, "tiles")[1], given) // _of(name, "tiles")[0])
    if name.startswith(("rows", "lone")):
        multiple, over = _of(name, name[:4])
        base = over.lstrip("0123456789")
        places = int(over.removesuffix(base) or 1) * (variable(base, given) if base else 1)
        return round_up(places * (given.get("B", 1) if name.startswith("rows") else 1), multiple)
    if name.startswith("kron"):
        return kronecker.elements(name, given["f"])
    if name.startswith(("sums", "norm")):
        width, over = _of(name, name[:4])
        base = over.lstrip("0123456789")
        places = int(over.removesuffix(base) or 1) * (variable(base, given) if base else 1)
        return reduce_blocks(places, width) if name.startswith("sums") else reduce_blocks(width, given.get("B", 1) * places)
    if name.startswith("mean"):
        channels, over = _of(name, "mean")
        return mean_partials(channels, given.get("B", 1), variable(over, given))
    if name.startswith("reduce"):
        width, over = _of(name, "reduce")
        return reduce_blocks(given.get("B", 1) * width, variable(over, given))
    base, multiple = _rounded(name)
    return round_up(variable(base, given), multiple)


@cache
def _sums_by_terms() -> dict[frozenset[tuple[str, int]], str]:
    return {frozenset(terms.items()): name for name, terms in _SUMS.items()}


def sum_of(terms: Mapping[str, int]) -> str:
    """The variable that is so many times others, added up. Raises KeyError where there is none."""
    return _sums_by_terms()[frozenset(terms.items())]


@cache
def with_preserved(name: str) -> str:
    """A feature with what depends on the prompts taken of those that a step preserves (`W`): r*S128 -> r*Sw128."""
    return "*".join(_preserved(factor) for factor in name.split("*"))


def _preserved(factor: str) -> str:
    head, bar, over = factor.rpartition("_")
    base = over.rstrip("0123456789")
    return f"{head}{bar}{PRESERVED.get(base, base)}{over[len(base) :]}"


@cache
def _rounded(name: str) -> tuple[str, int]:
    """A variable and the multiple that it is rounded up to: S128 -> S, 128. Raises KeyError where the name is of no such form."""
    base = name.rstrip("0123456789")
    if not base or base == name:
        raise KeyError(f"unknown variable {name!r}")
    return base, int(name[len(base) :])


@cache
def _of(name: str, kind: str) -> tuple[int, str]:
    """The number and the variable that a kernel's feature is of: reduce3072_T -> 3072, T."""
    number, over = name.removeprefix(kind).split("_")
    return int(number), over


@cache
def _attention(name: str) -> tuple[int, str, str, int]:
    """(heads, rows, keys, block of keys) of FlashAttention: flash12_T over itself, flash12_T_512 over 512 keys; narrow, wide: of heads."""
    kind = next(kind for kind in KEYS_OF if name.startswith(kind))
    heads, rows, *keys = name.removeprefix(kind).split("_")
    return int(heads), rows, keys[0] if keys else rows, KEYS_OF[kind]


@cache
def _factors(name: str) -> tuple[str, ...]:
    return tuple(name.split("*"))


@overload
def feature(name: str, given: Mapping[str, int]) -> int: ...
@overload
def feature(name: str, given: Mapping[str, Ints]) -> Ints: ...
def feature(name: str, given: Mapping[str, Any]) -> Any:
    """The value of a product of variables, such as `B*T`."""
    product: Any = 1
    for factor in _factors(name):
        product = product * variable(factor, given)  # arrays may broadcast
    return product
