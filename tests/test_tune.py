"""tune: exactly so many trials whatever is killed, none twice, failures survived, test split left alone, --apply adds lines.

Studies run through the command line, tiny, on digits; what is about taking trials alone runs on a value that costs nothing.
"""

from __future__ import annotations

import csv
import difflib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from src.ground.errors import ParamsError, UserError
from src.settings import resolved
from src.settings.base import LONGEST_NAME, NAME
from src.settings.params import Params, load, parse
from src.studies import space, study, study_log, tune, variants
from src.studies.study import Study
from src.studies.variants import Changes, Workspace
from tests import studying
from tests.imports import ROOT
from tests.small_run import STORE
from tests.stored import client_of, kept
from tests.studying import RUN, call

# -- what is searched


@pytest.fixture
def params() -> Params:
    return load(ROOT / "params.yaml")


def with_tune(valid: dict[str, Any], ranges: dict[str, Any]) -> dict[str, Any]:
    return {**valid, "tune": {"ranges": {"digits": ranges}}}


def test_a_side_searches_its_own_parameters_around_the_present_ones(params: Params) -> None:
    student = space.build(resolved.run(params, RUN), params.tune, "student")
    assert {name.split(".")[0] for name in student} == {"distill"}
    assert set(space.build(resolved.run(params, RUN), params.tune, "both")) == {
        *student,
        *space.build(resolved.run(params, RUN), params.tune, "expert"),
    }
    for side in ("student", "expert", "both"):
        found, present = (
            space.build(resolved.run(params, RUN), params.tune, side),
            space.start(resolved.run(params, RUN), params.tune, side),
        )
        assert set(found) == set(present)
        assert all(found[name]._contains(found[name].to_internal_repr(value)) for name, value in present.items())


def test_a_run_of_the_longest_name_has_variants(valid_params: dict[str, Any]) -> None:
    """Their names are a digest longer, and names as well."""
    run, buffer = "r" * LONGEST_NAME, "e" * LONGEST_NAME
    valid_params["experts"] = {buffer: valid_params["experts"]["smooth"]}
    valid_params["runs"] = {run: {**valid_params["runs"]["one"], "experts": buffer}}
    found = parse(valid_params)
    built = [
        variants.build(
            resolved.run(found, run), found.tune, Changes(seed=seed), variants.protocol_of(resolved.run(found, run), found.tune)
        )
        for seed in (1, 2)
    ]
    names = [name for variant in built for name in (variant.name, variant.experts)]
    assert len(set(names)) == 4
    assert all(NAME.fullmatch(name) for name in names)


def test_params_yaml_changes_ranges(valid_params: dict[str, Any]) -> None:
    ranges = {"distill": {"lr_img": {"low": 1, "high": 50.0}, "syn_steps": {"choices": [5, 6]}}}
    found = space.build(
        resolved.run(parse(with_tune(valid_params, ranges)), "one"), parse(with_tune(valid_params, ranges)).tune, "student"
    )
    assert found["distill.lr_img"] == FloatDistribution(1.0, 100.0)  # widened to the present value
    assert found["distill.syn_steps"] == CategoricalDistribution((5, 6, 20))
    assert isinstance(found["distill.expert_epochs"], IntDistribution)


BAD = [
    ({"distill": {"lr_imgs": {"low": 1, "high": 2}}}, "distill.lr_imgs is no setting"),
    ({"distill": {"lr_img": {"low": 3, "high": 2}}}, "low 3 must lie below high 2"),
    ({"distill": {"lr_img": {"low": 3}}}, "give low and high, or choices"),
    ({"distill": {"lr_img": {"low": 0, "high": 2, "log": True}}}, "log needs a low above 0"),
]


@pytest.mark.parametrize(("ranges", "sentence"), BAD)
def test_bad_ranges_are_reported_with_params_yaml(ranges: dict[str, Any], sentence: str, valid_params: dict[str, Any]) -> None:
    with pytest.raises(ParamsError, match=r"tune\.ranges") as error:
        parse(with_tune(valid_params, ranges))
    assert sentence in str(error.value)


