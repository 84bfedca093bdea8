"""The whole pipeline, tiny, the way a user runs it: `dvc repro` in a repository, real images, the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from ruamel.yaml import YAML

from src.store import files
from tests.imports import ROOT
from tests.small_run import STORE
from tests.stored import client_of, kept

RUNS = ("digits-ipc1-ast", "digits-ipc1-random")


def call(folder: Path, *words: str, given: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this Python's environment in the folder, given an input and more environment variables."""
    bin_folder = Path(sys.executable).parent
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    environment |= {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"} | variables
    return subprocess.run(words, cwd=folder, env=environment, input=given, capture_output=True, text=True, check=False)


def tiny(raw: dict) -> dict:  # type: ignore[type-arg]
    """The repository's parameters, cut down to seconds: two runs that share small experts."""
    raw["runs"] = {name: raw["runs"][name] for name in RUNS}
    raw["experts"] = {"digits-smooth": {**raw["experts"]["digits-smooth"], "count": 2, "epochs": 4, "clipping_epochs": 2}}
    raw["distill"]["ast"] |= {"syn_steps": 4, "snapshot_every": 3}
    raw["runs"]["digits-ipc1-ast"]["distill"] |= {"iterations": 6, "max_start_epoch": 2}
    raw["evaluate"]["mtt"] |= {"epochs": 20, "students": 2}
    return raw


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone after `dvc repro`."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / STORE.no_experts, folder / STORE.no_experts)
    yaml = YAML(typ="safe")
    yaml.dump(tiny(yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))), folder / "params.yaml")
    for words in ("git init -q", "dvc init -q", "git add .", "git -c user.name=t -c user.email=t@t commit -qm start"):
        assert call(folder, *words.split()).returncode == 0
    done = call(folder, "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def lock(folder: Path) -> bytes:
    return (folder / "dvc.lock").read_bytes()


def test_every_artifact_is_there(repository: Path) -> None:
    data = repository / "data"
    assert len(list((data / "experts/digits-smooth/trajectories").iterdir())) == 2
    for name in RUNS:
        assert set(json.loads((data / "metrics" / f"{name}.json").read_text())) == {
            f"{split}_accuracy_{figure}" for split in ("val", "test") for figure in ("mean", "std")
        }
    assert (data / "report/report.html").stat().st_size > 10_000


def test_a_second_repro_runs_nothing(repository: Path) -> None:
    before = lock(repository)
    again = call(repository, "dvc", "repro")
    assert again.returncode == 0
    assert "Running stage" not in again.stdout
    assert lock(repository) == before


def test_the_same_seed_gives_the_same_bytes(repository: Path) -> None:
    before = lock(repository)
    shutil.rmtree(repository / ".cache/checkpoints")  # finished experts would be kept
    stages = ("prepare@digits", "experts@digits-smooth", "distill@digits-ipc1-ast", "evaluate@digits-ipc1-ast", "report")
    done = call(repository, "dvc", "repro", "-f", "-s", *stages)
    assert [line for line in done.stdout.splitlines() if line.startswith("Running stage")] == [
        f"Running stage '{stage}':" for stage in stages
    ], done.stderr
    assert lock(repository) == before


def test_dvc_shows_metrics_and_plots(repository: Path) -> None:
    shown = json.loads(call(repository, "dvc", "metrics", "show", "--json").stdout)
    found = set(next(iter(shown.values()))["data"])
    assert found == {f"data/metrics/{name}.json" for name in RUNS}
    plots = call(repository, "dvc", "plots", "show", "--json")
    assert plots.returncode == 0
    assert "data/distill/digits-ipc1-ast/history.csv" in plots.stdout


def test_mlflow_holds_one_row_a_run_with_everything(repository: Path) -> None:
    client = client_of(repository)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    rows = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(rows) == {"experts/digits-smooth", *RUNS}  # forced stages went on in their rows
    run = rows["digits-ipc1-ast"]
    history = client.get_metric_history(run.info.run_id, "matching_loss")
    assert sorted(point.step for point in history) == list(range(6))
    wanted = {"test_accuracy_mean", "test_accuracy_std", "syn_lr", "way_point_1", "grad_norm_images"}
    assert wanted | {"cost/distill_seconds", "cost/experts_seconds", "cost/evaluate_seconds"} <= set(run.data.metrics)
    assert run.data.params["distill.intermediate_loss"] != "off"
    assert run.data.tags["ast.experts_run_id"] == rows["experts/digits-smooth"].info.run_id
    assert "mlflow.source.git.commit" in run.data.tags
    path = "data/distill/digits-ipc1-ast/synthetic.safetensors"
    recorded = YAML(typ="safe").load((repository / "dvc.lock").read_text())["stages"]["distill@digits-ipc1-ast"]["outs"]
    assert run.data.tags[f"dvc.{path}"] == files.digest(repository / path)
    assert run.data.tags[f"dvc.{path}"] in {out["md5"] for out in recorded}
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"digits"}
    assert sum(path.endswith(".png") for path in kept(repository, run, "images")) == 3
    curves = client.get_metric_history(rows["experts/digits-smooth"].info.run_id, "parameter_step")
    assert [point.step for point in curves] == [1, 2, 3, 4]


def test_a_lost_store_is_made_whole_by_evaluate(repository: Path) -> None:
    """As after `dvc pull`, or from DVC's run cache: the synthetic set is there, the store never saw it."""
    store = f"sqlite:///{repository / 'other.db'}"
    words = (sys.executable, "-m", "src.cli", "evaluate", "--run", "digits-ipc1-ast")
    done = call(repository, *words, MLFLOW_TRACKING_URI=store)
    assert done.returncode == 0, done.stderr
    (run,) = mlflow.MlflowClient(store).search_runs(["1"])
    assert {"matching_loss", "test_accuracy_mean"} <= set(run.data.metrics)
    assert "distill.lr_img" in run.data.params


