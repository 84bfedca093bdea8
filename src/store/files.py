"""Files written whole or not at all, and their digests, which are the ones DVC records."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.ground.errors import ArtifactError

if TYPE_CHECKING:  # what writes text alone, as `init` and `preset` do, waits for no torch
    from torch import Tensor

UNFILLED = ".unfilled-"  # how the name of a folder begins that is being written
CHECKSUM = "sha256"  # the key of a checksum, beside what it is the checksum of


def write_atomically(path: Path, write: Callable[[Path], None], folder: Path | None = None) -> None:
    """Let `write` fill a temporary file, make it durable, and put it in place in one step.

    The temporary file lies beside `path`, or in `folder` of the same file system: a killed process leaves it there, and a
    folder that is an artifact as a whole must not hold it. The next write of the same path removes it.
    Raises ArtifactError where the file system refuses; `path` then is as it was.
    """
    temporary: Path | None = None
    handle: int | None = None  # its lock tells other processes that it is being written
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = folder or path.parent
        for left_over in folder.glob(f".{path.name}.*.tmp"):
            if is_abandoned(left_over):
                left_over.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        write(temporary)
        temporary.chmod(0o644)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ArtifactError(
            f"{path} can't be written ({error.strerror or error}): free space or permit writing there"
        ) from error
    finally:
        if handle is not None:
            os.close(handle)
        if temporary is not None:
            with contextlib.suppress(OSError):  # a folder that became read-only; the error above says more
                temporary.unlink(missing_ok=True)


def is_abandoned(path: Path) -> bool:
    """Whether no process is writing this file."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """An empty folder, which may be new, gets what the block writes to the folder that this yields, when all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=UNFILLED, suffix=".tmp"))
    try:
        yield temporary
        for path in sorted(temporary.iterdir()):
            path.rename(folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_empty(folder: Path) -> bool:
    """Whether nothing is in it but what a killed process had half written, which is deleted."""
    for left_over in folder.glob(f"{UNFILLED}*.tmp"):
        shutil.rmtree(left_over)
    return not any(folder.iterdir())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], folder: Path | None = None) -> None:
    """A safetensors file, written atomically."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(file: Path) -> None:
        try:
            save_file(ready, file, metadata=dict(metadata))
        except SafetensorError as error:  # what the file system said, in its library's words
            raise OSError(str(error)) from None

    write_atomically(path, write, folder)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: _fill(file, text))


def _fill(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8", newline="\n")


def json_text(value: Any) -> str:
    """As `write_json` writes it."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value))


def read_json(path: Path, remedy: str) -> Any:
    """The value of a JSON file; raises ArtifactError, with the remedy, where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: {remedy}") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} can't be read as JSON ({error}): {remedy}") from None


def write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> None:
    """A table whose columns are the first row's keys, or `columns` where there is no row.

    Real numbers are written with nine digits, which restore a float32 exactly.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_text(path, text.getvalue())


def read_csv(path: Path, remedy: str) -> list[dict[str, str]]:
    """The rows of a table; raises ArtifactError, with the remedy, where it is missing or damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: {remedy}") from None
    except (OSError, ValueError, csv.Error) as error:
        raise ArtifactError(f"{path} can't be read as CSV ({error}): {remedy}") from None


def read_numbers(path: Path, columns: Sequence[str], remedy: str) -> list[dict[str, float]]:
    """These columns of a table of at least one row; raises ArtifactError where one is missing, or holds no finite number."""
    rows = read_csv(path, remedy)
    with understood(path, remedy):
        found = [{column: float(row[column]) for column in columns} for row in rows]
        if not found or not all(math.isfinite(number) for row in found for number in row.values()):
            raise ValueError("it lacks finite numbers")
    return found


@contextlib.contextmanager
def understood(path: Path, remedy: str) -> Iterator[None]:
    """Around what makes sense of a file's content; raises ArtifactError, with the remedy, where it makes none."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error!r}): {remedy}") from None


def checksum(value: Any, tensors: Mapping[str, Tensor] | None = None) -> str:
    """SHA-256 of a JSON value and tensors, so that not a bit of either changes unseen."""
    import torch

    found = hashlib.sha256(json.dumps(value, sort_keys=True).encode())
    for name, tensor in sorted((tensors or {}).items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the checksum of all that it holds."""
    return {**value, CHECKSUM: checksum(value)}


def unsealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """What was sealed; raises ValueError where it is not as it was."""
    rest = dict(value)
    if rest.pop(CHECKSUM, None) != checksum(rest):
        raise ValueError("its checksum does not fit")
    return rest


def opened(path: Path) -> Any:
    """A safetensors file, opened; raises FileNotFoundError where there is none, SafetensorError where it is damaged.

    Raises ArtifactError where it is there and can't be opened, which its library calls a missing file too.
    """
    from safetensors import safe_open

    try:
        path.open("rb").close()
    except (FileNotFoundError, IsADirectoryError):
        raise
    except OSError as error:
        raise ArtifactError(
            f"{path} can't be opened ({error.strerror}): permit reading it, or raise the limit of open files (ulimit -n)"
        ) from None
    return safe_open(path, framework="pt")


def held(file: Any) -> dict[str, Tensor]:
    """All tensors of a file that safetensors has opened, those of real numbers in memory of torch's own.

    As they lie in the file they are at odd addresses, and a product of matrices rounds by where these lie; whole numbers stay.
    """
    found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    return {name: tensor.clone() if tensor.is_floating_point() else tensor for name, tensor in found.items()}


def text_digest(text: str) -> str:
    """What `digest` gives for a file of this text."""
    return hashlib.md5(text.encode()).hexdigest()


def digest(path: Path) -> str:
    """MD5 of a file; of a folder, of the sorted list of its files' digests but hidden ones, plus '.dir', as in dvc.lock."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    entries = [{"md5": digest(p), "relpath": p.relative_to(path).as_posix()} for p in files]
    entries.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"
