"""All stages but the report, run in a folder of their own with an MLflow store of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.settings import resolved
from src.settings.params import Params, load
from src.stages import distill, evaluate, experts, prepare
from src.store.store import Store

STORE = Store()


def params() -> dict[str, Any]:
    """A fresh raw params.yaml without a problem: two runs that share a method."""
    run = {"dataset": "digits", "network": "D2", "experts": "smooth", "evaluate": "mtt"}
    method = {"initialisation": "random", "iterations": 3, "max_start_epoch": 4, "augmentation": ["crop"]}
    return {
        "seed": 0,
        "runtime": {"device": "cpu", "threads": 1},
        "prepare": {"digits": {"source": "digits"}},
        "networks": {"D2": {"depth": 2, "width": 8}},
        "experts": {"smooth": {"dataset": "digits", "network": "D2", "count": 2, "epochs": 5, "lr": 0.01}},
        "distill": {"ast": method},
        "evaluate": {"mtt": {"students": 2, "epochs": 3}},
        "report": {"title": "Test"},
        "runs": {
            "one": {**run, "ipc": 1, "distill": {"method": "ast"}},
            "ten": {**run, "ipc": 10, "distill": {"method": "ast", "lr_img": 10.0}},
        },
    }


@contextmanager
def made(folder: Path, raw: dict[str, Any]) -> Iterator[Params]:
    """Inside the folder, where everything that `raw` names is made."""
    before, store, root = Path.cwd(), os.environ.pop("MLFLOW_TRACKING_URI", None), os.environ.pop("DVC_ROOT", None)
    os.chdir(folder)
    Path("params.yaml").write_text(json.dumps(raw), encoding="utf-8")  # JSON is YAML, too
    params = load()
    for dataset in params.prepare:
        prepare.run(STORE, resolved.data_set(params, dataset))
    for buffer in params.experts:
        experts.run(STORE, resolved.buffer(params, buffer))
    for name in params.runs:
        distill.run(STORE, resolved.run(params, name))
        evaluate.run(STORE, resolved.run(params, name))
    yield params
    os.chdir(before)
    os.environ |= {k: v for k, v in {"MLFLOW_TRACKING_URI": store, "DVC_ROOT": root}.items() if v is not None}