def test_a_range_that_does_not_hold_the_present_value(valid_params: dict[str, Any]) -> None:
    ranges = {"distill": {"inner_weight_decay": {"low": 1e-5, "high": 1e-2, "log": True}}}
    with pytest.raises(UserError, match=r"distill.inner_weight_decay is 0.0 now, which no logarithmic range holds"):
        space.build(
            resolved.run(parse(with_tune(valid_params, ranges)), "one"), parse(with_tune(valid_params, ranges)).tune, "student"
        )
    ranges = {"distill": {"syn_steps": {"low": 1.5, "high": 30}}}
    with pytest.raises(UserError, match="takes whole numbers"):
        space.build(
            resolved.run(parse(with_tune(valid_params, ranges)), "one"), parse(with_tune(valid_params, ranges)).tune, "student"
        )


def test_drawn_values_are_rounded_and_reach_no_further_than_the_experts(params: Params) -> None:
    found = space.build(resolved.run(params, RUN), params.tune, "student")
    drawn = {**space.start(resolved.run(params, RUN), params.tune, "student"), "distill.lr_img": 12.3456}
    last = params.experts["digits-smooth"].last_epoch
    tidy = space.tidy(resolved.run(params, RUN), found, {**drawn, "distill.max_start_epoch": last, "distill.expert_epochs": 4})
    assert tidy["distill.lr_img"] == 12.3
    assert tidy["distill.max_start_epoch"] - 1 + 4 == last
    choices = {**found, "distill.max_start_epoch": CategoricalDistribution((5, 7, last))}
    for expert_epochs, lower in ((4, 7), (last - 5, 5), (last, last)):  # the largest that the experts reach, or else as drawn
        values = {**drawn, "distill.max_start_epoch": last, "distill.expert_epochs": expert_epochs}
        tidy = space.tidy(resolved.run(params, RUN), choices, values)
        assert tidy["distill.max_start_epoch"] == lower


# -- taking trials

CHEAP = """
import os, signal, sys, time
from pathlib import Path
from tests.test_tune import cheap
from src.studies import study
plan = cheap(Path(sys.argv[1]), *sys.argv[3:])
plan.begin({"x": 0.5})
opened = plan.open()
with plan.worker() as name:
    while (trial := plan.claim(opened, name, int(sys.argv[2]))) is not None:
        print(trial.number, flush=True)
        if os.environ.get("DEADLY") == str(trial.number):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)
        study.complete(opened, trial, (trial.params["x"], trial.params["x"]))
"""


def cheap(folder: Path, url: str | None = None) -> Study:
    return Study(folder, "cheap", {"x": FloatDistribution(0, 1)}, dict, 0, prunes=False, url=url)


def start_cheap(folder: Path, trials: int, *url: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHEAP, str(folder), str(trials), *url]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def all_done(opened: optuna.Study, count: int) -> None:
    """Exactly so many trials, all finished, no parameters twice."""
    assert [trial.number for trial in opened.trials] == list(range(count))
    assert all(trial.state.is_finished() for trial in opened.trials)
    assert len({str(trial.params) for trial in opened.trials}) == count


