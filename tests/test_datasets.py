"""Dataset folders: which files count, their sizes, their buckets, their captions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from config_writer import ZIMAGE, process, read, train, write
from PIL import Image as Pillow
from PIL.ImageOps import exif_transpose

from estimator import datasets
from estimator.datasets import caption_of, image_size, scan
from estimator.job import Bucket
from estimator.trainers import read_jobs


def image(path: Path, width: int = 64, height: int = 48, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.new("RGB", (width, height)).save(path, **options)
    return path


def names(folder: Path) -> set[str]:
    return {os.path.relpath(i.path, folder) for i in scan(str(folder)).images}


# ---------------------------------------------------------------- which files count


def test_images_of_all_folders_below_except_hidden_and_control_ones(tmp_path: Path) -> None:
    wanted = ["a.jpg", "b.JPEG", "c.png", "d.webp", "sub/e.jpg", "sub/deep/f.png", "_controls/sub/g.png", "_controls_/l.png"]
    others = [".hidden.jpg", ".thumbs/h.jpg", "sub/.tmp/i.jpg", "_controls/j.jpg", "sub/_controls/k.jpg", "l.gif", "m.bmp"]
    for name in wanted + others:
        image(tmp_path / name, format="JPEG" if name.endswith("JPEG") else None)
    (tmp_path / "a.txt").write_text("a caption")
    assert names(tmp_path) == set(wanted)


def test_a_json_file_lists_images_and_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image(tmp_path / "x" / "a.jpg", 100, 50)
    entries = {"x/a.jpg": {"caption": "a fox"}, "x/gone.jpg": {}, "x/_controls/b.jpg": {}}
    (tmp_path / "list.json").write_text(json.dumps(entries))
    found = scan("list.json")
    assert [(i.path, i.width, i.height) for i in found.images] == [("x/a.jpg", 100, 50)]
    assert [path for path, _ in found.broken] == ["x/gone.jpg"]
    assert caption_of(found.images[0], found, ".txt", None) == "a fox"


@pytest.mark.parametrize("content", ["", "[]", "{", "no json", "[" * 100_000])
def test_a_list_that_is_none_is_unreadable(tmp_path: Path, content: str) -> None:
    (tmp_path / "list.json").write_text(content)
    found = scan(str(tmp_path / "list.json"))
    assert found.state == "unreadable"
    assert found.reason


@pytest.mark.parametrize("folder", ["", "nowhere", "/nowhere/at/all", "a\0b", "x" * 5000])
def test_what_is_not_there_is_absent(folder: str) -> None:
    assert scan(folder).state == "absent"


def test_a_pipe_never_blocks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    assert scan(str(tmp_path / "pipe")).state == "unreadable"
    assert [path for path, _ in scan(str(tmp_path)).broken] == [str(tmp_path / "pipe.jpg")]


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "webp", "png"])
def test_exif_orientation_turns_sizes_as_the_trainer_does(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    path = image(tmp_path / f"a.{ending}", 80, 48, exif=exif)
    with Pillow.open(path) as opened:
        expected = exif_transpose(opened).size  # what the trainer calls
    assert image_size(str(path)) == expected


def broken_images(folder: Path) -> set[str]:
    image(folder / "good.png", 500, 400)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    (folder / "random.webp").write_bytes(os.urandom(4096))
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:20])
    (folder / "folder.jpg").mkdir()
    (folder / "dangling.png").symlink_to(folder / "nothing")
    huge = bytearray((folder / "good.png").read_bytes())
    huge[16:24] = (100_000).to_bytes(4, "big") * 2  # the header of a decompression bomb
    (folder / "bomb.png").write_bytes(huge)
    return {"empty.jpg", "text.png", "random.webp", "cut.png", "dangling.png", "bomb.png"}


def test_broken_images_are_left_out_and_named(tmp_path: Path) -> None:
    broken = broken_images(tmp_path)
    found = scan(str(tmp_path))
    assert names(tmp_path) == {"good.png"}
    assert {os.path.basename(path) for path, _ in found.broken} == broken
    assert all(reason for _, reason in found.broken)


def test_broken_images_give_one_warning_and_no_failure(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    broken_images(folder)
    job = read(tmp_path, datasets=[{"folder_path": str(folder), "resolution": [512, 1024]}])
    (warning,) = [w for w in job.warnings if "cannot be read" in w]
    assert "6 of 7 images" in warning
    assert "bomb.png" in warning
    assert [d.buckets for d in job.datasets] == [(Bucket(480, 416, count=1),)] * 2


def test_nothing_is_written_into_the_folder(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png")
    before = sorted(str(p) for p in (tmp_path / "images").rglob("*"))
    read(tmp_path, datasets=[{"folder_path": str(tmp_path / "images")}])
    assert sorted(str(p) for p in (tmp_path / "images").rglob("*")) == before


# ---------------------------------------------------------------- buckets


def buckets(tmp_path: Path, model: dict[str, Any] | None = None, **entry: Any) -> list[tuple[int, int, int]]:
    folder = tmp_path / "images"
    if not folder.exists():
        for i, size in enumerate([(2048, 1152), (1920, 1080), (1000, 1000), (300, 200)]):
            image(folder / f"{i}.jpg", *size)
    job = read(tmp_path, datasets=[{"folder_path": str(folder), **entry}], **({"model": model} if model else {}))
    assert all(d.scanned for d in job.datasets)
    return [(b.width, b.height, b.count) for d in job.datasets for b in d.buckets]


def test_real_images_fall_into_their_buckets(tmp_path: Path) -> None:
    # what the trainer's own function (toolkit/buckets.py, 27a03a91) gave for these sizes
    assert buckets(tmp_path, resolution=1024) == [(320, 192, 1), (992, 1024, 1), (1344, 768, 2)]


def test_the_divisor_is_the_architectures(tmp_path: Path) -> None:
    assert all(width % 32 == 0 and height % 32 == 0 for width, height, _ in buckets(tmp_path, resolution=768))
    zimage = buckets(tmp_path, ZIMAGE, resolution=768)
    assert all(width % 16 == 0 and height % 16 == 0 for width, height, _ in zimage)
    assert any(width % 32 or height % 32 for width, height, _ in zimage)


def test_repeats_and_flips_count(tmp_path: Path) -> None:
    assert buckets(tmp_path, resolution=512, square_crop=True, num_repeats=3, flip_x=True, flip_y=True) == [(512, 512, 4 * 3 * 2 * 2)]


@pytest.mark.parametrize("settings", [{"square_crop": True}, {"buckets": False}])
def test_square_training_is_square(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert buckets(tmp_path, resolution=1000, **settings) == [(1000, 1000, 4)]
    job = read(tmp_path, datasets=[{"folder_path": "/nowhere", "resolution": 1000, **settings}])
    assert job.datasets[0].buckets == (Bucket(1000, 1000),)


def test_scale_shrinks_images_first(tmp_path: Path) -> None:
    assert max(width for width, _, _ in buckets(tmp_path, resolution=1024, scale=0.25)) <= 512


def test_an_absent_folder_gets_the_worst_bucket_and_one_warning(tmp_path: Path) -> None:
    job = read(tmp_path, datasets=[{"folder_path": "/nowhere", "resolution": [512, 1000]}])
    assert [d.scanned for d in job.datasets] == [False, False]
    assert [d.buckets for d in job.datasets] == [(Bucket(512, 512),), (Bucket(1952, 512),)]
    assert [w for w in job.warnings if "/nowhere" in w and "worst bucket" in w] == list(job.warnings)
    assert len(job.warnings) == 1


def test_a_windows_path_in_double_quotes_is_not_what_it_looks_like(tmp_path: Path) -> None:
    job = read(tmp_path, datasets=[{"folder_path": "C:\temp\new"}])
    assert any("single quotes" in warning for warning in job.warnings)


def test_an_empty_folder_is_said_and_gets_the_worst_bucket(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    job = read(tmp_path, datasets=[{"folder_path": str(tmp_path / "images")}])
    assert job.datasets[0].scanned is False
    assert job.datasets[0].buckets == (Bucket(512, 512),)
    assert any("no images" in w and "worst bucket" in w for w in job.warnings)


def test_relative_folders_count_from_the_current_directory_as_in_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path / "data" / "a.png", 512, 512)
    path = write(tmp_path, process(datasets=[{"folder_path": "data"}]))
    monkeypatch.chdir(tmp_path)
    (job,) = read_jobs(path)
    assert job.datasets[0].scanned
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (job,) = read_jobs(path)
    assert not job.datasets[0].scanned
    assert any("beside the config" in w and str(tmp_path) in w for w in job.warnings)


def test_a_folder_named_twice_is_scanned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path / "images" / "a.png")
    opened: list[str] = []
    real = datasets.image_size
    monkeypatch.setattr(datasets, "image_size", lambda path: (opened.append(path), real(path))[1])
    entry = {"folder_path": str(tmp_path / "images"), "resolution": [512, 768]}
    read(tmp_path, datasets=[entry, entry])
    assert len(opened) == 1


# ---------------------------------------------------------------- captions


def caption_tokens(tmp_path: Path, **entry: Any) -> int:
    job = read(tmp_path, model=ZIMAGE, datasets=[{"folder_path": str(tmp_path / "images"), **entry}])
    (dataset,) = job.datasets
    assert dataset.text_tokens is not None
    assert max(b.text_tokens for b in dataset.buckets) == dataset.text_tokens
    return dataset.text_tokens


def test_the_longest_caption_counts(tmp_path: Path) -> None:
    path = image(tmp_path / "images" / "a.png")
    image(tmp_path / "images" / "b.png")
    none = caption_tokens(tmp_path)
    path.with_suffix(".txt").write_text("a red fox in the snow")
    assert caption_tokens(tmp_path) == none + 6
    assert caption_tokens(tmp_path, caption_ext="txt") == none + 6
    assert caption_tokens(tmp_path, caption_ext=".caption") == none
    assert caption_tokens(tmp_path, caption_ext=".caption", default_caption="one two") == none + 2
    assert caption_tokens(tmp_path, trigger_word="f0x thing") == none + 8
    path.with_suffix(".txt").write_text("a red [trigger] in the snow")
    assert caption_tokens(tmp_path, trigger_word="f0x") == none + 6
    path.with_suffix(".txt").write_text("  \n")
    assert caption_tokens(tmp_path, default_caption="one two") == none + 2
    path.with_suffix(".txt").write_text("word " * 100_000)
    assert caption_tokens(tmp_path) == 512


def test_saturated_prompts_are_repeated_where_a_step_encodes_them(tmp_path: Path) -> None:
    """8 times 10 words are more than 77, with a comma after each but the last."""
    image(tmp_path / "images" / "a.png").with_suffix(".txt").write_text(" ".join(["fox"] * 10))
    data = [{"folder_path": str(tmp_path / "images")}]
    plain, saturated, cached = (
        read(tmp_path, model=ZIMAGE, train=train(prompt_saturation_chance=chance, cache_text_embeddings=cached), datasets=data).datasets[0]
        for chance, cached in ((0, False), (0.1, False), (0.1, True))
    )
    assert plain.text_tokens == cached.text_tokens
    assert plain.text_tokens is not None
    assert saturated.text_tokens == plain.text_tokens + 7 * 10 + 7


def test_without_text_encoder_and_without_cache_no_caption_counts(tmp_path: Path) -> None:
    """The trainer then trains on the empty prompt, or on the trigger word."""
    path = image(tmp_path / "images" / "a.png")
    none = caption_tokens(tmp_path)
    path.with_suffix(".txt").write_text("a red fox in the snow")
    settings = {"dtype": "bf16", "noise_scheduler": "flowmatch", "unload_text_encoder": True}
    data = [{"folder_path": str(tmp_path / "images")}, {"folder_path": "/nowhere"}]
    blank = read(tmp_path, model=ZIMAGE, train=settings, datasets=data)
    assert [d.text_tokens for d in blank.datasets] == [none, none]
    trigger = read(tmp_path, model=ZIMAGE, train=settings, datasets=data, trigger_word="f0x thing")
    assert [d.text_tokens for d in trigger.datasets] == [none + 2] * 2
    cached = read(tmp_path, model=ZIMAGE, train={**settings, "cache_text_embeddings": True}, datasets=data[:1])
    assert [d.text_tokens for d in cached.datasets] == [none + 6]


def test_each_bucket_has_its_own_longest_caption(tmp_path: Path) -> None:
    for name, size, words in [("wide", (800, 400), 30), ("tall", (400, 800), 5)]:
        image(tmp_path / "images" / f"{name}.png", *size).with_suffix(".txt").write_text("fox " * words)
    job = read(tmp_path, model=ZIMAGE, datasets=[{"folder_path": str(tmp_path / "images")}])
    tall, wide = job.datasets[0].buckets
    assert tall.height > tall.width
    assert wide.text_tokens - tall.text_tokens == 25


def test_captions_that_are_no_text_are_warned_of(tmp_path: Path) -> None:
    path = image(tmp_path / "images" / "a.png")
    path.with_suffix(".txt").write_bytes(b"\xff\xfe\x00")
    job = read(tmp_path, model=ZIMAGE, datasets=[{"folder_path": str(tmp_path / "images")}])
    assert any("a.txt" in w and "UTF-8" in w for w in job.warnings)


def test_flux_pads_text_so_captions_are_not_read(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png").with_suffix(".txt").write_bytes(b"\xff")
    job = read(tmp_path, datasets=[{"folder_path": str(tmp_path / "images")}])
    assert job.datasets[0].text_tokens == 512
    assert job.warnings == ()
