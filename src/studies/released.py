"""Released sets: scores a synthetic set that is kept in data/released, on a clone that has made nothing itself.

What `export` wrote there names all settings that matter, so that params.yaml only says how to use the machine, and no experts
are needed: the data set is prepared as it was, in a workspace of its own, and students are trained under the run's protocol.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from src.ground.errors import ArtifactError, UserError
from src.ground.params import Params, parse
from src.io import artifacts, files, page, progress
from src.io.page import Accuracy
from src.io.sources import idx, named, published
from src.stages import evaluate, prepare
from src.stages.records import prepared
from src.studies.variants import Workspace, digest

FOLDER = artifacts.DATA / "released"
WORKSPACE = Path(".cache") / "released"
REMEDY = "restore it with git"


def run(name: str, data: str | None, networks: list[str], mine: Params) -> None:
    """Score the released set `name`, with the real images from `data` unless None, beside what it was released with."""
    folder = (FOLDER / _known(name)).absolute()
    card = files.read_json(folder / "set.json", REMEDY)
    with files.understood(folder / "set.json", REMEDY):
        params, then = _params(name, card["settings"], mine), _accuracy(card["accuracy"])
    dataset = params.runs[name].dataset
    workspace = _workspace()
    if data is not None and _lacks_names(params.prepare[dataset].source, Path(data).expanduser()):
        workspace = _workspace_with(params.prepare[dataset].source, Path(data).expanduser().absolute())
    elif data is not None:
        params = _with_source(params, dataset, data)
    with workspace.entered():
        _prepare(params, dataset)
        evaluate.score_file(params, name, networks, folder / "synthetic.safetensors")
    progress.say(f"{name}: released {then} on the test split, of {params.runs[name].network}")


def _known(name: str) -> str:
    known = sorted(path.parent.name for path in FOLDER.glob("*/set.json"))
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.5)
        raise UserError(f"no released set is named '{name}': choose one of {', '.join(near or known) or 'none'}")
    return name


def _accuracy(before: dict[str, float] | None) -> str:
    if before is None:  # `export` came before `evaluate`
        return "without an accuracy"
    return f"with {page.score(Accuracy(before['test_accuracy_mean'], before['test_accuracy_std']))} %"


def _params(name: str, settings: dict[str, Any], mine: Params) -> Params:
    """The run alone, on this machine and with its networks at hand."""
    alone = parse({**settings, "runtime": mine.runtime.model_dump()}, f"{FOLDER / name / 'set.json'}")
    return replace(alone, networks={**mine.networks, **alone.networks})


def _lacks_names(source: str, place: Path) -> bool:
    """Whether IDX files of a known data set are there: they don't name its classes, which its digest covers."""
    return source in published.IDX_CLASSES and place.is_dir() and idx.is_here(place)


def _with_source(params: Params, dataset: str, data: str) -> Params:
    place = Path(data).expanduser()
    source = str(place.absolute()) if place.exists() else data
    return replace(params, prepare={dataset: params.prepare[dataset].model_copy(update={"source": source})})


def _workspace() -> Workspace:
    """A folder of the cache that knows this repository's code and downloaded data sets."""
    top = Path.cwd()
    workspace = Workspace(top / WORKSPACE, top)
    workspace.link(Path("src"))
    (top / named.FOLDER).mkdir(parents=True, exist_ok=True)
    workspace.link(named.FOLDER)
    return workspace


def _workspace_with(source: str, place: Path) -> Workspace:
    """A folder of the cache where the known data set `source` is found, its files being those of `place`."""
    top = Path.cwd()
    workspace = Workspace(top / WORKSPACE / digest([source, str(place)]), top)
    workspace.link(Path("src"))
    own = workspace.folder / named.FOLDER / source
    shutil.rmtree(own, ignore_errors=True)  # the files may have changed
    own.mkdir(parents=True)
    for path in place.iterdir():
        (own / path.name).symlink_to(path)
    return workspace


def _prepare(params: Params, dataset: str) -> None:
    """Prepare the data set, unless it is there from before."""
    try:
        prepared(params, dataset, *evaluate.SPLITS)
    except ArtifactError:
        prepare.run(params, dataset)
