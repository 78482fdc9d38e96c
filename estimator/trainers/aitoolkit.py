"""AI Toolkit's job files (https://github.com/ostris/ai-toolkit): read as the trainer itself would, one Job per training process.

Source: 27a03a91: toolkit/config.py (the `[name]` tag), toolkit/job.py, jobs/BaseJob.py (processes), jobs/process/BaseSDTrainProcess.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from estimator.archs import Arch, load_archs
from estimator.configfile import ConfigFile
from estimator.job import Dataset, Job, Model, Network, Sample, Train
from estimator.trainers.aitoolkit_compile import report_compiled
from estimator.trainers.aitoolkit_controls import check_previews
from estimator.trainers.aitoolkit_data import read_datasets
from estimator.trainers.aitoolkit_dtype import check_dtype, read_dtype
from estimator.trainers.aitoolkit_keys import READ, check_keys, known_keys
from estimator.trainers.aitoolkit_model import read_model
from estimator.trainers.aitoolkit_network import check_network, read_network
from estimator.trainers.aitoolkit_padded import as_recorded, check_pictures
from estimator.trainers.aitoolkit_passes import SLIDER, with_passes
from estimator.trainers.aitoolkit_previews import check_previews_of_pipelines
from estimator.trainers.aitoolkit_sample import check_sides, read_every, read_samples
from estimator.trainers.aitoolkit_texted import with_text
from estimator.trainers.aitoolkit_train import read_train
from estimator.trainers.aitoolkit_unet import check_previews_of_unets, check_unet, keys_of_unets, of_unets
from estimator.trainers.aitoolkit_whole import with_filters, with_nothing_to_merge
from estimator.trainers.overrides import apply_overrides
from estimator.trainers.section import Findings, Section, did_you_mean, read_once, shown
from estimator.tree import KeyPath

PROCESS: KeyPath = ("config", "process")
TRAINING_JOB = "extension"
CUDA, FIRST_CARD = "cuda", "cuda:0"
OTHER_JOBS = ("train", "extract", "mod", "generate")
TRAINING_PROCESSES = ("sd_trainer", "diffusion_trainer", "ui_trainer", "textual_inversion_trainer", SLIDER)
OTHER_PROCESSES = (
    "image_reference_slider_trainer", "ultimate_slider_trainer", "concept_replacer", "pure_lora_generator",
    "batch_img2img", "reference_generator", "dataset_tools", "sync_from_collection", "super_tagger", "Qwen3VLCaptioner",
    "Qwen3OmniCaptioner", "Ideogram4Captioner", "AceStepCaptioner",
)  # fmt: skip
DEFAULT_SAMPLE_EVERY, DEFAULT_SAVE_EVERY = 100, 1000
# Keys below which anything goes, and lists whose entries are sections.
_FREE = frozenset(
    {"optimizer_params", "lr_scheduler_params", "model_kwargs", "quantize_kwargs", "model_paths", "lorm"}
)


def read_aitoolkit(file: ConfigFile, overrides: Sequence[str] = (), arch_override: str | None = None) -> tuple[Job, ...]:
    """The jobs of a config. Raises InputError with every problem of every process, or CannotTell naming what is not modelled."""
    return read_prepared(prepared(file, overrides), arch_override)


def prepared(file: ConfigFile, overrides: Sequence[str]) -> ConfigFile:
    """The file with `--set` overrides and with its name in place of every [name]. Raises InputError or CannotTell, see `overridden`."""
    file = overridden(file, overrides)
    found = Findings(file)
    _check_structure(found)
    file = replace(file, data=_with_name(file, found))
    found.stop_if_unusable()
    return file


def read_prepared(file: ConfigFile, arch_override: str | None = None) -> tuple[Job, ...]:
    """The jobs of a config that is `prepared`. Raises as `read_aitoolkit` does."""
    config: Any = file.data["config"]
    shared = Findings(file)
    jobs = []
    for i, process in enumerate(config["process"]):
        found = Findings(file)
        _check_tops(found)
        job = _read_process(Section(found, (*PROCESS, i), process), config["name"], arch_override)
        shared.take_over(found)
        if job is not None:
            jobs.append(job)
    shared.stop_if_unusable()
    return tuple(jobs)


def overridden(file: ConfigFile, overrides: Sequence[str]) -> ConfigFile:
    """The file with `--set` overrides, whose paths start in the first process, at the top, or with `process.N` in another one.

    Raises InputError, or CannotTell for other kinds of job.
    """
    _check_structure(Findings(file))
    tops: dict[str, KeyPath] = {**dict.fromkeys(READ["file"], ()), "process": ("config",)}
    return apply_overrides(file, overrides, (*PROCESS, 0), tops, known_children)


def known_children(path: KeyPath) -> frozenset[str] | None:
    """The keys that may stand in the map at `path` of a job file; None where any may."""
    if path in ((), ("config",)):
        return known_keys("config" if path else "file")
    if path[:2] != PROCESS:
        return None
    names = [str(part) for part in path[3:] if not isinstance(part, int)]
    if any(name in _FREE for name in names):
        return None
    table = ".".join(names) or "process"
    return known_keys(table) or None


def _check_structure(found: Findings) -> None:
    """job, config, config.name, config.process. Raises InputError with what is missing, CannotTell for jobs that do not train."""
    _check_tops(found)
    data = found.file.data
    job = data.get("job")
    if job in OTHER_JOBS:
        found.cannot_tell(("job",), f"not modelled: job: {job}", "only jobs of the kind `extension` train LoRAs of these models")
    elif job != TRAINING_JOB:
        what = "the key job is missing" if job is None else f"unknown job {shown(job)}"
        found.problem(("job",), what, "the trainer stops without it", "write job: extension")
    config = data.get("config")
    if not isinstance(config, dict):
        what = "the section config is missing" if config is None else f"expected a map of keys, got {shown(config)}"
        fix = "a config is job: extension, then config: with name: and process: below it"
        found.problem(("config",), what, "the trainer stops without it", fix)
        found.stop_if_unusable()
        return
    name = config.get("name")
    if not isinstance(name, str):
        what = "the name is missing" if name is None else f"the name must be text, got {shown(name)}"
        found.problem(("config", "name"), what, "the trainer stops on it", f'write name: "{name if name is not None else "my_lora"}"'[:80])
    processes = config.get("process")
    if not isinstance(processes, list) or not processes:
        what = "the list of processes is missing" if not processes else f"expected a list of processes, got {shown(processes)}"
        found.problem(PROCESS, what, "the trainer stops without it", "begin it with `- type: sd_trainer` below process:")
        processes = []
    for i, process in enumerate(processes):
        if not isinstance(process, dict):
            found.problem((*PROCESS, i), f"expected a map with type, got {shown(process)}", fix="write - type: sd_trainer")
    found.stop_if_unusable()


def _check_tops(found: Findings) -> None:
    """Warn of unknown keys at the top and below config."""
    for path, table, values in (((), "file", found.file.data), (("config",), "config", found.file.data.get("config"))):
        if isinstance(values, dict):
            check_keys(Section(found, path, values), table)


def _with_name(file: ConfigFile, found: Findings) -> dict[str, object]:
    """The config with its name in place of every [name]. The trainer does that in JSON text, so some characters of a name break it."""
    name = file.data["config"]["name"]  # type: ignore[index]
    used = False

    def put(value: object) -> object:
        nonlocal used
        if isinstance(value, str):
            if "[name]" not in value:
                return value
            used = True
            return value.replace("[name]", name)
        if isinstance(value, dict):
            return {str(put(key)): put(item) for key, item in value.items()}
        return [put(item) for item in value] if isinstance(value, list) else value

    result = put(file.data)
    if used and any(character in '"\\' or ord(character) < 32 for character in name):
        why = "the trainer puts the name into JSON text in place of [name], and breaks on them"
        found.problem(("config", "name"), "quotes, backslashes and line breaks cannot stand in the name", why, "use a plain name")
    assert isinstance(result, dict)
    return result


def _read_process(process: Section, job_name: str, arch_override: str | None) -> Job | None:
    found = process.found
    if not _trains(process):
        return None
    _check_process(process)
    train = process.section("train") or Section(found, process.at("train"), {})
    dtype = read_dtype(train)
    settings = read_train(train)
    method, network = read_network(process)
    model_section = process.section("model") or Section(found, process.at("model"), {})
    resolved = read_model(model_section, dtype, arch_override)
    check_keys(model_section, "model", keys_of_unets(resolved[0]) if resolved else frozenset())
    if resolved is None:
        if found.unusable:
            _check_rest(process, settings)
        return None
    arch, trainer_arch, model = resolved
    report_compiled(model_section, arch, model, network)
    network = with_text(process, of_unets(as_recorded(process, network, arch), arch), arch, model)
    model, network = with_nothing_to_merge(model, network), with_filters(process, arch, model, network)
    check_network(process, network, arch, model, settings)
    settings = with_passes(process, settings, arch, model, _trained(method, network))
    settings = check_dtype(process, arch, model, network, check_unet(process, settings, arch, model, network))
    datasets, samples = _read_rest(process, settings, arch, model)
    return Job(
        name=process.text("name", job_name) or job_name,
        trainer="ai-toolkit",
        arch=arch.key,
        trainer_arch=trainer_arch,
        method=method,
        model=model,
        network=network,
        train=settings,
        datasets=datasets,
        samples=samples,
        sample_every=read_every(process.section("sample"), "sample_every", DEFAULT_SAMPLE_EVERY),
        save_every=read_every(process.section("save"), "save_every", DEFAULT_SAVE_EVERY),
        unmodelled=found.unmodelled,
        warnings=found.warnings,
    )


def _check_rest(process: Section, settings: Train) -> None:
    """The problems of datasets and previews, and what is to be warned of, where the architecture is not known: which it is makes no
    difference to the first, and of the second what a family of pictures and one of video have in common."""
    archs = load_archs().archs.values()
    readings = []
    for arch in (next(iter(archs)), next(arch for arch in archs if arch.video)):
        readings.append(Findings(process.found.file))
        _read_rest(replace(process, found=readings[-1]), settings, arch, Model(""))
    process.found.take_over_what_agrees(readings)


def _trained(method: str, network: Network | None) -> str:
    """What is trained, as refusals of further passes name it."""
    if network is None or method == "full":
        return "fine-tune"
    return "LoRA with dropout" if network.dropout else network.kind


def _check_process(process: Section) -> None:
    """Its own keys. The trainer asks accelerate for the card, whatever the config says (BaseSDTrainProcess.py: self.device)."""
    check_keys(process, "process")
    device = process.values.get("device", CUDA)
    if device not in (CUDA, FIRST_CARD):
        which = "the trainer takes the first card that it sees; CUDA_VISIBLE_DEVICES in its environment says which that is"
        process.found.warn(process.at("device"), f"{shown(device)} has no effect: {which}")
    if process.values.get("training_folder") is None:
        process.found.warn(process.at("training_folder"), "is missing, and the trainer stops without it")


def _read_rest(process: Section, settings: Train, arch: Arch, model: Model) -> tuple[tuple[Dataset, ...], tuple[Sample, ...]]:
    """The datasets and the previews."""
    save, sample = process.section("save"), process.section("sample")
    if save is not None:
        check_keys(save, "save")
    samples: tuple[Sample, ...] = ()
    if sample is not None:
        trigger, low = process.text("trigger_word"), model.low_vram
        samples = read_once(sample, ("samples", arch.key, trigger, low), lambda section: read_samples(section, arch, trigger, low))
    if sample is not None and not settings.disable_sampling:
        check_sides(sample, samples, arch)
    if sample is not None and arch.control_images and not settings.disable_sampling:
        check_previews(sample, samples, arch, model)
    datasets = read_datasets(process, settings, arch)
    check_pictures(process, settings, arch, datasets)
    check_previews_of_unets(process, settings, arch, datasets, samples)
    check_previews_of_pipelines(process, settings, arch, datasets, samples)
    _check_text_caching(process, settings, arch)
    return datasets, samples


def _check_text_caching(process: Section, settings: Train, arch: Arch) -> None:
    """Classes of the trainer that bring back another encoder for a prompt than the one that makes the embeddings stop on cached text; one
    that puts its control image into every prompt is refused with an unloaded encoder (validate_configs)."""
    entries = process.values.get("datasets")
    places = [process.at("train")] if settings.cache_text_embeddings else []
    for i, entry in enumerate(entries if isinstance(entries, list) else []):
        if isinstance(entry, dict) and entry.get("cache_text_embeddings"):
            places.append((*process.at("datasets"), i))
    if places and not arch.caches_text:
        why = "the trainer encodes them with a T5 that it has sent to the host, or asks for one that it has let go, and stops"
        fix = "set it to false; train.unload_text_encoder: true takes the encoder off the card, and trains on the trigger word alone"
        process.found.problem((*places[0], "cache_text_embeddings"), f"{arch.name} cannot be trained with cached text embeddings", why, fix)
    if settings.unload_text_encoder and not arch.unloads_text:
        what, why = f"{arch.name} cannot be trained with its text encoder unloaded", "each prompt has a picture: the trainer refuses it"
        fix = "set it to false; train.cache_text_embeddings: true takes the encoder off the card too"
        process.found.problem((*process.at("train"), "unload_text_encoder"), what, why, fix)


def _trains(process: Section) -> bool:
    """Whether this process is one of the trainer's general training processes; others are reported."""
    kind = process.values.get("type")
    if kind in TRAINING_PROCESSES:
        return True
    if kind in OTHER_PROCESSES:
        what = f"not modelled: a process of type {kind}"
        process.found.cannot_tell(
            process.at("type"), what, f"modelled are {', '.join(TRAINING_PROCESSES[:2])}", "estimate the training process alone"
        )
        return False
    what = "the type is missing" if kind is None else f"unknown process type {shown(kind)}"
    process.found.problem(
        process.at("type"), what, "the trainer stops on it", did_you_mean(str(kind or ""), TRAINING_PROCESSES + OTHER_PROCESSES)
    )
    return False


def looks_like_a_process(data: object) -> bool:
    """Whether a file holds what belongs under config.process: a common slip."""
    return isinstance(data, dict) and len(data.keys() & {"type", "network", "train", "model", "datasets", "sample"}) >= 2
