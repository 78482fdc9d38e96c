"""A forward pass alone, without gradients: what steps predict besides what they train, made of a step's recorded core.

`forward.adapted/...` is with the adapter, `forward.bare/...` without it; behind that weights and `one` or `many`, as in a core's key. What
is left on the card is the prediction. Under gradient checkpointing the first forward saves nothing, so that what follows the transformer
is all that is cut off, and what is held for the backward pass (the blocks' inputs) goes when its reader is done. `embeddings/...` are
prompts encoded before, joined for a batch, and `forward.inputs` the latents of a validation batch.
Source: ostris/ai-toolkit 27a03a91, extensions_built_in/sd_trainer/SDTrainer.py (get_prior_prediction, calculate_loss),
jobs/process/BaseSDTrainProcess.py (validate), toolkit/prompt_utils.py (concat_prompt_embeds).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from estimator.adapter_sites import Tape, sites
from estimator.filtered_edit import AFTER, Edit
from estimator.filtered_flow import Flow
from estimator.program import Program, peak_rows
from estimator.stays import ADAPTED, EMBEDDINGS, staying


def program(key: str, program_of: Callable[[str], Program]) -> Program:
    """The program of such a key. Raises CannotTell."""
    if key.startswith(EMBEDDINGS):
        return embeddings(key, program_of(f"text/{key.removeprefix(EMBEDDINGS)}/plain/one"))
    _, weights, many = key.split("/")
    made, _ = without_gradients(program_of(f"step.core/{weights}/checkpointed/{many}"), adapted=key.startswith(ADAPTED))
    own = len(made.names)
    peaks = peak_rows(made.features, made.coefficients, made.events, made.labels, made.moments, own)
    return replace(made, key=key, names=(None,) * own, peaks=peaks)


def embeddings(key: str, text: Program) -> Program:
    """The prompts of `B` samples, each as one encode leaves it (`text`), joined."""
    rows = text.coefficients[list(text.exported)]
    return staying(key, tuple("B" if name == "1" else f"B*{name}" for name in text.features), rows.tolist(), "prompts encoded before")


def without_gradients(twin: Program, adapted: bool = False) -> tuple[Program, int]:
    """The forward pass of a core under gradient checkpointing, without peak rows; and the tensor that it leaves. Raises CannotTell."""
    tape = Tape(twin)
    flow, edit = Flow(tape, tape), Edit(tape)
    loss = next(k for k in range(twin.forward[0], tape.own) if tape.made[k].run == "step")
    edit.gone |= set(range(loss, tape.own))
    last = tape.born[loss] - 1
    held = [k for k in range(loss) if (died := tape.died[k]) is None or died > last]
    result = held[-1]  # the prediction is made last
    for k in held[:-1]:
        reader = flow.reader(k)
        edit.ends[k] = (last, AFTER) if reader is None else flow.output_end(reader)
    for site in sites(tape) if not adapted else ():
        if site.total < loss:
            edit.without_adapter(site)
    kept = [k for k in range(loss) if k not in edit.gone]
    edit.ends[result] = (last, 2 * AFTER)  # the last of all
    made = edit.program(list(twin.names))
    return _without_last_free(made), kept.index(result)


def _without_last_free(made: Program) -> Program:
    return Program(
        made.key, made.features, made.coefficients, made.labels, made.moments, made.names, made.events[:-1], 0, (), made.workspace_at
    )  # fmt: skip
