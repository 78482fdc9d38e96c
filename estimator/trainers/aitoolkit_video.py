"""How many frames a dataset's clips and the previews have, as AI Toolkit counts them.

Source: ostris/ai-toolkit 27a03a91: toolkit/data_transfer_object/data_loader.py (FileItemDTO: images of a video dataset are one frame),
toolkit/dataloader_mixins.py (get_auto_frame_count), toolkit/models/wan21/wan21.py (AggressiveWanUnloadPipeline);
diffusers c9438378: WanPipeline.__call__ (rounding of previews).
"""

from __future__ import annotations

from dataclasses import dataclass

from estimator.archs import FIRST_FRAME, Arch
from estimator.datasets import Image
from estimator.features import FRAMES_PER_LATENT
from estimator.trainers.section import Section

DEFAULT_PER_SECOND = 24
MAX_FRAMES = 10_000


@dataclass(frozen=True, slots=True)
class FrameRule:
    """`video`: the folder is searched for clips too. `auto`: each clip at its own length, taken at `per_second`; else all have `frames`.

    `trim`: of `auto`: rounded down to what fits into the clip, not up.
    """

    video: bool = False
    frames: int = 1
    auto: bool = False
    per_second: float = DEFAULT_PER_SECOND
    trim: bool = True

    def of(self, image: Image) -> int:
        """Frames that an image or clip is trained at."""
        if not self.video or image.frames == 0:
            return 1
        if not self.auto:
            return self.frames
        wanted = int(image.frames / image.per_second * self.per_second) if image.per_second else image.frames
        return (max(0, wanted - 1) if self.trim else wanted) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1


def read_frames(section: Section, arch: Arch) -> FrameRule:
    """The frame settings of a dataset entry. Those that ask for video of a model that has none are not modelled."""
    frames, auto = section.whole("num_frames", 1, 1, MAX_FRAMES), section.truth("auto_frame_count", False)
    if frames == 1 and not auto:
        return FrameRule()
    if not arch.video:
        key = "auto_frame_count" if auto else "num_frames"
        section.found.not_modelled(section.at(key), section.values[key], "trains on video")
        return FrameRule()
    if section.truth("do_i2v", False) and arch.image_to_video:
        section.found.not_modelled(section.at("do_i2v"), True, "trains from the first frame of each clip")
    per_second = section.number("fps", DEFAULT_PER_SECOND)
    if per_second <= 0:
        what, fix = f"{per_second:g} frames a second", f"the default is {DEFAULT_PER_SECOND}"
        section.found.problem(section.at("fps"), what, "must be above 0", fix)
        per_second = DEFAULT_PER_SECOND
    return FrameRule(True, frames, auto, per_second, section.truth("trim_auto_frame_count_tail", True))


def preview_frames(asked: int, arch: Arch, low_vram: bool) -> int:
    """Frames of a preview as the pipeline makes it: diffusers' and Wan 2.2's round up to whole latent frames, the trainer's own for
    low_vram down, and so do those that start from a first frame."""
    if not arch.video:
        return 1
    if (low_vram and arch.model_class == "wan") or arch.control_images == FIRST_FRAME:
        return 1 + (max(asked, 1) - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT
    whole = asked if asked % FRAMES_PER_LATENT == 1 else asked // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
    return max(whole, 1)
