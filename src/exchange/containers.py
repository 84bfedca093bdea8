"""A synthetic set as somebody saved it: the file's images, labels and learning rate as tensors, by the names they usually have.

Read are torch.save's files, NumPy's .npy and .npz, and safetensors; a folder of images is for `folders`. Of lone images, as MTT
saves them (images_best.pt), the labels and the learning rate may be files beside them (labels_best.pt, lr_best.pt).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from src.exchange import pickles
from src.ground.errors import ArtifactError
from src.store import files
from src.store.store import read_synthetic
from src.store.tensors import METADATA_KEY

IMAGES = ("images", "image", "imgs", "pixels", "image_syn", "images_syn", "syn_images", "images_train", "x_train", "x", "data")
LABELS = (
    "labels", "label", "label_syn", "labels_syn", "syn_labels", "labels_train", "soft_labels", "y_train", "y", "targets",
)  # fmt: skip
RATES = ("syn_lr", "lr", "learning_rate", "alpha", "lr_net")
LONE = ""  # the name of a tensor that has none
TORCH, NUMPY, ARCHIVE, SAFE = frozenset({".pt", ".pth", ".bin"}), ".npy", ".npz", ".safetensors"
KINDS = "a .pt file of torch.save, .npy, .npz, .safetensors, or a folder of images with a folder a class"
PLAIN = "save plain arrays of numbers"

COMMON = frozenset({  # types of numbers
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
})  # fmt: skip
UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})  # which torch can store, and little else

Named = dict[str, Tensor]


@dataclass(frozen=True)
class Contents:
    """What was found, as it was saved."""

    title: str
    images: Tensor
    labels: Tensor | None
    syn_lr: Tensor | None
    notes: tuple[str, ...] = ()
    in_pixels: bool = False  # for sure, as a set of this repository is


def read(path: Path, labels_file: Path | None = None) -> Contents:
    """Raises ArtifactError where a file is missing, damaged, of another kind, or holds nothing that is named as images are."""
    if _is_ours(path):
        ours = read_synthetic(path, "copy it again")
        found = Contents(str(path), ours.pixels, ours.labels, ours.syn_lr, in_pixels=True)
    else:
        found = _named(path, tensors(path))
    if labels_file is not None:
        found = replace(found, labels=_lone(labels_file, LABELS, "labels"))
    found = _with_neighbours(path, found)
    labels = None if found.labels is None else _common(found.labels, f"labels of {path}")
    syn_lr = None if found.syn_lr is None else _common(found.syn_lr, f"learning rates of {path}")
    return replace(found, images=_common(found.images, f"images of {path}"), labels=labels, syn_lr=syn_lr)


def tensors(path: Path) -> Named:
    """All tensors of a file by name; a lone one has the name ''."""
    if not path.is_file():
        raise ArtifactError(f"{path} is no file: give {KINDS}")
    suffix = path.suffix.casefold()
    if suffix == SAFE:
        return _of_safetensors(path)
    if suffix == NUMPY:
        return {LONE: _tensor(_array(path), str(path))}
    if suffix == ARCHIVE:
        return _of_archive(path)
    if suffix in TORCH or pickles.is_of_torch(path):
        return _of_torch(path, pickles.load(path))
    raise ArtifactError(f"{path} is of no kind that is read: give {KINDS}")


def _common(value: Tensor, title: str) -> Tensor:
    """In a type that torch can calculate with."""
    if value.dtype in UNSIGNED:
        return value.to(torch.int64)
    if value.dtype not in COMMON:
        raise ArtifactError(
            f"{title} are of type {str(value.dtype).removeprefix('torch.')}: {PLAIN} of float32, or of integers"
        )
    return value


def _named(path: Path, found: Named) -> Contents:
    if found.keys() == {LONE}:
        return Contents(str(path), found[LONE], None, None)
    names = [_chosen(found, words, path) for words in (IMAGES, LABELS, RATES)]
    if names[0] is None:
        holds = ", ".join(map(repr, found)) or "nothing"
        raise ArtifactError(f"{path} holds {holds}, none of which is a name for images: call them 'images', 'labels' and 'lr'")
    left = [name for name in found if name not in names]
    notes = (f"left out of {path}: {', '.join(left)}",) if left else ()
    images, labels, syn_lr = (found[name] if name is not None else None for name in names)
    assert images is not None
    return Contents(str(path), images, labels, syn_lr, notes)


def _chosen(found: Named, words: Sequence[str], path: Path) -> str | None:
    """The name of the one tensor that is named so."""
    names = [name for name in found if name.casefold() in words]
    if len(names) > 1:
        raise ArtifactError(f"{path} holds both {names[0]!r} and {names[1]!r}, which say the same: leave one of them out")
    return names[0] if names else None


def _lone(path: Path, words: Sequence[str], what: str) -> Tensor:
    """The tensor of a file that holds nothing else, or one of the names."""
    found = tensors(path)
    name = LONE if found.keys() == {LONE} else _chosen(found, words, path)
    if name is None:
        raise ArtifactError(
            f"{path} holds {', '.join(map(repr, found)) or 'nothing'}, but is to hold {what}: name the right file"
        )
    return found[name]


def _with_neighbours(path: Path, found: Contents) -> Contents:
    """Labels and learning rate from the files that MTT and DATM put beside images_best.pt, where nothing else says them."""
    labels, syn_lr = (path.with_name(path.name.replace("_zca", "").replace("images", word, 1)) for word in ("labels", "lr"))
    if found.labels is None and labels != path and labels.is_file():
        found = replace(
            found, labels=_lone(labels, LABELS, "labels"), notes=(*found.notes, f"the labels are those of {labels}")
        )
    if found.syn_lr is None and syn_lr != path and syn_lr.is_file():
        notes = (*found.notes, f"the learning rate is that of {syn_lr}")
        found = replace(found, syn_lr=_lone(syn_lr, RATES, "the learning rate"), notes=notes)
    return found


def _is_ours(path: Path) -> bool:
    """Whether it is a safetensors file of this repository."""
    try:
        with files.opened(path) as file:
            return METADATA_KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _of_safetensors(path: Path) -> Named:
    try:
        with files.opened(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is damaged or no safetensors file ({error}): copy it again") from None


def _of_torch(path: Path, value: object) -> Named:
    """Of a tensor, a pair of images and labels, or a dictionary; of DC's, the one set in it."""
    if isinstance(value, Tensor):
        return {LONE: _copied(path, value)}
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(one, Tensor) for one in value):
        value = dict(zip(("images", "labels"), value, strict=True))
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = _of_condensation(path, value["data"])
    if not isinstance(value, Mapping):
        wanted = "a tensor, or a dictionary with 'images', 'labels' and 'lr'"
        raise ArtifactError(f"{path} holds an object of type {type(value).__name__}: save {wanted}")
    found = {str(name): _number(path, one) for name, one in value.items()}
    return {name: one for name, one in found.items() if one is not None}


