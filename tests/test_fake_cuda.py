"""All that runs on a GPU, on a pretended one: no tensor crosses memories, and no step waits for a number.

What may read the device, between steps, is named here; everything else that does so ends in an error, which is shown by loops
that were spoilt.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from src.ground import fake_cuda, runtime
from src.ground.errors import UserError
from src.ground.fake_cuda import BLOCK, DEVICE, DeviceCrossingError, FakeCuda
from src.ground.seeding import generator
from src.loops import expert, initial, students
from src.maths import augmentation, derivatives, distillation, expert_training, fused, inner_loop, networks, protocol
from src.maths.augmentation import KINDS
from src.maths.derivatives import Backend, Derivatives
from src.maths.distillation import Figures, Start, State
from src.maths.networks import FlatNetwork, ImageShape
from src.maths.targets.snapshots import WayPoint
from src.settings.distillation import Distillation
from src.settings.experts import Experts
from src.settings.networks import MLP, VGG11, AlexNet, ConvNet, LeNet, Network, ResNet18
from src.settings.protocols import Protocol
from src.settings.runtime import Runtime
from src.store import cost
from tests.small_run import STORE, made

SHAPE = ImageShape(3, 32, 4)
SMALL = ConvNet(depth=2, width=8)
FAMILIES = [
    *(SMALL, ConvNet(depth=1, width=4, norm="group", activation="gelu", pooling="max"), ConvNet(depth=1, width=4, norm="none")),
    *(MLP(family="MLP"), LeNet(family="LeNet"), AlexNet(family="AlexNet")),
    *(VGG11(family="VGG11", width=8), ResNet18(family="ResNet18", width=8)),
]
NAMES = [f"{spec.family} {getattr(spec, 'norm', '')}" for spec in FAMILIES]
PARTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum and decay": {"inner_momentum": 0.9, "inner_weight_decay": 1e-3},
    "balanced loss": {"balanced_loss": True},
    "way points": {"intermediate_loss": "ramp", "expert_epochs": 3},
    "perturbation": {"weight_perturbation": 1.0},
    "batches": {"batch_syn": 3},
    "several trajectories": {"trajectories_per_iteration": 2},
    **{kind: {"augmentation": (kind,)} for kind in KINDS},
}

# between the steps, and nowhere else, these read the device
ITERATION = ("src.maths.distillation.iterate", "src.maths.distillation._check")  # its figures, and whether they make sense
EPOCH = (
    *("src.maths.expert_training.check", "src.maths.expert_training.epoch_of", "src.maths.scores.accuracy"),  # its figures
    *("src.loops.expert.first", "src.loops.expert._after"),  # the snapshot that is kept
)
STUDENTS = ("src.maths.protocol._check_finite",)  # once an epoch
WATCHED = ("src.loops.students._watch",)  # what they predict


@pytest.fixture(autouse=True)
def _uncached() -> Iterator[None]:
    """What processes keep for all experts and students is of the device that it was made for."""
    yield
    expert._derivative.cache_clear()
    students._derivative.cache_clear()
    fused.made.cache_clear()


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled and recorded on a GPU runs as it is written here."""
    fused.made.cache_clear()
    monkeypatch.setattr(runtime, "fuses", lambda: (True, ""))
    monkeypatch.setattr(runtime, "fused", lambda function: function)
    monkeypatch.setattr(derivatives, "Recorded", lambda function: function)


def function(spec: Network) -> FlatNetwork:
    return FlatNetwork(networks.build(spec, SHAPE, torch.Generator()).to(DEVICE))


def noise(count: int) -> Tensor:
    return torch.randn(count, SHAPE.channels, SHAPE.size, SHAPE.size, generator=torch.Generator().manual_seed(0))


def backend_of(spec: Network, compiles: bool = True) -> Backend:
    """What derivatives on a GPU are taken by, with or without own code."""
    return derivatives.choose(Runtime(compile="auto" if compiles else "off"), DEVICE, spec, 1.0)[0]


