"""Format images: PNG files, a folder a class, and a table of labels. PNG holds 8 bits: what leaves [0, 1] is cut off."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from src.exchange import scripts, words
from src.exchange.exported import Exported, bytes_of, check_channels, target
from src.pages import pictures
from src.store import files

WHAT = """`images` holds a PNG file for each image, in a folder for each class, and `labels.csv` names their classes, with
columns `p_0`, `p_1`, ... for the probability of each class where labels are soft; its rows are in the set's order. **PNG
holds 256 levels from black to white: distilled images go beyond both, and are cut off there**, {cut} % of the
numbers of these. The exact ones come with `--format safetensors`, `pt` and `huggingface`."""


def write(exported: Exported, folder: Path) -> None:
    """Fill a new or empty folder; raises UserError where it is not, or where the images are neither grey nor in colour."""
    check_channels(exported, "images")
    outside = (exported.pixels < 0) | (exported.pixels > 1)
    what = WHAT.format(cut=f"{100 * outside.double().mean().item():.1f}")
    card = exported.described({"images": "PNG files of 8 bits, pixel = level / 255; cut off at black and white"})
    with target(folder) as place:
        names = save_pictures(exported, place)
        files.write_csv(place / "labels.csv", _rows(exported, names))
        Image.fromarray(pictures.grid(exported.pixels, exported.labels)).save(place / "images.png")
        scripts.add(exported, "images", card, place)
        files.write_text(place / "README.md", words.readme(card, len(names), words.use(card, what, "Pillow")))


def save_pictures(exported: Exported, place: Path) -> list[str]:
    """PNG files images/CLASS/NUMBER.png, both from 0; their names, in the set's order."""
    names, numbers = [], dict[int, int]()
    for image, label in zip(bytes_of(exported), exported.indices.tolist(), strict=True):
        number = numbers[label] = numbers.get(label, -1) + 1
        path = place / "images" / f"{label:04d}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        array = image.permute(1, 2, 0).numpy()
        Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(path)
        names.append(path.relative_to(place).as_posix())
    return names


def _rows(exported: Exported, names: list[str]) -> list[dict[str, object]]:
    """A row an image: its file, the index and name of its likeliest class and, of soft labels, the probability of each."""
    rows: list[dict[str, object]] = []
    for name, label, index in zip(names, exported.labels.tolist(), exported.indices.tolist(), strict=True):
        row: dict[str, object] = {"file": name, "class": index, "name": exported.classes[index]}
        rows.append(row | ({f"p_{k}": share for k, share in enumerate(label)} if exported.soft else {}))
    return rows
