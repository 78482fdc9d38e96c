"""What is in a dataset folder: the sizes of its images, from their headers alone, and their captions.

The rules of what counts as an image are the trainer's: every file below the folder with one of four endings, except hidden files and
folders and files right in a folder named _controls; a JSON file instead of a folder lists the paths. Nothing is written, nothing but
headers is read.
Source: ostris/ai-toolkit 27a03a91, toolkit/data_loader.py (AiToolkitDataset), toolkit/data_transfer_object/data_loader.py (FileItemDTO),
toolkit/dataloader_mixins.py (CaptionProcessingDTOMixin).
"""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from estimator.remembered import once
from estimator.videos import VIDEO_ENDINGS, read_clip

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
CONTROLS_FOLDER = "_controls"  # where the trainer puts control images that it makes itself
MAX_LIST_BYTES = 256 * 2**20  # of a JSON dataset file
MAX_CAPTION_BYTES = 64 * 2**10  # captions are cut at 512 tokens by the model anyway
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True, slots=True)
class Image:
    """A readable image or clip: its size in pixels as it is meant to be seen (EXIF orientation applied).

    `frames`: of a clip (0: an image), `per_second`: its speed, `sound`: it has some.
    """

    path: str
    width: int
    height: int
    frames: int = 0
    per_second: float = 0.0
    sound: bool = False


@dataclass(frozen=True, slots=True)
class Scan:
    """What a dataset folder (or JSON list) holds. `state`: "found" | "absent" | "unreadable"; `broken`: files left out, with the reason."""

    state: str
    images: tuple[Image, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()
    captions: Mapping[str, str] | None = None
    reason: str = ""
    skipped_folders: tuple[str, ...] = field(default=())


def scan(folder: str, video: bool = False) -> Scan:
    """The images (and clips, if `video`) of `folder`, a folder or a JSON file of paths, relative to the current directory as in
    the trainer.

    Never raises: what cannot be read is in the result.
    """
    return once((folder, video), lambda: _scan(folder, video))


def _scan(folder: str, video: bool) -> Scan:
    try:
        if os.path.isdir(folder):
            paths, skipped = _walk(folder, IMAGE_ENDINGS + VIDEO_ENDINGS if video else IMAGE_ENDINGS)
            return _open_all(paths, None, skipped)
        if not os.path.lexists(folder):
            return Scan("absent")
        captions = _read_list(folder)
    except (OSError, ValueError, RecursionError) as error:
        return Scan("unreadable", reason=_reason(error))
    paths = [path for path in captions if os.path.basename(os.path.dirname(path)) != CONTROLS_FOLDER]
    return _open_all(paths, captions, [])


def longer_than_before(numbers: Iterable[int]) -> tuple[int, ...]:
    """Those that are larger than all before them."""
    out: list[int] = []
    for number in numbers:
        if not out or number > out[-1]:
            out.append(number)
    return tuple(out)


def caption_of(image: Image, scanned: Scan, ending: str, default: str | None) -> str:
    """The caption that the trainer gives an image: from the JSON list, else the text file beside it, else the default, else nothing.

    Raises ValueError where the text file is not UTF-8, OSError where it cannot be read: the trainer stops on both.
    """
    if scanned.captions is not None and image.path in scanned.captions:
        return scanned.captions[image.path]
    return once((image.path, ending, default), lambda: _caption_file(os.path.splitext(image.path)[0] + ending, default))


def _caption_file(path: str, default: str | None) -> str:
    if not os.path.isfile(path):
        return default or ""
    with open(path, "rb") as file:
        raw = file.read(MAX_CAPTION_BYTES + 1)
    if len(raw) > MAX_CAPTION_BYTES:
        return raw[:MAX_CAPTION_BYTES].decode("utf-8", "ignore")
    text = raw.decode("utf-8")
    return default if not text.strip() and default is not None else text


def _walk(folder: str, endings: tuple[str, ...]) -> tuple[list[str], list[str]]:
    paths: list[str] = []
    skipped: list[str] = []
    for root, folders, files in os.walk(folder, onerror=lambda error: skipped.append(str(error.filename))):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.basename(root) == CONTROLS_FOLDER:
            continue
        paths += [os.path.join(root, name) for name in sorted(files) if name.lower().endswith(endings) and not name.startswith(".")]
    return paths, skipped


def _read_list(path: str) -> dict[str, str]:
    """A JSON dataset: {path: {"caption": text}}."""
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise ValueError("neither a folder nor a file")
    if info.st_size > MAX_LIST_BYTES:
        raise ValueError(f"a list of {info.st_size / 2**20:,.0f} MiB")
    with open(path, encoding="utf-8") as file:
        entries = json.load(file)
    if not isinstance(entries, dict):
        raise ValueError("a JSON dataset is a map of image paths")
    return {key: str(entry["caption"]) if isinstance(entry, dict) and "caption" in entry else "" for key, entry in entries.items()}


def _open_all(paths: list[str], captions: Mapping[str, str] | None, skipped: list[str]) -> Scan:
    images: list[Image] = []
    broken: list[tuple[str, str]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd EXIF data and of very large images, both of which the trainer takes
        for path in paths:
            try:
                if path.lower().endswith(VIDEO_ENDINGS):
                    clip = read_clip(path)
                    images.append(Image(path, clip.width, clip.height, clip.frames, clip.per_second, clip.sound))
                else:
                    images.append(Image(path, *image_size(path)))
            except Exception as error:
                broken.append((path, _reason(error)))
    return Scan("found", tuple(images), tuple(broken), captions, skipped_folders=tuple(skipped))


def image_size(path: str) -> tuple[int, int]:
    """Width and height in pixels, EXIF orientation applied. Reads the header only; raises whatever Pillow does on a broken file."""
    from PIL import Image as Pillow

    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")
    with Pillow.open(path) as image:
        width, height = image.size
        # The base class's getexif: that of PNG decodes the whole image in search of orientation data behind the pixels.
        sideways = Pillow.Image.getexif(image).get(_ORIENTATION) in _SIDEWAYS
    if width < 1 or height < 1:
        raise OSError(f"a size of {width}x{height}")
    return (height, width) if sideways else (width, height)


def pair_of(image: Image, folder: str) -> tuple[int, int] | None:
    """Size of the file in `folder` that has the image's name, with whichever ending comes first; None if there is none that can be read."""
    return once((image.path, folder, "pair"), lambda: _pair_of(image, folder))


def _pair_of(image: Image, folder: str) -> tuple[int, int] | None:
    stem = os.path.splitext(os.path.basename(image.path))[0]
    paths = (os.path.join(folder, stem + ending) for ending in IMAGE_ENDINGS)
    path = next((one for one in paths if os.path.exists(one)), None)
    return None if path is None else size_of(path)


def size_of(path: str) -> tuple[int, int] | None:
    """Width and height of a picture; None if it cannot be read."""
    return once((path, "size"), lambda: _size_of(path))


def _size_of(path: str) -> tuple[int, int] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return image_size(path)
    except Exception:  # whatever Pillow raises on a broken file
        return None


def _reason(error: Exception) -> str:
    text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return " ".join(text.split())[:120] or type(error).__name__
