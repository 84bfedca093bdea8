"""Downloads of known data sets, checked by their digests, and put in place in one step."""

from __future__ import annotations

import http.client
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from src.ground.errors import DataError
from src.process import progress
from src.sources import archives, imagenet
from src.sources.trees import hidden

SILENCE_SECONDS = 60.0  # a server that says nothing for so long is taken to be out of reach
# MD5 of Tiny ImageNet as in several public loaders of it; of Imagenette as in torchvision.datasets.Imagenette; of Imagewoof
# as in public loaders that have the same digest of Imagenette as torchvision
ARCHIVES = {
    "tiny_imagenet": (f"http://cs231n.stanford.edu/{imagenet.TINY}.zip", "90528d7ca1a48142e341f4ef8d21d0de"),
    "imagenette": (
        f"https://s3.amazonaws.com/fast-ai-imageclas/{imagenet.archive_of('imagenette')}",
        "e793b78cc4c9e9a4ccc0c1155377a412",
    ),
    "imagewoof": (
        f"https://s3.amazonaws.com/fast-ai-imageclas/{imagenet.archive_of('imagewoof')}",
        "3d200a7be99704a0d7509be2a9fbfe15",
    ),
    # GitHub packs a tag anew at any time, so that it has no lasting digest; each wav file is checked when it is read
    "fsdd": ("https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip", None),
}
SPLIT_KEYWORDS = {"SVHN": ({"split": "train"}, {"split": "test"})}  # torchvision downloads SVHN split by split
CLASSES: Mapping[str, str] = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "svhn": "SVHN",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "stl10": "STL10",
}  # of torchvision.datasets
PACKED = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz", "stl10": "stl10_binary.tar.gz"}


def can_fetch(name: str) -> bool:
    return name in CLASSES or name in ARCHIVES


def fetch(name: str, folder: Path) -> None:
    """Download the known data set into `folder`, which is made, whole or not at all. Raises DataError."""
    progress.say(f"{name}: not on this machine, downloading it to {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(folder), _bounded_silence(), _temporary(folder) as temporary:
            if folder.is_dir() and not all(hidden(path.name) for path in folder.iterdir()):
                return  # another data set of this source was faster
            _download(name, temporary)
            temporary.chmod(0o755)
            if folder.is_dir():  # with hidden files alone, as git keeps an empty one by
                for path in temporary.iterdir():
                    path.replace(folder / path.name)
            else:
                temporary.replace(folder)
    except (OSError, RuntimeError, http.client.HTTPException, *archives.DAMAGE) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise DataError(f"{name} is not on this machine, and can't be downloaded ({reason})") from None


def is_archive_of(name: str, path: Path) -> bool:
    """Whether the file bears the name of the archive that the known data set is published as."""
    packed = PACKED.get(name) or (Path(ARCHIVES[name][0]).name if name in ARCHIVES else None)
    return path.name == packed and path.is_file()


def is_packed(name: str, folder: Path) -> bool:
    """Whether the folder holds the archive that the known data set is published as, put there by hand."""
    return name in PACKED and (folder / PACKED[name]).is_file()


def unpack(name: str, folder: Path) -> None:
    """Unpack such an archive beside itself. Raises DataError where it is not the published one."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity, extract_archive

    archive, published = folder / PACKED[name], getattr(datasets, CLASSES[name])
    if not check_integrity(str(archive), published.tgz_md5):
        raise DataError(f"{archive} is damaged or not the published archive, and is not opened: download it again")
    try:
        with _alone(archive), _temporary(archive) as temporary:
            if (folder / published.base_folder).is_dir():
                return  # another data set of this source was faster
            extract_archive(str(archive), str(temporary))
            (temporary / published.base_folder).replace(folder / published.base_folder)
    except PermissionError:
        raise DataError(
            f"{archive} can't be unpacked beside itself, as {folder} is read-only: unpack it yourself, or permit writing"
        ) from None


def _download(name: str, folder: Path) -> None:
    """As torchvision does it, which checks the digest of each file."""
    from torchvision import datasets
    from torchvision.datasets.utils import download_url, extract_archive

    if name in ARCHIVES:
        url, md5 = ARCHIVES[name]
        download_url(url, str(folder), md5=md5)
        if name == "fsdd":
            extract_archive(str(folder / url.rsplit("/", 1)[1]), str(folder))
        return
    for keywords in SPLIT_KEYWORDS.get(CLASSES[name], ({},)):
        getattr(datasets, CLASSES[name])(str(folder), download=True, **keywords)


@contextmanager
def _bounded_silence() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process at a time brings what becomes of `target`; those that wait look whether it is there before they do."""
    lock = target.parent / f".{target.name}.lock"
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A folder beside `target`, removed with what is left in it, as those of killed processes are: who calls is alone."""
    for left_over in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(left_over, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
