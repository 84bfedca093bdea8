"""Images of every mode, size and format, and what is broken."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from src.ground.errors import DataError
from src.sources import decoding, images, inspection, parquet, reading
from src.sources.reading import Source
from tests import pictures
from tests.pictures import dataset

RED, GREY = np.array([200, 30, 60], np.uint8), 90
LUMA = round(0.299 * 200 + 0.587 * 30 + 0.114 * 60)


def read(path: Path | str, **settings: object) -> Source:
    return reading.read(dataset(path, **settings), "mine")


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flat(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (4, 4), colour)  # type: ignore[arg-type]


def decoded(content: bytes, channels: int = 3) -> NDArray[np.uint8]:
    return images.decode(content, images.Shape(channels, 4))


def is_grey(content: bytes) -> bool:
    return images.header(io.BytesIO(content)).grey


def palette(transparent: bool) -> bytes:
    image = flat("P", 1)
    image.putpalette([0, 0, 0, *RED.tolist()])
    return encoded(image, transparency=1) if transparent else encoded(image)


CASES = {  # image file, its pixels' colour, whether it is grey
    "1": (encoded(flat("1", 1)), [255] * 3, True),
    "L": (encoded(flat("L", GREY)), [GREY] * 3, True),
    "LA opaque": (encoded(flat("LA", (GREY, 255))), [GREY] * 3, True),
    "LA transparent": (encoded(flat("LA", (GREY, 0))), [255] * 3, True),
    "I;16": (encoded(Image.fromarray(np.full((4, 4), GREY * 257 + 128, np.uint16))), [GREY] * 3, True),
    "I;16 rounds": (encoded(Image.fromarray(np.full((4, 4), GREY * 257 + 129, np.uint16))), [GREY + 1] * 3, True),
    "I;16 white": (encoded(Image.fromarray(np.full((4, 4), 65535, np.uint16)), "TIFF"), [255] * 3, True),
    "I": (encoded(Image.fromarray(np.full((4, 4), GREY * 257, np.int32)), "TIFF"), [GREY] * 3, True),
    "RGB": (encoded(flat("RGB", tuple(RED))), RED, False),
    "RGB with a transparent colour": (encoded(flat("RGB", tuple(RED)), transparency=tuple(RED.tolist())), [255] * 3, False),
    "RGBA opaque": (encoded(flat("RGBA", (*RED, 255))), RED, False),
    "RGBA half": (encoded(flat("RGBA", (*RED, 128))), np.round(RED * (128 / 255) + 255 * (127 / 255)), False),
    "P": (palette(False), RED, False),
    "P transparent": (palette(True), [255] * 3, False),
    "CMYK": (encoded(flat("CMYK", (0, 255, 255, 0)), "TIFF"), [255, 0, 0], False),
    "GIF": (encoded(flat("P", 0), "GIF", save_all=True, append_images=[flat("P", 1)]), [0] * 3, False),
    "BMP": (encoded(flat("RGB", tuple(RED)), "BMP"), RED, False),
    "WebP": (encoded(flat("RGB", tuple(RED)), "WEBP", lossless=True), RED, False),
}


@pytest.mark.parametrize("case", CASES)
def test_every_mode_becomes_8_bits(case: str) -> None:
    content, colour, grey = CASES[case]
    assert decoded(content).shape == (4, 4, 3)
    assert np.abs(decoded(content).astype(int) - np.asarray(colour).astype(int)).max() <= (case == "RGBA half")
    assert case == "GIF" or is_grey(content) == grey


def test_colour_becomes_luma_and_grey_becomes_colour() -> None:
    assert np.unique(decoded(CASES["RGB"][0], channels=1)) == LUMA
    assert np.array_equal(decoded(CASES["L"][0], channels=1)[..., 0], np.full((4, 4), GREY))


def test_exif_orientation_is_applied() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the image must be turned by a quarter, clockwise
    content = encoded(Image.fromarray(pixels), exif=exif)
    assert np.array_equal(decoded(content), np.rot90(pixels, -1))


def test_an_image_of_the_size_asked_for_is_untouched_and_others_are_cut_at_the_centre() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    assert np.array_equal(images.fit(Image.fromarray(pixels), images.Shape(3, 6)), pixels)
    wide = np.concatenate([np.zeros((6, 2, 3), np.uint8), pixels, np.zeros((6, 2, 3), np.uint8)], axis=1)
    assert np.array_equal(images.fit(Image.fromarray(wide), images.Shape(3, 6)), pixels)
    halves = np.zeros((8, 16, 3), np.uint8)
    halves[:, 4:12] = 255
    assert (images.fit(Image.fromarray(halves), images.Shape(3, 4))[:, 1:3] >= 240).all()


def test_a_source_is_grey_where_all_its_images_are(tmp_path: Path) -> None:
    grey = {f"{name}/{n}.png": CASES[case][0] for name in ("a", "b") for n, case in enumerate(("1", "L", "LA opaque", "I;16"))}
    assert read(pictures.write_folder(tmp_path / "grey", grey)).splits["train"].images.shape == (8, 1, 4, 4)
    mixed = {**grey, "b/9.png": CASES["RGB"][0]}
    folder = pictures.write_folder(tmp_path / "mixed", mixed)
    assert read(folder).splits["train"].images.shape == (9, 3, 4, 4)
    assert read(folder, channels=1).splits["train"].images[8].unique() == LUMA
    assert read(tmp_path / "grey", channels=3).splits["train"].images.shape == (8, 3, 4, 4)


def test_extensions_in_any_case_and_formats_side_by_side(tmp_path: Path) -> None:
    files = {"a/1.BMP": CASES["BMP"][0], "a/2.WebP": CASES["WebP"][0], "a/3.png": CASES["RGB"][0], "b/1.TIF": CASES["CMYK"][0]}
    assert read(pictures.write_folder(tmp_path, files)).splits["train"].labels.tolist() == [0, 0, 0, 1]


def test_images_of_other_sizes_need_a_size(tmp_path: Path) -> None:
    files = {f"{name}/{n}.png": encoded(flat("RGB", 0)) for name in "ab" for n in range(2)}
    files["b/1.png"] = encoded(Image.new("RGB", (6, 6)))
    folder = pictures.write_folder(tmp_path, files)
    with pytest.raises(DataError, match=r"^prepare\.mine: b/1\.png has 6x6 pixels, .* 4x4: set prepare\.mine\.size"):
        read(folder)
    assert read(folder, size=5).splits["train"].images.shape == (4, 3, 5, 5)
    pictures.write_folder(folder, {"b/1.png": encoded(Image.new("RGB", (6, 4)))})
    with pytest.raises(DataError, match=r"b/1\.png has 6x4 pixels, which is not square: set prepare\.mine\.size"):
        read(folder)
    found = inspection.inspect(dataset(folder), "mine")
    assert (found.sizes, found.sha256) == ({(4, 4): 3, (6, 4): 1}, None)
    assert "set prepare.mine.size" in found.problems[0]


def test_threads_give_the_same_images_in_the_same_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures.write_folder(tmp_path, pictures.members(pictures.splits()))
    one = read(folder)
    monkeypatch.setattr(decoding, "THREADED_PIXELS", 0)
    monkeypatch.setattr(decoding, "BATCH", 5)
    assert read(folder).sha256() == one.sha256()


def bomb() -> bytes:
    """A PNG of some hundred bytes that says it has 30,000 x 30,000 pixels."""
    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b""))
    parts = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_broken(folder: Path) -> Path:
    whole = pictures.png(pictures.splits()["train"][0][0])
    noise = pictures.png(np.random.default_rng(2).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    files = pictures.members(pictures.splits(names=("train", "test")))
    files |= {
        "train/cat/2.png": noise[:-40],
        "train/cat/3.jpg": b"I am a text.",
        "train/dog/4.png": b"",
        "test/emu/0.png": bomb(),
    }
    files |= {"train/dog/5.png": whole[:30], "train/emu/1.png": whole[:20]}
    return pictures.write_folder(folder, files)


@pytest.mark.parametrize("packed", [False, True])
def test_all_broken_images_are_named_or_skipped(packed: bool, tmp_path: Path) -> None:
    folder = with_broken(tmp_path / "images")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
    source = pictures.write_tar(tmp_path / "made.tgz", files) if packed else folder
    with pytest.raises(DataError) as caught:
        read(source)
    sentence = str(caught.value)
    assert sentence.startswith("prepare.mine: 6 images can't be read, train/cat/2.png (")
    assert "train/cat/3.jpg (no image of a known format)" in sentence
    assert ", ...: repair or remove them" in sentence
    assert "prepare.mine.skip_broken: true" in sentence
    assert "test/emu" not in sentence  # the sixth
    found = read(source, skip_broken=True)
    assert found.skipped == (
        "train/cat/2.png", "train/cat/3.jpg", "train/dog/4.png", "train/dog/5.png", "train/emu/1.png", "test/emu/0.png"
    )  # fmt: skip
    kept = {name: content for name, content in files.items() if name not in found.skipped}
    assert found.sha256() == read(pictures.write_folder(tmp_path / "kept", kept)).sha256()


def test_a_bomb_is_named_as_one(tmp_path: Path) -> None:
    files = {"a/1.png": bomb(), "a/2.png": CASES["L"][0], "b/1.png": CASES["L"][0]}
    with pytest.raises(DataError, match=r"1 image can't be read, a/1\.png \(more pixels than .* decompression bombs\)"):
        read(pictures.write_folder(tmp_path, files))


def test_an_inspection_tells_what_prepare_would_find(tmp_path: Path) -> None:
    folder = with_broken(tmp_path)
    found = inspection.inspect(dataset(folder), "mine")
    assert found.classes == pictures.CLASSES
    assert found.counts["train"] == {"cat": 13, "dog": 12, "emu": 12}
    assert (found.sizes, found.channels, len(found.source.broken)) == ({(6, 6): 41}, {3: 41}, 6)
    assert (found.problems, found.sha256) == ((), read(folder, skip_broken=True).sha256())


def test_an_inspection_sees_imbalance_and_absent_classes(tmp_path: Path) -> None:
    labels = np.array([0] * 33 + [1] * 3 + [2] * 5)
    made = {"train": (np.zeros((41, 2, 2, 3), np.uint8), labels), "test": (np.zeros((2, 2, 2, 3), np.uint8), labels[:2])}
    path = pictures.write_npz(tmp_path / "made.npz", made)
    balance, absence = inspection.inspect(dataset(path), "mine").problems
    assert "'cat' has 33 training images and 'dog' has 3" in balance
    assert absence == "the test split has no image of 'dog' and 1 more classes"


IMAGE = CASES["L"][0]
TREES = {  # files that are no image folder, and what is said of them
    "nothing": ({}, "holds no image"),
    "an empty class": ({"a/1.png": IMAGE, "b/1.png": IMAGE, "c/readme.txt": b""}, "class folder c .* holds no image"),
    "no classes": ({"1.png": IMAGE, "2.png": IMAGE}, r"1\.png .* lies in no class folder"),
    "no classes in train": ({"train/1.png": IMAGE, "train/a/2.png": IMAGE}, r"train/1\.png .* lies in no class folder"),
    "one class": ({"a/1.png": IMAGE, "a/2.png": IMAGE}, "has 1 class .* training needs 2"),
    "case": ({"Cat/1.png": IMAGE, "cat/1.png": IMAGE}, "'Cat' and 'cat' have the same name but for case"),
    "test alone": ({"test/a/1.png": IMAGE, "test/b/1.png": IMAGE}, "no training images: add a folder train"),
    "a new class": (
        {"train/a/1.png": IMAGE, "train/b/1.png": IMAGE, "test/c/1.png": IMAGE}, "class 'c' in its test split, but not"
    ),
    "twice the same split": (
        {f"{split}/{name}/1.png": IMAGE for split in ("train", "val", "valid") for name in "ab"}, "for the same split: join"
    ),
    "images beside train": (
        {"train/a/1.png": IMAGE, "train/b/1.png": IMAGE, "extra/c/1.png": IMAGE}, r"extra/c/1\.png .* in no class folder"
    ),
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", TREES)
def test_a_tree_that_is_no_image_folder(case: str, packed: bool, tmp_path: Path) -> None:
    files, words = TREES[case]
    (tmp_path / "images").mkdir()
    folder = pictures.write_folder(tmp_path / "images", files)
    with pytest.raises(DataError, match=rf"^prepare\.mine: .*{words}"):
        read(pictures.write_zip(tmp_path / "made.zip", files) if packed else folder)


@pytest.mark.parametrize("name", ["../a/1.png", "a/../../1.png", "/a/1.png", "C:\\a\\1.png", "a\\..\\..\\1.png"])
def test_archives_with_paths_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    for path in (tmp_path / "made.zip", tmp_path / "made.tar"):
        write = pictures.write_zip if path.suffix == ".zip" else pictures.write_tar
        write(path, {"a/2.png": IMAGE, "b/1.png": IMAGE, name: IMAGE})
        with pytest.raises(DataError, match="leads out of the archive"):
            read(path)


@pytest.mark.parametrize("name", ["made.zip", "made.tar", "made.tgz", "made.npz", "made.parquet"])
def test_damaged_files(name: str, tmp_path: Path) -> None:
    made = pictures.splits(names=("train",))
    whole = {
        ".zip": lambda path: pictures.write_zip(path, pictures.members(made)),
        ".tar": lambda path: pictures.write_tar(path, pictures.members(made)),
        ".tgz": lambda path: pictures.write_tar(path, pictures.members(made)),
        ".npz": lambda path: pictures.write_npz(path, made),
        ".parquet": lambda path: pq.write_table(pictures.table(*made["train"]), path),
    }
    path = tmp_path / name
    whole[path.suffix](path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"I am a text.", b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"^prepare\.mine: .*{name}"):
            read(path)


def test_a_damaged_member_is_a_broken_image(tmp_path: Path) -> None:
    path = pictures.write_zip(tmp_path / "made.zip", pictures.members(pictures.splits(names=("train",))))
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("train/dog/3.png")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 30 + len(info.filename) + 60] ^= 0xFF
    path.write_bytes(content)
    assert read(path, skip_broken=True).skipped == ("train/dog/3.png",)


def test_archives_with_links_or_a_password_are_refused(tmp_path: Path) -> None:
    files = {"a/1.png": IMAGE, "b/1.png": IMAGE}
    with tarfile.open(pictures.write_tar(tmp_path / "made.tar", files), "a") as archive:
        link = tarfile.TarInfo("b/2.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"holds 'b/2\.png', which is no file but a link"):
        read(tmp_path / "made.tar")
    path = pictures.write_zip(tmp_path / "made.zip", files)
    content = bytearray(path.read_bytes())
    for place in range(len(content)):
        if content[place : place + 4] == b"PK\x01\x02":
            content[place + 8] |= 1  # encrypted
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"made\.zip is encrypted: pack the images without a password"):
        read(path)


X, Y = pictures.splits(names=("train",))["train"]
ARRAYS = {
    "objects": ({"x": np.array([{}, 1], object), "y": Y}, "Python objects"),
    "class objects": ({"x": X, "y": Y, "classes": np.array(["a", "b", "c"], object)}, "Python objects"),
    "lengths": ({"x": X, "y": Y[1:]}, "36 images and 35 labels"),
    "label too large": ({"x": X, "y": Y, "classes": np.array(["a", "b"])}, "label 2, but the classes are 0 to 1"),
    "label below zero": ({"x": X, "y": Y - 1}, "label -1"),
    "real numbers": ({"x": X / 255, "y": Y}, r"float64.*255 \* x"),
    "Latin labels": ({"x": X, "y": np.array(["caf\u00e9".encode("latin-1")] * len(X))}, "holds bytes that are not UTF-8"),
    "one-hot labels": ({"x": X, "y": np.eye(3)[Y]}, "one integer or text an image"),
    "four channels": ({"x": np.concatenate([X, X[..., :1]], axis=-1), "y": Y}, "which is none of"),
    "ambiguous": ({"x": X[:, :3, :, :], "y": Y}, r"could be \(N, H, W, C\) as well as"),
    "no train": ({"x_test": X, "y_test": Y}, "holds x_test, y_test: save the training split"),
    "images alone": ({"x_train": X}, "x_train without y_train"),
    "no images": ({"x": X[:0], "y": Y[:0], "classes": np.array(["a", "b"])}, "train split holds no image"),
    "a test class too many": (
        {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1},
        "test split has the label 3, of which",
    ),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_are_no_data_set(case: str, tmp_path: Path) -> None:
    arrays, words = ARRAYS[case]
    np.savez(tmp_path / "made.npz", **arrays)
    with pytest.raises(DataError, match=rf"^prepare\.mine: .*{words}"):
        read(tmp_path / "made.npz")


def test_arrays_that_say_they_are_encrypted(tmp_path: Path) -> None:
    """A bit of the archive's directory; NumPy asks for a password then."""
    np.savez(tmp_path / "made.npz", x=X, y=Y)
    content = bytearray((tmp_path / "made.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "made.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"made\.npz is damaged or no \.npz file .*save it again"):
        read(tmp_path / "made.npz")


def test_parquet_files_that_are_no_data_set(tmp_path: Path) -> None:
    made = pictures.table(X, Y)
    tables = {
        "columns picture .struct.*, mask .struct.*: it needs images as bytes in a column image .* not in several": (
            made.rename_columns(["picture", "label"]).append_column("mask", made.column("image"))
        ),
        "columns image .*: it needs labels as integers or texts": made.select(["image"]),
        "lacks 1 of its labels": made.set_column(1, "label", pa.array([None, *Y[1:].tolist()])),
        "image .*string.*: it needs images as bytes": made.set_column(0, "image", pa.array(["a.png"] * len(Y))),
    }
    for words, table in tables.items():
        pq.write_table(table, tmp_path / "made.parquet")
        with pytest.raises(DataError, match=rf"^prepare\.mine: .*{words}"):
            read(tmp_path / "made.parquet")
    pq.write_table(made, tmp_path / "test-0.parquet")
    with pytest.raises(DataError, match=r"made\.parquet says no split"):
        read(tmp_path)


def test_links_that_lead_back_and_links_to_nothing(tmp_path: Path) -> None:
    folder = pictures.write_folder(tmp_path, {"a/1.png": IMAGE, "b/1.png": IMAGE})
    (folder / "c").symlink_to(folder / "b")
    assert read(folder).classes == ("a", "b", "c")
    (folder / "b/up").symlink_to(folder)
    with pytest.raises(DataError, match="a link to a folder that it lies in: remove the link"):
        read(folder)
    (folder / "b/up").unlink()
    (folder / "b/2.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"b/2\.png can't be read \(No such file or directory\)"):
        read(folder)
    (folder / "b/2.png").unlink()
    (folder / "b/3.png").symlink_to("3.png")
    with pytest.raises(DataError, match=r"3\.png.*Too many levels"):
        read(folder)


def test_what_may_not_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = pictures.write_folder(Path(name), {"a/1.png": IMAGE, "b/1.png": IMAGE})
        folder.chmod(0o755)
        (folder / "b/1.png").chmod(0)
        before = os.geteuid()
        os.seteuid(before or 65534)  # the superuser may read everything
        try:
            with pytest.raises(DataError, match=r"b/1\.png can't be read \(Permission denied\): permit"):
                read(folder)
        finally:
            os.seteuid(before)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "made.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"made\.csv is of no known form: give the path of an image folder"):
        read(tmp_path / "made.csv")


def test_parquet_with_other_numbers_of_images_and_labels(tmp_path: Path) -> None:
    """No writer makes it; a file whose pages are damaged may look like it."""
    path = pictures.write_parquet(tmp_path / "hub", pictures.splits())
    file = min(path.rglob("*.parquet"))
    columns, _ = parquet._columns(file, None)
    for count in (1, 10_000):
        with pytest.raises(DataError, match="is damaged, as it has not as many images as labels"):
            list(parquet._streams([file], [count], columns))
