"""The Python API: the bytes of the pipeline, without its libraries, from any folder."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from src.api import (
    ExpertBuffer,
    Synthetic,
    SyntheticDataset,
    distill,
    evaluate,
    load_synthetic,
    real_images,
    train_experts,
    train_student,
)
from src.ground.errors import DataError, DivergenceError, ParamsError, UserError
from src.maths import protocol
from src.maths.pixels import Normalisation
from src.settings.networks import MLP, ConvNet, Linear, ResNet18
from src.settings.params import Params
from src.settings.runtime import Runtime
from src.store import files
from tests.imports import ROOT
from tests.small_run import STORE, made

SPEC, MACHINE = ConvNet(depth=2, width=8), Runtime(device="cpu", threads=1, compile="off")
EXPERTS = {"count": 2, "epochs": 3, "lr": 0.05, "batch_size": 128, "augmentation": ["crop", "scale"], "gradient_penalty": 1.0}
DISTILL = {"initialisation": "representative", "iterations": 3, "syn_steps": 3, "lr_init": 0.05, "augmentation": ["crop"]}
REAL = {
    "initialisation": "random", "objective": "real", "real": {"images": 64, "students": 2, "max_age": 6},
    "outer_optimiser": "adam", "lr_img": 0.01, "lr_lr": 1e-4,
}  # fmt: skip
NOT_GIVEN = {"initialisation", "lr_init"}  # where a set is begun with
PROTOCOL = {"students": 2, "epochs": 12, "augmentation": ["crop", "scale"]}
TEN_LINES = """
from src.api import distill, evaluate, train_experts
from src.settings.networks import ConvNet
from sklearn.datasets import load_digits

digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.uint8)[:, None], torch.tensor(digits.target)
experts = train_experts(images[:1200], labels[:1200], network=ConvNet(depth=2, width=8), pixel_max=16, epochs=3, lr=0.05)
synthetic = distill(experts, ipc=1, iterations=2, syn_steps=2)
print(len(evaluate(synthetic, images[1200:], labels[1200:], pixel_max=16, epochs=3)))
synthetic.save("synthetic.safetensors")
"""
BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mlflow", "dvc", "optuna", "typer", "matplotlib"):
            raise ImportError(name)

sys.meta_path.insert(0, Block())
import torch
"""


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    """The folder after the pipeline's own stages."""
    run = {"dataset": "digits", "network": "D2", "experts": "few", "evaluate": "mtt", "ipc": 2}
    raw: dict[str, Any] = {
        "seed": 3,
        "runtime": MACHINE.model_dump(),
        "prepare": {"digits": {"source": "digits"}, "white": {"source": "digits", "whitening": "zca"}},
        "networks": {"D2": {"depth": 2, "width": 8}},
        "experts": {
            name: {"dataset": dataset, "network": "D2", **EXPERTS} for name, dataset in (("few", "digits"), ("wfew", "white"))
        },
        "distill": {"mtt": DISTILL},
        "evaluate": {"mtt": PROTOCOL},
        "runs": {
            "one": {**run, "distill": {"method": "mtt"}},
            "white": {**run, "dataset": "white", "experts": "wfew", "distill": {"method": "mtt"}},
            "real": {**run, "experts": None, "distill": {"method": "mtt", **REAL}},
            "refined": {
                **run,
                "experts": None,
                "distill": {"method": "mtt", **REAL, "initialisation": "run", "initial_run": "one", "lr_init": None},
            },
        },
    }
    with made(tmp_path_factory.mktemp("work"), raw) as found:
        yield found


def split(name: str, dataset: str = "digits") -> tuple[Tensor, Tensor]:
    found = STORE.load_split(dataset, name)
    return found.images, found.labels


def experts_of(dataset: str = "digits", **changes: Any) -> ExpertBuffer:
    settings = {"zca_eps": 0.1 if dataset == "white" else None, **EXPERTS, **changes}
    given = {"network": SPEC, "val": split("val", dataset), "pixel_max": 16, "seed": 3, "machine": MACHINE}
    return train_experts(*split("train", dataset), **given, **settings)


