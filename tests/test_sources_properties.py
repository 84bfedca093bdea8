"""Over made sources of every form, `init` accepts exactly what `prepare` can do, and refuses in one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from src.ground.errors import UserError
from src.settings import resolved
from src.settings.params import Params, load
from src.sources.trees import natural
from src.stages import init, prepare
from tests import pictures
from tests.imports import ROOT
from tests.small_run import STORE

SIZE, ROUNDS = 8, 48
SPLITS = (("train",), ("train", "test"), ("train", "val", "test"))


@dataclass(frozen=True)
class Row:
    """One image: its class and its number in it; a broken one can't be read."""

    label: int | str
    number: int
    broken: bool

    def pixels(self, place: int) -> np.ndarray:
        """Class and number as colours; `place` is that of the class."""
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        image[..., 0], image[..., 1] = place, self.number
        return image

    def content(self, place: int) -> bytes:
        return b"no image" if self.broken else pictures.png(self.pixels(place))


Splits = dict[str, list[Row]]


def drawn(rng: np.random.Generator, texts: bool) -> Splits:
    """One to five classes of few images each, some broken; a test split may have a class that training lacks."""
    kinds: Sequence[int | str] = ("b", "a", "kind 9", "kind 10", "é", "10", "9") if texts else range(300)
    labels = [
        kinds[k] for k in rng.choice(len(kinds), rng.choice([1, 2, 3, 4, 5], p=[0.04, 0.24, 0.24, 0.24, 0.24]), replace=False)
    ]
    splits: Splits = {}
    for split in SPLITS[rng.integers(len(SPLITS))]:
        rows = []
        for label in labels:
            count = int(rng.integers(1, 4) if rng.random() < 0.1 else rng.integers(4, 12))
            broken = int(rng.choice([0, 1, count], p=[0.92, 0.06, 0.02]))
            rows += [Row(label, n + 20 * len(splits), n < broken) for n in range(count)]
        splits[split] = [rows[k] for k in rng.permutation(len(rows))]
    if "test" in splits and rng.random() < 0.1:
        splits["test"][0] = Row("new" if texts else 301, 0, False)
    return splits


def places(splits: Splits) -> dict[int | str, int]:
    """Each label's place among those of the training images; 255 for others."""
    known = {row.label for row in splits["train"]}
    order = sorted(known, key=lambda label: natural(str(label)))
    return {**{row.label: 255 for rows in splits.values() for row in rows}, **{label: k for k, label in enumerate(order)}}


def write_folder(top: Path, splits: Splits) -> Path:
    at = places(splits)
    files = {f"{s}/{row.label}/{row.number}.png": row.content(at[row.label]) for s, rows in splits.items() for row in rows}
    return pictures.write_folder(top / "images", files)


def write_parquet(top: Path, splits: Splits) -> Path:
    at = places(splits)
    for split, rows in splits.items():
        images = pa.array([row.content(at[row.label]) for row in rows], pa.binary())
        made = pa.table({"image": images, "label": [row.label for row in rows], "fold": [n % 5 for n in range(len(rows))]})
        (top / "hub" / split).mkdir(parents=True)
        pq.write_table(made, top / "hub" / split / "0000.parquet")
    return top / "hub"


def write_npz(top: Path, splits: Splits) -> Path:
    at = places(splits)
    arrays = {}
    for split, rows in splits.items():
        arrays[f"{split}_images"] = np.array([row.pixels(at[row.label]) for row in rows], np.uint8).reshape(-1, SIZE, SIZE, 3)
        arrays[f"{split}_labels"] = np.array([row.label for row in rows], None if rows else np.int64)
    np.savez(top / "made.npz", **arrays)
    return top / "made.npz"


FORMS: dict[str, Callable[[Path, Splits], Path]] = {"folder": write_folder, "parquet": write_parquet, "npz": write_npz}


def outcome(work: Callable[..., None], *words: object) -> str | None:
    """What the work is refused with, one sentence."""
    try:
        work(*words)
    except UserError as error:
        assert "\n" not in str(error)
        assert not any(word in str(error) for word in ("populated", "stratif", "n_samples", "test_size", "train_size"))
        return str(error)
    return None


def with_run(source: str, ipc: int, skip_broken: bool) -> Params:
    """As `init` would have added it."""
    params = load()
    run = params.runs["digits-ipc1-ast"].model_copy(update={"dataset": "mine", "ipc": ipc})
    dataset = pictures.dataset(source, size=SIZE, skip_broken=skip_broken)
    distillations = {"mine-run": params.distillations["digits-ipc1-ast"]}
    return replace(params, prepare={"mine": dataset}, runs={"mine-run": run}, distillations=distillations)


def prepared() -> dict[str, list[tuple[int, int]]]:
    """(class, number) of each image of each split, where the labels are the classes'."""
    found = {}
    for split in ("train", "val", "test"):
        value = STORE.load_split("mine", split)
        assert value.images[:, 0, 0, 0].tolist() == value.labels.tolist()
        found[split] = [(int(one), int(other)) for one, other in value.images[:, :2, 0, 0].tolist()]
    return found


def assert_whole(splits: Splits, found: dict[str, list[tuple[int, int]]], broken: bool) -> None:
    """Images prepared are those there, without the broken ones; splits of the source's own stay what they are."""
    at = places(splits)
    own = {s: sorted((at[r.label], r.number) for r in rows if not (r.broken and broken)) for s, rows in splits.items()}
    cut = sorted(image for split in found if split not in splits or split == "train" for image in found[split])
    assert cut == own.pop("train")
    assert all(sorted(found[split]) == images for split, images in own.items())


def test_init_accepts_what_prepare_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forms in turns, with text labels and numbers; both ends are met often."""
    refusals = 0
    for seed in range(ROUNDS):
        rng, form = np.random.default_rng(seed), list(FORMS)[seed % len(FORMS)]
        splits = drawn(rng, texts=form == "folder" or seed % 2 == 0)
        ipc, skip_broken = int(rng.integers(1, 5)), bool(rng.random() < 0.7)
        top = tmp_path / str(seed)
        top.mkdir()
        shutil.copy(ROOT / "params.yaml", top)
        monkeypatch.chdir(top)
        source = FORMS[form](top, splits).relative_to(top).as_posix()
        before = Path("params.yaml").read_bytes()
        by_hand = outcome(prepare.run, STORE, resolved.data_set(with_run(source, ipc, skip_broken), "mine"))
        refused = outcome(partial(init.run, skip_broken=skip_broken), source, "mine", SIZE, ipc)
        assert (refused is None) == (by_hand is None), (seed, refused, by_hand)
        assert (Path("params.yaml").read_bytes() == before) == (refused is not None)
        if refused is None:
            assert_whole(splits, prepared(), broken=form != "npz")
        refusals += refused is not None
    assert ROUNDS // 5 < refusals < ROUNDS * 4 // 5
