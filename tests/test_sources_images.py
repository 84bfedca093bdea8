"""Images of every mode, size and format, and what is broken."""

from __future__ import annotations

import io
import os
import re
import struct
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from src.ground.errors import DataError
from src.io.sources import decoding, images, inspection, parquet, reading
from src.io.sources.reading import Source
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


READABLE = {  # name of the file -> how Pillow writes it
    "ppm": ("PPM", {}), "pgm": ("PPM", {}), "jfif": ("JPEG", {"quality": 95}), "JPE": ("JPEG", {"quality": 95}),
    "mpo": ("MPO", {"quality": 95}), "avif": ("AVIF", {"quality": 100}), "jp2": ("JPEG2000", {"irreversible": False}),
    "j2k": ("JPEG2000", {"irreversible": False}), "ico": ("ICO", {}), "qoi": ("QOI", {}), "sgi": ("SGI", {}),
    "dds": ("DDS", {}), "tga": ("TGA", {}), "pcx": ("PCX", {}), "dib": ("DIB", {}), "apng": ("PNG", {}), "webp": ("WEBP", {"lossless": True}),
}  # fmt: skip
SIGNED = ("PPM", "JPEG", "AVIF", "JPEG2000", "QOI", "SGI", "DDS", "PNG", "WEBP", "BMP", "TIFF", "GIF", "ICO")


@pytest.mark.parametrize("suffix", READABLE)
def test_what_pillow_can_read_is_read(suffix: str, tmp_path: Path) -> None:
    kind, options = READABLE[suffix]
    files = pictures.coded_files({"": 2}, ("a", "b"))
    files |= {f"{name}/{n}.{suffix}": encoded(pictures.coded(label, n), kind, **options)
              for label, name in enumerate("ab") for n in (2, 3)}  # fmt: skip
    found = read(pictures.write_folder(tmp_path, files))
    assert pictures.codes(found.splits["train"]) == pictures.expected(4, classes=2)
    assert (found.skipped, found.left_out) == ((), {})


@pytest.mark.parametrize("kind", SIGNED)
@pytest.mark.parametrize("packed", [False, True])
def test_files_whose_names_do_not_tell_are_known_by_their_first_bytes(kind: str, packed: bool, tmp_path: Path) -> None:
    options = {"JPEG": {"quality": 95}, "AVIF": {"quality": 100}, "JPEG2000": {"irreversible": False}}.get(kind, {})
    content = encoded(pictures.coded(0, 0), kind, **(options or ({"lossless": True} if kind == "WEBP" else {})))
    files = pictures.coded_files({"": 1}, ("a", "b"))
    files |= {"a/1": content, "a/photo.2020": content, "a/x.unknown": content, "a/readme": b"BM P1 II GIF", "a/c": content[:2]}
    found = read(pictures.write_tar(tmp_path / "made.tgz", files) if packed else pictures.write_folder(tmp_path, files))
    assert pictures.codes(found.splits["train"]) == [(0, 0, 0)] * 4 + [(1, 0, 0)]
    assert set(found.left_out) == {"a/readme", "a/c"}


HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(40)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
UNREADABLE = {
    "a.heic": (HEIC, "HEIC, which is not decoded here: convert it to PNG or JPEG"),
    "a.png": (HEIC, "HEIC, which"),
    "a": (HEIC, "HEIC, which"),
    "b.jpg": (POINTER, "a pointer of git-lfs, not the image: fetch the images with git lfs pull"),
    "c.jpg": (b"/annex/objects/SHA256E-s1--1.jpg\n", "a pointer of git-annex"),
    "d.jpg": (b"\n<!DOCTYPE html><html>", "a web page, no image: download it again"),
    "e.png": (b"<svg xmlns='x'/>", "SVG, which"),
    "f.svg": (b"", "it is empty"),
    "g.png": (b"%PDF-1.7", "a PDF document"),
    "h.png": (b"\xff\x0a\x00", "JPEG XL"),
    "i.psd": (b"8BPS\0\1", "Photoshop's format"),
    "j.eps": (b"%!PS-Adobe", "PostScript"),
    "k.nef": (encoded(Image.new("RGB", (4, 4)), "TIFF"), "a camera's raw format"),  # of which Pillow would open the thumbnail
    "l.jxl": (b"?", "JPEG XL"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_image_that_cannot_be_read_says_why(name: str, tmp_path: Path) -> None:
    content, words = UNREADABLE[name]
    folder = pictures.write_folder(tmp_path, {**pictures.coded_files({"": 2}), f"cat/{name}": content})
    with pytest.raises(DataError, match=rf"1 image can't be read, cat/{re.escape(name)} \({re.escape(words)}"):
        read(folder)
    found = read(folder, skip_broken=True)
    assert found.skipped == (f"cat/{name}",)
    assert pictures.codes(found.splits["train"]) == pictures.expected(2)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_or_split_of_which_no_image_can_be_read_says_why(split: str, tmp_path: Path) -> None:
    files = pictures.coded_files({"train": 7, "test": 2})
    lost = [path for path in files if path.startswith("train/dog/" if split == "train" else "test/")]
    folder = pictures.write_folder(tmp_path, {**files, **dict.fromkeys(lost, POINTER)})
    what = "no training image of the class 'dog'" if split == "train" else "no image of the test split"
    first = "train/dog/0.png" if split == "train" else "test/cat/0.png"
    for look in (lambda: read(folder, skip_broken=True), lambda: inspection.inspect(dataset(folder), "mine")):
        with pytest.raises(DataError) as caught:
            look()
        assert f"{what} can be read, {first} (a pointer of git-lfs, not the image: fetch" in str(caught.value)
        assert "), ...: repair " in str(caught.value)


def test_parquet_rows_with_a_path_alone_say_so(tmp_path: Path) -> None:
    made = pictures.table(X, Y)
    rows = [{"bytes": None if label == 1 else pictures.png(image), "path": f"img/{n}.png"}
            for n, (image, label) in enumerate(zip(X, Y, strict=True))]  # fmt: skip
    struct_type = made.schema.field("image").type
    pq.write_table(made.set_column(0, made.schema.field("image"), pa.array(rows, struct_type)), tmp_path / "made.parquet")
    words = r"made\.parquet row 1 \(it holds no bytes, only the path img/1\.png: write the images' bytes into the file\)"
    with pytest.raises(DataError, match=rf"12 images can't be read, .*{words}"):
        read(tmp_path / "made.parquet")
    with pytest.raises(DataError, match=rf"no training image of the class 'dog' can be read, .*{words}"):
        read(tmp_path / "made.parquet", skip_broken=True)


# -- damage to what only describes an image

NONSENSE = b"MM\0*\0\0\0\x08\x00\x05nonsense"  # the head of EXIF, and nothing that follows from it
CHUNKS = {  # of a PNG
    "exif": (b"eXIf", b"nonsense"), "half exif": (b"eXIf", NONSENSE), "profile": (b"iCCP", b"a\0\x05x"),
    "no profile": (b"iCCP", b""), "much text": (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**21))),
    "packed text": (b"zTXt", b"a\0\x07x"), "much unicode": (b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(2**21))),
    "size": (b"pHYs", b"1"), "gamma": (b"gAMA", b"1"), "animation": (b"acTL", b"1"), "frame": (b"fcTL", b"1"),
    "old exif": (b"tEXt", b"Raw profile type exif\0\nexif\n 5\nzz!"),
}  # fmt: skip
SEGMENTS = {  # of a JPEG
    "exif": (0xE1, b"Exif\0\0nonsense"), "half exif": (0xE1, b"Exif\0\0" + NONSENSE), "jfif": (0xE0, b"JFIF\0"),
    "profile": (0xE2, b"ICC_PROFILE\0"), "adobe": (0xEE, b"Adobe"), "frames": (0xE2, b"MPF\0nonsense"),
    "photoshop": (0xED, b"Photoshop 3.0\0008BIM\x03\xed"), "xmp": (0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe"),
}  # fmt: skip


def chunk(kind: bytes, data: bytes, check: int | None = None) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if check is None else check)


def turned() -> bytes:
    """EXIF of an image that must be turned by a quarter, clockwise."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    return exif.tobytes()


def corners() -> NDArray[np.uint8]:
    """An image that is another one when it is turned."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 240
    pixels[:4, :4] = 120
    return pixels