@pytest.fixture(scope="module")
def experts(params: Params) -> ExpertBuffer:
    return experts_of()


@pytest.fixture(scope="module")
def synthetic(experts: ExpertBuffer) -> Synthetic:
    return distill(experts, 2, **DISTILL)


@pytest.mark.parametrize(("dataset", "buffer", "run"), [("digits", "few", "one"), ("white", "wfew", "white")])
def test_the_bytes_are_the_pipelines(dataset: str, buffer: str, run: str, params: Params, tmp_path: Path) -> None:
    experts = experts_of(dataset)
    for index, trajectory in enumerate(experts.trajectories):
        assert torch.equal(trajectory, STORE.read_snapshots(buffer, index, 0, 4))
    files.write_csv(tmp_path / "curves.csv", [dict(row) for row in experts.curves])
    assert (tmp_path / "curves.csv").read_bytes() == STORE.expert_curves_file(buffer).read_bytes()
    found, expected = distill(experts, 2, **DISTILL), STORE.load_synthetic(run)
    assert torch.equal(found.pixels, expected.pixels)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.syn_lr, expected.syn_lr)
    files.write_csv(tmp_path / "history.csv", [dict(row) for row in found.history])
    assert (tmp_path / "history.csv").read_bytes() == STORE.history_file(run).read_bytes()
    accuracies = evaluate(found, *split("test", dataset), pixel_max=16, seed=3, machine=MACHINE, **PROTOCOL)
    assert accuracies == pytest.approx([float(row["test_accuracy"]) for row in files.read_csv(STORE.students_file(run), "")])


def test_no_experts_are_needed_for_the_loss_on_real_images(synthetic: Synthetic, params: Params) -> None:
    """From real images, and from another set, whose labels and learning rate it goes on with."""
    real = real_images(*split("train"), pixel_max=16)
    given = {"network": SPEC, "seed": 3, "machine": MACHINE, **DISTILL, **REAL}
    begun = distill(real, initial=synthetic, **{key: value for key, value in given.items() if key not in NOT_GIVEN})
    for found, run in ((distill(real, 2, **given), "real"), (begun, "refined")):
        expected = STORE.load_synthetic(run)
        assert torch.equal(found.pixels, expected.pixels) and torch.equal(found.syn_lr, expected.syn_lr)
        assert {row["real_loss"] for row in found.history} == {row["matching_loss"] for row in found.history}
    assert torch.equal(begun.snapshots[0], synthetic.pixels) and begun.history[0]["syn_lr"] == synthetic.syn_lr.item()
    other = distill(real, initial=synthetic, **{key: value for key, value in given.items() if key != "initialisation"})
    assert other.history[0]["syn_lr"] == pytest.approx(given["lr_init"]), "which goes before the set's"


