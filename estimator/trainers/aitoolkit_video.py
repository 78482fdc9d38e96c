"""How many frames a dataset's clips and the previews have, as AI Toolkit counts them.

Source: ostris/ai-toolkit 27a03a91: toolkit/data_transfer_object/data_loader.py (FileItemDTO: images of a video dataset are one frame),
toolkit/dataloader_mixins.py (get_auto_frame_count), toolkit/models/wan21/wan21.py (AggressiveWanUnloadPipeline);
extensions_built_in/diffusion_models/ltx2/ltx2.py (get_noise_prediction, generate_single_image);
diffusers c9438378: WanPipeline.__call__ (rounding of previews), LTX2Pipeline.__call__ (frame_rate), LTX2VideoDownsampler3d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from estimator.archs import GIVEN_FRAME, PICTURED, Arch
from estimator.datasets import Image
from estimator.features import encoded_sound
from estimator.job import Bucket, Dataset
from estimator.trainers.section import Section

DEFAULT_PER_SECOND = 24
SOUND_PER_SECOND = 24.0  # frames a second by which a preview's sound is counted, whatever sample.fps says: the pipeline's default
MAX_FRAMES = 10_000
WAN_FRAMES = 4  # to a latent frame; what is left over at a clip's end its VAE drops


@dataclass(frozen=True, slots=True)
class FrameRule:
    """`video`: the folder is searched for clips too. `auto`: each clip at its own length, taken at `per_second`; else all have `frames`.

    `trim`: of `auto`: rounded down to what fits into the clip, not up. `step`: frames of a latent frame. `sound`: clips' own is trained.
    `begins`: do_i2v, of a model that can: clips begin with their own first frame.
    """

    video: bool = False
    frames: int = 1
    auto: bool = False
    per_second: float = DEFAULT_PER_SECOND
    trim: bool = True
    step: int = WAN_FRAMES
    sound: bool = False
    begins: bool = False

    def of(self, image: Image) -> int:
        """Frames that an image or clip is trained at."""
        if not self.video or image.frames == 0:
            return 1
        if not self.auto:
            return self.frames
        wanted = int(image.frames / image.per_second * self.per_second) if image.per_second else image.frames
        return (max(0, wanted - 1) if self.trim else wanted) // self.step * self.step + 1

    def with_sound(self, bucket: Bucket, arch: Arch, image: Image | None) -> Bucket:
        """`image`: one that falls into the bucket (None: its folder is not here, and its clips are taken to have sound)."""
        if bucket.sound or (self.sound and bucket.frames > 1 and (image is None or image.sound)):
            spectrogram = arch.spectrogram_frames(bucket.frames, self.per_second)
            return replace(bucket, sound_tokens=encoded_sound(spectrogram), sound=True, sound_frames=spectrogram)
        return replace(bucket, sound_tokens=arch.sound_tokens(bucket.frames, self.per_second))


def read_frames(section: Section, arch: Arch) -> FrameRule:
    """The frame settings of a dataset entry. Those that ask for video of a model that has none are not modelled."""
    frames, auto = section.whole("num_frames", 1, 1, MAX_FRAMES), section.truth("auto_frame_count", False)
    begins = arch.control_images == GIVEN_FRAME and section.truth("do_i2v", False)
    if frames == 1 and not auto:
        return FrameRule(per_second=_per_second(section)) if arch.sound_per_second else FrameRule(begins=begins)
    if not arch.video:
        key = "auto_frame_count" if auto else "num_frames"
        section.found.not_modelled(section.at(key), section.values[key], "trains on video")
        return FrameRule()
    if section.truth("do_i2v", False) and arch.image_to_video:
        section.found.not_modelled(section.at("do_i2v"), True, "trains from the first frame of each clip")
    if arch.cell_frames != WAN_FRAMES and not auto and frames % arch.cell_frames != 1:
        near = (frames - 1) // arch.cell_frames * arch.cell_frames + 1
        why = f"the VAE takes whole groups of {arch.cell_frames} frames behind the first, and stops on anything else"
        section.found.problem(section.at("num_frames"), f"{frames} frames", why, f"use {near} or {near + arch.cell_frames}")
    sound = section.truth("do_audio", False) and arch.sound_per_second > 0
    trim = section.truth("trim_auto_frame_count_tail", True)
    return FrameRule(True, frames, auto, _per_second(section), trim, arch.cell_frames, sound, begins)


def check_begins(section: Section, dataset: Dataset, buckets: Mapping[int, tuple[Bucket, ...]]) -> None:
    """With do_i2v a step looks for an image's first frame among its pixels, which are not read where its latent is cached.

    Source: wan22_5b_model.py (get_noise_prediction); toolkit/data_transfer_object/data_loader.py (DataLoaderBatchDTO.tensor), 27a03a91.
    """
    if dataset.latents_cached and any(one.begins and one.frames == 1 for own in buckets.values() for one in own):
        why = "a clip's first frame is cached with it, an image has none, and the trainer stops on it"
        fix = "set do_i2v: false for images, or do not cache their latents"
        section.found.problem(section.at("do_i2v"), "images with do_i2v and cached latents", why, fix)


def _per_second(section: Section) -> float:
    per_second = section.number("fps", DEFAULT_PER_SECOND)
    if per_second > 0:
        return per_second
    what, fix = f"{per_second:g} frames a second", f"the default is {DEFAULT_PER_SECOND}"
    section.found.problem(section.at("fps"), what, "must be above 0", fix)
    return DEFAULT_PER_SECOND


def preview_frames(asked: int, arch: Arch, low_vram: bool) -> int:
    """Frames of a preview as the pipeline makes it: diffusers' and Wan 2.2's round up to whole latent frames, the trainer's own for
    low_vram down, and so do LTX-2's and those that start from a first frame."""
    if not arch.video:
        return 1
    step = arch.cell_frames
    pictured = arch.control_images in PICTURED and arch.model_class != "wan21_i2v"  # whose trainer leaves it to diffusers
    if (low_vram and arch.model_class == "wan") or pictured or arch.sound_per_second:
        return 1 + (max(asked, 1) - 1) // step * step
    whole = asked if asked % step == 1 else asked // step * step + 1
    return max(whole, 1)