NOTEBOOKS = ("trajectories", "synthetic_images", "compare_runs")
EACH = """
import contextlib, io, json, sys, traceback
said = {}
for name, code in json.load(sys.stdin).items():
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc(file=output)
    said[name] = output.getvalue()
print(json.dumps(said))
"""


def code_of(notebook: str) -> str:
    cells = json.loads((ROOT / f"notebooks/{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    return "\n".join("".join(cell["source"]) for cell in cells)


@pytest.fixture(scope="module")
def said_by_notebooks(repository: Path) -> dict[str, str]:
    """What each prints, errors included; all in one process, as most of their time goes into imports."""
    asked = json.dumps({name: code_of(name) for name in NOTEBOOKS})
    client_of(repository)  # one of them reads the store, to which all must have come
    done = call(repository, sys.executable, "-c", EACH, given=asked)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trajectories", "digits-smooth: the last step is"),
        ("synthetic_images", "10 images, syn_lr"),
        ("compare_runs", "digits: 2 evaluated runs"),
    ],
)
def test_the_notebooks_run_on_what_the_pipeline_made(said_by_notebooks: dict[str, str], name: str, said: str) -> None:
    assert "Traceback" not in said_by_notebooks[name]
    assert said in said_by_notebooks[name]


CHANGED = ("distill@digits-ipc1-ast", "evaluate@digits-ipc1-ast", "report")


def test_an_experiment_changes_one_run_only(repository: Path) -> None:
    words = ("exp", "run", "-S", "runs.digits-ipc1-ast.distill.lr_img=7.0", "-n", "steeper")
    done = call(repository, "dvc", *words)
    assert done.returncode == 0, done.stderr
    ran = [line for line in done.stdout.splitlines() if line.startswith("Running stage")]
    assert ran == [f"Running stage '{stage}':" for stage in ("resolve", *CHANGED)]
    assert "steeper" in call(repository, "dvc", "exp", "show", "--md").stdout
    client = client_of(repository)
    found = client.search_runs(["1"], "tags.`dvc.experiment` = 'steeper'")
    assert [run.info.run_name for run in found] == ["digits-ipc1-ast"]
    assert found[0].data.params["distill.lr_img"] == "7.0"


# -- adopt, which changes the clone's code


def python(repository: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return call(repository, sys.executable, "-m", "src.cli", *words, COLUMNS="200")


def edit(repository: Path, path: str, old: str, new: str) -> None:
    file = repository / path
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def outdated(repository: Path) -> set[str]:
    return set(json.loads(call(repository, "dvc", "status", "--json").stdout))


def test_code_that_gives_the_same_bytes_is_adopted(repository: Path) -> None:
    done = call(repository, "dvc", "repro")
    assert done.returncode == 0, done.stderr
    none = python(repository, "adopt")
    assert (none.returncode, none.stdout) == (0, "")
    assert "No stage is out of date by its code alone" in none.stderr
    edit(repository, "src/maths/matching.py", "def perturb(", "def perturbed(")
    edit(repository, "src/maths/distillation.py", "matching.perturb(", "matching.perturbed(")
    assert outdated(repository) == {"resolve"}
    kept = lock(repository)
    done = python(repository, "adopt", "distill@digits-ipc1-ast", "distill@digits-ipc1-random")
    assert done.returncode == 0, done.stderr
    assert "the first 5 iterations' figures" in done.stdout
    assert "the images after the last 6 iterations" in done.stdout
    assert "2 stages marked up to date" in done.stderr
    assert outdated(repository) == set()
    new, old = (YAML(typ="safe").load(text)["stages"] for text in (lock(repository), kept))
    assert {name for name in old if old[name] != new[name]} == {"resolve", *(f"distill@{run}" for run in RUNS)}
    assert all(new[name].get("outs") == old[name].get("outs") for name in old if name != "resolve")


def test_code_that_gives_other_bytes_is_refused(repository: Path) -> None:
    kept = lock(repository)
    edit(repository, "src/maths/smoothness.py", "(norm - 1).square().mean()", "(norm - 1).square().mean() * 1.5")
    edit(repository, "src/maths/protocol.py", "batches = []", "batches: list[Tensor] = list()")
    done = python(repository, "adopt")
    assert done.returncode == 1
    assert "by up to" in done.stdout
    assert "experts@digits-smooth would come out otherwise, or may, and stay out of date: run `dvc repro`" in done.stderr
    new, old = (YAML(typ="safe").load(text)["stages"] for text in (lock(repository), kept))
    assert {name for name in old if old[name] != new[name]} == {"resolve", *(f"evaluate@{run}" for run in RUNS)}
    assert outdated(repository) == {"experts@digits-smooth"}
    refused = python(repository, "adopt", "experts@nothing")
    assert "no stage is named 'experts@nothing': name some of dvc.yaml" in refused.stderr


def test_other_settings_are_not_adopted(repository: Path) -> None:
    raw = YAML(typ="safe").load((repository / "params.yaml").read_text())
    raw["evaluate"]["mtt"]["epochs"] = 21
    YAML(typ="safe").dump(raw, repository / "params.yaml")
    kept = lock(repository)
    done = python(repository, "adopt", "evaluate@digits-ipc1-ast")
    assert done.returncode == 1
    assert "evaluate@digits-ipc1-ast can't be adopted: its settings changed, not its code alone (evaluate.epochs" in done.stderr
    assert lock(repository) == kept
