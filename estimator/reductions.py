"""What torch's reductions keep in global memory beside their result: partial results and semaphores.

Source: ATen/native/cuda/Reduce.cuh of torch 2.14 (`setReduceConfig`, `global_memory_size`, `semaphore_size`). A reduction that one
block of threads finishes needs neither.
"""

from __future__ import annotations

from estimator.features import REDUCE_MAX_VALUES, REDUCE_MIN_VALUES

MAX_THREADS, WARP = 512, 32
VECTOR = 4  # elements that a thread reads at once (vt0, input_vec_size; output_vec_size of aligned rows)
VECTORISED_FROM = 128  # elements: contiguous inputs longer than this are read by vectors
MULTIPROCESSORS, THREADS_EACH = 128, 1536  # of the device that the programs were recorded on (compute capability 8.9)
SEMAPHORE_BYTES = 4


def _up(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _pow2(value: int) -> int:
    """The largest power of two that is not larger; 1 for 0."""
    return 1 << (max(value, 1).bit_length() - 1)


def partials(outputs: int, inputs: int, *, contiguous: bool, element_bytes: int = 4) -> tuple[int, int]:
    """(bytes of partial results, bytes of semaphores) of a reduction of `inputs` values to each of `outputs`; (0, 0) if it needs none.

    `contiguous`: the values of one output lie side by side (sums of rows, or of a whole tensor: one output); otherwise the outputs do
    (sums of columns). `element_bytes`: of the accumulator.
    """
    vector = 1
    if contiguous:
        across, down = inputs, outputs
        if outputs == 1 and inputs > VECTORISED_FROM:
            across //= VECTOR
    else:
        vector = next(size for size in (VECTOR, 2, 1) if outputs % size == 0)
        across, down = outputs // vector, inputs
    threads = MAX_THREADS // vector
    across2, down2 = min(_pow2(across), threads), min(_pow2(down), threads)
    width = min(across2, WARP)
    height = min(down2, threads // width)
    width = min(across2, threads // height)
    step_input, step_output = (width, 1) if contiguous else (1, width)
    split = _up(inputs, step_input) >= min(height * REDUCE_MIN_VALUES, REDUCE_MAX_VALUES)
    if split:
        step_input *= height
    else:
        step_output *= height
    values = _up(inputs, step_input)
    grid = _up(outputs // vector, step_output)
    target = MULTIPROCESSORS * (THREADS_EACH // (width * height))
    if not split or values < REDUCE_MAX_VALUES or grid > target:
        return 0, 0
    blocks = max(min(_up(target, grid), _up(values, REDUCE_MIN_VALUES)), _up(values, REDUCE_MAX_VALUES))
    if blocks < 2:
        return 0, 0
    size = element_bytes * outputs * blocks
    return (size if contiguous else size * width * vector), SEMAPHORE_BYTES * grid
