"""Programs of a few layers unrolled to those of the whole model: the same events as a recording with all layers has."""

from __future__ import annotations

import argparse

import pytest

from calibration.extract.align import Sequence
from calibration.extract.programs import Program, Refused
from calibration.harness import __main__ as command
from calibration.harness.unroll import RECORDED, Layers, layers_of, unrolled

PARAMETERS = 2
HEAD = ("embed.weight",)


class Made:
    """A program made by hand, tensor by tensor."""

    def __init__(self) -> None:
        self.sequence, self.coefficients = Sequence([], [], [], [], []), list[tuple[int, ...]]()

    def make(self, label: str, coefficients: tuple[int, ...], name: str | None = None) -> int:
        k = len(self.coefficients)
        self.sequence.events.append(k)
        self.sequence.sizes.append(sum(coefficients))
        self.sequence.labels.append(label)
        self.sequence.names.append(name)
        self.sequence.imported.append(False)
        self.coefficients.append(coefficients)
        return k

    def free(self, *tensors: int) -> None:
        self.sequence.events += [~k for k in tensors]


def step(layers: int, odd: int | None = None) -> Program:
    """Forward and backward over so many layers, whose results each hand on; `odd`: a layer that makes one tensor more."""
    made = Made()
    stream, kept = made.make("model.embed|forward", (0, 4)), []
    for i in range(layers):
        label = f"model.blocks.{i}"
        saved, out = made.make(f"{label}.attn|forward", (8, 0)), made.make(f"{label}|forward", (0, 4))
        if i == odd:
            made.make(f"{label}|forward", (1, 0))
        if i:
            made.free(stream)
        stream, kept = out, [*kept, saved]
    gradient = made.make("model.out|backward Mm", (0, 4))
    made.sequence.workspace_at, made.sequence.workspace_thread = len(made.sequence.events), "backward"
    for i in reversed(range(layers)):
        label = f"model.blocks.{i}"
        again = made.make(f"{label}.attn|recompute", (16, 0))
        between = made.make("backward", (2, 0))
        for n in range(PARAMETERS):
            made.make(f"{label}.attn|backward Mm", (3 + n, 0), f"gradient:{len(HEAD) + i * PARAMETERS + n}")
        new = made.make(f"{label}|backward Add", (0, 4))
        made.free(gradient, kept[i])
        made.free(again, between)
        gradient = new
    made.make("model.embed|backward Mm", (5, 0), "gradient:0")
    made.make("model.head|backward Mm", (6, 0), f"gradient:{len(HEAD) + layers * PARAMETERS}")
    made.free(gradient)
    return Program("step.core", made.sequence, ("1", "T"), made.coefficients, 4)


def layers(count: int) -> list[Layers]:
    return [Layers("blocks", count, len(HEAD), PARAMETERS)]


@pytest.mark.parametrize("count", [RECORDED, RECORDED + 1, RECORDED + 2, 40])
def test_a_few_layers_become_all(count: int) -> None:
    made, whole = unrolled(step(RECORDED), layers(count)), step(count)
    assert made.sequence == whole.sequence
    assert made.coefficients == whole.coefficients


@pytest.mark.parametrize("odd", [1, 2, 3])
def test_layers_that_are_not_alike_are_refused(odd: int) -> None:
    with pytest.raises(Refused, match="differ"):
        unrolled(step(RECORDED, odd=odd), layers(8))


@pytest.mark.parametrize("odd", [0, 4])
def test_the_first_and_the_last_may_differ(odd: int) -> None:
    made = unrolled(step(RECORDED, odd=odd), layers(9))
    assert made.sequence == step(9, odd={0: 0, 4: 8}[odd]).sequence


def test_another_number_of_recorded_layers_is_refused() -> None:
    with pytest.raises(Refused, match="order"):
        unrolled(step(RECORDED + 1), layers(9))


def test_parameters_tell_where_a_list_is() -> None:
    names = [*HEAD, *(f"blocks.{i}.{n}" for i in range(RECORDED) for n in "ab"), *(f"other_blocks.{i}.a" for i in range(RECORDED)), "head"]
    assert layers_of({"other_blocks": 7, "blocks": 9}, names) == [Layers("blocks", 9, 1, 2), Layers("other_blocks", 7, 11, 1)]
    with pytest.raises(Refused, match="11 parameters"):
        layers_of({"blocks": 9}, [*names, "blocks.5.a"])


def test_the_last_layer_may_train_fewer_parameters_and_no_other() -> None:
    """Stable Diffusion 3's last layer gives its text no result, and has no layer for it."""
    names = [f"blocks.{i}.{n}" for i in range(RECORDED) for n in "ab"]
    assert layers_of({"blocks": 7}, names[:-1]) == [Layers("blocks", 7, 0, 2)]
    with pytest.raises(Refused, match="9 parameters"):
        layers_of({"blocks": 7}, names[1:])


def test_a_check_of_no_runs_is_no_success(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command.check, "every", list)
    assert command.check_all(argparse.Namespace()) == 1
    assert "no rows" in capsys.readouterr().err
