"""Artifacts: what is saved comes back, byte for byte the same; what is damaged, foreign or stale is refused in one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from src.ground.errors import ArtifactError
from src.maths.pixels import Normalisation, Space, Whitening
from src.store import cost, files, tensors, values
from src.store.values import Record, Snapshots, Split, Statistics, SyntheticSet
from tests.small_run import STORE

RECORD = Record("synthetic set", {"ipc": 1, "distill": {"lr_img": 3.0}}, {"data/x": "abc"})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def synthetic() -> SyntheticSet:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4)
    return SyntheticSet(images, torch.tensor([0, 1]), torch.tensor(0.02))


def test_synthetic_set_comes_back_whole() -> None:
    STORE.save_synthetic("r", synthetic(), RECORD)
    found = STORE.load_synthetic("r")
    assert torch.equal(found.pixels, synthetic().pixels)
    assert torch.equal(found.labels, synthetic().labels)
    assert found.syn_lr.item() == synthetic().syn_lr.item()


def test_labels_may_be_probabilities() -> None:
    soft = replace(synthetic(), labels=torch.tensor([[0.3, 0.7], [0.9, 0.1]]))
    STORE.save_synthetic("r", soft, RECORD)
    found = STORE.load_synthetic("r")
    assert torch.equal(found.labels, soft.labels)
    assert found.classes.tolist() == [1, 0]
    assert torch.equal(synthetic().classes, synthetic().labels)
    STORE.save_synthetic("r", replace(soft, labels=soft.labels.double()), RECORD)
    with pytest.raises(ArtifactError, match="labels"):
        STORE.load_synthetic("r")


def test_the_same_artifact_has_the_same_bytes() -> None:
    digests = set()
    for _ in range(4):
        STORE.save_synthetic("r", synthetic(), RECORD)
        digests.add(files.digest(STORE.synthetic_file("r")))
    assert len(digests) == 1


def test_splits_snapshots_and_statistics_come_back() -> None:
    split = Split(torch.randint(17, (5, 1, 8, 8), dtype=torch.uint8), torch.arange(5))
    STORE.save_split("d", "train", split, Record("split", {}))
    assert torch.equal(STORE.load_split("d", "train").images, split.images)
    kept = Snapshots(torch.tensor([0, 7]), torch.rand(2, 3, 1, 8, 8))
    STORE.save_snapshots("r", kept, Record("snapshots", {}))
    assert torch.equal(STORE.load_snapshots("r").pixels, kept.pixels)
    counts = {"train": {"a": 3, "b": 2}}
    statistics = Statistics(("a", "b"), 1, 8, 16, (0.3,), (0.2,), (0.31,), (0.21,), counts, "0" * 64, ("broken.png",))
    STORE.save_statistics("d", statistics, Record("", {"seed": 0}))
    assert STORE.load_statistics("d") == statistics
    path = STORE.statistics_file("d")
    tensors.check_record(path, Record(values.STATISTICS, {"seed": 0}), "again")
    with pytest.raises(ArtifactError, match="seed was 0, is 1"):
        tensors.check_record(path, Record(values.STATISTICS, {"seed": 1}), "again")
    path.write_text(path.read_text().replace("0.3", "0.4", 1))
    with pytest.raises(ArtifactError, match=r"statistics.json is damaged .*its checksum does not fit.*prepare --dataset d"):
        STORE.load_statistics("d")


def test_one_of_a_folder_is_not_another() -> None:
    """They have the same settings: only their kind tells the test split from the training split, expert 1 from expert 0."""
    record = Record("", {"seed": 0})
    for name in ("train", "test"):
        STORE.save_split("d", name, Split(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1).long()), record)
    STORE.split_file("d", "train").write_bytes(STORE.split_file("d", "test").read_bytes())
    with pytest.raises(ArtifactError, match="is a 'test split', not a 'train split'"):
        STORE.load_split("d", "train")
    for index in range(2):
        STORE.save_trajectory("e", index, torch.rand(2, 3), record)
    STORE.check_trajectories("e", 2, record)
    STORE.trajectory_file("e", 0).write_bytes(STORE.trajectory_file("e", 1).read_bytes())
    with pytest.raises(ArtifactError, match="kind was trajectory 001, is trajectory 000"):
        STORE.check_trajectories("e", 2, record)


@pytest.mark.parametrize(
    "space", [Normalisation(torch.rand(3), torch.rand(3)), Whitening(torch.rand(4), torch.rand(4, 4), torch.rand(4, 4))]
)
def test_the_space_of_the_networks_comes_back(space: Space) -> None:
    STORE.save_space("d", space, Record("space", {}))
    found = STORE.load_space("d")
    assert type(found) is type(space)
    assert all(torch.equal(tensor, vars(space)[name]) for name, tensor in vars(found).items())


def test_a_slice_of_a_trajectory() -> None:
    thetas = torch.rand(6, 11)
    STORE.save_trajectory("e", 2, thetas, Record("trajectory", {}))
    assert torch.equal(STORE.read_snapshots("e", 2, 1, 4), thetas[1:4])


def test_missing_names_the_command() -> None:
    with pytest.raises(
        ArtifactError, match=r"synthetic.safetensors is missing: make it with `python -m src.cli distill --run r`"
    ):
        STORE.load_synthetic("r")
    with pytest.raises(ArtifactError, match=r"src.cli experts --experts e"):
        STORE.check_trajectories("e", 1, RECORD)
    with pytest.raises(ArtifactError, match=r"src.cli prepare --dataset d"):
        STORE.load_statistics("d")


@pytest.mark.parametrize("keep", [0, 3, 40, 200])
def test_truncated_is_damaged(keep: int) -> None:
    STORE.save_synthetic("r", synthetic(), RECORD)
    path = STORE.synthetic_file("r")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="damaged or no safetensors file"):
        STORE.load_synthetic("r")


def test_foreign_and_not_finite_are_refused() -> None:
    path = STORE.synthetic_file("r")
    path.parent.mkdir(parents=True)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(ArtifactError, match="no record of what made it"):
        STORE.load_synthetic("r")
    STORE.save_snapshots("r", Snapshots(torch.tensor([0]), torch.rand(1, 2, 1, 8, 8)), RECORD)
    path.write_bytes(STORE.snapshots_file("r").read_bytes())
    with pytest.raises(ArtifactError, match="is a 'snapshots', not a 'synthetic set'"):
        STORE.load_synthetic("r")
    broken = synthetic()
    broken.pixels[0, 0, 0, 0] = float("nan")
    STORE.save_synthetic("r", broken, RECORD)
    with pytest.raises(ArtifactError, match="'pixels' that are not finite"):
        STORE.load_synthetic("r")


def test_stale_names_what_differs() -> None:
    STORE.save_synthetic("r", synthetic(), RECORD)
    path = STORE.synthetic_file("r")
    tensors.check_record(path, RECORD, "again")
    tensors.check_record(path, Record(RECORD.kind, RECORD.settings), "again")  # no inputs named: none compared
    with pytest.raises(ArtifactError, match=r"distill.lr_img was 3.0, is 4.0\): again"):
        tensors.check_record(path, Record(RECORD.kind, {"ipc": 1, "distill": {"lr_img": 4.0}}), "again")
    with pytest.raises(ArtifactError, match="data/x was abc, is def"):
        tensors.check_record(path, Record(RECORD.kind, RECORD.settings, {"data/x": "def"}), "again")


def test_provenance_is_told_and_no_reason_to_refuse() -> None:
    made = replace(RECORD, provenance={"code": "abc", "packages": {"torch": "1.0", "numpy": "2.0"}})
    STORE.save_synthetic("r", synthetic(), made)
    path, now = (
        STORE.synthetic_file("r"),
        replace(made, provenance={"code": "def", "packages": {"torch": "2.0", "numpy": "2.0"}}),
    )
    tensors.check_record(path, now, "again")
    assert tensors.provenance_differences(path, now, "again") == ["code was abc, is def", "packages.torch was 1.0, is 2.0"]
    assert tensors.provenance_differences(path, made, "again") == []


def test_a_failed_write_leaves_the_old_file_and_no_other() -> None:
    path = Path("a/b.txt")
    files.write_text(path, "old")

    def fail(file: Path) -> None:
        file.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match=r"can't be written \(No space left on device\)"):
        files.write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_tables_restore_float32_exactly() -> None:
    values = torch.rand(50).tolist()
    files.write_csv(Path("t.csv"), [{"x": value} for value in values])
    found = torch.tensor([float(row["x"]) for row in files.read_csv(Path("t.csv"), "again")])
    assert torch.equal(found, torch.tensor(values))


def test_a_cost_belongs_to_the_bytes_and_stays_the_first() -> None:
    path = Path("out.txt")
    files.write_text(path, "result")
    cost.keep(path, cost.Cost(1.0, 2.0))
    cost.keep(path, cost.Cost(9.0, 9.0))
    assert cost.lookup(path) == cost.Cost(1.0, 2.0)
    (kept,) = Path("data/cost").iterdir()
    kept.write_text(kept.read_text().replace("2.0", "3.0"))
    with pytest.raises(ArtifactError, match=r"its checksum does not fit.*delete it"):
        cost.lookup(path)
    cost.keep(path, cost.Cost(9.0, 9.0))
    assert cost.lookup(path) == cost.Cost(9.0, 9.0)
    files.write_text(path, "another")
    assert cost.lookup(path) is None


def test_no_bit_changes_unseen() -> None:
    """Of the tensors or of the record: every flipped bit of a small file is refused, or changes nothing that is read."""
    STORE.save_synthetic("r", synthetic(), RECORD)
    path = STORE.synthetic_file("r")
    good, unseen = path.read_bytes(), []
    for position in range(0, 8 * len(good), 7):
        damaged = bytearray(good)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            found = STORE.load_synthetic("r")
        except ArtifactError:
            continue
        unseen += (
            [position] if any(not torch.equal(a, b) for a, b in zip(*map(_tensors, (found, synthetic())), strict=True)) else []
        )
    assert unseen == []


def _tensors(value: SyntheticSet) -> list[torch.Tensor]:
    return [value.pixels, value.labels, value.syn_lr]
