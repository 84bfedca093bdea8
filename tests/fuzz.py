"""Damages files of every form that is read, again and again: `python -m tests.fuzz --minutes 60`.

Each round copies a good source or artifact, flips, cuts, repeats or splices bytes of one of its files, and reads it. Reading
must succeed or end in a sentence, within seconds and bounded memory. A round that does neither is printed with its seed, and
`--seed N --rounds 1` repeats it.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

from src.ground.errors import UserError
from src.sources import reading
from src.store.store import read_synthetic
from src.store.values import Record, SyntheticSet
from tests import pictures
from tests.small_run import STORE

SECONDS, MEMORY = 20, 6 * 2**30  # of one round; of the process's address space, libraries included

Form = Callable[[Path], Path]
FORMS: dict[str, Form] = {
    "folder": lambda place: pictures.write_folder(place / "images", pictures.members(pictures.splits())),
    "npz": lambda place: pictures.write_npz(place / "made.npz", pictures.splits()),
    "zip": lambda place: pictures.write_zip(place / "made.zip", pictures.members(pictures.splits())),
    "tar": lambda place: pictures.write_tar(place / "made.tar", pictures.members(pictures.splits())),
    "tgz": lambda place: pictures.write_tar(place / "made.tgz", pictures.members(pictures.splits())),
    "parquet": lambda place: pictures.write_parquet(place / "hub", pictures.splits()),
    "idx": lambda place: pictures.write_idx(place / "idx", pictures.splits()),
    "idx.gz": lambda place: pictures.write_idx(place / "packed", pictures.splits(), packed=True),
}
SAFETENSORS = "safetensors"


def damage(content: bytes, draws: random.Random) -> bytes:
    """Flip bits, cut, repeat, overwrite or splice."""
    if not content:
        return draws.randbytes(draws.randint(1, 64))
    data, start = bytearray(content), draws.randrange(len(content))
    stop = min(len(data), start + draws.choice([1, 2, 4, 8, 64, 1024]))
    kind = draws.randrange(6)
    if kind == 0:
        for _ in range(draws.choice([1, 3, 30])):
            data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        data[start:start] = data[start:stop] * draws.choice([1, 10, 1000])
    elif kind == 3:
        data[start:stop] = draws.choice([b"\x00", b"\xff", b"\x7f", b"9"]) * (stop - start)
    elif kind == 4:
        del data[start:stop]
    else:
        data[start:stop] = draws.randbytes(stop - start)
    return bytes(data)


def read(name: str, path: Path) -> None:
    if name == SAFETENSORS:
        read_synthetic(path, "make it again")
    else:
        reading.read(pictures.dataset(path, skip_broken=random.random() < 0.5), "mine")


def make(name: str, place: Path) -> Path:
    place.mkdir()
    if name != SAFETENSORS:
        return FORMS[name](place)
    value = SyntheticSet(torch.rand(4, 3, 6, 6), torch.arange(4), torch.tensor(0.01))
    STORE.data = place
    STORE.save_synthetic("run", value, Record("synthetic set", {"seed": 0}))
    return STORE.synthetic_file("run")


def one_round(seed: int, good: dict[str, Path], scratch: Path) -> tuple[str, str]:
    """The form and what became of it: read, refused, or the failure."""
    draws = random.Random(seed)
    random.seed(seed)
    name = draws.choice(sorted(good))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    path = scratch / good[name].name
    (shutil.copytree if good[name].is_dir() else shutil.copyfile)(good[name], path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    victim = draws.choice(files)
    for _ in range(draws.choice([1, 1, 1, 3])):
        victim.write_bytes(damage(victim.read_bytes(), draws))
    signal.alarm(SECONDS)
    try:
        read(name, path)
        return name, "read"
    except UserError as error:
        return name, "refused" if str(error).strip() else "refused without a word"
    except BaseException:
        return name, f"failed: {traceback.format_exc(limit=-3)}"
    finally:
        signal.alarm(0)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"{SECONDS} s are over")


def main() -> int:
    """Rounds until the time is over; exit code 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; the next has the next number")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _too_long)
    counts: Counter[tuple[str, str]] = Counter()
    end, seed = time.monotonic() + 60 * asked.minutes, asked.seed
    with tempfile.TemporaryDirectory() as folder:
        good = {name: make(name, Path(folder) / name.replace(".", "-")) for name in [*FORMS, SAFETENSORS]}
        while time.monotonic() < end and seed < asked.seed + asked.rounds:
            name, outcome = one_round(seed, good, Path(folder) / "scratch")
            counts[name, outcome.partition(":")[0]] += 1
            if outcome not in ("read", "refused"):
                print(f"seed {seed}, {name}: {outcome}", file=sys.stderr)
            seed += 1
    for (name, outcome), count in sorted(counts.items()):
        print(f"{name:12} {outcome:10} {count:8,}")
    return int(any(outcome not in ("read", "refused") for _, outcome in counts))


if __name__ == "__main__":
    sys.exit(main())
