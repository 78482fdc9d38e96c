"""What each peer says of a job. The process of calibration.peers that has the emulated device, torch, diffusers and accelerate.

    python -m calibration.peers_worker < JOBS   # a line of JSON each, answered by one (calibration.peers.asked, .kept)

A job is the harness's (calibration.harness.check.spec). For a peer that is of weights alone it also says which components are on the card
together: those are added up, as somebody would who asks the peer about each of them.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from typing import Any

import torch

from calibration.harness import worker
from calibration.harness.families import FAMILIES, Family
from calibration.peers_tracked import imported, tracked

FP32_BYTES = 4
TRANSFORMER = "transformer"
JOINT = ("hunyuan-video", "cogvideox-2b", "cogvideox-5b")  # text and image in one sequence
# Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198): bytes a layer keeps for each token
# and channel in 16 bits, with attention's own matrix computed again (equation 1 without 5as/h; so does flash attention), and with
# everything computed again (section 5: the layer's input).
KEPT_BYTES, KEPT_RECOMPUTED_BYTES = 34, 2
STATES = 2  # of Adam for each trained parameter
HALF = 2


def empty(family: Family) -> dict[str, Any]:
    """The job's models on the meta device, as accelerate makes them: transformer, text encoders, VAE."""
    import accelerate
    import diffusers
    import transformers

    made = {}
    with accelerate.init_empty_weights():
        name, arguments = family.transformer
        made[TRANSFORMER] = getattr(diffusers, name)(**arguments)
        for number, (name, config, arguments) in enumerate(family.encoders):
            made[f"text_encoder{number}"] = getattr(transformers, name)(getattr(transformers, config)(**arguments))
        name, arguments = family.vae
        made["vae"] = getattr(diffusers, name)(**arguments)
    return made


def sizes(family: Family) -> dict[str, int]:
    """Component -> bytes in fp32, by accelerate's own count."""
    from accelerate.utils import calculate_maximum_sizes

    return {name: int(calculate_maximum_sizes(model)[0]) for name, model in empty(family).items()}


def together(asked: dict[str, Any], of: dict[str, int]) -> list[list[str]]:
    """Which components are on the card at the same time: before the transformer comes, before training, and in it."""
    job = asked["job"]

    def named(words: list[str]) -> list[str]:
        return [name for name in of if name.rstrip("012") in words]

    stay = named([TRANSFORMER, *job["resident"]])
    return [named(job["left_in_cache"]), stay + named(job["given_back"]), stay]


def accelerate_inference(asked: dict[str, Any]) -> int:
    """The column "Total Size" at float16, of all that is on the card together."""
    of = sizes(FAMILIES[asked["job"]["arch"]])
    return max(sum(of[name] // HALF for name in names) for names in together(asked, of))


def accelerate_training(asked: dict[str, Any]) -> int:
    """The column "Training using Adam" at float16, of the transformer; the others that are there at their total size."""
    from accelerate.commands.estimate import estimate_training_usage

    of = sizes(FAMILIES[asked["job"]["arch"]])
    *before, training = together(asked, of)
    beside = sum(of[name] // HALF for name in training if name != TRANSFORMER)
    trained = int(max(estimate_training_usage(of[TRANSFORMER], "float16").values()))
    return max(trained + beside, *(sum(of[name] // HALF for name in names) for names in before))


def formula(asked: dict[str, Any]) -> int:
    """Weights and adapter with its gradients and states, and what a transformer's layers keep, by the closed form of KEPT_BYTES."""
    job, family = asked["job"], FAMILIES[asked["job"]["arch"]]
    models = empty(family)
    of = {name: sum(p.numel() for p in model.parameters()) * HALF for name, model in models.items()}
    *before, training = (sum(of[name] for name in names) for names in together(asked, of))
    model = models[TRANSFORMER]
    adapter = sum(
        job["rank"] * (linear.in_features + linear.out_features)
        for name, linear in model.named_modules()
        if isinstance(linear, torch.nn.Linear) and any(name.endswith("." + target) for target in family.targets)
    )
    size = FP32_BYTES if job["dtype"] == "fp32" else HALF
    states = 0 if asked["on_host"] else STATES * (1 if job["optimizer"] == "adamw8bit" else size)
    tokens, samples = sequence(family, model, job["buckets"][0], job["arch"] in JOINT)
    width = model.config.num_attention_heads * model.config.attention_head_dim
    layers = sum(count for _, count in family.lists.values())
    kept = KEPT_RECOMPUTED_BYTES if job["checkpointing"][0] else KEPT_BYTES
    return int(max(*before, training + adapter * (2 * size + states) + kept * tokens * samples * width * layers))


def sequence(family: Family, model: Any, bucket: list[int], joint: bool) -> tuple[int, int]:
    """Tokens of one sample in the transformer, and samples."""
    width, height, samples, text, frames = bucket
    pixels, cells = family.compression
    side = pixels * model.config.patch_size
    image = (1 + (frames - 1) // cells) * (width // side) * (height // side)
    return image + (text if joint else 0), samples


def memtracker(asked: dict[str, Any]) -> int:
    return tracked(asked["job"], asked["until"], asked["on_host"])


PEERS = {
    "memtracker": (memtracker, "torch"), "accelerate-inference": (accelerate_inference, "accelerate"),
    "accelerate-training": (accelerate_training, "accelerate"), "formula": (formula, ""),
}  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        imported(asked["job"])
        ask, package = PEERS[asked["peer"]]
        begun = time.process_time()
        predicted = ask(asked)
        seconds = round(time.process_time() - begun, 2)
        version = f"{package} {importlib.metadata.version(package)}" if package else "arXiv 2205.05198"
        answer = {"row": asked["row"], "peer": asked["peer"], "version": version, "predicted_bytes": predicted, "seconds": seconds}
        print(json.dumps({**answer, "versions": worker.versions()}), flush=True)
    os._exit(0)  # interpreter shutdown would run module destructors against the emulated device


if __name__ == "__main__":
    main()