def _of_condensation(path: Path, sets: Sequence[object]) -> Mapping[str, object]:
    """DC's and DSA's res_*.pt: a list of pairs, one for each time that it was run."""
    if len(sets) != 1 or not isinstance(sets[0], list | tuple) or len(sets[0]) != 2:
        raise ArtifactError(f"{path} holds {len(sets)} sets under 'data': save one of them as 'images' and 'labels'")
    return dict(zip(("images", "labels"), sets[0], strict=True))


def _number(path: Path, value: object) -> Tensor | None:
    if isinstance(value, Tensor):
        return _copied(path, value)
    return torch.tensor(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _copied(path: Path, value: Tensor) -> Tensor:
    """The tensor, which was a view of the file, in memory."""
    flaw = pickles.flaw(value)
    if flaw:
        raise ArtifactError(f"{path} holds {flaw}: save a plain tensor")
    return value.detach().clone()


def _array(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)  # else NumPy takes what it does not know for a pickle
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]  # a file cut short is noticed
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise _numpy_error(path, error) from None


def _of_archive(path: Path) -> Named:
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:  # zipfile, as NumPy does not insist on one
            return {name: _tensor(file[name], f"{name} in {path}") for name in file.files}
    # RuntimeError: damage may look like a kind of compression or like encryption
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, MemoryError) as error:
        raise _numpy_error(path, error) from None


def _numpy_error(path: Path, error: Exception) -> ArtifactError:
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return ArtifactError(f"{path} holds Python objects, which are not loaded as they could run code: {PLAIN}")
    return ArtifactError(f"{path} is damaged or no file of NumPy ({error}): save it again with numpy.save or numpy.savez")


def _tensor(array: NDArray[Any], title: str) -> Tensor:
    """A copy of the array; raises ArtifactError unless it holds whole or real numbers of a common type."""
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise ArtifactError(f"{title} holds values of type {array.dtype}, which are no images or labels: {PLAIN}")
    kind = np.dtype(np.int64) if array.dtype.kind == "u" and array.dtype.itemsize > 1 else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=kind))
