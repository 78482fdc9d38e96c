"""The trainer's model classes without weights: real classes from known configurations, on untouched (never written) memory.

Only loading is replaced. A 24 GB model costs no host memory as long as nothing writes to it. Configurations are the
published ones of each repository (their config.json files).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import accelerate
import torch
import yaml

from calibration.architectures import MODULES
from calibration.trainer.patches import note

LOADED: list[dict[str, Any]] = []  # what was built, for result.json
# Of weights whose loader names no type: that of the job, which the trainer brings them to on the host before anything moves, so that the
# card sees the same, and the host's memory stays untouched
UNNAMED = [torch.bfloat16]
TYPES = {
    **dict.fromkeys(("fp32", "float32", "float", "single"), torch.float32), **dict.fromkeys(("fp16", "float16", "half"), torch.float16),
    **dict.fromkeys(("bf16", "bfloat16"), torch.bfloat16),
}  # fmt: skip

SCHEDULERS: dict[str, dict[str, Any]] = {
    "FlowMatchEulerDiscreteScheduler": {
        "shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    }
}  # fmt: skip


def materialize(model: torch.nn.Module, dtype: Any, keep_fp32: tuple[str, ...] = ()) -> torch.nn.Module:
    """Give meta parameters real, untouched host storage in `dtype`; tied parameters stay tied."""
    seen: dict[int, Any] = {}
    for name, module in model.named_modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is None or not parameter.is_meta:
                continue
            if id(parameter) not in seen:
                wanted = parameter.dtype
                if dtype is not None and parameter.is_floating_point():
                    wanted = torch.float32 if any(part in f"{name}.{key}".split(".") for part in keep_fp32) else dtype
                new = torch.nn.Parameter(torch.empty(parameter.shape, dtype=wanted), requires_grad=parameter.requires_grad)
                seen[id(parameter)] = (new, parameter)  # the old one is kept so that its id stays taken
            module._parameters[key] = seen[id(parameter)][0]
        for key, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[key] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    return model


def build(make: Callable[[], torch.nn.Module], dtype: Any, keep_fp32: tuple[str, ...] = (), what: str = "") -> torch.nn.Module:
    """The model that `make` constructs, without its weights ever being written."""
    with accelerate.init_empty_weights(include_buffers=False):
        model = make()
    materialize(model, dtype, keep_fp32)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    count = sum(p.numel() for p in model.parameters())
    LOADED.append({"what": what, "cls": type(model).__name__, "parameters": count, "dtype": str(dtype)})
    return model


def build_untouched(module: Any, name: str, what: str, ready: Callable[[Any], None] = lambda model: None) -> None:
    """Replace a class of the trainer's own `module`, whose constructor would write fp32 on the host and whose loading would copy that.

    It is built untouched in the job's type instead, which the trainer makes of it on the host before anything moves, so that the card sees
    the same; its state dict is not copied. `ready`: what is done with the model then.
    """
    real = getattr(module, name)

    def untouched(*args: Any, **kwargs: Any) -> Any:
        model: Any = build(lambda: real(*args, **kwargs), UNNAMED[0], (), what)
        model.load_state_dict = lambda *_, **__: ((), ())
        ready(model)
        return model

    setattr(module, name, untouched)
    note(f"{what}: module built in the job's type with untouched memory, state dict not copied")


def diffusers_config(cls: type, path: object) -> dict[str, Any]:
    """Constructor arguments of a diffusers class for the checkpoint `path`: of the first family that knows them."""
    for module in MODULES:
        if (known := module.diffusers(cls.__name__, str(path).lower())) is not None:
            return known
    raise NotImplementedError(f"no configuration for {cls.__name__} ({path})")


def transformers_config(cls: Any, path: object) -> Any:
    """Configuration object of a transformers class for the checkpoint `path`."""
    for module in MODULES:
        if (known := module.transformers(cls.__name__, str(path).lower())) is not None:
            return cls.config_class(**known)
    raise NotImplementedError(f"no configuration for {cls.__name__} ({path})")


def _diffusers_pretrained(cls: Any, path: Any = None, *_: Any, subfolder: Any = None, torch_dtype: Any = None, **__: Any) -> Any:
    config = diffusers_config(cls, path)
    model: Any = build(lambda: cls(**config), torch_dtype, cls._keep_in_fp32_modules or (), f"{path}/{subfolder}")
    model.register_to_config(_name_or_path=str(path))
    return model.eval()


def _transformers_pretrained(
    cls: Any, path: Any = None, *_: Any, subfolder: Any = None, torch_dtype: Any = None, dtype: Any = None, **__: Any
) -> Any:
    config = transformers_config(cls, f"{path}/{subfolder}" if subfolder else path)
    return build(lambda: cls(config), dtype or torch_dtype or torch.float32, (), f"{path}/{subfolder}").eval()


# Pipelines that the trainer loads whole: their components with weights or tokens. On the host they are in fp32, or as their file is; the
# card gets them in the type that `.to` names, converted on the host before they are copied, so that the job's from the start is the same
PIPELINES = {
    "StableDiffusionXLPipeline": ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet"),
    "StableDiffusionPipeline": ("vae", "text_encoder", "tokenizer", "unet"),
    "StableDiffusion3Pipeline": ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
}


def _pipeline_pretrained(cls: Any, path: Any = None, *_: Any, torch_dtype: Any = None, **given: Any) -> Any:
    """A pipeline of models without weights. What `given` has of its components stays."""
    types, own = cls._get_signature_types(), {}
    if cls.__name__ not in PIPELINES:
        raise NotImplementedError(f"no components for {cls.__name__} ({path})")
    for name in types:
        if name in given:
            own[name] = given[name]
        elif name in PIPELINES[cls.__name__]:
            own[name] = types[name][0].from_pretrained(path, subfolder=name, torch_dtype=torch_dtype or UNNAMED[0])
        elif name not in _with_defaults(cls):
            own[name] = None
    return cls(**own)


def _with_defaults(cls: Any) -> set[str]:
    """Names of a constructor's arguments that have a default."""
    return {name for name, one in inspect.signature(cls.__init__).parameters.items() if one.default is not inspect.Parameter.empty}


def _scheduler_pretrained(cls: Any, *_: Any, **__: Any) -> Any:
    known = [SCHEDULERS[c.__name__] for c in cls.__mro__ if c.__name__ in SCHEDULERS]
    return cls(**known[0]) if known else cls()


def install(config: str) -> None:
    """Replace every from_pretrained that the trainer calls, for the job of a config's file."""
    import transformers
    from diffusers import DiffusionPipeline, ModelMixin
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from transformers import PreTrainedModel
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from calibration.trainer.token_counts import pretrained

    with open(config) as file:
        train = yaml.safe_load(file)["config"]["process"][0].get("train") or {}
    UNNAMED[0] = TYPES.get(train.get("dtype", "fp32"), torch.bfloat16)
    DiffusionPipeline.from_pretrained = classmethod(_pipeline_pretrained)
    ModelMixin.from_pretrained = classmethod(_diffusers_pretrained)
    PreTrainedModel.from_pretrained = classmethod(_transformers_pretrained)
    PreTrainedTokenizerBase.from_pretrained = classmethod(pretrained)
    transformers.AutoTokenizer.from_pretrained = classmethod(pretrained)
    SchedulerMixin.from_pretrained = classmethod(_scheduler_pretrained)
