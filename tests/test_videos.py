"""Clips: what their headers say, and at how many frames they are trained."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from config_writer import read, refusal
from PIL import Image as Pillow

from calibration.clips import write_clip
from estimator.datasets import Image, scan
from estimator.trainers.aitoolkit_video import FrameRule
from estimator.videos import NotAVideo, read_clip

CLIPS = Path(__file__).parent / "data" / "clips"


@pytest.mark.parametrize(("name", "size", "frames", "per_second"), [("wide.mp4", (96, 64), 30, 24), ("tall.mov", (48, 80), 9, 16)])
def test_headers_of_real_files(name: str, size: tuple[int, int], frames: int, per_second: float) -> None:
    clip = read_clip(str(CLIPS / name))
    assert (clip.width, clip.height) == size
    assert clip.frames == frames
    assert clip.per_second == pytest.approx(per_second)


def test_a_written_clip_reads_back(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.avi", 64, 48, 21, per_second=16)
    clip = read_clip(str(tmp_path / "a.avi"))
    assert (clip.width, clip.height, clip.frames) == (64, 48, 21)
    assert clip.per_second == pytest.approx(16)


def test_a_clip_turned_by_a_quarter_has_its_sides_swapped(tmp_path: Path) -> None:
    data = bytearray((CLIPS / "wide.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    struct.pack_into(">9i", data, matrix, 0, 2**16, 0, -(2**16), 0, 0, 64 << 16, 0, 2**30)
    (tmp_path / "turned.mp4").write_bytes(data)
    clip = read_clip(str(tmp_path / "turned.mp4"))
    assert (clip.width, clip.height) == (64, 96)


@pytest.mark.parametrize("name", ["empty.mp4", "text.mov", "text.avi", "cut.mp4", "text.webm"])
def test_what_is_no_clip_is_said_to_be_none(tmp_path: Path, name: str) -> None:
    whole = (CLIPS / "wide.mp4").read_bytes()
    content = {"empty": b"", "text": b"no clip at all, but text" * 9, "cut": whole[: whole.index(b"moov") + 40]}[name.split(".")[0]]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NotAVideo):
        read_clip(str(tmp_path / name))


def test_clips_count_only_where_video_is_trained(tmp_path: Path) -> None:
    shutil.copy(CLIPS / "wide.mp4", tmp_path)
    assert scan(str(tmp_path)).images == ()
    (found,) = scan(str(tmp_path), video=True).images
    assert (found.width, found.height, found.frames) == (96, 64, 30)


def test_a_speed_must_be_one(tmp_path: Path) -> None:
    wan = {"name_or_path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "arch": "wan21"}
    data = [{"folder_path": "/x", "num_frames": 17, "auto_frame_count": True, "trim_auto_frame_count_tail": False, "fps": -24}]
    (problem,) = refusal(tmp_path, model=wan, datasets=data)
    assert problem.place is not None
    assert problem.place.key == "datasets.0.fps"


def test_a_folder_of_two_entries_has_its_clips_for_the_one_of_video_alone(tmp_path: Path) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    shutil.copy(CLIPS / "wide.mp4", folder)
    Pillow.new("RGB", (64, 64)).save(folder / "still.png")
    wan = {"name_or_path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "arch": "wan21"}
    data = [{"folder_path": str(folder), "num_frames": frames} for frames in (1, 17)]
    stills, clips = read(tmp_path, model=wan, datasets=data).datasets
    assert ({b.frames for b in stills.buckets}, {b.frames for b in clips.buckets}) == ({1}, {1, 17})


@pytest.mark.parametrize(
    ("rule", "frames", "per_second", "trained"),
    [
        (FrameRule(True, 33), 90, 24.0, 33),
        (FrameRule(True, 33), 0, 0.0, 1),  # an image among clips
        (FrameRule(True, 1, auto=True, per_second=16), 50, 16.0, 49),
        (FrameRule(True, 1, auto=True, per_second=16), 48, 16.0, 45),
        (FrameRule(True, 1, auto=True, per_second=16, trim=False), 48, 16.0, 49),
        (FrameRule(True, 1, auto=True, per_second=16), 240, 24.0, 157),
        (FrameRule(True, 1, auto=True, per_second=16), 1, 16.0, 1),
        (FrameRule(), 90, 24.0, 1),
    ],
)
def test_frames_are_counted_as_the_trainer_does(rule: FrameRule, frames: int, per_second: float, trained: int) -> None:
    assert rule.of(Image("x", 64, 48, frames, per_second)) == trained
