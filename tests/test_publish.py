"""Buffers are published as a remote of DVC: a fresh clone pulls the same bytes, and trains nothing."""

from __future__ import annotations

import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from src.ground.errors import ArtifactError
from src.stages import publish
from src.store import files
from tests.test_killed_repro import clone
from tests.test_pipeline import call

BUFFER = Path("data/experts/digits-smooth/trajectories")
PUBLISH = (sys.executable, "-m", "src.cli", "publish", "digits-smooth", "--to")
COMMIT = ("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "one")


def committed(folder: Path) -> Path:
    assert call(folder, "git", "add", ".").returncode == 0
    assert call(folder, *COMMIT).returncode == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = clone(tmp_path_factory.mktemp("trained"))
    done = call(folder, "dvc", "repro", "experts@digits-smooth")
    assert done.returncode == 0, done.stderr
    return committed(folder)


@pytest.mark.slow
def test_a_fresh_clone_pulls_what_was_published(trained: Path, tmp_path: Path) -> None:
    shared, other = tmp_path / "shared", tmp_path / "clone"
    done = call(trained, *PUBLISH, str(shared))
    assert done.returncode == 0, done.stderr
    card = (shared / "README.md").read_text(encoding="utf-8")
    commit = call(trained, "git", "rev-parse", "HEAD").stdout.strip()
    assert f"git checkout {commit}" in card
    size = sum(path.stat().st_size for path in [*(trained / BUFFER).iterdir(), trained / BUFFER.parent / "curves.csv"])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines() if "digits-smooth |" in line]
    assert rows == [["digits-smooth", "digits", "2 x 4", "3", f"{size / 2**20:.1f}", commit]]
    assert call(tmp_path, "git", "clone", "-q", str(trained), str(other)).returncode == 0
    for command in ("dvc remote add --local published", "dvc pull --remote published"):
        assert command in card
        last = str(shared) if "add" in command else "experts@digits-smooth"
        done = call(other, *command.split(), last)
        assert done.returncode == 0, done.stderr
    for path in (trained / BUFFER).iterdir():
        assert files.digest(other / BUFFER / path.name) == files.digest(path)
    assert call(other, sys.executable, "-m", "src.cli", "prepare").returncode == 0
    again = call(other, "dvc", "repro", "experts@digits-smooth")
    assert again.returncode == 0, again.stderr
    assert "Running stage 'prepare@digits'" in again.stdout
    assert "Running stage 'experts@digits-smooth'" not in again.stdout
    full = "import shutil, sys; shutil.disk_usage = lambda path: type('Usage', (), {'free': 0})"
    code = f"{full}; sys.argv[1:] = {[*PUBLISH[3:], str(shared)]}; from src.cli import main; main()"
    done = call(trained, sys.executable, "-c", code)  # a full disk does no harm where all is there
    assert "0 new files in" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_what_no_commit_or_lock_has_is_a_sentence(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    shutil.copytree(trained, other)
    params = other / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8") + "# more\n", encoding="utf-8")
    refused = call(other, *PUBLISH, str(tmp_path / "shared"))
    assert refused.returncode == 1
    assert "params.yaml: no commit has that" in refused.stderr
    committed(other)  # but not resolved, so that dvc.lock is of the settings before
    refused = call(other, *PUBLISH, str(tmp_path / "shared"))
    assert "experts@digits-smooth is not as dvc.lock says: `dvc repro experts@digits-smooth`" in " ".join(
        refused.stderr.split()
    )
    assert call(other, "dvc", "repro", "experts@digits-smooth").returncode == 0
    committed(other)
    next((other / BUFFER).iterdir()).unlink()
    refused = call(other, *PUBLISH, str(tmp_path / "shared"))
    assert "experts@digits-smooth is not as dvc.lock says: `dvc repro experts@digits-smooth`" in " ".join(
        refused.stderr.split()
    )
    shutil.rmtree(other / ".git")
    assert "put the project under git" in call(other, *PUBLISH, str(tmp_path / "shared")).stderr
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize("damage", ["[1]", '{"digits-smooth": 1}', '{"digits-smooth": ["digits"]}', "{"])
def test_damaged_rows_of_earlier_calls_are_a_sentence(damage: str, tmp_path: Path) -> None:
    path = tmp_path / publish.ROWS
    path.write_text(damage, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"published\.json .*: delete .*published\.json, whose rows are lost then"):
        publish._rows(path)


def test_a_file_system_with_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(5 * 2**20))
    with pytest.raises(ArtifactError, match="may need 7 MiB, and there are 5: free space, or name fewer buffers"):
        publish._check_room(tmp_path / "new", 7 * 2**20)
