"""Flickr30K and COCO as they are published, in miniature, by the presets' settings with fewer of everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from src.editing import tuples as presets
from src.store import files
from tests import tuples
from tests.small_run import STORE, made

PICTURES = 24
EACH = 5  # captions of a picture
SPLITS = {
    "flickr30k": ("train", "train", "train", "train", "val", "test"),
    "coco": ("train", "restval", "train", "restval", "val", "test"),
}


def write(dataset: str, folder: Path) -> None:
    """Pictures as they come, and Karpathy's file beside them: COCO's in two folders, which the file names."""
    parts = ("train2014", "val2014") if dataset == "coco" else ("flickr30k-images",)
    names = {part: tuples.write_pictures(folder / part, PICTURES // len(parts)) for part in parts}
    for part in parts[1:]:  # of the same names in both no one could tell which is meant
        names[part] = [name.replace("picture", part) for name in names[part]]
        for path in list((folder / part).iterdir()):
            path.rename(path.with_name(path.name.replace("picture", part)))
    images: list[dict[str, Any]] = []
    for number, (part, name) in enumerate((one, name) for one in parts for name in names[one]):
        told = [f"A picture no. {number}, as {voice} sees it ." for voice in ("Ann", "Ben", "Cem", "Dea", "Eva")]
        sentences = [
            {"tokens": one.split(), "raw": one, "imgid": number, "sentid": EACH * number + k} for k, one in enumerate(told)
        ]
        own = {"sentids": [one["sentid"] for one in sentences], "imgid": number, "sentences": sentences}
        where = {"filepath": part, "cocoid": number} if dataset == "coco" else {}
        images.append({**own, **where, "split": SPLITS[dataset][number % 6], "filename": name})
    (folder / f"dataset_{dataset}.json").write_text(json.dumps({"images": images, "dataset": dataset}), encoding="utf-8")


def shrunk(preset: str, dataset: str) -> dict[str, Any]:
    """Its sections with smaller networks and sets, and fewer steps; all else as published."""
    sections: dict[str, Any] = json.loads(json.dumps(presets.load()[preset].sections))
    sections["prepare"][dataset]["modalities"] |= {
        "image": {"kind": "image", "size": 8, "channels": 3},
        "text": {"kind": "text", "length": 24, "numbers": 4},
    }
    (network,) = sections["networks"].values()
    network |= {"embedding": 8}
    network["encoders"] = {
        "image": {"depth": 1, "width": 4},
        "text": {"family": "TextNet", "depth": 1, "width": 4, "kernel": 5},
    }
    (experts,) = sections["experts"].values()
    experts |= {"count": 2, "batch_size": 16}
    (run,) = sections["runs"].values()
    run["ipc"] = 12
    run["distill"] |= {"iterations": 2, "batch_syn": 6, "lr_img": 1.0}
    if "similarity" in run["distill"]:
        run["distill"]["similarity"] |= {"rank": 2, "lr": 0.1}
    (protocol,) = sections["evaluate"].values()
    protocol |= {"students": 2, "epochs": 2}
    runtime = {"device": "cpu", "threads": 1, "workers": 1}
    return {"seed": 0, "runtime": runtime, **sections, "report": {"title": "Published"}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "dataset"), [("flickr30k-100-lors", "flickr30k"), ("coco-500-lors", "coco"), ("coco-100-mtt-vl", "coco")]
)
def test_a_preset_goes_through_all_stages(preset: str, dataset: str, tmp_path: Path) -> None:
    (tmp_path / "data" / "sources").mkdir(parents=True)
    write(dataset, tmp_path / "data" / "sources" / dataset)
    with made(tmp_path, shrunk(preset, dataset)) as params:
        found = {split: STORE.load_tuples(dataset, split) for split in ("train", "val", "test")}
        assert {split: len(value.rows) for split, value in found.items()} == {"train": 80, "val": 20, "test": 20}
        assert [len(value.items["image"].groups) for value in found.values()] == [16, 4, 4]
        assert "A picture no. 5, as Ann sees it ." in found["test"].items["text"].texts
        settings = params.distillations[preset]
        assert (settings.syn_steps, settings.normalised) == (8, "all" if preset == "coco-500-lors" else "modality")
        rows = files.read_numbers(STORE.history_file(preset), ("matching_loss", "syn_lr_image", "syn_lr_text"), "")
        assert len(rows) == 2
        assert STORE.load_synthetic(preset).pixels.shape == (12, 3 * 8 * 8 + 4 * 24)
        metrics = json.loads(STORE.metrics_file(preset).read_text())
        assert {"test_image_to_text_r1_mean", "test_text_to_image_r10_mean"} <= set(metrics)
