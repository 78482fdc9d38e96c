"""The emulated device accounts for memory as a card does: every expected figure is worked out by hand."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.emulated

Emulated = Callable[..., dict[str, Any]]
MIB = 2**20


@pytest.mark.parametrize(
    ("size_bytes", "allocated_bytes", "reserved_bytes"),
    [
        (1, 512, 2 * MIB),  # blocks are multiples of 512 bytes; small ones live in segments of 2 MiB
        (MIB, MIB, 2 * MIB),  # 1 MiB is still small
        (MIB + 1, MIB + 512, 20 * MIB),  # above, blocks share a segment of 20 MiB
        (3 * MIB, 3 * MIB, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),  # from 10 MiB on a segment of its own, in steps of 2 MiB
        (11 * MIB, 12 * MIB, 12 * MIB),  # a remainder of 1 MiB or less is not split off: it counts as allocated
        (13 * MIB - 512, 13 * MIB - 512, 14 * MIB),  # one of 1 MiB + 512 bytes is
    ],
)
def test_one_tensor_takes_the_segment_of_its_size(emulated: Emulated, size_bytes: int, allocated_bytes: int, reserved_bytes: int) -> None:
    seen = emulated(f"""
from calibration.emulated_cuda import device
x = tensor({size_bytes})
held = allocated(), reserved(), device.used_bytes()
del x
freed = allocated(), reserved(), device.used_bytes()
torch.cuda.empty_cache()
result(held=held, freed=freed, emptied=(allocated(), reserved(), device.used_bytes()), emulated=device.is_emulated())
""")
    assert seen["emulated"]
    assert seen["held"] == [allocated_bytes, reserved_bytes, reserved_bytes]
    assert seen["freed"] == [0, reserved_bytes, reserved_bytes], "freed blocks stay cached"
    assert seen["emptied"] == [0, 0, 0]


def test_capacity_is_what_torch_and_the_driver_report(emulated: Emulated) -> None:
    seen = emulated(
        """
x = tensor(100 * MIB)
p = torch.cuda.get_device_properties(0)
result(total=p.total_memory, capability=[p.major, p.minor], name=p.name, info=torch.cuda.mem_get_info())
""",
        CC=8.9,
        TOTAL_MIB=24080,
        CONTEXT_MIB=400,
    )
    assert seen["total"] == 24080 * MIB
    assert seen["capability"] == [8, 9]
    assert "4090" in seen["name"]
    assert seen["info"] == [(24080 - 400 - 100) * MIB, 24080 * MIB]


def test_beyond_capacity_torch_raises_out_of_memory(emulated: Emulated) -> None:
    """1524 MiB, less 500 MiB of context, hold 1024 MiB: all of it can be had, one segment more cannot."""
    seen = emulated(
        """
held = tensor(1024 * MIB)
try:
    tensor(1)
except torch.OutOfMemoryError as e:
    message = str(e)
else:
    message = ""
stats = torch.cuda.memory_stats()
result(message=message, held=reserved(), ooms=stats["num_ooms"])
""",
        TOTAL_MIB=1524,
        CONTEXT_MIB=500,
    )
    assert seen["message"].startswith("CUDA out of memory. Tried to allocate 2.00 MiB.")
    assert seen["held"] == 1024 * MIB
    assert seen["ooms"] == 1


def test_cached_blocks_are_released_before_an_allocation_fails(emulated: Emulated) -> None:
    """600 MiB cached and 700 MiB wanted in 1024 MiB: the allocator gives the cached segment back and tries again."""
    seen = emulated(
        """
x = tensor(600 * MIB)
del x
y = tensor(700 * MIB)
stats = torch.cuda.memory_stats()
result(reserved=reserved(), retries=stats["num_alloc_retries"], ooms=stats["num_ooms"])
""",
        TOTAL_MIB=1524,
        CONTEXT_MIB=500,
    )
    assert seen == {"reserved": 700 * MIB, "retries": 1, "ooms": 0}


@pytest.mark.parametrize(("setting", "reserved_mib"), [("expandable_segments:False", 120), ("expandable_segments:True", 60)])
def test_expandable_segments_merge_what_lies_side_by_side(emulated: Emulated, setting: str, reserved_mib: int) -> None:
    """Two freed tensors of 30 MiB: fixed segments cannot serve 60 MiB from them and take a third, an expandable one can."""
    seen = emulated(
        """
