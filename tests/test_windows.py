"""Joining the calls of a vision tower's windowed attention."""

from __future__ import annotations

import pytest

pytest.importorskip("yaml")

from calibration.extract.align import LayerCall, Sequence
from calibration.extract.windows import joined

LAYER = "text_encoder0.model.visual.blocks.3.attn|forward"


def sequence(*rows: int, split: bool = False, keep: bool = True) -> Sequence:
    """A tensor before, a call for each window of so many rows, and a tensor after."""
    out = Sequence([], [], [], [], [])

    def new(size: int, label: str) -> int:
        out.sizes.append(size)
        out.labels.append(label)
        out.names.append(None)
        out.imported.append(False)
        out.events.append(len(out.sizes) - 1)
        return len(out.sizes) - 1

    new(7, "before")
    results = []
    for row in rows:
        results.append(new(row * 2560, LAYER))
        calls = [new(row * 64, LAYER)]
        if split:
            calls += [new(row * 64 * 3, LAYER), new(row * 64 * 3 * 96, LAYER)]
        calls += [new(16, LAYER), new(8, LAYER)]
        if not keep:
            out.events += [~k for k in calls]
    new(9, "after")
    if not keep:
        out.events += [~k for k in results]
    return out


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("rows", [(64,), (64, 64, 32, 16)])
def test_calls_of_a_layer_become_one(rows: tuple[int, ...], split: bool) -> None:
    whole = joined(sequence(*rows, split=split))
    assert whole.sizes == [7, sum(rows) * 2560, sum(rows) * 64, 9]
    assert whole.events == [0, 1, 2, 3]


def test_a_joined_tensor_is_freed_with_the_last_of_its_parts() -> None:
    whole = joined(sequence(64, 32, keep=False))
    assert [whole.sizes[e] if e >= 0 else -whole.sizes[~e] for e in whole.events if e is not None] == [7, 245760, 6144, -6144, 9, -245760]


def test_as_many_windows_as_there_may_be_give_the_same_events() -> None:
    assert joined(sequence(64, 64)).events == joined(sequence(64, 32, 16, 8)).events


def test_other_layers_are_left_alone() -> None:
    plain = sequence(64)
    plain.labels = ["text_encoder0.model.language_model.layers.0.self_attn|forward"] * len(plain.labels)
    assert joined(plain) is plain


def test_another_kind_of_attention_is_refused() -> None:
    odd = sequence(64)
    odd.sizes[1] += 1
    with pytest.raises(ValueError, match="another kind"):
        joined(odd)


def test_uses_of_layers_follow_the_joining() -> None:
    """A layer before the windows and one behind them, whose moments are those of tensors that are gone or have become one."""
    windows = sequence(64, 32)  # before, (result, logsumexp, seed, offset) twice, after
    windows.calls = [
        LayerCall(0, first=0, last=3, input=None, output=0, backward=4, until=None),
        LayerCall(1, first=8, last=None, input=5, output=9, backward=9, until=7, saved=True),
    ]
    whole = joined(windows)
    assert whole.sizes == [7, 96 * 2560, 96 * 64, 9]
    assert whole.calls == [
        LayerCall(0, first=0, last=3, input=None, output=0, backward=3, until=None),
        LayerCall(1, first=3, last=None, input=1, output=3, backward=3, until=3, saved=True),
    ]
