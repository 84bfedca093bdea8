"""Formats of images: which are read, why others can't be, and that damage to what only describes an image does no harm."""

from __future__ import annotations

import io
import re
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from src.ground.errors import DataError
from src.sources import images, inspection, reading
from src.sources.reading import Source
from tests import pictures
from tests.pictures import dataset


def read(path: Path | str, **settings: object) -> Source:
    return reading.read(dataset(path, **settings), "mine")


READABLE = {  # name of the file -> how Pillow writes it
    "ppm": ("PPM", {}), "pgm": ("PPM", {}), "jfif": ("JPEG", {"quality": 95}), "JPE": ("JPEG", {"quality": 95}),
    "mpo": ("MPO", {"quality": 95}), "avif": ("AVIF", {"quality": 100}), "jp2": ("JPEG2000", {"irreversible": False}),
    "j2k": ("JPEG2000", {"irreversible": False}), "ico": ("ICO", {}), "qoi": ("QOI", {}), "sgi": ("SGI", {}),
    "dds": ("DDS", {}), "tga": ("TGA", {}), "pcx": ("PCX", {}), "dib": ("DIB", {}), "apng": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True}),
}  # fmt: skip
SIGNED = ("PPM", "JPEG", "AVIF", "JPEG2000", "QOI", "SGI", "DDS", "PNG", "WEBP", "BMP", "TIFF", "GIF", "ICO")


@pytest.mark.parametrize("suffix", READABLE)
def test_what_pillow_can_read_is_read(suffix: str, tmp_path: Path) -> None:
    kind, options = READABLE[suffix]
    files = pictures.coded_files({"": 2}, ("a", "b"))
    files |= {f"{name}/{n}.{suffix}": pictures.file_of(pictures.coded(label, n), kind, **options)
              for label, name in enumerate("ab") for n in (2, 3)}  # fmt: skip
    found = read(pictures.write_folder(tmp_path, files))
    assert pictures.codes(found.splits["train"]) == pictures.expected(4, classes=2)
    assert (found.skipped, found.left_out) == ((), {})


@pytest.mark.parametrize("kind", SIGNED)
@pytest.mark.parametrize("packed", [False, True])
def test_files_whose_names_do_not_tell_are_known_by_their_first_bytes(kind: str, packed: bool, tmp_path: Path) -> None:
    options = {"JPEG": {"quality": 95}, "AVIF": {"quality": 100}, "JPEG2000": {"irreversible": False}}.get(kind, {})
    content = pictures.file_of(pictures.coded(0, 0), kind, **(options or ({"lossless": True} if kind == "WEBP" else {})))
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
    "k.nef": (pictures.file_of(Image.new("RGB", (4, 4)), "TIFF"), "a camera's raw format"),  # Pillow opens its thumbnail
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
    x, y = pictures.splits(names=("train",))["train"]
    made = pictures.table(x, y)
    rows = [{"bytes": None if label == 1 else pictures.png(image), "path": f"img/{n}.png"}
            for n, (image, label) in enumerate(zip(x, y, strict=True))]  # fmt: skip
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
        plain = pictures.file_of(Image.fromarray(corners()))
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
        plain = pictures.file_of(Image.fromarray(corners()), "JPEG", quality=100, subsampling=0, **options)
        assert_read(plain[:2] + bad + plain[2:], pixels, capfd)


def test_damaged_exif_of_webp_and_avif(capfd: pytest.CaptureFixture[str]) -> None:
    image = Image.fromarray(corners())
    for exif in (b"nonsense", NONSENSE):
        assert_read(pictures.file_of(image, "WEBP", lossless=True, exif=b"Exif\0\0" + exif, xmp=b"\xff"), corners(), capfd)
    avif = pictures.file_of(image, "AVIF", quality=100, subsampling="4:4:4", exif=turned())
    start = avif.rfind(b"MM\0*")
    assert_read(avif, np.rot90(corners(), -1), capfd)  # by the file's own turn, not EXIF's
    assert_read(avif[:start] + b"zz" + avif[start + 2 :], np.rot90(corners(), -1), capfd)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_orientation_before_the_damage_is_applied(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A directory that says two entries and breaks off in the second."""
    exif = b"Exif\0\0" + struct.pack("<2sHIHHHIHH", b"II", 42, 8, 2, 0x0112, 3, 1, 6, 0) + b"\x0f\x01"
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    assert_read(pictures.file_of(Image.fromarray(corners()), kind, exif=exif, **options), np.rot90(corners(), -1), capfd)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("value", range(10))
def test_every_orientation_in_every_format(kind: str, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(kind, {})
    content = pictures.file_of(
        Image.fromarray(corners()), kind, exif=exif, **(options or ({"lossless": True} if kind == "WEBP" else {}))
    )
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert np.array_equal(images.decode(content, images.Shape(3, 8)), np.asarray(upright.convert("RGB")))


def test_arrays_of_one_source_have_one_order_of_classes(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 0, 1])
    for split, classes in (("train", ["cat", "dog"]), ("test", ["dog", "cat"])):
        np.savez(tmp_path / f"{split}.npz", images=images, labels=labels, classes=np.array(classes))
    with pytest.raises(DataError, match="names classes otherwise than a file before it"):
        read(tmp_path)