def iterated(
    spec: Network = SMALL, bfloat16: bool = False, backend: Backend = "eager", **changes: Any
) -> tuple[State, Figures]:
    """An iteration of the outer loop on the device."""
    settings = Distillation(
        **{"initialisation": "noise", "iterations": 1, "syn_steps": 3, "max_start_epoch": 2, "lr_init": 0.05, **changes}
    )
    network, images = function(spec), noise(8)
    snapshots = torch.zeros(settings.expert_epochs + 1, network.dimension)
    starts = [Start(snapshots.to(DEVICE), 0) for _ in range(settings.trajectories_per_iteration)]
    state = distillation.start(images.to(DEVICE), settings)
    labels = (torch.arange(8) % SHAPE.classes).to(DEVICE)
    found = Derivatives(network, bfloat16, backend)
    return distillation.iterate(network, found, state, labels, starts, settings, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_an_iteration_with_each_part(part: str, compiles: bool) -> None:
    with FakeCuda(ITERATION):
        state, _ = iterated(backend=backend_of(SMALL, compiles), **PARTS[part])
        assert state.images.device == state.syn_lr.device == DEVICE


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("spec", FAMILIES, ids=NAMES)
def test_an_iteration_with_each_network(spec: Network, bfloat16: bool, compiles: bool) -> None:
    with FakeCuda(ITERATION):
        state, figures = iterated(spec, bfloat16, backend_of(spec, compiles), augmentation=("color",), syn_steps=2)
        assert state.images.device == state.images_velocity.device == DEVICE
        assert state.images.dtype == torch.float32
        assert len(figures.terms) == 1


@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_soft_labels_have_a_gradient(backend: Backend) -> None:
    with FakeCuda():
        network = function(SMALL)
        images, theta = noise(8).to(DEVICE), torch.zeros(network.dimension).to(DEVICE)
        labels = torch.full((8, SHAPE.classes), 1 / SHAPE.classes).to(DEVICE)
        drawn = inner_loop.draw_steps(8, 3, 4, ("crop",), torch.Generator())
        steps = [inner_loop.InnerStep(s.index.to(DEVICE), s.draw.to(DEVICE, images.dtype)) for s in drawn]
        end = WayPoint(3, theta + 1, 1.0, theta.new_ones(()))
        rule = inner_loop.InnerRule(0.9, 0.0, 1.0)
        found = inner_loop.matching_gradient(
            Derivatives(network, backend=backend), images, labels, theta.new_tensor(0.1), theta, steps, [end], rule
        )
        assert found.labels is not None
        assert found.labels.shape == labels.shape


def training(spec: Network = SMALL, backend: Backend = "eager", **changes: Any) -> expert.Training:
    settings = Experts(
        **{"dataset": "", "network": "", "count": 3, "epochs": 2, "batch_size": 4, "lr": 0.01, "momentum": 0.9, **changes}
    )
    arrays = noise(10).numpy(), (torch.arange(10) % SHAPE.classes).numpy()
    return expert.Training(settings, spec, SHAPE, 0, False, backend, arrays, arrays)


EXPERTS: dict[str, dict[str, Any]] = {
    "sgd": {"weight_decay": 1e-3},
    "adam": {"optimiser": "adam"},
    "clipping": {"clipping_loss": True},
    "penalty": {"gradient_penalty": 2.0},
    "penalty of whole images": {"gradient_penalty": 2.0, "gradient_penalty_axes": "image"},
    "augmented": {"augmentation": tuple(KINDS), "epochs": 5},
}


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("kind", EXPERTS)
def test_an_expert(kind: str, compiles: bool) -> None:
    asked = training(backend=backend_of(SMALL, compiles), **EXPERTS[kind])
    with FakeCuda(EPOCH):
        one = expert.first(asked, 0, DEVICE)
        for one in expert.steps(asked, 0, one, DEVICE):  # noqa: B020
            assert one.state.theta.device == one.state.moments.device == one.state.figures.device == DEVICE
        assert len(one.rows) == asked.settings.epochs
        assert {theta.device.type for theta in one.thetas} == {"cpu"}


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("spec", FAMILIES, ids=NAMES)
def test_an_expert_of_each_network(spec: Network, compiles: bool) -> None:
    asked = training(spec, backend_of(spec, compiles), gradient_penalty=2.0, epochs=1, batch_size=5)
    with FakeCuda(EPOCH):
        assert all(True for _ in expert.steps(asked, 0, expert.first(asked, 0, DEVICE), DEVICE))


def side_by_side(asked: expert.Training) -> list[tuple[torch.device, int]]:
    """Of two experts in the end: where they are, and after how many epochs."""
    first = [expert.first(asked, index, DEVICE) for index in range(2)]
    *_, ended = expert.steps_together(asked, range(2), first, DEVICE)
    return [(one.state.theta.device, len(one.rows)) for one in ended]


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("kind", EXPERTS)
def test_experts_side_by_side(kind: str, compiles: bool) -> None:
    with FakeCuda(EPOCH):
        asked = training(backend=backend_of(SMALL, compiles), **EXPERTS[kind])
        assert side_by_side(asked) == 2 * [(DEVICE, asked.settings.epochs)]


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("spec", FAMILIES, ids=NAMES)
def test_experts_side_by_side_of_each_network(spec: Network, bfloat16: bool, compiles: bool) -> None:
    with FakeCuda(EPOCH):
        own = training(spec, backend_of(spec, compiles), gradient_penalty=2.0, epochs=1, batch_size=5)
        asked = replace(own, bfloat16=bfloat16)
        assert side_by_side(asked) == 2 * [(DEVICE, 1)]


def evaluation(
    spec: Network, bfloat16: bool = False, watched: str | None = None, compiles: bool = True, **changes: Any
) -> students.Training:
    settings = Protocol(
        **{"students": 2, "epochs": 2, "batch_size": 4, "test_every": 1, "augmentation": tuple(KINDS), **changes}
    )
    asked = Runtime(precision="bfloat16" if bfloat16 else "float32", compile="auto" if compiles else "off")
    way = protocol.choose(asked, DEVICE, settings, 8, 1, spec)
    images, labels = noise(8), torch.arange(8) % SHAPE.classes
    return students.Training(
        settings, spec, SHAPE, 0, way, images.numpy(), labels.numpy(), 0.01, ("val",), watched, lambda _: (images, labels)
    )


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("spec", [*FAMILIES, ConvNet(depth=2, width=4, norm="batch")], ids=[*NAMES, "running statistics"])
def test_students(spec: Network, bfloat16: bool, compiles: bool) -> None:
    """All at once, or one module where it has running statistics; what they predict stays on the device."""
    asked = evaluation(spec, bfloat16, compiles=compiles)
    assert asked.way.together == (not spec.keeps_statistics)
    with FakeCuda(STUDENTS):
        found = students.start(asked, 0, DEVICE)
        assert len([*found.epochs(2)]) == 2
        predicted = students.predict(asked, "val", found.predictors(), DEVICE)
        assert predicted.shape == (2 if asked.way.together else 1, 8)
        assert predicted.device == DEVICE


@pytest.mark.parametrize("spec", [SMALL, ConvNet(depth=2, width=4, norm="batch")], ids=["parameters", "running statistics"])
def test_students_whose_best_epoch_counts(spec: Network) -> None:
    asked = evaluation(spec, watched="val")
    with FakeCuda((*STUDENTS, *WATCHED)):
        found = students.start(asked, 0, DEVICE)
        assert len([*found.epochs(1)]) == 1
        stored = found.state()()
        again = students.start(asked, 0, DEVICE, stored)
        assert len([*again.epochs(2)]) == 1


class Products(TorchDispatchMode):
    """The types of what convolutions and matrix products take while something is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in {"convolution", "convolution_backward", "addmm", "mm", "bmm", "baddbmm"}:
            self.types |= {one.dtype for one in args[:3] if isinstance(one, Tensor)}
        return func(*args, **(kwargs or {}))


WORKS: dict[str, Callable[[bool], object]] = {
    "an iteration": lambda bfloat16: iterated(bfloat16=bfloat16),
    "an expert": lambda b: next(
        expert.steps(replace(training(gradient_penalty=2.0), bfloat16=b), 0, expert.first(training(), 0, DEVICE), DEVICE)
    ),
    "experts": lambda b: next(
        expert.steps_together(
            replace(training(gradient_penalty=2.0), bfloat16=b),
            range(2),
            [expert.first(training(), i, DEVICE) for i in range(2)],
            DEVICE,
        )
    ),
    "students": lambda b: next(students.start(evaluation(SMALL, b, compiles=False), 0, DEVICE).epochs(1)),
    "a student": lambda b: next(students.start(evaluation(ConvNet(depth=2, width=4, norm="batch"), b), 0, DEVICE).epochs(1)),
}


@pytest.mark.parametrize("work", WORKS)
def test_precision_is_what_the_products_take(work: str) -> None:
    """vmap has convolutions of its own, which autocast leaves alone on CPUs."""
    for bfloat16, expected in ((False, torch.float32), (True, torch.bfloat16)):
        with FakeCuda((*ITERATION, *EPOCH, *STUDENTS)), Products() as products:
            WORKS[work](bfloat16)
        assert products.types == {expected}


@pytest.mark.parametrize("kind", ["noise", "random", "representative", "k_means_embeddings", "herding", "k_center"])
def test_initial_images_are_chosen_on_the_host(kind: str) -> None:
    """In float64, by other libraries; the device gets what was chosen."""
    network = FlatNetwork(networks.build(SMALL, SHAPE, torch.Generator()))
    real, labels, counts = noise(40), torch.arange(40) % SHAPE.classes, {str(k): 10 for k in range(SHAPE.classes)}
    with FakeCuda():
        images, chosen = initial.images(
            kind, 2, 0, real, labels, counts, network, lambda: torch.ones(network.dimension), "runs.x"
        )
        assert images.to(DEVICE).device == chosen.to(DEVICE).device == DEVICE


# loops that were spoilt: what they call, and what stands there instead


def item(function: Callable[..., Any]) -> Callable[..., Any]:
    """Asks the device for a number."""

    def spoilt(*args: Any) -> Any:
        found = function(*args)
        (found if isinstance(found, Tensor) else found[0]).sum().item()
        return found

    return spoilt


def branch(function: Callable[..., Any]) -> Callable[..., Any]:
    def spoilt(*args: Any) -> Any:
        found = function(*args)
        if (found if isinstance(found, Tensor) else found[0]).isnan().any():
            raise ValueError("not a number")
        return found

    return spoilt


def host_tensor(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds a tensor of the host's memory."""

    def spoilt(*args: Any) -> Any:
        found = function(*args)
        return (
            found + torch.zeros(found.shape)
            if isinstance(found, Tensor)
            else (found[0] + torch.zeros(found[0].shape), *found[1:])
        )

    return spoilt


def to_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives the host's memory what belongs to the device's."""

    def spoilt(*args: Any) -> Any:
        found = function(*args)
        return found.cpu() if isinstance(found, Tensor) else (found[0].cpu(), *found[1:])

    return spoilt


SPOILT = [item, branch, host_tensor, to_host]


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("name", ["apply", "_first", "_second"])
def test_a_spoilt_inner_loop_is_found(name: str, spoil: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    owner = augmentation if name == "apply" else Derivatives
    monkeypatch.setattr(owner, name, spoil(getattr(owner, name)))
    with FakeCuda(ITERATION), pytest.raises(DeviceCrossingError, match=r"src\.maths\.(inner_loop|derivatives)"):
        iterated(augmentation=("flip",))


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("name", ["_descend", "_by_chunks"])
def test_a_spoilt_expert_is_found(name: str, spoil: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_training, name, spoil(getattr(expert_training, name)))
    asked = training()
    with FakeCuda(EPOCH), pytest.raises(DeviceCrossingError, match=r"src\.maths\.expert_training|src\.maths\.networks"):
        assert all(True for _ in expert.steps(asked, 0, expert.first(asked, 0, DEVICE), DEVICE))


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("name", ["_descend", "batch_of"])
def test_spoilt_experts_side_by_side_are_found(name: str, spoil: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_training, name, spoil(getattr(expert_training, name)))
    with FakeCuda(EPOCH), pytest.raises(DeviceCrossingError):
        side_by_side(training())


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("spec", [SMALL, ConvNet(depth=2, width=4, norm="batch")], ids=["parameters", "running statistics"])
def test_spoilt_students_are_found(spec: Network, spoil: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_augmented", spoil(protocol._augmented))
    with FakeCuda(STUDENTS), pytest.raises(DeviceCrossingError):
        assert [*students.start(evaluation(spec), 0, DEVICE).epochs(2)]


def test_an_index_on_the_host_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch itself takes it, and waits for its copy."""
    monkeypatch.setattr(
        distillation, "_steps", lambda count, steps, settings, draws, like: inner_loop.draw_steps(count, 2, 4, (), draws)
    )
    with FakeCuda(ITERATION), pytest.raises(DeviceCrossingError, match="mixes both memories"):
        iterated()


# memory


def test_the_peak_of_a_chain_of_operations() -> None:
    """x, then 2x, then 2x + 1 beside both; then what is left."""
    with FakeCuda() as device:
        x = torch.zeros(1000, device=DEVICE)
        size = -(-4000 // BLOCK) * BLOCK
        assert device.live == device.peak == size
        y = x * 2 + 1
        assert (device.live, device.peak) == (2 * size, 3 * size)
        view = y[:10]
        del y
        assert device.live == 2 * size
        del view
        assert device.live == size
        x.add_(1)
        assert device.live == size
        del x
    assert (device.live, device.peak) == (0, 3 * size)


def test_the_peak_of_a_backward_pass() -> None:
    """A linear layer of (N, F) and sigmoid: the input and weight, its output, and what goes back through it."""
    rows, columns, outputs = 1024, 256, 512
    with FakeCuda() as device:
        x, weight = torch.zeros(rows, columns, device=DEVICE), torch.zeros(outputs, columns, device=DEVICE, requires_grad=True)
        given, output, scalar = 4 * (rows * columns + outputs * columns), 4 * rows * outputs, BLOCK
        assert device.live == given
        loss = torch.sigmoid(F.linear(x, weight)).sum()
        assert device.peak == given + 2 * output  # before the sigmoid and behind it
        assert device.live == given + output + scalar  # which keeps its output alone
        (gradient,) = torch.autograd.grad(loss, weight)
        assert device.peak == given + 2 * output + 2 * scalar  # the loss and its derivative, which is expanded
        del loss
        assert device.live == given + gradient.numel() * 4


def test_the_inner_loop_keeps_p_numbers_a_step() -> None:
    def peak(steps: int) -> int:
        gc.collect()
        with FakeCuda(ITERATION) as device:
            iterated(syn_steps=steps)
            gc.collect()  # fake tensors are held in circles of torch's own
        assert device.live == 0
        return device.peak

    with FakeCuda():
        dimension = function(SMALL).dimension
    assert (peak(20) - peak(10)) / 10 == pytest.approx(4 * dimension, rel=0.1)


WHOLE = ("src.stages.", "src.store.", "src.pages.", "src.loops.outer.", "src.loops.students.", "src.tracking.")


@pytest.mark.slow
def test_whole_stages(valid_params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a run does on a GPU, from real images to scores; beside the loops all may read."""
    monkeypatch.setattr(runtime, "start", lambda _: DEVICE)
    monkeypatch.setattr(runtime, "peak_memory_mib", lambda _: 1.0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 2**33))
    monkeypatch.setattr(cost, "peak_memory_mib", lambda _: 1.0)
    monkeypatch.setattr(cost, "now", lambda _: 0.0)
    valid_params["distill"]["ast"] |= {
        "augmentation": ["crop", "rotate"],
        "initialisation": "representative",
        "balanced_loss": True,
    }
    valid_params["evaluate"]["best"] = {"students": 2, "epochs": 3, "score": "best_test", "test_every": 1}
    valid_params["runs"]["one"]["evaluate"] = "best"
    with FakeCuda((*ITERATION, *EPOCH, *STUDENTS, *WHOLE)), made(tmp_path, valid_params) as params:
        for run in params.runs:
            assert STORE.metrics_file(run).exists()


def test_the_host_is_left_alone() -> None:
    """Its operations give numbers, and draws are the same ones; after the block nothing of it remains."""
    with FakeCuda() as device:
        drawn = torch.rand(3, generator=generator(0, "test"))
        assert drawn.sum().item() > 0
        assert device.peak == 0
    assert torch.equal(drawn, torch.rand(3, generator=generator(0, "test")))
    assert torch.accelerator.current_accelerator() is None or torch.cuda.is_available()
    x = torch.ones(3, requires_grad=True)
    (found,) = torch.autograd.grad((x * x).sum(), x)
    assert found.tolist() == [2, 2, 2]


def test_another_torch_is_told_by_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cuda, "HOOKS", "renamed")
    with pytest.raises(UserError, match="can't pretend to have a GPU"), FakeCuda():
        pass
