"""Which files are images: by their names, else by their first bytes; and in words why one is none that can be read.

Only formats that Pillow decodes by itself are opened: none for which it calls another program (EPS, WMF), and none of other
packages' plug-ins. Those without a signature of their own are opened only where the file's name says so.
"""

from __future__ import annotations

import io
from pathlib import PurePosixPath

from PIL import Image

SURE = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000", "ICNS", "QOI", "DDS")  # nothing else begins as they do
FORMATS = (*SURE, "BMP", "PPM", "ICO", "SGI", "SUN")
SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pbm",
    ".pnm", ".pfm", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ico", ".icns", ".qoi", ".sgi", ".bw",
    ".rgb", ".rgba", ".dds", ".ras",
})  # fmt: skip
BY_SUFFIX = {
    ".tga": "TGA", ".icb": "TGA", ".vda": "TGA", ".vst": "TGA", ".dib": "DIB", ".pcx": "PCX", ".dcx": "DCX", ".cur": "CUR",
    ".xbm": "XBM", ".xpm": "XPM", ".msp": "MSP", ".fli": "FLI", ".flc": "FLI", ".pcd": "PCD", ".pxr": "PIXAR",
    ".blp": "BLP",
}  # fmt: skip
RAW = frozenset({  # of cameras
    ".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".sr2", ".srf", ".srw", ".orf", ".rw2", ".raf", ".pef", ".raw",
    ".3fr", ".erf", ".kdc", ".dcr", ".mrw", ".x3f", ".iiq", ".rwl",
})  # fmt: skip
CONVERT = "which is not decoded here: convert it to PNG or JPEG"
UNREADABLE = {
    ".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".jxl": "JPEG XL", ".psd": "Photoshop's format", ".xcf": "GIMP's format",
    ".svg": "SVG", ".svgz": "SVG", ".eps": "PostScript", ".wmf": "Windows Metafile", ".emf": "Windows Metafile",
    ".exr": "OpenEXR", ".fits": "FITS", ".fit": "FITS", ".djvu": "DjVu", **dict.fromkeys(RAW, "a camera's raw format"),
}  # fmt: skip
NO_IMAGES = frozenset({  # what often lies beside images, which need not be opened then
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".ini", ".md", ".html", ".htm", ".pdf", ".doc", ".xls", ".py",
    ".ipynb", ".log", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".npy", ".npz", ".pkl", ".pt", ".h5",
    ".hdf5", ".mat", ".parquet", ".db", ".dvc", ".mp4", ".avi", ".mov", ".mkv",
})  # fmt: skip
HEAD = 4096  # bytes that are read of a file whose name does not tell
HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
FOREIGN = {b"8BPS": "Photoshop's format", b"\xff\x0a": "JPEG XL", b"\x00\x00\x00\x0cJXL ": "JPEG XL", b"%!PS": "PostScript"}
NO_IMAGE = {  # what lies under an image's name at times, in lower case
    b"version https://git-lfs.github.com/spec/": "a pointer of git-lfs, not the image: fetch the images with git lfs pull",
    b"/annex/objects/": "a pointer of git-annex, not the image: fetch the images with git annex get",
    b"<!doctype html": "a web page, no image: download it again",
    b"<html": "a web page, no image: download it again",
    b"%pdf": "a PDF document, no image",
}

Image.init()  # once and for all: Pillow would import its formats with the first file that is of none


def by_name(path: str) -> bool | None:
    """Whether the file is an image, readable or not; None where its name does not tell."""
    suffix = _suffix(path)
    if suffix in SUFFIXES or suffix in BY_SUFFIX or suffix in UNREADABLE:
        return True
    return False if suffix in NO_IMAGES else None


def by_content(head: bytes) -> bool:
    """Whether the first bytes of a file are an image's, readable or not."""
    if _foreign(head):
        return True
    if any(_begins(kind, head) for kind in SURE):
        return True
    try:  # the other signatures are two or three letters
        return any(_begins(kind, head) for kind in FORMATS) and bool(Image.open(io.BytesIO(head), formats=FORMATS))
    except Exception:  # whatever Pillow raises on bytes that are something else
        return False


def to_try(path: str) -> tuple[str, ...]:
    """Pillow's formats that a file of this name may be of; none for raw files, of which Pillow would open the thumbnail."""
    suffix = _suffix(path)
    if suffix in RAW:
        return ()
    return (*FORMATS, BY_SUFFIX[suffix]) if suffix in BY_SUFFIX else FORMATS


def reason(head: bytes, path: str) -> str:
    """Why a file that is of none of the formats is no image that can be read."""
    if not head:
        return "it is empty"
    text = head.lstrip().lower()
    known = _foreign(head) or UNREADABLE.get(_suffix(path))
    no_image = next((why for start, why in NO_IMAGE.items() if text.startswith(start)), None)
    return no_image or (f"{known}, {CONVERT}" if known else "no image of a known format")


def _foreign(head: bytes) -> str | None:
    """The image format that the bytes begin, where it is one that is not decoded."""
    if head[4:8] == b"ftyp" and head[8:12] in HEIF:
        return "HEIC"
    if head.lstrip().startswith((b"<svg", b"<?xml")) and b"<svg" in head:
        return "SVG"
    return next((kind for start, kind in FOREIGN.items() if head.startswith(start)), None)


def _begins(kind: str, head: bytes) -> bool:
    _, accept = Image.OPEN[kind]
    return bool(accept and accept(head[:16]) is True)


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.casefold()
