"""A small data set of images, and ways of storing it."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from src.settings.datasets import Dataset
from src.store.values import Split

CLASSES = ("cat", "dog", "emu")
PER_CLASS = {"train": 12, "val": 2, "test": 3}  # past nine, so that 10.png shows whether it sorts after 2.png

Splits = Mapping[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]


def dataset(source: Path | str, **settings: object) -> Dataset:
    return Dataset.model_validate({"source": str(source), **settings})


def splits(size: int = 6, names: tuple[str, ...] = ("train", "val", "test")) -> Splits:
    """Colour images (N, H, W, 3) and labels, the classes by turns."""
    rng = np.random.default_rng(0)
    made = {}
    for name, count in PER_CLASS.items():
        labels = np.tile(np.arange(len(CLASSES)), count)
        made[name] = (rng.integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8), labels)
    return {name: made[name] for name in names}


def png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def coded(label: int, number: int, part: int = 0, size: int = 8) -> Image.Image:
    """An image of one colour that says its class, its number in the class, and its split, in lossy formats too."""
    return Image.new("RGB", (size, size), (label * 20 + 10, number * 8 + 4, part * 50 + 25))


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def coded_files(parts: Mapping[str, int], classes: tuple[str, ...] = CLASSES) -> dict[str, bytes]:
    """Paths and contents of FOLDER/CLASS/NUMBER.png with so many coded images for each class of each folder."""
    return {
        f"{folder}/{name}/{number}.png".removeprefix("/"): file_of(coded(label, number, part))
        for part, (folder, count) in enumerate(parts.items())
        for label, name in enumerate(classes)
        for number in range(count)
    }


def codes(split: Split) -> list[tuple[int, int, int]]:
    """What the coded images of a split say, after its labels have been compared with it."""
    found = codes_of(split)
    assert [label for label, _, _ in found] == split.labels.tolist()
    return found


def codes_of(split: Split) -> list[tuple[int, int, int]]:
    """Class, number and folder that the coded images of a split say."""
    return [(red // 20, green // 8, blue // 50) for red, green, blue in split.images[:, :, 0, 0].tolist()]


def expected(count: int, part: int = 0, classes: int = len(CLASSES)) -> list[tuple[int, int, int]]:
    """The codes of all images of a folder, in order."""
    return [(label, number, part) for label in range(classes) for number in range(count)]


def members(made: Splits) -> dict[str, bytes]:
    """Paths and contents of an image folder; numbers without leading zeros."""
    files = {}
    for split, (images, labels) in made.items():
        for label, name in enumerate(CLASSES):
            for number, image in enumerate(images[labels == label]):
                files[f"{split}/{name}/{number}.png"] = png(image)
    return files


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def write_npz(path: Path, made: Splits) -> Path:
    arrays = {f"{axis}_{split}": array for split, pair in made.items() for axis, array in zip("xy", pair, strict=True)}
    np.savez(path, classes=np.array(CLASSES), **arrays)
    return path


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in reversed(files):  # the order in the archive must not matter
            archive.writestr(name, files[name])
    return path


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    mode = "w" if path.suffix == ".tar" else "w:gz"
    with tarfile.open(path, mode) as archive:
        for name in reversed(files):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            archive.addfile(info, io.BytesIO(files[name]))
    return path


def table(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: tuple[str, ...] | None = CLASSES) -> pa.Table:
    """As the datasets library writes it."""
    rows = [{"bytes": png(image), "path": None} for image in images]
    made = pa.table({"image": pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()})), "label": labels})
    if classes is None:
        return made
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(folder: Path, made: Splits) -> Path:
    """Training images in two parts, under Hugging Face's names."""
    (folder / "data").mkdir(parents=True)
    names = {"train": "train", "val": "validation", "test": "test"}
    for split, (images, labels) in made.items():
        parts = 2 if split == "train" else 1
        for part, places in enumerate(np.array_split(np.arange(len(labels)), parts)):
            file = folder / "data" / f"{names[split]}-{part:05d}-of-{parts:05d}.parquet"
            pq.write_table(table(images[places], labels[places]), file)
    return folder


def write_idx(folder: Path, made: Splits, packed: bool = False) -> Path:
    """The first channel as MNIST's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = made[split]
        for kind, array in (("images-idx3", images[..., 0]), ("labels-idx1", labels)):
            head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            content = head + array.astype(np.uint8).tobytes()
            name = f"{prefix}-{kind}-ubyte"
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return folder
