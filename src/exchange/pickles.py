"""Files of torch.save, whoever made them: tensors in plain containers, and never any code that a file may carry.

A pickle is a program. torch's reader of weights alone runs none of it but the making of tensors, lists, tuples, dictionaries,
numbers and texts. Damage is looked for first, as torch compares no checksum and maps the file instead of reading it.
"""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from pathlib import Path

import torch
from torch import Tensor, nn

from src.ground.errors import ArtifactError

CONTENT = "data.pkl"  # the member of torch's archives that says what is in it
SCRIPT = "constants.pkl"  # the member that TorchScript's archives have beside it
LFS = b"version https://git-lfs"  # how a file begins that only says where the real one is
SAVE_AGAIN = "save plain tensors again with torch.save"


def load(path: Path) -> object:
    """What was saved; its tensors are views of the file as it lies on disk, read when they are used.

    Raises ArtifactError where the file is missing, damaged or not torch's, or asks for more than tensors in plain containers.
    """
    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(_refusal(path, str(error))) from None
    except Exception as error:  # a pickle that is whole may still be wrong in as many ways as a program
        raise ArtifactError(f"{path} can't be read ({_first_line(error)}): {SAVE_AGAIN}") from None


def is_of_torch(path: Path) -> bool:
    """Whether the file is an archive of torch.save, whatever its name says."""
    try:
        with zipfile.ZipFile(path) as archive:
            return CONTENT in _inner(archive)
    except (OSError, zipfile.BadZipFile):
        return False


def flaw(value: object) -> str | None:
    """What makes it no plain tensor of whole or real numbers that the file holds, if anything does."""
    if type(value) not in (Tensor, nn.Parameter):
        return f"an object of type {type(value).__name__}"
    assert isinstance(value, Tensor)
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_complex():
        return "a tensor of another kind than plain numbers"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # numbers that stand for many
        return f"a tensor of shape {tuple(value.shape)}, more than what the file holds of it"
    return None


def _check_archive(path: Path) -> None:
    _check_there(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive)
            damaged = archive.testzip()  # by checksum, a block at a time
    # OSError: damage may point before the file's begin; RuntimeError: it may look like encryption or like a kind of compression
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"{path} {_no_archive(path, error)}") from None
    if damaged is not None:
        raise ArtifactError(
            f"{path} is damaged, as the checksum of {damaged} does not fit: copy it again, or save it with checksums"
        )


def _no_archive(path: Path, error: Exception) -> str:
    """What a file is instead of an archive that can be read, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(len(LFS))
    if head.startswith(b"PK"):
        return f"is damaged ({_first_line(error)}): copy it again"
    if head == LFS:
        return "is a pointer of git-lfs, not the file: fetch it with git lfs pull"
    if head[:1] == b"\x80":
        remedy = "load it with the torch that made it, and save it with a newer one"
        return f"is a pickle by itself, as torch before 1.6 wrote, and not its archive of today: {remedy}"
    return "is no file of torch.save: give one, or save plain tensors with torch.save"


def _check_there(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ArtifactError(f"{path} can't be read ({error.strerror or error}): give a file of torch.save") from None


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    names = _inner(archive)
    if SCRIPT in names:
        raise ArtifactError(f"{path} holds a TorchScript module, which is code and not loaded: {SAVE_AGAIN}")
    if CONTENT not in names:
        raise ArtifactError(f"{path} is an archive, but not of torch.save, as it has no {CONTENT}: {SAVE_AGAIN}")
    if len(set(names)) < len(names):
        raise ArtifactError(f"{path} is damaged, as a part of it is there twice: copy it again")
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise ArtifactError(f"{path} was packed again with compression, as torch.save never does: {SAVE_AGAIN}")


def _inner(archive: zipfile.ZipFile) -> list[str]:
    """Names of the members below the folder that torch puts all of them in."""
    return [member.filename.partition("/")[2] for member in archive.infolist()]


def _refusal(path: Path, message: str) -> str:
    """In words, what torch's reader would not load."""
    found = re.search(r"GLOBAL (\S+)", message)
    if found:
        what = f"asks for {found[1]}, and only tensors in lists, tuples and dictionaries are loaded, as all else could run code"
        return f"{path} {what}: {SAVE_AGAIN}"
    lines = [line for line in message.splitlines() if "WeightsUnpickler error" in line] or message.splitlines()[:1]
    reason = lines[-1].rpartition("WeightsUnpickler error:")[2].strip() if lines else ""
    return f"{path} holds more than tensors in plain containers ({reason or 'no pickle of such'}): {SAVE_AGAIN}"


def _first_line(error: Exception) -> str:
    """The first sentence of what a library says."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0] or type(error).__name__
    return line.partition(". ")[0].removesuffix(".")
