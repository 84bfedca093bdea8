"""Format safetensors: tensors of pixels, with the record of what made them, as `evaluate --from` and `--released` read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from src.exchange import scripts, words
from src.exchange.exported import Exported, target
from src.exchange.formats.images import save_pictures
from src.ground.errors import UserError
from src.pages import pictures
from src.store import files
from src.store.tensors import METADATA_KEY

FILE = "synthetic.safetensors"
HARD, SOFT = "(S,), indices of the classes,", "(S, K), probabilities of the classes, which students learn,"
WHAT = """`synthetic.safetensors` holds `pixels` (S, C, H, W), 0 black and 1 white but not bound to either, `labels`
{labels} and `syn_lr`, the students' learning rate;
`set.json` says how they were made and how students are trained on them. {read}

```python
from safetensors.torch import load_file

synthetic = load_file("synthetic.safetensors")
pixels = synthetic["pixels"].float()
```"""
NORMALISED = "Normalise the pixels as your real\nimages are, then train:"
WHITENED = """Students were trained on
whitened pixels, as `evaluate --released` does it; `export --format safetensors` writes the matrix too:"""


def write(exported: Exported, folder: Path) -> None:
    """Fill a new or empty folder; raises UserError where it is not, or where float16 can't hold the pixels."""
    count, shape = len(exported.pixels), tuple(exported.pixels.shape)
    tensors = {
        "pixels": f"{shape} {'float16' if exported.half else 'float32'}, 0 black, 1 white, not bound to either",
        "labels": f"({count},) int64, indices of the classes; or ({count}, K) float32, their probabilities",
        "syn_lr": "() float32, the students' learning rate",
    }
    card = exported.described(tensors)
    with target(folder) as place:
        save(exported, place / FILE)
        grey_or_colour = shape[1] in (1, 3)
        if grey_or_colour:
            save_pictures(exported, place)
            Image.fromarray(pictures.grid(exported.pixels, exported.labels)).save(place / "images.png")
        scripts.add(exported, "safetensors", card, place)
        picture = "images.png" if grey_or_colour else None
        files.write_text(place / "README.md", words.readme(card, count, words.use(card, told(exported)), picture))


def told(exported: Exported) -> str:
    """What the file holds, and how it is read."""
    read = NORMALISED if exported.whitening is None else WHITENED
    return WHAT.format(labels=SOFT if exported.soft else HARD, read=read)


def save(exported: Exported, path: Path) -> None:
    """The tensors as an artifact, which the repository reads again."""
    pixels = exported.pixels.half() if exported.half else exported.pixels
    if not pixels.isfinite().all():
        most = torch.finfo(pixels.dtype).max
        raise UserError(f"{exported.name} holds pixels beyond {most:,.0f}, too large for float16: export it without --half")
    tensors = {"pixels": pixels, "labels": exported.labels, "syn_lr": torch.tensor(exported.syn_lr)}
    about = dict(exported.record)
    metadata = json.dumps({**about, files.CHECKSUM: files.checksum(about, tensors)}, sort_keys=True)
    files.write_tensors(path, tensors, {METADATA_KEY: metadata})
