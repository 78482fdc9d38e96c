"""What AI Toolkit prints as it goes, and what tracebacks and systems print when it does not: the phase or the failure a line means.

Sources: the trainer's own lines (ostris/ai-toolkit 27a03a91: BaseSDTrainProcess.py, data_loader.py, dataloader_mixins.py,
util/quantize.py, the loaders of each architecture), its UI (ui/cron/actions/startJob.ts), public reports for the rest.
Phases and parts are those of estimates.
"""

from __future__ import annotations

import re

from estimator import crash

TRANSFORMER, TEXT_ENCODER, REST = ("load", "transformer"), ("load", "text encoder"), ("load", "the rest")
ADAPTER, BEFORE_LOOP = ("prepare", "adapter"), ("prepare", "before the loop")
LATENTS, TEXT = ("cache_latents", ""), ("cache_text", "")
SAMPLE, BASELINE, SAVE, TRAIN = ("sample", "with optimizer state"), ("sample", "baseline"), ("save", ""), ("train", "")

# Beginnings of lines. "Loading assistant lora", lower case, is the adapter coming back after previews: no loading.
PHASES: dict[str, tuple[str, str]] = {
    "Loading transformer": TRANSFORMER, "Loading Flux": TRANSFORMER, "Loading ZImage": TRANSFORMER, "Loading Qwen Image": TRANSFORMER,
    "Loading Wan": TRANSFORMER, "Loading LTX": TRANSFORMER, "Loading HiDream": TRANSFORMER, "Loading MiniMax": TRANSFORMER,
    "Loading SD3": TRANSFORMER, "Loading checkpoint shards": TRANSFORMER, "Fusing in LoRA": TRANSFORMER,
    "Loading assistant LoRA": TRANSFORMER, "Merging in assistant LoRA": TRANSFORMER, "Quantizing transformer": TRANSFORMER,
    "Quantizing Transformer": TRANSFORMER, "Quantizing blocks": TRANSFORMER, " - quantizing": TRANSFORMER,
    "Keeping transformer": TRANSFORMER, "Moving transformer": TRANSFORMER, "Attaching quantization": TRANSFORMER,
    "Applying Accuracy Recovery": TRANSFORMER, "Creating DualWan": TRANSFORMER,
    "Text Encoder": TEXT_ENCODER, "Loading T5": TEXT_ENCODER, "Loading t5": TEXT_ENCODER, "Loading UMT5": TEXT_ENCODER,
    "Loading Mistral": TEXT_ENCODER, "Loading Qwen3": TEXT_ENCODER, "Loading text encoder": TEXT_ENCODER,
    "Loading llama": TEXT_ENCODER, "Loading clip encoders": TEXT_ENCODER, "Quantizing T5": TEXT_ENCODER,
    "Quantizing UMT5": TEXT_ENCODER, "Quantizing Mistral": TEXT_ENCODER, "Quantizing Qwen3": TEXT_ENCODER,
    "Quantizing Text": TEXT_ENCODER, "Quantizing text": TEXT_ENCODER, "Quantizing llama": TEXT_ENCODER,
    "Loading CLIP": REST, "Loading VAE": REST, "Loading vae": REST, "Loading VAEs": REST, "Loading video VAE": REST,
    "Loading audio VAE": REST, "Loading connectors": REST, "Making pipe": REST, "Preparing Model": REST, "Model Loaded": REST,
    "Moving everything to device": REST,
    "Caching latents": LATENTS, "Caching clip vision": LATENTS, "Generating controls": LATENTS, "Caching text_embeddings": TEXT,
    "Caching text embeddings": TEXT, "Caching embeddings and unloading": BEFORE_LOOP, "***** UNLOADING TEXT": BEFORE_LOOP,
    "Caching validation": BEFORE_LOOP, "Compiling model": BEFORE_LOOP, "Compiled ": BEFORE_LOOP,
    "Generating baseline samples": BASELINE, "Generating first sample": BASELINE,
    "Sampling at step": SAMPLE, "Generating Images": SAMPLE, "Generating Samples": SAMPLE,
    "Saving at step": SAVE, "Saved checkpoint": SAVE,
}  # fmt: skip
NETWORK = "create LoRA network"
"""Also printed for an assistant adapter while the transformer loads: it means the job's own only once the model is loaded."""
PREFIXES = tuple(prefix.encode() for prefix in (*PHASES, NETWORK))

# Functions of the trainer: the outermost of these in a traceback is the phase, more exactly than the last line printed.
FUNCTIONS: dict[str, tuple[str, str]] = {
    "load_model": ("load", ""), "cache_latents_all_latents": LATENTS, "_cache_one_latent": LATENTS, "cache_clip_vision_to_disk": LATENTS,
    "cache_text_embeddings": TEXT, "setup_validation": BEFORE_LOOP, "hook_before_train_loop": BEFORE_LOOP, "sample": SAMPLE,
    "generate_images": SAMPLE, "hook_train_loop": TRAIN, "train_single_accumulation": TRAIN,
}  # fmt: skip

