"""Every command meets a run of tuples: what judges students by any figure works and names it, what is of images is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch

from src import api
from src.ground.errors import UserError
from src.settings import resolved
from src.settings.networks import Encoders
from src.settings.params import Params, load, parse
from src.settings.studies import Tune
from src.stages import clean, evaluate, experts, gallery, report, verify
from src.store import files
from src.studies import ablate, compare, gradient_error, methods, samples, snapshots, space, tune, usefulness, variants
from src.studies.variants import Changes, Workspace
from tests import tuples
from tests.called import command
from tests.small_run import STORE, made

PAIR = "digits-seen-written"


def raw_params() -> dict[str, Any]:
    """Pairs, and beside them images in classes."""
    raw = tuples.params()
    raw["tune"] = {"epochs": 2, "students": 2, "rungs": 2}
    raw["networks"]["wider"] = {**raw["networks"]["both"], "embedding": 16}
    raw["networks"]["plain"] = {"depth": 1, "width": 4}
    raw["runs"]["random"]["cross"] = ["wider"]
    raw["runs"]["tesla"] = {
        **raw["runs"]["proxy"],
        "distill": {**raw["runs"]["proxy"]["distill"], "gradient": "tesla", "syn_steps": 1},
    }
    raw["prepare"]["digits"] = {"source": "digits"}
    own = {"dataset": "digits", "network": "plain", "experts": None, "ipc": 1, "evaluate": "short"}
    raw["runs"]["images"] = {**own, "distill": {"method": "real"}}
    return raw


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    with made(tmp_path_factory.mktemp("commands"), raw_params()) as found:
        yield found


def test_checkpoints_are_known_as_current(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    clean.run(STORE, resolved.pipeline(params), False, False)
    assert re.search(r"^0 of [1-9]\d* files", capsys.readouterr().err)


REFUSED = [
    ("distill --run proxy --plan", "--plan is for images in classes, and proxy is of tuples: name a run of images with --run"),
    (
        "distill --run proxy --plan --device cuda --memory 8",
        "--plan is for images in classes, and proxy is of tuples: name a run of images with --run",
    ),
    ("plan --run proxy --gpus 2 --device h100", "plan is for images in classes, and proxy is of tuples: name a run of images"),
    ("gallery --to a.html proxy", "gallery is for images in classes, and proxy is of tuples: see its tuples in the report"),
    ("export --run proxy --to out --format pt", "--format pt is for images in classes, and proxy is of tuples: leave it out"),
    ("export --run proxy --to out --half", "--half is for images in classes, and proxy is of tuples: leave it out"),
    (
        "evaluate --run proxy --from data/distill/proxy/synthetic.safetensors",
        "--from is for images in classes, and proxy is of tuples: leave it out",
    ),
    (
        "evaluate --run proxy --networks plain",
        f"network 'plain' reads images alone, and '{PAIR}' is of tuples: name a network of the family Encoders",
    ),
    (
        "evaluate --run images --networks both",
        "network 'both' has encoders of image, text, 'digits' has the modalities none: make them equal",
    ),
    ("compare proxy images", f"runs on different data sets can't be compared (proxy on {PAIR}, images on digits): name runs"),
    ("methods proxy images", f"one table has one data set, but proxy has {PAIR} and images has digits: name runs that agree"),
    (
        "import synthetic data/distill/images/synthetic.safetensors "
        f"--name mine --dataset {PAIR} --network both --evaluate short",
        "this command works on images in classes, and the data set holds tuples of image, text: choose another one",
    ),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED)
def test_what_is_of_images_is_refused_in_a_sentence(
    words: str, sentence: str, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(words, monkeypatch) == 1
    told = capsys.readouterr().err
    assert sentence in told
    assert "Traceback" not in told
    assert not Path("out").exists()


def test_experts_of_another_code_are_refused(params: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save([[[torch.zeros(2, 3)]]], tmp_path / "replay_buffer_0.pt")
    with pytest.MonkeyPatch.context() as patch:
        assert command(f"import experts {tmp_path} --name theirs --dataset {PAIR} --network both", patch) == 1
    assert "this command works on images in classes, and the data set holds tuples of image, text" in capsys.readouterr().err


def test_a_gallery_of_all_runs_leaves_tuples_out(params: Params) -> None:
    with pytest.raises(UserError, match=r"no run of params\.yaml is distilled from images, so that none evolve"):
        gallery.run(STORE, resolved.pipeline(params), (), Path("all.html"), 1.0, None)


def test_the_api_takes_images_alone(params: Params) -> None:
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])
    spec = params.networks["both"]
    assert isinstance(spec, Encoders)
    with pytest.raises(UserError, match="network is of the family Encoders, which reads no images: give another"):
        api.train_experts(images, labels, network=spec, epochs=1, lr=0.1)
    with pytest.raises(UserError, match="contrast is of tuples, and these are images in classes: leave it out"):
        api.train_experts(images, labels, epochs=1, lr=0.1, contrast={"loss": "wbce"})
    with pytest.raises(UserError, match="normalised is of tuples"):
        api.distill(api.real_images(images, labels), 1, iterations=1, normalised="modality")
    with pytest.raises(UserError, match="holds tuples, and this works on images in classes: use"):
        api.load_synthetic(STORE.synthetic_file("proxy"))


def test_some_experts_name_their_figure(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    experts.run_some(STORE, resolved.buffer(params, "two"), range(1))
    assert re.search(r"two: experts 0 to 0 of 2, validation recall \d", capsys.readouterr().err)


def test_evaluation_names_its_figure(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    run = resolved.run(params, "proxy")
    evaluate.score_networks(STORE, run, {"wider": params.networks["wider"]})
    told = capsys.readouterr().err
    assert "validation mean recall, %" in told
    assert "wider" in told


def test_scores_on_the_way(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    run = resolved.run(params, "proxy")
    snapshots.run(STORE, run, test=False)
    rows = [re.findall(r"[\d.]+", line) for line in capsys.readouterr().err.splitlines() if "±" in line]
    metrics = json.loads(STORE.metrics_file("proxy").read_text())
    assert [row[0] for row in rows] == ["0", "2", "4"]
    assert float(rows[-1][1]) == pytest.approx(100 * metrics["val_recall_mean"], abs=0.06)
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name(PAIR).experiment_id])  # type: ignore[union-attr]
    (own,) = [one for one in found if one.info.run_name == "proxy"]
    assert len(client.get_metric_history(own.info.run_id, "snapshots/val_recall_mean")) == 3


def test_the_gradients_are_compared(params: Params) -> None:
    """Of one step, which no earlier one comes before, they are the same."""
    gradient_error.run(STORE, resolved.run(params, "tesla"), every=2)
    rows = files.read_numbers(Path("data/gradient-error/tesla.csv"), ("iteration", "cosine", "norm", "syn_lr"), "")
    assert [row["iteration"] for row in rows] == [0, 2]
    assert all(row[key] == pytest.approx(1, abs=1e-5) for row in rows for key in ("cosine", "norm", "syn_lr"))


def test_artifacts_are_verified(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (
        STORE.split_file(PAIR, "test"),
        STORE.space_file(PAIR),
        STORE.trajectory_file("two", 1),
        STORE.synthetic_file("proxy"),
        STORE.snapshots_file("proxy"),
    ):
        verify.run(STORE, params, path)
        assert "It was made from the settings and inputs of now" in capsys.readouterr().err


def test_samples_of_recorded_work_are_the_same(params: Params) -> None:
    run = resolved.run(params, "proxy")
    found = [
        *samples.of_data_set(STORE, run.dataset),
        *samples.of_buffer(STORE, run.experts),
        *samples.of_synthetic(STORE, run),
        *samples.of_students(STORE, run),
    ]
    assert {one.difference for one in found} == {None}
    assert {"student 0's val recall", "student 0's test text_to_image_r5"} <= {one.what for one in found}


def test_runs_are_compared_by_recall(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    compare.run(STORE, resolved.pipeline(params), ["proxy", "random"], Path("versus.html"))
    told = capsys.readouterr().out
    metrics = json.loads(STORE.metrics_file("proxy").read_text())
    assert "validation mean recall, %" in told
    assert f"{100 * metrics['test_recall_mean']:.1f} ± {100 * metrics['test_recall_std']:.1f}" in told
    assert "IOR" not in told
    words = shown(Path("versus.html"))
    assert "Mean recall" in words and "6 tuples" in words
    assert not re.search(r"accuracy|images per class|real images|synthetic images", words, re.IGNORECASE)


def shown(page: Path) -> str:
    """What a page says, without its markup."""
    text = re.sub(r"<style>.*?</style>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def test_the_report_has_both_kinds_under_their_names(params: Params) -> None:
    report.run(STORE, resolved.pipeline(params))
    words, table = shown(STORE.report_file("html")), STORE.report_file("md").read_text(encoding="utf-8")
    assert "test mean recall, %" in words and "test accuracy, %" in words
    assert "Test mean recall, %, of students of other networks" in table
    assert "Tuples that were learned with one network should teach others too." in words
    assert "| images per class |" in table
    assert "15 learned similarity, 16 normalised by encoder" in table


@pytest.mark.parametrize("side", ["student", "both"])
def test_what_a_study_searches(side: space.Side, params: Params) -> None:
    run = resolved.run(params, "proxy")
    found = space.build(run, params.tune, side)
    assert "representative" not in str(found["distill.initialisation"])
    assert not any("gradient_penalty" in name for name in found)
    assert ("experts.lr" in found) == (side == "both")


def test_experts_are_measured_by_recall(params: Params, tmp_path: Path) -> None:
    run = resolved.run(params, "proxy")
    variant = variants.build(run, params.tune, Changes(), variants.protocol_of(run, params.tune))
    workspace = Workspace(tmp_path, Path.cwd())
    workspace.lend(PAIR)
    with workspace.entered():
        variants.ready_experts(variant, workspace.source)
        found = usefulness.measure(variant)
    rows = files.read_numbers(STORE.expert_curves_file("two"), ("epoch", "val_recall", "parameter_step"), "")
    last = [row["val_recall"] for row in rows if row["epoch"] == run.distillation.last_epoch]
    assert found.accuracy == pytest.approx(sum(last) / len(last), abs=1e-6)
    assert found.common_logit_step is None


def test_a_run_that_begins_with_another_keeps_its_similarity_without_any_part() -> None:
    base = resolved.run(parse(tuples.later(tuples.params())), "later")
    protocol = variants.protocol_of(base, Tune())
    built = [variants.build(base, Tune(), ablate.changes(base, arm.parts, 0), protocol).run for arm in ablate.arms(base)]
    assert {one.distillation.normalised for one in built} == {"all", "modality"}
    assert all(one.distillation.similarity == base.distillation.similarity and one.initial == base.initial for one in built)


@pytest.mark.slow
def test_a_study_is_judged_by_recall(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    tune.run(STORE, params, "proxy", "both", 2, None, 1, True)
    assert {*params.runs} <= {*load().runs}  # whether or not a trial is better, and was added
    told = capsys.readouterr().out
    assert "2 trials (2 complete" in told
    assert "validation mean recall, %" in told
    (table,) = Path("data/tune").rglob("trials.csv")
    rows = files.read_numbers(table, ("trial", "val_recall"), "")
    assert all(0 < row["val_recall"] < 1 for row in rows)
    assert tune.choose(params, PAIR, 6, None) == "proxy"
    with pytest.raises(UserError, match=f"no run of params.yaml distils {PAIR} to 7 tuples"):
        tune.choose(params, PAIR, 7, None)


@pytest.mark.slow
def test_methods_are_compared_by_recall(params: Params) -> None:
    methods.run(STORE, params, ["proxy", "random"], None, 0, 2, True, 1)
    (text,) = Path("data/methods").glob("*.md")
    words = text.read_text(encoding="utf-8")
    assert "test mean recall, %" in words
    assert "accuracy" not in words and "failed" not in words


@pytest.mark.slow
def test_the_parts_of_tuples_are_taken_away(params: Params) -> None:
    base = resolved.run(params, "proxy")
    arms = [arm.label for arm in ablate.arms(base)]
    assert {"without learned similarity", "without normalised by encoder", "MTT and learned similarity"} <= set(arms)
    assert not any("penalty" in label or "representative" in label for label in arms)
    ablate.run(STORE, base, params.tune, 2, False, 1)
    words = Path("data/ablate/proxy.md").read_text(encoding="utf-8")
    assert "validation mean recall, %" in words
    assert "accuracy" not in words and "failed" not in words
    found = json.loads(Path("data/ablate/proxy.json").read_text())
    assert [one["label"] for one in found["variants"]] == arms