x, y = tensor(30 * MIB), tensor(30 * MIB)
both = reserved()
del x, y
z = tensor(60 * MIB)
result(both=both, after=reserved())
""",
        PYTORCH_CUDA_ALLOC_CONF=setting,
    )
    assert seen == {"both": 60 * MIB, "after": reserved_mib * MIB}


ATTENTION = """
B, T, H, D = 1, 1024, 4, 64
q, k, v = (torch.empty(B, T, H, D, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for _ in range(3))
before = allocated()
out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
saved = allocated() - before
gradient = torch.empty_like(out)
before = allocated()
torch.cuda.reset_peak_memory_stats()
out.backward(gradient)
result(node=out.grad_fn.name(), saved=saved, backward=peak() - before)
"""


def test_attention_on_8_9_is_flash_with_its_workspaces(emulated: Emulated) -> None:
    """Forward: output (bf16), log-sum-exp (fp32 per head and token), two 512-byte blocks of random state.
    Backward: three gradients (bf16), the accumulator of dQ and the row sums of dO * O (fp32)."""
    seen = emulated(ATTENTION, CC=8.9)
    tokens, heads, dim = 1024, 4, 64
    assert seen["node"].startswith("ScaledDotProductFlashAttention")
    assert seen["saved"] == tokens * heads * dim * 2 + tokens * heads * 4 + 2 * 512
    assert seen["backward"] == 3 * tokens * heads * dim * 2 + tokens * heads * dim * 4 + tokens * heads * 4


def test_attention_on_9_0_is_cudnn(emulated: Emulated) -> None:
    assert emulated(ATTENTION, CC=9.0)["node"].startswith("ScaledDotProductCudnnAttention")


@pytest.mark.parametrize(("capability", "workspace_bytes"), [(8.0, 8.125 * MIB), (8.9, 8.125 * MIB), (9.0, 32 * MIB), (12.0, 32 * MIB)])
def test_the_first_product_takes_the_cublas_workspace(emulated: Emulated, capability: float, workspace_bytes: float) -> None:
    """torch's default CUBLAS_WORKSPACE_CONFIG: 2 x 4096 KiB + 8 x 16 KiB, and 32 MiB from Hopper on; once per thread and stream."""
    seen = emulated(
        """
a = torch.empty(8, 8, device="cuda")
before = allocated()
b = torch.empty(8, 8, device="cuda")
torch.mm(a, a, out=b)
first = allocated() - before - 512
torch.mm(a, a, out=b)
result(first=first, second=allocated() - before - 512 - first)
""",
        CC=capability,
    )
    assert seen == {"first": workspace_bytes, "second": 0}


def test_adamw_keeps_two_moments_and_borrows_one_more(emulated: Emulated) -> None:
    """8 parameters of 4 MiB: exp_avg and exp_avg_sq stay (64 MiB), the foreach step holds one square root of each at a time (32 MiB)."""
    seen = emulated("""
parameters = [torch.nn.Parameter(torch.empty(MIB, device="cuda")) for _ in range(8)]
for p in parameters:
    p.grad = torch.empty_like(p)
optimizer = torch.optim.AdamW(parameters)
marks = [allocated()]
for _ in range(2):
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    marks += [peak(), allocated()]
result(marks=[m - marks[0] for m in marks])
""")
    assert seen["marks"] == [0, 96 * MIB, 64 * MIB, 96 * MIB, 64 * MIB]


def test_copies_to_the_host_are_zeros_and_host_copies_are_real(emulated: Emulated) -> None:
    """2 MiB + 4 bytes: whole pages and the bytes at both ends must be zeroed. The host tensor is full of ones before."""
    seen = emulated("""
n = 2 * MIB + 4
host = torch.ones(n, dtype=torch.uint8)
host[1:-1].copy_(torch.ones(n - 2, dtype=torch.uint8, device="cuda"))
pinned = torch.arange(5).pin_memory()
result(ones=host.nonzero().flatten().tolist(), small=torch.full((3,), 7.0, device="cuda").tolist(), pinned=pinned.clone().tolist(),
       pinned_is=pinned.is_pinned(), rows=torch.ones(3, device="cuda").nonzero().shape[0])
""")
    assert seen["ones"] == [0, 2 * MIB + 3], "zeroed from the second byte to the last but one, and nothing else"
    assert seen["small"] == [0.0, 0.0, 0.0]
    assert seen["pinned"] == [0, 1, 2, 3, 4]
    assert seen["rows"] == 0, "a shape that comes from device data collapses: README, not faithful"


def test_kernels_are_counted_by_name(emulated: Emulated) -> None:
    seen = emulated(
        """
from calibration.emulated_cuda import device
x = torch.empty(1000, device="cuda")
device.kernel_launches()
for _ in range(3):
    x.sqrt_()
result(launches=device.kernel_launches(), again=device.kernel_launches())
""",
        KERNELS=1,
    )
    assert sum(seen["launches"].values()) == 3
    assert all("sqrt" in name for name in seen["launches"])
    assert seen["again"] == {}


def test_a_card_that_is_not_in_the_table_is_refused(emulated_process: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = emulated_process("torch.zeros(1, device='cuda')", CC=8.7)
    assert done.returncode == 2
    assert "no card of compute capability 8.7" in done.stderr