JOB = re.compile(r"^# Running job: (.*)$")
START = re.compile(r"^Running (\d+) jobs?$")
SKIP = re.compile(r"# OOM during training step, skipping batch (\d+)/(\d+) #")
GIVE_UP = "OOM during training step 3 times in a row"
BUCKETS_OF = "Bucket sizes for "
BUCKET = re.compile(r"^(\d+)x(\d+)(?:x(\d+)f)?: (\d+) files$")
FRAME = re.compile(r'File "([^"]*)", line \d+, in (\S+)')
TRACEBACK = "Traceback (most recent call last)"
JOB_ERROR = "Error running job: "
COMPLETED = re.compile(r"^ - (\d+) completed jobs?$")
STOPPED = ("Job stopped", "Stop signal received")
WINDOWS_PATH = re.compile(r"(?:^|[\s\"'(])[A-Za-z]:[\\/]{1,2}\w|\\site-packages\\|WinError")
AFTER_CONFIG = ("# Running job:", "Running  ", "Traceback", "Using SQLite", "Using EMA", "Error running job")
"""What is printed after a config at the earliest: one that is not whole by then is not taken."""
SMI_PROCESS = re.compile(r"^\|\s+(\d+)\s+\S+\s+\S+\s+(\d+)\s+[CGM+]+\s+(.*?)\s+(\d+)MiB \|$")

_TABLE: tuple[tuple[str, str], ...] = (
    # libraries that were refused memory: they say so with a status instead of an out-of-memory message
    (crash.LIBRARY, r"CUBLAS_STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED)|CUDNN_STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED)"
                    r"|CUSOLVER_STATUS_ALLOC_FAILED"),
    (crash.CUDA_OOM, r"(?:CUDA|HIP)(?: driver| runtime)? error:? ?\(?2?\)?:? ?out of memory|cudaErrorMemoryAllocation"
                     r"|CUDA_ERROR_OUT_OF_MEMORY|Error out of memory at line"),
    # the computer's own memory
    (crash.HOST, r"DefaultCPUAllocator|alloc_cpu\.cpp|(?:os|Win)[ ]?[Ee]rror 1455|paging file is too small|Cannot allocate memory"
                 r"|std::bad_alloc|\bbad allocation\b|^MemoryError\b|ArrayMemoryError|Out of memory: Kill|oom[-_](?:kill|reaper)|^Killed\b"
                 r"|(?:exit(?:ed with)?(?: status| code)?|exitcode|exit status)[ :=]*(?:137|-9)\b|SIGKILL|signal 9\b"
                 r"|killed by signal: (?:Killed|Bus error)|insufficient shared memory"),
    (crash.VANISHED, r"^Job process exited unexpectedly"),
    (crash.DEVICE, r"invalid device ordinal|Torch not compiled with CUDA|No CUDA GPUs are available|Found no NVIDIA driver"
                   r"|device_type of 'cuda', but CUDA is not available|no kernel image is available"
                   r"|busy or unavailable|torch\.cuda\.is_available\(\) is False|CUDA unknown error"),
)  # fmt: skip
FAILURES = tuple((what, re.compile(pattern)) for what, pattern in _TABLE)

# One of these is in every line that FAILURES or oomtext can match, so that only such lines are looked at closely.
HINTS = re.compile(rb"Traceback|rror|emory|OOM|STATUS|oom|illed|KILL|alloc|exit|CUDA|device|busy|signal")
PINNED = re.compile(r"""\.to\(\s*["']cpu["']|\.cpu\(\)|pin_memory|cudaHostAlloc|cudaHostRegister|HostAlloc""")
"""Code that asks for page-locked host memory; CUDA then calls the computer's memory running out "out of memory" too."""


def phase_of(line: str, now: tuple[str, str]) -> tuple[str, str]:
    """The phase and part that begin with this line; `now` if it begins none."""
    if line.startswith(NETWORK):
        return ADAPTER if now == REST or now[0] in ("", "prepare") else now
    found = next((phase for prefix, phase in PHASES.items() if line.startswith(prefix)), now)
    return BASELINE if found == SAMPLE and now == BASELINE else found


def phase_of_frames(functions: list[str], files: list[str]) -> tuple[str, str] | None:
    """The phase that a traceback's functions mean, outermost first."""
    for name, file in zip(functions, files, strict=True):
        if name == "save" and file.replace("\\", "/").rpartition("/")[2] in ("BaseSDTrainProcess.py", "DiffusionTrainer.py"):
            return SAVE
        if name in FUNCTIONS:
            return FUNCTIONS[name]
    return None


def failure_of(line: str) -> str:
    """What kind of failure this line reports; "" if none that is of memory or of the device."""
    return next((what for what, pattern in FAILURES if pattern.search(line)), "")