def assert_read(content: bytes, pixels: NDArray[np.uint8], capfd: pytest.CaptureFixture[str]) -> None:
    """As an image folder's, with nothing said, and to some levels."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("default")
        found = read(pictures.write_folder(Path(name), {"a/1.png": content, "b/1.png": content}))
    assert found.skipped == ()
    assert np.abs(found.splits["train"].images[0].numpy().transpose(1, 2, 0).astype(int) - pixels).max() <= 8
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("case", [*CHUNKS, "checksum"])
def test_damaged_chunks_beside_a_pngs_pixels(case: str, last: bool, capfd: pytest.CaptureFixture[str]) -> None:
    bad = chunk(b"tEXt", b"a\0b", 7) if case == "checksum" else chunk(*CHUNKS[case])
    for exif, pixels in ((b"", corners()), (chunk(b"eXIf", turned()), np.rot90(corners(), -1))):
        if exif and "exif" in case:
            continue
        plain = encoded(Image.fromarray(corners()))
        plain = plain[:33] + exif + plain[33:]
        place = len(plain) - 12 if last else 33
        assert_read(plain[:place] + bad + plain[place:], pixels, capfd)


@pytest.mark.parametrize("case", SEGMENTS)
def test_damaged_segments_beside_a_jpegs_pixels(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    marker, body = SEGMENTS[case]
    bad = bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body
    for options, pixels in (({}, corners()), ({"exif": turned()}, np.rot90(corners(), -1))):
        if options and "exif" in case:
            continue
        plain = encoded(Image.fromarray(corners()), "JPEG", quality=100, subsampling=0, **options)
        assert_read(plain[:2] + bad + plain[2:], pixels, capfd)


def test_damaged_exif_of_webp_and_avif(capfd: pytest.CaptureFixture[str]) -> None:
    image = Image.fromarray(corners())
    for exif in (b"nonsense", NONSENSE):
        assert_read(encoded(image, "WEBP", lossless=True, exif=b"Exif\0\0" + exif, xmp=b"\xff"), corners(), capfd)
    avif = encoded(image, "AVIF", quality=100, subsampling="4:4:4", exif=turned())
    start = avif.rfind(b"MM\0*")
    assert_read(avif, np.rot90(corners(), -1), capfd)  # by the file's own turn, not EXIF's
    assert_read(avif[:start] + b"zz" + avif[start + 2 :], np.rot90(corners(), -1), capfd)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("value", range(10))
def test_every_orientation_in_every_format(kind: str, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(kind, {})
    content = encoded(
        Image.fromarray(corners()), kind, exif=exif, **(options or ({"lossless": True} if kind == "WEBP" else {}))
    )
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert np.array_equal(images.decode(content, images.Shape(3, 8)), np.asarray(upright.convert("RGB")))


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
    assert (found.sizes, found.channels, len(found.broken)) == ({(6, 6): 41}, {3: 41}, 6)
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
    "numbers without images": ({"x": X, "y": Y + 1000}, "labels go up to 1002 with 36 training images"),
    "from one": ({"x": X, "y": Y + 1}, "class '0' has no training image"),
    "real numbers": ({"x": X / 255, "y": Y}, r"float64.*255 \* x"),
    "one-hot labels": ({"x": X, "y": np.eye(3)[Y]}, "one integer an image"),
    "four channels": ({"x": np.concatenate([X, X[..., :1]], axis=-1), "y": Y}, "which is none of"),
    "ambiguous": ({"x": X[:, :3, :, :], "y": Y}, r"could be \(N, H, W, C\) as well as"),
    "no train": ({"x_test": X, "y_test": Y}, "holds x_test, y_test: save the training split"),
    "images alone": ({"x_train": X}, "x_train without y_train"),
    "no images": ({"x": X[:0], "y": Y[:0], "classes": np.array(["a", "b"])}, "train split holds no image"),
    "a test class too many": ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1}, "class '3' has no training image"),
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
        "columns picture .struct.*, label .int64.: it needs images": made.rename_columns(["picture", "label"]),
        "columns image .*: it needs .*labels as integers": made.select(["image"]),
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
    file = parquet.files(path)[0]
    columns = parquet._columns(file)
    for count in (1, 10_000):
        with pytest.raises(DataError, match="is damaged, as it has not as many images as labels"):
            list(parquet._streams([file], [count], columns))
