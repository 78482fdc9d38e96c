"""`train.dtype`: the type that whatever is not quantised is held in, and that is computed in.

Source: ostris/ai-toolkit 27a03a91: jobs/process/BaseSDTrainProcess.py (model_config['dtype'] is train.dtype), toolkit/train_tools.py
(get_torch_dtype), toolkit/config_modules.py (ModelConfig: vae_dtype and te_dtype are dtype's). The adapter is in fp32 in all of them, there
is no gradient scaler, and accelerate is given no mixed precision.
"""

from __future__ import annotations

from estimator.archs import Arch
from estimator.job import Model, Network, Train
from estimator.trainers.section import Section, did_you_mean, shown
from estimator.trainers.typed import lacks_type

DTYPES = {
    "fp32": "fp32", "float32": "fp32", "float": "fp32", "single": "fp32",
    "fp16": "fp16", "float16": "fp16", "half": "fp16",
    "bf16": "bf16", "bfloat16": "bf16",
    "float8": "float8", "e4m3fn": "float8", "8bit": "float8",
}  # fmt: skip
DEFAULT_DTYPE = "fp32"
# Of parts of a model: key -> what is in another type then
OF_PARTS = {
    "vae_dtype": "the VAE in another type than the transformer", "te_dtype": "the text encoder in another type than the transformer",
}  # fmt: skip


def read_dtype(train: Section) -> str:
    """The compute dtype in short form ("bf16"). Missing means fp32 in the trainer."""
    written = train.values.get("dtype", DEFAULT_DTYPE)
    if not isinstance(written, str) or written not in DTYPES:
        train.found.problem(
            train.at("dtype"), f"unknown dtype {shown(written)}", "the trainer knows none of that name", did_you_mean(str(written), DTYPES)
        )
        return "bf16"
    return DTYPES[written]


def check_dtype(process: Section, arch: Arch, model: Model, network: Network | None, settings: Train) -> Train:
    """Report a type without a model, and parts of the model that are held in another one."""
    section = process.section("model") or Section(process.found, process.at("model"), {})
    for key, why in OF_PARTS.items():
        value = section.values.get(key)
        if value and DTYPES.get(str(value)) != model.dtype:
            process.found.not_modelled(section.at(key), value, why)
    lacking = lacks_type(arch, model, network, settings)
    if lacking:
        train = process.values.get("train")
        given = isinstance(train, dict) and "dtype" in train
        default = "" if given else "train.dtype is not set and defaults to fp32 in the trainer; "
        process.found.not_modelled((*process.at("train"), "dtype"), model.dtype, f"{default}set train.dtype: bf16 (no model of {lacking})")
    return settings