@pytest.mark.slow
def test_killed_workers_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    trials = 12
    workers = [start_cheap(tmp_path, trials) for _ in range(2)]
    opened = cheap(tmp_path).open()
    until(lambda: len(study.finished(opened)) >= 2)
    workers[0].kill()
    until(lambda: len(study.finished(opened)) >= 5)
    workers[1].kill()
    for worker in workers:
        worker.wait()
    left = [trial for trial in opened.trials if not trial.state.is_finished()]
    assert left  # they were killed at work
    again = [start_cheap(tmp_path, trials) for _ in range(2)]
    assert [worker.wait() for worker in again] == [0, 0]
    all_done(opened, trials)
    after = {trial.number: trial.params for trial in opened.trials}
    assert all(after[trial.number] == trial.params for trial in left if trial.params)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    """A PostgreSQL server of the test's own on the loopback address; it takes no order from root."""
    pytest.importorskip("psycopg")
    if shutil.which("initdb") is None or (os.getuid() == 0 and shutil.which("runuser") is None):
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    prefix = []
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
        prefix = ["runuser", "-u", "postgres", "--"]
    port = free_port()
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    for words in (
        ["initdb", "--auth=trust", "--username=ast", "-D", str(folder / "db")],
        ["pg_ctl", "-D", str(folder / "db"), "-l", str(folder / "log"), "-w", "-o", options, "start"],
    ):
        subprocess.run([*prefix, *words], check=True, capture_output=True, cwd="/")
    yield f"postgresql+psycopg://ast@127.0.0.1:{port}/postgres"
    subprocess.run([*prefix, "pg_ctl", "-D", str(folder / "db"), "-m", "immediate", "stop"], capture_output=True, cwd="/")
    shutil.rmtree(folder)


PROXY = """
import sys
from optuna.storages import get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.fixture
def proxy(database: str) -> Iterator[str]:
    """Optuna's, before the database."""
    pytest.importorskip("grpc")
    port = free_port()
    server = subprocess.Popen([sys.executable, "-c", PROXY, database, str(port)])
    yield f"grpc://127.0.0.1:{port}"
    server.kill()
    server.wait()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["database", "proxy"])
def test_a_database_takes_four_workers_one_of_which_is_killed(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trials, url = 16, request.getfixturevalue(kind)
    workers = [start_cheap(tmp_path, trials, url) for _ in range(4)]
    opened = cheap(tmp_path, url).open()
    until(lambda: len(study.finished(opened)) >= 3)
    workers[0].kill()
    assert [worker.wait() for worker in workers][1:] == [0, 0, 0]
    all_done(opened, trials)


def test_a_database_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tune\.storage nothing:// can't be used"):
        cheap(tmp_path, "nothing://").open()


def test_a_trial_is_tried_again_once_after_its_worker_died(tmp_path: Path) -> None:
    """Under its number. Then it has failed, with the reason; workers that ended in order count for nothing."""
    plan = cheap(tmp_path)
    opened = plan.open()

    def taken(worker: str) -> int | None:
        trial = plan.claim(opened, worker, 1)
        return None if trial is None else trial.number

    for _ in range(4):
        with plan.worker() as name:
            assert taken(name) == 0
    for worker in ("gone", "gone too"):
        assert taken(worker) == 0
        (tmp_path / "workers" / f"{worker}.lock").touch()  # as a killed process leaves it
    assert taken("next") is None
    (failed,) = opened.trials
    assert failed.state == TrialState.FAIL
    assert "its worker died 2 times" in failed.user_attrs["sentence"]


@pytest.mark.slow
def test_a_trial_that_kills_its_workers_costs_two_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEADLY", "2")
    taken, ends = [], []
    while 0 not in ends:
        worker = start_cheap(tmp_path, 6)
        taken += worker.communicate()[0].split()
        ends.append(worker.returncode)
    assert ends == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert taken == ["0", "1", "2", "2", "3", "4", "5"]
    opened = cheap(tmp_path).open()
    all_done(opened, 6)
    assert [trial.number for trial in opened.trials if trial.state == TrialState.FAIL] == [2]


def test_a_space_that_is_used_up_ends_the_study(tmp_path: Path) -> None:
    few = {"a": CategoricalDistribution((1, 2, 3)), "b": CategoricalDistribution((True, False))}
    plan = Study(tmp_path, "few", few, dict, 0, prunes=False)
    plan.begin({"a": 1, "b": True})
    opened = plan.open()
    with plan.worker() as name:
        while (trial := plan.claim(opened, name, 50)) is not None:
            study.fail(opened, trial, "broken") if trial.number == 2 else study.complete(opened, trial, (0.5, 0.6))
    all_done(opened, 6)
    assert opened.trials[0].params == {"a": 1, "b": True}


def test_the_same_seed_draws_the_same_trials(tmp_path: Path) -> None:
    drawn = []
    for name in ("a", "b"):
        plan = cheap(tmp_path / name)
        opened = plan.open()
        with plan.worker() as worker:
            while (trial := plan.claim(opened, worker, 4)) is not None:
                study.complete(opened, trial, (trial.params["x"], trial.params["x"]))
        drawn.append([trial.params for trial in opened.trials])
    assert drawn[0] == drawn[1]


def test_a_workspace_has_no_test_split_and_keeps_the_users_files(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for name in ("train.safetensors", "val.safetensors", "test.safetensors", "space.safetensors", "statistics.json"):
        (top / "data/prepare/digits").mkdir(parents=True, exist_ok=True)
        (top / "data/prepare/digits" / name).write_text(name)
    workspace = Workspace(tmp_path / "work", top)
    workspace.lend("digits")
    lent = sorted(path.name for path in (tmp_path / "work/data/prepare/digits").iterdir())
    assert lent == ["space.safetensors", "statistics.json", "train.safetensors", "val.safetensors"]
    assert not (tmp_path / "work/data/imported").exists()


def test_a_workspace_shows_the_imported_sets(tmp_path: Path) -> None:
    """Those that come later too."""
    top = tmp_path / "top"
    for name in ("train.safetensors", "val.safetensors", "space.safetensors", "statistics.json"):
        (top / "data/prepare/digits").mkdir(parents=True, exist_ok=True)
        (top / "data/prepare/digits" / name).write_text(name)
    (top / "data/imported").mkdir()
    workspace = Workspace(tmp_path / "work", top)
    for _ in range(2):
        workspace.lend("digits")
    (top / "data/imported/theirs.safetensors").write_text("theirs")
    assert (tmp_path / "work/data/imported/theirs.safetensors").read_text() == "theirs"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql+psycopg://me:secret@host:5432/db", "postgresql+psycopg://host:5432/db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("sqlite:///study.db", "sqlite:///study.db"),
    ],
)
def test_a_storage_is_told_without_its_password(url: str, told: str) -> None:
    assert study.address(url) == told


