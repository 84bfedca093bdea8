"""resolve: params.yaml and the code -> a small file for each stage and name, with all that its bytes rest on but its inputs.

DVC has the stages depend on these files instead of on params.yaml and modules: what changes none of them runs nothing again. A
value that says off (null, false, 0, 'off', an empty list) is left out, so that a new part of a method, which is off unless it
is asked for, is no change to runs without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from src.process.progress import say
from src.settings.networks import Network
from src.settings.resolved import Buffer, DataSet, Pipeline, Run
from src.settings.runtime import Runtime
from src.store import code, files
from src.store.locked import FOLDER

OFF: tuple[object, ...] = (None, False, 0, "off", (), [], {})
IN_BYTES = {"device", "threads", "precision", "compile", "deterministic"}  # of the runtime

Plain = dict[str, Any]


def run(data: Path, pipeline: Pipeline) -> None:
    """Write data/resolved/STAGE/NAME.json for all stages and names, and delete those of names that are gone."""
    folder = data / FOLDER
    wanted = {folder / place: value for place, value in files_of(pipeline)}
    for path, value in wanted.items():
        files.write_json(path, value)
    for path in folder.rglob("*.json"):
        if path not in wanted:
            path.unlink()
    say(f"{len(wanted)} stages resolved")


def files_of(pipeline: Pipeline) -> Iterator[tuple[str, Plain]]:
    """Place below the folder, and content."""
    for dataset in pipeline.data_sets.values():
        yield f"prepare/{dataset.name}.json", _data_set(dataset)
    for buffer in pipeline.buffers.values():
        yield f"experts/{buffer.name}.json", of_experts(buffer)
    for one in pipeline.runs.values():
        yield f"distill/{one.name}.json", of_distill(one)
        yield f"evaluate/{one.name}.json", of_evaluate(one)
    yield "report.json", _report(pipeline)


def _data_set(dataset: DataSet) -> Plain:
    settings = dataset.settings.model_copy(update={"path": None})  # the same images from anywhere
    return {"seed": dataset.seed, "prepare": on(settings), "code": code.digest("prepare")}


def of_experts(buffer: Buffer) -> Plain:
    """What the bytes of a buffer rest on, but for its data set's."""
    network = _network(buffer.spec)
    shared = {"seed": buffer.seed, "runtime": _runtime(buffer.runtime), "code": code.digest("experts", [buffer.spec])}
    return {**shared, "network": network, "experts": on(buffer.settings)}


def of_distill(run: Run) -> Plain:
    """What the bytes of a synthetic set rest on, but for the data set's and the buffer's."""
    digest = code.digest("distill", [run.spec], targets=run.distillation.targets)
    shared = {"seed": run.seed, "runtime": _runtime(run.runtime), "code": digest}
    buffer = None if run.buffer is None else {"name": run.buffer.name, **on(run.buffer.settings)}
    made = {**shared, "network": _network(run.spec), "experts": buffer, "ipc": run.ipc, "distill": on(run.distillation)}
    return made if run.initial is None else {**made, "initial": of_distill(run.initial)}


def of_evaluate(run: Run) -> Plain:
    """What accuracies rest on, but for the synthetic set and the data set."""
    networks = {name: _network(spec) for name, spec in run.networks.items()}
    shared = {"seed": run.seed, "runtime": _runtime(run.runtime), "code": code.digest("evaluate", run.networks.values())}
    return {**shared, "own": run.network, "networks": networks, "evaluate": on(run.evaluation)}


def _report(pipeline: Pipeline) -> Plain:
    """The page tells every setting; its runs are told apart by their methods' and protocols' names."""
    runs = {
        name: {**of_distill(run), **of_evaluate(run), "method": run.method, "protocol": run.protocol, "code": None}
        for name, run in pipeline.runs.items()
    }
    order = {"networks": list(pipeline.networks), "data_sets": list(pipeline.data_sets), "buffers": list(pipeline.buffers)}
    return {"title": pipeline.title, **order, "runs": runs, "code": code.digest("report")}


def on(settings: BaseModel) -> Plain:
    """The values that do not say off."""
    return {key: value for key, value in settings.model_dump(mode="json").items() if value not in OFF}


def _network(spec: Network) -> Plain:
    return on(spec)


def _runtime(asked: Runtime) -> Plain:
    return asked.model_dump(include=IN_BYTES)