def test_ten_lines_without_the_pipelines_libraries(tmp_path: Path) -> None:
    words = [sys.executable, "-c", f"{BLOCK}\nsys.path.insert(0, {str(ROOT)!r})\n{TEN_LINES}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "5\n"
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic.safetensors"]


SHORTER = {"count=5": "count=1", "epochs=20": "epochs=7", "iterations=200": "iterations=2", "300": "3"}


def test_the_notebook_runs_from_any_folder_of_the_clone() -> None:
    """With fewer epochs and iterations, so that what it says of them is not that of the whole."""
    cells = json.loads((ROOT / "notebooks/python_api.ipynb").read_text(encoding="utf-8"))["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    code = "\n".join("".join(cell["source"]) for cell in cells)
    for words, fewer in SHORTER.items():
        assert words in code
        code = code.replace(words, fewer)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ten distilled images: " in done.stdout
    assert done.stdout.endswith("the same again: True\n")


def test_what_is_saved_is_loaded(synthetic: Synthetic, tmp_path: Path) -> None:
    synthetic.save(tmp_path / "one.safetensors")
    with pytest.raises(UserError, match="does not tell how networks read it: give space"):
        load_synthetic(tmp_path / "one.safetensors")
    found = load_synthetic(tmp_path / "one.safetensors", space=synthetic.space, network=SPEC)
    assert torch.equal(found.inputs, synthetic.inputs)
    assert (found.shape, found.spec) == (synthetic.shape, synthetic.spec)


def test_classes_of_soft_labels_are_counted_by_their_shape(synthetic: Synthetic, tmp_path: Path) -> None:
    """Also where no image is likeliest of the last class."""
    labels = torch.nn.functional.one_hot(synthetic.labels.clamp(max=7), 10).float()
    replace(synthetic, labels=labels).save(tmp_path / "soft.safetensors")
    found = load_synthetic(tmp_path / "soft.safetensors", space=synthetic.space, network=SPEC)
    assert found.shape == synthetic.shape
    assert len(evaluate(found, *digits(), pixel_max=16, epochs=1, students=2, machine=MACHINE)) == 2
    with pytest.raises(UserError, match=r"classes is 12, but the labels of .*soft\.safetensors are of 10: give that many"):
        load_synthetic(tmp_path / "soft.safetensors", space=synthetic.space, network=SPEC, classes=12)


def test_a_released_set_tells_all_by_itself() -> None:
    found = load_synthetic(ROOT / "data/released/digits-ipc1-ast/synthetic.safetensors")
    assert (found.classes, found.spec) == (10, ConvNet(depth=2, width=32))
    accuracies = evaluate(found, *digits(), pixel_max=16, epochs=100, students=2, machine=MACHINE)
    assert min(accuracies) > 0.7


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images, dtype=torch.uint8)[:, None], torch.tensor(found.target)


@pytest.mark.parametrize("network", [None, ResNet18(family="ResNet18", width=4, norm="batch")])
def test_a_trained_student_is_that_of_evaluate(network: Any, synthetic: Synthetic, params: Params, tmp_path: Path) -> None:
    images, labels = split("test")
    student = train_student(synthetic, network=network, seed=3, machine=MACHINE, epochs=12)
    assert not student.training
    assert all(
        parameter.untyped_storage().nbytes() == parameter.nbytes for parameter in student.parameters()
    )  # pickled as it is
    torch.save(student, tmp_path / "student.pt")
    accuracies = evaluate(synthetic, images, labels, network=network, pixel_max=16, seed=3, machine=MACHINE, epochs=12)
    predicted = student(synthetic.space.normalise(images.float() / 16)).argmax(dim=1)
    assert (predicted == labels).double().mean().item() == pytest.approx(accuracies[0], abs=0.01)
    assert len(accuracies) == 5


def test_a_set_is_a_data_set_of_torch(synthetic: Synthetic) -> None:
    loader = torch.utils.data.DataLoader(SyntheticDataset(synthetic), batch_size=7)
    batches = list(loader)
    assert torch.equal(torch.cat([images for images, _ in batches]), synthetic.inputs)
    assert torch.equal(torch.cat([labels for _, labels in batches]), synthetic.labels)


def test_progress_is_reported(params: Params) -> None:
    told: list[tuple[int, int, set[str]]] = []

    def report(done: int, total: int, figures: Any) -> None:
        told.append((done, total, {*figures}))

    experts = experts_of(report=report)
    assert [done for done, _, _ in told] == list(range(1, 7))
    assert {"train_loss", "val_accuracy"} <= told[0][2]
    told.clear()
    found = distill(experts, 1, report=report, **DISTILL)
    assert told == [(done, 3, {"matching_loss", "syn_lr"}) for done in (1, 2, 3)]
    told.clear()
    evaluate(found, *split("test"), pixel_max=16, epochs=3, students=2, report=report)
    assert [done for done, _, _ in told] == list(range(1, 7))


def test_the_machine_is_left_as_it_was(synthetic: Synthetic, params: Params) -> None:
    torch.set_num_threads(2)
    mode = torch.get_deterministic_debug_mode()
    torch.backends.cudnn.benchmark = torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        evaluate(synthetic, *split("test"), pixel_max=16, epochs=1, students=2, machine=MACHINE)
        assert torch.get_num_threads() == 2
        assert torch.get_deterministic_debug_mode() == mode
        assert torch.backends.cudnn.benchmark
        assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    finally:
        torch.set_num_threads(1)
        torch.backends.cudnn.benchmark = torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


IMAGES, LABELS = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "settings", "error", "sentence"),
    [
        (IMAGES.float(), LABELS, {}, UserError, "images are real numbers: give integers from 0 to pixel_max"),
        (IMAGES[:, 0], LABELS, {}, UserError, r"images have the shape \(4, 8, 8\): give square ones"),
        (IMAGES + 17, LABELS, {"pixel_max": 16}, UserError, "not within 0 and pixel_max, 16: give another pixel_max"),
        (IMAGES, LABELS[:3], {}, UserError, "give one class for each image"),
        (IMAGES, LABELS.float(), {}, UserError, "give one class for each image"),
        (IMAGES.numpy(), LABELS, {}, UserError, "images are of the type ndarray: give a tensor"),
        (IMAGES, LABELS.tolist(), {}, UserError, "labels are of the type list: give a tensor"),
        (IMAGES, LABELS, {"imported": "0" * 64}, UserError, "imported names experts that `import experts` brought"),
        (IMAGES, 2 * LABELS, {}, UserError, "no image is of class 1: number the classes from 0 on without a gap"),
        (IMAGES, LABELS + 10**15, {}, UserError, "no image is of class 0"),
        (IMAGES[:, :0], LABELS, {}, UserError, "images are none"),
        (IMAGES.to_sparse(), LABELS, {}, UserError, "images are a sparse, quantised or meta tensor: give plain numbers"),
        (IMAGES, LABELS, {"network": "ConvNet"}, UserError, "network is 'ConvNet': give the specification of one"),
        (IMAGES, LABELS, {"zca_eps": -0.5}, UserError, r"zca_eps is -0\.5: give a number above 0"),
        (IMAGES, LABELS, {"pixel_max": 0}, UserError, "pixel_max is 0: give the largest value that a pixel may have"),
        (IMAGES, LABELS, {"machine": {"threads": 1}}, UserError, "machine is a dict: give a Runtime"),
        (IMAGES, LABELS, {"network": Linear(family="Linear")}, UserError, "of the family Linear, which reads no images"),
        (IMAGES, LABELS, {"pixel_max": "255"}, UserError, "pixel_max is '255': give the largest value"),
        (IMAGES, LABELS, {"zca_eps": "x"}, UserError, "zca_eps is 'x': give a number above 0"),
        (IMAGES, LABELS, {"zca_eps": True}, UserError, "zca_eps is True: give a number above 0"),
        (IMAGES, LABELS, {"seed": 0.5}, UserError, "seed is 0.5: give a whole number, 0 or more"),
        (IMAGES, LABELS, {"val": IMAGES}, UserError, "val is not two tensors"),
        (IMAGES, LABELS.to(torch.complex64), {}, UserError, "give one class for each image, from 0 on"),
        (IMAGES, torch.zeros_like(LABELS), {}, UserError, "all images are of one class"),
        (IMAGES, LABELS, {"epochs": 0}, ParamsError, "epochs: input should be greater than or equal to 1; got 0"),
        (IMAGES, LABELS, {"epoch": 1}, ParamsError, "epoch: unknown key: choose from"),
    ],
)
def test_mistakes_are_sentences(images: Any, labels: Any, settings: Any, error: Any, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        train_experts(images, labels, **{"network": SPEC, "epochs": 1, "lr": 0.1, **settings})


def test_mistakes_of_distill_and_evaluate(experts: ExpertBuffer, synthetic: Synthetic, params: Params) -> None:
    with pytest.raises(UserError, match=r"expert_epochs = 5 lies beyond the experts' 3 epochs"):
        distill(experts, 1, max_start_epoch=4)
    with pytest.raises(DataError, match="ipc 500 exceeds the smallest class"):
        distill(experts, 500)
    with pytest.raises(UserError, match="initialisation 'given' takes a set that `import synthetic` brought"):
        distill(experts, 1, initialisation="given")
    with pytest.raises(UserError, match="3 way points do not fit into 1 syn_steps: lower expert_epochs"):
        distill(experts, 1, syn_steps=1, expert_epochs=3, intermediate_loss="sum")
    with pytest.raises(UserError, match="initial is of the type str: give what distill or load_synthetic gave"):
        distill(experts, initial="a set")  # type: ignore[arg-type]
    for ipc in (0, "all", True):
        with pytest.raises(UserError, match=f"ipc is {ipc!r}: give a number of images a class"):
            distill(experts, ipc)  # type: ignore[arg-type]
    real = real_images(*split("train"), pixel_max=16)
    asks = "asks experts, and real images were given: give what train_experts gave, or objective='real'"
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (real, {"ipc": 1}, f"objective 'matching' {asks}"),
        (real, {"ipc": 1, "iterations": 0, "initialisation": "herding"}, f"initialisation 'herding' or its labels {asks}"),
        (real.images, {"ipc": 1}, "distill from Tensor? Give what train_experts gave, or real_images for objective 'real'"),
        (experts, {"ipc": 1, "network": SPEC}, "network and machine are those of the experts: leave them out"),
        (experts, {"ipc": 1, "initial": synthetic}, "ipc is 1, and initial has its own number of images: leave ipc out"),
        (experts, {"initial": synthetic, "initialisation": "noise"}, "and so is initialisation 'noise': give one"),
        (experts, {"ipc": 1, "initialisation": "run", "initial_run": "one"}, "give a set of your own as initial"),
        (
            experts,
            {"initial": replace(synthetic, classes=11)},
            "initial is of images 1x8x8 of 11 classes, not 1x8x8 of 10 classes",
        ),
    ]
    for source, settings, sentence in refused:
        with pytest.raises(UserError, match=re.escape(sentence)):
            distill(source, **settings)
    with pytest.raises(DataError, match="batch_syn: 30 exceeds the 10 synthetic images"):
        distill(experts, 1, batch_syn=30)
    with pytest.raises(UserError, match="what students learn from is of the type ExpertBuffer: give what distill"):
        evaluate(experts, *split("test"), pixel_max=16)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="what students learn from is of the type NoneType"):
        train_student(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="chooses on the images that it scores"):
        evaluate(synthetic, *split("test"), pixel_max=16, score="best_test")
    with pytest.raises(UserError, match="chooses on real images, of which a student is given none"):
        train_student(synthetic, score="best_test")
    with pytest.raises(UserError, match=r"images are 1x4x4 of 10 classes, not 1x8x8 of 10"):
        evaluate(synthetic, split("test")[0][:, :, ::2, ::2], split("test")[1], pixel_max=16)


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("pixels", Tensor.double, "pixels that are no tensor of finite torch.float32"),
        ("pixels", lambda pixels: pixels / 0, "pixels that are no tensor of finite torch.float32"),
        ("pixels", lambda pixels: pixels[:0], "the shapes pixels (0, 1, 8, 8), labels (20,)"),
        ("labels", Tensor.tolist, "labels that are no tensor of finite torch.int64 or torch.float32"),
        ("labels", lambda labels: labels[:3], "the shapes pixels (20, 1, 8, 8), labels (3,)"),
        ("labels", Tensor.float, "the shapes pixels (20, 1, 8, 8), labels (20,)"),
        ("labels", lambda labels: labels + 1, "labels from 1 to 10, but its classes are 0 to 9"),
        ("labels", lambda labels: labels - 1, "labels from -1 to 8, but its classes are 0 to 9"),
        ("syn_lr", lambda syn_lr: syn_lr.repeat(2), "syn_lr (2,)"),
        ("spec", lambda spec: None, "a spec of the type NoneType"),
        ("space", lambda space: "none", "a space of the type str"),
    ],
)
def test_a_set_whose_parts_were_replaced_by_others_is_refused(
    part: str, change: Any, sentence: str, experts: ExpertBuffer, synthetic: Synthetic, tmp_path: Path
) -> None:
    changed = replace(synthetic, **{part: change(getattr(synthetic, part))})
    for use in (
        lambda: distill(experts, initial=changed),
        lambda: evaluate(changed, *split("test"), pixel_max=16),
        lambda: train_student(changed),
        lambda: changed.save(tmp_path / "set.safetensors"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            use()


@pytest.mark.parametrize("function", [train_experts, distill, evaluate, train_student, load_synthetic, real_images, Runtime])
def test_the_page_names_every_parameter(function: Any) -> None:
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert not [name for name in inspect.signature(function).parameters if not re.search(rf"\b{name}\b", text)]


def test_real_images_are_read_as_prepare_does(params: Params) -> None:
    found = real_images(*split("train"), pixel_max=16)
    images, labels = STORE.load_inputs("digits", "train")
    assert torch.equal(found.images, images)
    assert torch.equal(found.labels, labels)
    assert sum(found.counts.values()) == len(labels)


def test_images_of_any_whole_numbers() -> None:
    found, expected = (real_images(IMAGES.to(dtype), LABELS, 16) for dtype in (torch.uint16, torch.uint8))
    assert torch.equal(found.images, expected.images)


def test_noise_on_the_convolutions_wants_some(params: Params) -> None:
    given = {**EXPERTS, "network": MLP(family="MLP"), "val": split("val"), "pixel_max": 16, "machine": MACHINE}
    flat = train_experts(*split("train"), **given)
    with pytest.raises(UserError, match=r"weight_perturbation is 1, of the convolutions' weights, and .* MLP has"):
        distill(flat, 1, **DISTILL, weight_perturbation=1.0)


def test_a_divergence_before_the_first_anchor_begins_again(experts: ExpertBuffer) -> None:
    """With half of lr_img, and without an iteration reported twice."""
    told: list[int] = []
    settings = {"iterations": 3, "syn_steps": 2, "lr_img": 1e9, "lr_lr": 0.0, "max_start_epoch": 1, "on_divergence": "restore"}
    with pytest.raises(DivergenceError):
        distill(experts, 1, report=lambda done, total, figures: told.append(done), **settings)
    assert told == sorted(set(told))


def test_the_first_student_is_the_first_where_all_learn_at_once(synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    alone = train_student(synthetic, machine=MACHINE, **{**PROTOCOL, "students": 2})
    choose = protocol.choose
    monkeypatch.setattr(protocol, "choose", lambda *words: replace(choose(*words), together=True))
    together = train_student(synthetic, machine=MACHINE, **{**PROTOCOL, "students": 2})
    for one, other in zip(alone.parameters(), together.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_does_not_fit_a_set_is_a_sentence(synthetic: Synthetic, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    synthetic.save(path)
    given = {"space": synthetic.space, "network": SPEC}
    with pytest.raises(UserError, match=r"classes is 3, but the labels of .* are of 10"):
        load_synthetic(path, **given, classes=3)
    for classes in (0, "10"):
        with pytest.raises(UserError, match=f"classes is {classes!r}, but the labels of .* are of 10"):
            load_synthetic(path, **given, classes=classes)
    with pytest.raises(UserError, match="space is 'x': give that of the data set"):
        load_synthetic(path, space="x", network=SPEC)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="network is 'x': give the specification of one"):
        load_synthetic(path, space=synthetic.space, network="x")  # type: ignore[arg-type]
    other = Normalisation(torch.zeros(3), torch.ones(3))
    pixels = synthetic.pixels.expand(-1, 2, -1, -1).contiguous()
    wide = Synthetic(pixels, synthetic.labels, synthetic.syn_lr, other, SPEC, 10)
    wide.save(path)
    with pytest.raises(UserError, match="are 2x8x8, which this space does not read"):
        load_synthetic(path, space=other, network=SPEC)


@pytest.mark.parametrize("card", ["null", '{"whitening": "none"}', '{"network": {"family": "x"}}', '{"network": []}'])
def test_a_foreign_card_beside_a_set_is_refused_with_the_remedy(card: str, synthetic: Synthetic, tmp_path: Path) -> None:
    synthetic.save(tmp_path / "own.safetensors")
    (tmp_path / "set.json").write_text(card)
    with pytest.raises(UserError, match=r"set\.json is damaged \(.*\): delete .*set\.json, and give space and network"):
        load_synthetic(tmp_path / "own.safetensors")