# -- whole studies

RANGES = {
    "lr_img": {"choices": [3.0, 1e35]},  # the second diverges
    "lr_init": {"low": 1e-3, "high": 0.05, "log": True},
    "syn_steps": {"low": 2, "high": 6},
}


def poor(**tune: Any) -> dict[str, Any]:
    """Tiny parameters whose run learns next to nothing, as its syn_lr is far too small."""
    raw = studying.raw_params(ranges={"digits": {"distill": RANGES}}, **tune)
    raw["runs"][RUN]["distill"] |= {"lr_init": 1e-5, "lr_lr": 1e-9}
    raw["runtime"]["workers"] = 2  # experts are trained side by side
    return raw


def journal(folder: Path) -> optuna.Study:
    (plan,) = (folder / "data/tune").iterdir()
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(plan / study_log.JOURNAL)))
    return optuna.load_study(study_name=plan.name, storage=storage)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after a study of six trials by two workers, in which there was no test split."""
    folder = studying.folder_of(tmp_path_factory.mktemp("tune"), poor())
    (folder / "data/prepare/digits/test.safetensors").unlink()
    start = time.monotonic()
    done = call(folder, "tune --dataset digits --ipc 1 --trials 6 --workers 2")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 290  # joblib's processes would idle for 300 seconds
    (folder / "shown.txt").write_text(done.stdout)
    return folder


@pytest.mark.slow
def test_a_study_survives_diverged_trials_without_the_test_split(tuned: Path) -> None:
    opened = journal(tuned)
    all_done(opened, 6)
    assert opened.trials[0].params["distill.lr_init"] == 1e-5  # the run as it is comes first
    failed = [trial for trial in opened.trials if trial.state == TrialState.FAIL]
    assert failed and all("diverged" in trial.user_attrs["sentence"] for trial in failed)
    assert study.best(opened).number != 0  # type: ignore[union-attr]
    assert not list((tuned / "data/tune").rglob("test.safetensors"))
    assert not (tuned / "data/distill").exists()


@pytest.mark.slow
def test_trials_of_one_side_share_their_experts(tuned: Path) -> None:
    (plan,) = (tuned / "data/tune").iterdir()
    assert len(list((plan / "data/experts").iterdir())) == 1


@pytest.mark.slow
def test_mlflow_holds_the_study_with_its_trials(tuned: Path) -> None:
    client = client_of(tuned)
    rows = client.search_runs([client.get_experiment_by_name("digits-studies").experiment_id])  # type: ignore[union-attr]
    (parent,) = [row for row in rows if row.data.tags["ast.kind"] == "study"]
    children = [row for row in rows if row.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 6 + 1  # the experts
    states = {t.number: "FAILED" if t.state == TrialState.FAIL else "FINISHED" for t in journal(tuned).trials}
    found = {int(row.data.tags["optuna.trial"]): row for row in children if row.data.tags["ast.kind"] == "trial"}
    assert {number: row.info.status for number, row in found.items()} == states
    assert all("distill.lr_init" in row.data.params for row in found.values())
    assert "matching_loss" in found[0].data.metrics and "val_accuracy_mean" in found[0].data.metrics
    assert not [key for row in rows for key in row.data.metrics if "test" in key]
    assert parent.data.metrics["best_val_accuracy"] == pytest.approx(journal(tuned).best_value)
    assert "trials.csv" in kept(tuned, parent)
    assert (tuned / parent.data.tags["optuna.journal"]).is_file(), "from the top of a repository that may move"


@pytest.mark.slow
def test_the_tables_of_trials(tuned: Path) -> None:
    (plan,) = (tuned / "data/tune").iterdir()
    rows = list(csv.DictReader((plan / "trials.csv").open()))
    opened = journal(tuned)
    assert [int(row["trial"]) for row in rows] == list(range(6))
    assert [row["state"] for row in rows] == [trial.state.name for trial in opened.trials]
    shown = (tuned / "shown.txt").read_text()
    assert f"{100 * opened.best_value:.1f} ±" in shown
    assert "the start" in shown and "(p = " in shown


@pytest.mark.slow
def test_apply_only_adds_lines(tuned: Path) -> None:
    file = tuned / "params.yaml"
    before = "# a comment\n" + file.read_text()
    file.write_text(before)
    done = call(tuned, f"tune --run {RUN} --trials 0 --apply")
    assert done.returncode == 0, done.stderr
    assert f"next: dvc repro evaluate@{RUN}-tuned" in done.stdout
    changes = [line for line in difflib.ndiff(before.splitlines(), file.read_text().splitlines()) if line[0] in "+-?"]
    assert changes and all(line.startswith("+") for line in changes)
    after, best = load(file), study.best(journal(tuned))
    assert best is not None
    own = after.distillations[f"{RUN}-tuned"]
    assert {name: getattr(own, name.removeprefix("distill.")) for name in best.params} == best.params
    assert call(tuned, f"tune --run {RUN} --trials 0 --apply").stdout.count("has digits-ipc1-ast-tuned already") == 1


@pytest.mark.slow
def test_the_expert_side_trains_experts_and_applies_them(tmp_path: Path) -> None:
    raw = studying.raw_params(ranges={"digits": {"experts": {"lr": {"low": 0.01, "high": 0.05}}}})
    raw["experts"]["digits-smooth"] |= {"epochs": 4, "lr": 1e-3, "clipping_epochs": 1}
    folder = studying.folder_of(tmp_path, raw)
    done = call(folder, f"tune --run {RUN} --side expert --trials 2 --workers 1 --apply")
    assert done.returncode == 0, done.stderr
    opened = journal(folder)
    all_done(opened, 2)
    (plan,) = (folder / "data/tune").iterdir()
    assert len(list((plan / "data/experts").iterdir())) == 2
    if opened.best_trial.number:
        assert load(folder / "params.yaml").runs[f"{RUN}-tuned"].experts == "digits-smooth-tuned"
    client = client_of(folder)
    rows = client.search_runs([client.get_experiment_by_name("digits-studies").experiment_id])  # type: ignore[union-attr]
    measured = {row.data.tags["ast.kind"]: row for row in rows}
    assert measured["trial"].data.metrics["experts/parameter_step"] > 0
    assert "figures/experts.png" in kept(folder, measured["study"], "figures")


def workers_of(main: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(main.pid).children(recursive=True)
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]  # which has no command line
    return [child for child in alive if any("spawn_main" in word for word in child.cmdline())]


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again(tmp_path: Path) -> None:
    """One of two workers, then all at once, then to the end: so many trials, none twice, no run left open."""
    trials = 6
    folder = studying.folder_of(tmp_path, poor())
    words = f"tune --run {RUN} --trials {trials} --workers 2".split()
    command = [sys.executable, "-m", "src.cli", *words]
    main = subprocess.Popen(command, cwd=folder, env=studying.environment(folder), stderr=subprocess.PIPE, text=True)
    until(lambda: (folder / "data/tune").exists() and any((folder / "data/tune").glob("*/journal.log")))
    opened = journal(folder)

    def at_work(count: int) -> bool:
        return len(opened.get_trials(states=(TrialState.RUNNING,))) == count

    until(lambda: at_work(2))
    workers_of(main)[0].send_signal(signal.SIGKILL)
    until(lambda: len(study.finished(opened)) >= 2 and not at_work(0))
    for process in [psutil.Process(main.pid), *workers_of(main)]:
        process.kill()
    main.wait()
    before = {trial.number: trial.params for trial in opened.trials if trial.params}
    assert len(study.finished(opened)) < trials
    done = call(folder, " ".join(words))
    assert done.returncode == 0, done.stderr
    all_done(opened, trials)
    # a kill may have come while Optuna wrote one parameter after the other
    assert all(opened.trials[number].params.items() >= found.items() for number, found in before.items())
    client = client_of(folder)
    rows = client.search_runs([client.get_experiment_by_name("digits-studies").experiment_id])  # type: ignore[union-attr]
    assert not [row for row in rows if row.info.status == "RUNNING"]
    numbers = [row.data.tags["optuna.trial"] for row in rows if row.data.tags["ast.kind"] == "trial"]
    assert sorted(numbers) == [str(number) for number in range(trials)]


REFUSED = [
    ((None, 1, None), "Name a run with --run"),
    (("digits", 7, None), "no run of params.yaml distils digits to 7 images per class"),
    ((None, None, "digits-ipc1-random"), "has 0 iterations"),
    ((None, 10, RUN), "runs.digits-ipc1-ast.ipc is 1, not 10"),
    (("digit", 1, None), "no data set is named 'digit'"),
    ((None, None, "x"), "no run is named 'x'"),
]


@pytest.mark.parametrize(("asked", "sentence"), REFUSED)
def test_refusals(asked: tuple[str | None, int | None, str | None], sentence: str, params: Params) -> None:
    with pytest.raises(UserError, match=sentence):
        tune.choose(params, *asked)


def test_the_run_to_start_from(params: Params) -> None:
    assert tune.choose(params, "digits", 10, None) == "digits-ipc10-ast"
    assert tune.choose(params, None, None, "digits-ipc1-mtt") == "digits-ipc1-mtt"


def test_a_data_set_that_is_not_prepared(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"make it with `python -m src\.cli prepare --dataset digits`"):
        tune.run(STORE, params, RUN, "student", None, None, 1, False)
