"""Released sets: scores a synthetic set that is kept in data/released, on a clone that has made nothing itself.

What `export` wrote there names all settings that matter, so that params.yaml only says how to use the machine, and no experts
are needed: the data set is prepared as it was, in a workspace of its own, and students are trained under the run's protocol.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from src.ground.errors import ArtifactError, UserError
from src.pages import page
from src.pages.page import Accuracy
from src.process import progress
from src.settings import resolved
from src.settings.params import Params, parse
from src.settings.resolved import DataSet
from src.sources import named
from src.stages import evaluate, prepare
from src.stages.records import prepared
from src.store import files
from src.store.store import Store
from src.studies.variants import Workspace

FOLDER = Path("data") / "released"
WORKSPACE = Path(".cache") / "released"
REMEDY = "restore it with git"


def run(name: str, data: str | None, networks: list[str], mine: Params) -> None:
    """Score the released set `name`, with the real images from `data` unless None, beside what it was released with."""
    folder = (FOLDER / _known(name)).absolute()
    card = files.read_json(folder / "set.json", REMEDY)
    if "modalities" in card:
        raise UserError(f"{name} is a set of tuples, which --released does not score: take `evaluate --run` of its run")
    with files.understood(folder / "set.json", REMEDY):
        params, then, made_by = _params(name, card["settings"], mine), _accuracy(card["accuracy"]), str(card["run"])
        dataset = params.runs[made_by].dataset
    if data is not None:
        params = _with_path(params, dataset, data)
    one, store = resolved.run(params, made_by), Store()
    with _workspace().entered():
        if data is not None or not _is_prepared(store, one.dataset):
            prepare.run(store, one.dataset)
        chosen = {network: params.network(network) for network in networks}
        evaluate.score_file(store, one, chosen, folder / "synthetic.safetensors")
    progress.say(f"{name}: released {then} on the test split, of {one.network}")


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


def _with_path(params: Params, dataset: str, data: str) -> Params:
    """With the real images from `data`, unless that only names their source."""
    settings = params.prepare[dataset]
    path = None if data == settings.source in named.KNOWN else str(Path(data).expanduser().absolute())
    return replace(params, prepare={dataset: settings.model_copy(update={"path": path})})


def _workspace() -> Workspace:
    """A folder of the cache that knows this repository's downloaded data sets."""
    top = Path.cwd()
    workspace = Workspace(top / WORKSPACE, top)
    (top / named.FOLDER).mkdir(parents=True, exist_ok=True)
    workspace.link(named.FOLDER)
    return workspace


def _is_prepared(store: Store, dataset: DataSet) -> bool:
    """Whether the data set is there from before."""
    try:
        prepared(store, dataset, *evaluate.SPLITS)
        for split in evaluate.SPLITS:  # nobody else would find damage in the cache
            store.load_labels(dataset.name, split)
    except ArtifactError:
        return False
    return True
