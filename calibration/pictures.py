"""The pictures of the documentation, drawn again: `python -m calibration.pictures [FOLDER]` (default docs/img; needs the extra `plot`).

Headroom curves and the timeline of six examples, and a page that shows them, FOLDER/README.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from estimator.cli import main as estimate

ROOT = Path(__file__).resolve().parent.parent
PICTURES = (  # example, card, what the curves run over
    ("flux_dev_24gb", "RTX4090", "resolution"), ("flux2_klein_4b_ui", "RTX3090", "batch"), ("qwen_image_ui", "RTX5090", "resolution"),
    ("qwen_edit_2509_ui", "A100-40G", "rank"), ("wan21_14b_24gb", "RTX4090", "frames"), ("zimage_turbo_ui", "16GiB", "preview"),
)  # fmt: skip


def draw(folder: Path) -> list[Path]:
    """The pictures drawn, two for each example. Raises RuntimeError where `estimate plot` refuses one."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for example, card, over in PICTURES:
        config = str(ROOT / "examples" / f"{example}.yaml")
        for name, options in ((f"{example}_{over}.png", ["--over", over]), (f"{example}_timeline.png", ["--kind", "timeline"])):
            if estimate(["plot", config, "--gpu", card, "--no-overlay", "-o", str(folder / name), *options]) != 0:
                raise RuntimeError(f"no picture {name}")
            made.append(folder / name)
    return made


def page(pictures: list[Path]) -> str:
    """Markdown that shows them."""
    lines = ["# Headroom of the examples", "", "Drawn by `python -m calibration.pictures`; estimates, none of them measured on a card.", ""]
    cards = {example: card for example, card, _ in PICTURES}
    for path in pictures:
        example = next(name for name in cards if path.name.startswith(name + "_"))
        what = path.stem.removeprefix(example + "_")
        what = "the run phase by phase" if what == "timeline" else f"peak over {what}"
        lines += [f"`examples/{example}.yaml` on {cards[example]}, {what}:", "", f"![{example}, {what}]({path.name})", ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration.pictures", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "img")
    folder = parser.parse_args().folder
    pictures = draw(folder)
    (folder / "README.md").write_text(page(pictures), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
