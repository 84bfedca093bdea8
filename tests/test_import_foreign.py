"""Files that are damaged, of something else, or carry code: one sentence for each, and not a line of theirs is run."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from src.exchange import buffers, pickles, sets
from src.exchange.sets import Options
from src.ground.errors import UserError
from src.maths.networks import ImageShape
from src.settings.networks import ConvNet
from tests import mtt_files

SHAPE = ImageShape(3, 8, 2)


class Trap:
    """Makes a folder, if whoever reads its pickle runs what it says."""

    def __init__(self, marker: Path, caller: Callable[..., Any] = os.mkdir) -> None:
        self.marker, self.caller = marker, caller

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self.caller is os.mkdir:
            return os.mkdir, (str(self.marker),)
        if self.caller is os.system:
            return os.system, (f"mkdir {self.marker}",)
        return self.caller, (f"__import__('os').mkdir({str(self.marker)!r})",)


class Foreign(nn.Module):
    """A class of its own, as code that saves whole networks has."""


def buffer() -> list[Any]:
    spec = ConvNet(depth=1, width=4)
    return [mtt_files.trained(mtt_files.network(spec, SHAPE), SHAPE, 2)]


def held() -> dict[str, Any]:
    return {
        "images": torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        "labels": torch.tensor([0, 1]),
        "lr": 0.1,
    }


def saved(path: Path, value: Any) -> None:
    torch.save(value, path)


def legacy(path: Path, value: Any) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def pickled(path: Path, value: Any) -> None:
    path.write_bytes(pickle.dumps(value))


def read_set(path: Path) -> object:
    return sets.read(path, SHAPE, Options("pixels"))


def read_buffer(path: Path) -> object:
    return list(buffers.read([path]))


@pytest.mark.parametrize("caller", [os.mkdir, os.system, exec, eval])
@pytest.mark.parametrize("write", [saved, legacy, pickled])
@pytest.mark.parametrize("where", ["alone", "trajectory", "parameter", "dictionary", "key"])
def test_no_code_of_a_pickle_is_run(write: Any, where: str, caller: Any, tmp_path: Path) -> None:
    trap, path = Trap(tmp_path / "ran", caller), tmp_path / "x.pt"
    trajectories = buffer()
    trajectories[0][1][2] = trap
    values = {
        "alone": trap, "trajectory": [*buffer(), trap], "parameter": trajectories,
        "dictionary": {**held(), "labels": trap}, "key": {**held(), "args": [(trap,)]},
    }  # fmt: skip
    write(path, values[where])
    words = (
        r"asks for \S*(mkdir|system|exec|eval), and only tensors"
        if write is saved
        else "is a pickle by itself, as torch before 1.6 wrote"
    )
    for read in (read_set, read_buffer):
        with pytest.raises(UserError, match=words) as refusal:
            read(path)
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


def test_the_trap_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps([Trap(tmp_path / "a"), Trap(tmp_path / "b", os.system), Trap(tmp_path / "c", exec)]))
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_no_code_of_an_array_is_run(suffix: str, tmp_path: Path) -> None:
    trap, path = np.array([Trap(tmp_path / "ran")], dtype=object), tmp_path / f"x.{suffix}"
    np.save(path, trap, allow_pickle=True) if suffix == "npy" else np.savez(path, images=trap, labels=trap)
    with pytest.raises(UserError, match="holds Python objects, which are not loaded as they could run code"):
        read_set(path)
    assert not (tmp_path / "ran").exists()


def changed(path: Path, value: Any, change: Callable[[bytes], bytes]) -> None:
    torch.save(value, path)
    path.write_bytes(change(path.read_bytes()))


def flipped(place: bytes, beyond: int = 0) -> Callable[[bytes], bytes]:
    """Changes a bit behind the first place with these bytes."""

    def change(content: bytes) -> bytes:
        at = content.index(place) + beyond
        return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]

    return change


def repacked(path: Path, value: Any, **options: Any) -> None:
    """The members of torch's archive in another one."""
    torch.save(value, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    leave_out, twice, kind = options.get("without"), options.get("twice"), options.get("kind", zipfile.ZIP_STORED)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", kind) as archive:
        warnings.simplefilter("ignore")  # of the name that is there twice
        for name, content in members.items():
            if leave_out is None or not name.endswith(leave_out):
                for _ in range(2 if twice is not None and name.endswith(twice) else 1):
                    archive.writestr(name, content)


def without_checksums(path: Path, value: Any) -> None:
    """As torch saves where it is told to leave them out: nothing then tells damage from soundness."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(value, path)
    finally:
        torch.serialization.set_crc32_options(True)


def script(path: Path, _: Any) -> None:
    """An archive as TorchScript makes them, as far as it is looked at."""
    repacked(path, torch.ones(1))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/constants.pkl", b"")


PATTERN = b"\x00\x00\x80\x3f" * 4  # ones in float32

DAMAGED: dict[str, tuple[Callable[[Path, Any], object], str]] = {
    "missing": (lambda path, _: None, "can't be read|is no file"),
    "folder": (lambda path, _: path.mkdir(), "holds 0 folders with images|Is a directory"),
    "empty": (lambda path, _: path.write_bytes(b""), "is no file of torch.save"),
    "byte": (lambda path, _: path.write_bytes(b"P"), "is no file of torch.save"),
    "text": (lambda path, _: path.write_text("replay buffer"), "is no file of torch.save"),
    "page": (lambda path, _: path.write_text("<!DOCTYPE html><html>404"), "is no file of torch.save"),
    "pointer": (lambda path, _: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "a pointer of git-lfs"),
    "quarter": (lambda path, value: changed(path, value, lambda b: b[: len(b) // 4]), "is damaged .File is not a zip"),
    "half": (lambda path, value: changed(path, value, lambda b: b[: len(b) // 2]), "is damaged .File is not a zip"),
    "cut": (lambda path, value: changed(path, value, lambda b: b[:-40]), "is damaged .File is not a zip"),
    "without its head": (lambda path, value: changed(path, value, lambda b: b[200:]), "is no file of torch.save"),
    "zeros": (lambda path, value: changed(path, value, lambda b: bytes(len(b))), "is no file of torch.save"),
    "numbers": (lambda path, value: changed(path, [value, torch.ones(9)], flipped(PATTERN, 3)), "checksum of .* does not fit"),
    "pickle": (lambda path, value: changed(path, value, flipped(b"_rebuild_tensor", 1)), "checksum of .*data.pkl does not fit"),
    "packed": (lambda path, value: repacked(path, value, kind=zipfile.ZIP_DEFLATED), "packed again with compression"),
    "no content": (lambda path, value: repacked(path, value, without="data.pkl"), "not of torch.save, as it has no data.pkl"),
    "no numbers": (lambda path, value: repacked(path, value, without="data/0"), "can't be read"),
    "no version": (lambda path, value: repacked(path, value, without="version"), "can't be read"),
    "twice": (lambda path, value: repacked(path, value, twice="data/0"), "a part of it is there twice"),
    "script": (script, "holds a TorchScript module, which is code"),
    "old": (legacy, "is a pickle by itself, as torch before 1.6 wrote"),
    "raw": (pickled, "is a pickle by itself"),
    "module": (lambda path, _: torch.save(Foreign(), path), "asks for tests.test_import_foreign.Foreign, and only"),
    "arrays": (lambda path, _: torch.save([[[np.ones(3)]]], path), r"asks for numpy\.\S*_reconstruct, and only tensors"),
    "path": (lambda path, _: torch.save({"images": Path("x")}, path), r"asks for pathlib\.\S+, and only tensors"),
    "safetensors": (lambda path, _: save_file({"images": torch.ones(1)}, path), "is no file of torch.save"),
    "no checksums": (without_checksums, "checksum of .* does not fit: copy it again, or save it with checksums"),
    "npz": (lambda path, _: np.savez(path.open("wb"), images=np.ones(3)), "not of torch.save, as it has no data.pkl"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("kind", ["set", "buffer"])
def test_a_damaged_or_foreign_file_is_a_sentence(kind: str, name: str, tmp_path: Path) -> None:
    make, words = DAMAGED[name]
    make(tmp_path / "x.pt", buffer() if kind == "buffer" else held())
    with pytest.raises(UserError, match=words) as refusal:
        (read_buffer if kind == "buffer" else read_set)(tmp_path / "x.pt")
    assert "\n" not in str(refusal.value)
    assert "x.pt" in str(refusal.value)


def arrays(images: Any) -> Callable[[Path], object]:
    return lambda path: np.savez(path, images=images, labels=np.arange(2))


def header(path: Path, shape: str) -> None:
    """A .npy file that says it holds numbers of this shape, and ends."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())


def cut(path: Path, write: Callable[[Path], object], keep: float) -> None:
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


def safe(path: Path) -> None:
    save_file({name: torch.as_tensor(value) for name, value in held().items()}, path)


IMAGES = np.random.default_rng(0).random((2, 3, 8, 8))

OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "x.csv": (lambda path: path.write_text("1,2"), "is of no kind that is read: give a .pt file"),
    "x": (lambda path: path.write_bytes(b"\x00" * 100), "is of no kind that is read"),
    "none.npy": (lambda path: None, "is no file"),
    "empty.npy": (lambda path: path.write_bytes(b""), "is damaged or no file of NumPy"),
    "text.npy": (lambda path: path.write_text("images"), "is damaged or no file of NumPy"),
    "cut.npy": (lambda path: cut(path, lambda p: np.save(p, IMAGES), 0.7), "is damaged or no file of NumPy"),
    "huge.npy": (lambda path: header(path, "(1000000000000000,)"), "is damaged or no file of NumPy"),
    "negative.npy": (lambda path: header(path, "(-3,)"), "is damaged or no file of NumPy"),
    "call.npy": (lambda path: header(path, "(exit(),)"), "is damaged or no file of NumPy"),
    "texts.npy": (lambda path: np.save(path, np.array(["a"])), "values of type <U1, which are no images"),
    "complex.npy": (lambda path: np.save(path, IMAGES * 1j), "values of type complex128"),
    "fields.npy": (lambda path: np.save(path, np.zeros(3, [("a", "f4")])), "values of type"),
    "truth.npy": (lambda path: np.save(path, IMAGES > 0.5), "values of type bool"),
    "empty.npz": (lambda path: path.write_bytes(b""), "is damaged or no file of NumPy"),
    "text.npz": (lambda path: path.write_text("images"), "is damaged or no file of NumPy"),
    "cut.npz": (lambda path: cut(path, arrays(IMAGES), 0.5), "is damaged or no file of NumPy"),
    "flip.npz": (lambda path: (arrays(IMAGES)(path), path.write_bytes(flipped(b"<f8", 300)(path.read_bytes()))), "damaged"),
    "none.npz": (lambda path: np.savez(path), "holds nothing, none of which is a name for images"),
    "words.npz": (lambda path: np.savez(path, a=IMAGES), "holds 'a', none of which"),
    "texts.npz": (arrays(np.array(["a", "b"])), "images in .* holds values of type <U1"),
    "empty.safetensors": (lambda path: path.write_bytes(b""), "is damaged or no safetensors file"),
    "text.safetensors": (lambda path: path.write_text("images are here"), "is damaged or no safetensors file"),
    "cut.safetensors": (lambda path: cut(path, safe, 0.6), "is damaged or no safetensors file"),
    "words.safetensors": (lambda path: save_file({"a": torch.ones(1)}, path), "holds 'a', none of which"),
    "ours.safetensors": (lambda path: save_file(held() | {"lr": torch.ones(1)}, path, {"ast": "{"}), "no record of what"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_that_are_no_set(name: str, tmp_path: Path) -> None:
    make, words = OTHERS[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=words) as refusal:
        read_set(tmp_path / name)
    assert "\n" not in str(refusal.value)
    assert name in str(refusal.value)


def test_sound_files_are_read(tmp_path: Path) -> None:
    """As those above would be, without their damage: by any name, and with another alignment of the archive."""
    for name in ("x.pt", "x.weights", "x"):
        torch.save(held(), tmp_path / name)
        assert isinstance(read_set(tmp_path / name), sets.Imported)
    torch.save(buffer(), tmp_path / "b.pt")
    assert isinstance(read_buffer(tmp_path / "b.pt"), list)
    repacked(tmp_path / "b.pt", buffer())
    (found,) = buffers.read([tmp_path / "b.pt"])
    assert torch.equal(found.theta[0], torch.cat([p.reshape(-1) for p in buffer()[0][0]]))
    assert pickles.is_of_torch(tmp_path / "b.pt")
    assert not pickles.is_of_torch(tmp_path / "nowhere")


def test_what_is_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    """Tensors of a set are no views of the file."""
    path, made = tmp_path / "x.pt", held()
    torch.save(made, path)
    found = sets.read(path, SHAPE, Options("pixels")).value
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(found.pixels, made["images"])
    assert isinstance(found.labels, Tensor)
