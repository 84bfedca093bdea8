"""publish: expert buffers in a folder that others take them from, laid out as a remote of DVC. No stage of the pipeline.

Any host of static files serves such a folder. What belongs to it is the commit whose params.yaml and dvc.lock name the files.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.ground.counting import counted
from src.ground.errors import ArtifactError, UserError
from src.pages import markdown
from src.pages.tables import Table
from src.process import progress
from src.settings.resolved import Buffer
from src.store import files

if TYPE_CHECKING:
    from dvc.repo import Repo

REMOTE = "published"
ROWS = "published.json"  # of all buffers in the folder
MIB = 2**20
HEADS = ("experts", "data set", "count x epochs", "files", "MiB", "commit")
NEEDED = ("params.yaml", "dvc.lock", "dvc.yaml", "src")  # of the commit, by those who take the files
CARD = """# Expert trajectories

{table}

They are laid out as a remote of [DVC](https://dvc.org). A buffer is taken in a clone of the repository that trained it,
at its commit; the last ones:

```sh
git checkout {commit}
dvc remote add --local {remote} URL   # of this folder: https://..., or a path
{pulls}
```

The data set comes from `python -m src.cli prepare --dataset NAME`. `dvc repro` takes what was pulled for up to date, and trains
no expert anew.
"""


@dataclass(frozen=True)
class Published:
    """A buffer as DVC knows it."""

    stage: str
    buffer: Buffer
    files: int
    size: int  # bytes

    @property
    def cells(self) -> tuple[str, ...]:
        own = self.buffer
        epochs = f"{own.settings.count} x {own.settings.last_epoch}"
        return own.name, own.dataset.name, epochs, str(self.files), f"{self.size / MIB:,.1f}"


def run(buffers: Sequence[Buffer], folder: Path) -> None:
    """Put these buffers, and a card that says how to take them, into `folder`, beside what it has of them and of others.

    Raises UserError where a buffer is not as dvc.lock says, or no commit has that, ArtifactError where the folder can't be
    written or its file system has too little room.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    _check_committed()
    before = _rows(folder / ROWS)
    try:
        with Repo(config={"remote": {REMOTE: {"url": str(folder.absolute())}}}) as repo:
            found = [_found(repo, one) for one in buffers]
            _check_room(folder, _to_send(repo, found))
            table = Table(*HEADS[:-1], title=str(folder))
            for one in found:
                table.add_row(*one.cells)
            progress.console.print(table)
            sent = repo.push(targets=[one.stage for one in found], remote=REMOTE)
            commit = repo.scm.get_rev()
    except (DvcException, OSError) as error:
        raise ArtifactError(f"DVC can't put the buffers into {folder}: {error}; mend that, and run this again") from error
    _write_card(folder, before, found, commit)
    progress.say(f"{counted(sent, 'new file')} in {folder}; {folder / 'README.md'} says how to take them")


def _check_committed() -> None:
    done = subprocess.run(["git", "status", "--porcelain", "--", *NEEDED], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"no commit tells others what the files are ({done.stderr.strip()}): put the project under git")
    if done.stdout:
        changed = ", ".join(line[3:] for line in done.stdout.splitlines())
        raise UserError(
            f"{changed}: no commit has that, and those who take the files need one: `git add` and `git commit` first"
        )


def _found(repo: Repo, buffer: Buffer) -> Published:
    """Raises UserError unless it, and all that it is made from, params.yaml and code among it, is as dvc.lock says."""
    stage = f"experts@{buffer.name}"
    if repo.status(targets=[stage], with_deps=True):
        raise UserError(f"{stage} is not as dvc.lock says: `dvc repro {stage}`, then commit dvc.lock")
    outs = [out for one in repo.index.stages if one.addressing == stage for out in one.outs]
    return Published(stage, buffer, sum(out.meta.nfiles or 1 for out in outs), sum(out.meta.size or 0 for out in outs))


def _to_send(repo: Repo, found: Sequence[Published]) -> int:
    """Bytes that the folder lacks."""
    cache = repo.cache.local
    used = set().union(*repo.used_objs(targets=[one.stage for one in found]).values())
    missing = repo.cloud.status(used, remote=REMOTE).new
    return sum(Path(cache.oid_to_path(one.value)).stat().st_size for one in missing)


def _check_room(folder: Path, needed: int) -> None:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        sizes = f"{needed / MIB:,.0f} MiB, and there are {free / MIB:,.0f}"
        raise ArtifactError(f"{folder} may need {sizes}: free space, or name fewer buffers")


def _rows(path: Path) -> dict[str, list[str]]:
    """Of earlier calls. Raises ArtifactError where the file is damaged."""
    remedy = f"delete {path}, whose rows are lost then"
    found = files.read_json(path, remedy) if path.exists() else {}
    with files.understood(path, remedy):
        return {name: [str(cell) for _, cell in zip(HEADS, cells, strict=True)] for name, cells in dict(found).items()}


def _write_card(folder: Path, before: Mapping[str, list[str]], found: Sequence[Published], commit: str) -> None:
    """The buffers of now beside those of earlier calls, each with its commit."""
    rows = {**before, **{one.buffer.name: [*one.cells, commit] for one in found}}
    files.write_json(folder / ROWS, rows)
    table = markdown.table(HEADS, [tuple(cells) for cells in rows.values()], left=(0, 1, 5))
    pulls = "\n".join(f"dvc pull --remote {REMOTE} {one.stage}" for one in found)
    files.write_text(folder / "README.md", CARD.format(table=table, commit=commit, remote=REMOTE, pulls=pulls))
