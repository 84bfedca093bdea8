"""Tuples through all stages: the artifacts, the report, and a stopped run that ends in the same bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from safetensors.torch import load_file

from src.ground.errors import UserError
from src.maths import contrast
from src.process import progress
from src.process.ranks import Ranks
from src.settings import resolved
from src.settings.params import Params, parse
from src.stages import distill, evaluate, export, report
from src.stages.tuples import shown
from src.store import files
from src.store.values import SyntheticSet
from tests import tuples
from tests.small_run import STORE, made


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    """Three modalities, so that two come with them."""
    folder = tmp_path_factory.mktemp("tuples")
    tuples.write_recordings(folder / "fsdd")
    raw = tuples.spoken(tuples.params(), folder / "fsdd")
    with made(folder, raw) as found:
        report.run(STORE, resolved.pipeline(found))
        yield found


def test_splits_hold_what_belongs_together(params: Params) -> None:
    (name,) = params.prepare
    for split in ("train", "val", "test"):
        found = STORE.load_tuples(name, split)
        groups = torch.stack([items.groups[found.rows[:, place]] for place, items in enumerate(found.items.values())])
        assert (groups == groups[0]).all()
        assert set(groups[0].tolist()) == set(range(10))
        assert all(
            set(found.rows[:, place].tolist()) == set(range(len(own.groups))) for place, own in enumerate(found.items.values())
        )
    test, train = (STORE.load_tuples(name, split).items for split in ("test", "train"))
    assert len(test["sound"].groups) == 10 * 2 * 5  # the authors' takes
    assert test["text"].texts == train["text"].texts
    assert "vier" in train["text"].texts
    assert not {tuple(one) for one in test["image"].values.flatten(1).tolist()} & {
        tuple(one) for one in train["image"].values.flatten(1).tolist()
    }


def test_what_networks_read_is_normalised(params: Params) -> None:
    (name,) = params.prepare
    _, _, image, text, sound, *groups = STORE.load_real(name, "train")
    assert (image.shape[1], text.shape[1], sound.shape[1]) == STORE.load_tuple_statistics(name).shape.sizes
    for values in (image, sound):
        assert values.mean().abs() < 1e-4
        assert (values.std(correction=0) - 1).abs() < 1e-4
    assert [len(own) for own in groups] == [len(image), len(text), len(sound)]


def test_a_synthetic_set_has_rates_and_similarity(params: Params) -> None:
    (name,) = params.prepare
    found, real = STORE.load_synthetic("proxy"), STORE.load_synthetic("random")
    settings = params.distillations["proxy"].similarity
    assert settings is not None
    assert found.pixels.shape == (6, *STORE.load_statistics(name).shape.batch)
    assert found.syn_lr.shape == (3,)
    assert len({*found.syn_lr.tolist()}) == 3
    assert found.labels.shape == (6, contrast.numbers(settings, 3))
    assert real.labels.tolist() == list(range(6))
    assert STORE.load_snapshots("proxy").iterations.tolist() == [0, 2, 4]
    history = files.read_csv(STORE.history_file("proxy"), "")
    assert {"syn_lr", "syn_lr_image", "syn_lr_text", "syn_lr_sound", "way_point_3"} <= set(history[0])


def test_random_tuples_are_real_ones(params: Params) -> None:
    (name,) = params.prepare
    real = STORE.load_real(name, "train")
    shape = STORE.load_tuple_statistics(name).shape
    own = STORE.load_space(name).normalise(STORE.load_synthetic("random").pixels).split(shape.sizes, dim=1)
    rows = torch.stack([torch.cdist(mine, theirs).argmin(dim=1) for mine, theirs in zip(own, real[2:5], strict=True)], dim=1)
    groups = torch.stack([real[5 + place][rows[:, place]] for place in range(3)])
    assert (groups == groups[0]).all()


def test_recall_is_measured_in_every_direction(params: Params) -> None:
    metrics = json.loads(STORE.metrics_file("proxy").read_text())
    directions = {
        key.removeprefix("test_").removesuffix("_r1_mean") for key in metrics if key.startswith("test_") and "_r1_mean" in key
    }
    assert directions == {f"{a}_to_{b}" for a in ("image", "text", "sound") for b in ("image", "text", "sound") if a != b}
    means = [metrics[f"test_{direction}_r{count}_mean"] for direction in directions for count in (1, 5, 10)]
    assert sum(means) / len(means) == pytest.approx(metrics["test_recall_mean"])
    assert all(metrics[f"test_{d}_r1_mean"] <= metrics[f"test_{d}_r10_mean"] for d in directions)


def test_report_shows_tuples(params: Params) -> None:
    page = STORE.report_file("html").read_text()
    assert page.count("<audio") == 2 * 6
    assert "data:audio/wav;base64" in page
    assert "Similarity of all pairs, before" in page
    assert "text to image" in page
    assert 'id="images"' not in page  # which is of classes
    table = STORE.report_file("md").read_text()
    assert re.search(
        r"\| run +\| data set +\| tuples \| method .*\| validation mean recall, % \| test mean recall, % \|", table
    )
    assert re.search(r"\| proxy +\| digits-seen-written-spoken \| +6 \|", table)
    assert "6 tuples, " in page and "6 images, " not in page


def test_several_processes_do_not_share_out_tuples(params: Params) -> None:
    run = next(run for run in resolved.pipeline(params).runs.values() if run.distillation.iterations)
    statistics = STORE.load_statistics(run.dataset.name)
    images, labels = distill.initial_images(STORE, run, statistics, torch.device("cpu"))
    with pytest.raises(UserError, match="the loss of tuples is no sum over them that processes could share out: run it in one"):
        distill.loop_of(STORE, run, statistics, images, labels, Ranks(0, 2, None))


def test_a_run_that_begins_with_another_shows_the_similarity_that_it_began_with(params: Params) -> None:
    """And not one that was drawn."""
    later = resolved.run(parse(tuples.later(json.loads(Path("params.yaml").read_text()))), "later")
    distill.run(STORE, later)
    evaluate.run(STORE, later)
    (mine,), (its,) = (shown(STORE, run).similarities for run in (later, resolved.run(params, "proxy")))
    assert mine.before == its.after != its.before


def test_mlflow_holds_them_too(params: Params) -> None:
    artifacts = {path.name for path in Path("mlartifacts").rglob("*") if path.is_file()}
    assert "tuples.html" in artifacts
    assert any(name.startswith("synthetic-image") for name in artifacts)
    assert any(name.startswith("synthetic-sound") for name in artifacts)
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(next(iter(params.prepare)))
    (own,) = [one for one in client.search_runs([experiment.experiment_id]) if one.info.run_name == "proxy"]  # type: ignore[union-attr]
    metrics = json.loads(STORE.metrics_file("proxy").read_text())
    assert {key: own.data.metrics[key] for key in metrics} == metrics
    (page,) = Path("mlartifacts").rglob(f"{own.info.run_id}/artifacts/tuples.html")
    text = page.read_text(encoding="utf-8")
    assert text.count("<audio controls") == text.count("data:audio/wav;base64") == 6
    assert "Similarity of all pairs, before" in text and "<b>after</b>" in text
    real = STORE.load_tuples(next(iter(params.prepare)), "train").items["text"].texts
    shown = re.findall(r"<td>(\w[^<]*)</td>", text)
    assert len(shown) == 6 and set(shown) <= set(real)
    assert "text to sound" in text


def test_export_holds_what_can_be_used_seen_and_heard(params: Params, tmp_path: Path) -> None:
    export.run(STORE, resolved.run(params, "proxy"), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tuples.safetensors", "tuples.csv", "set.json", "README.md", "image-005.png", "sound-005.wav"} <= names
    found = load_file(tmp_path / "out" / "tuples.safetensors")
    assert found["image"].shape == (6, 1, 8, 8)
    assert found["text"].shape == (6, 4, 8)
    assert found["similarity"].shape == (3, 6, 6)
    assert torch.allclose(found["similarity"], found["similarity"].transpose(1, 2))
    card = json.loads((tmp_path / "out" / "set.json").read_text())
    assert card["loss"] == {"loss": "infonce", "temperature": 0.07}
    assert card["recall"]["test_recall_mean"] > 0
    with pytest.raises(UserError, match="--format pt is for images in classes, and proxy is of tuples: leave it out"):
        export.run_as(STORE, [resolved.run(params, "proxy")], tmp_path / "other", "pt")


def test_a_stopped_run_ends_in_the_same_bytes(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    run = resolved.run(params, "proxy")
    before = {
        path: path.read_bytes()
        for path in (STORE.synthetic_file("proxy"), STORE.snapshots_file("proxy"), STORE.history_file("proxy"))
    }
    for path in Path(".cache/checkpoints/distill").rglob("*.safetensors"):
        path.unlink()

    def stop(iteration: int, synthetic: SyntheticSet) -> None:
        raise UserError(f"stopped at {iteration}")

    for path in before:
        path.unlink()
    with pytest.raises(UserError, match="stopped at 2"):
        distill.run(STORE, run, stop)
    assert not any(path.exists() for path in before)
    said: list[str] = []
    monkeypatch.setattr(progress, "say", said.append)
    distill.run(STORE, run)
    assert any("resumed at iteration" in line for line in said)
    assert {path: path.read_bytes() for path in before} == before


def test_other_commands_say_that_they_are_of_images(params: Params) -> None:
    (name,) = params.prepare
    with pytest.raises(UserError, match=r"tuples of image, text, sound"):
        _ = STORE.load_statistics(name).image_shape
