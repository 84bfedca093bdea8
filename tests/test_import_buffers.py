"""Expert buffers of MTT's family: theirs become our theta, to the last digit of logits and losses; what is none says why."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from src.exchange import buffers, recognition
from src.exchange.recognition import check_network, doubts, network_of
from src.ground.errors import ArtifactError, UserError
from src.maths import inner_loop, networks
from src.maths.derivatives import Derivatives
from src.maths.inner_loop import InnerRule
from src.maths.networks import FlatNetwork, ImageShape
from src.maths.targets.snapshots import way_points
from src.settings.distillation import Distillation
from src.settings.networks import ConvNet, LeNet
from tests import mtt_files

SPEC, SHAPE = ConvNet(depth=2, width=8), ImageShape(3, 16, 5)
CASES = [
    (SPEC, SHAPE),
    (ConvNet(depth=3, width=4), ImageShape(1, 28, 10)),
    (ConvNet(depth=1, width=4, norm="none"), ImageShape(3, 8, 2)),
    (ConvNet(depth=2, width=8, norm="group"), ImageShape(3, 8, 3)),
]


def ours(spec: ConvNet, shape: ImageShape) -> FlatNetwork:
    return FlatNetwork(networks.build(spec, shape, torch.Generator().manual_seed(99)))


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shapes_of(spec: ConvNet, shape: ImageShape, norm: str | None = None) -> recognition.Shapes:
    return tuple(tuple(p.shape) for p in mtt_files.network(spec, shape, norm=norm).parameters())


@pytest.mark.parametrize(("spec", "shape"), CASES)
def test_their_parameters_give_our_network_their_logits(spec: ConvNet, shape: ImageShape, tmp_path: Path) -> None:
    module = mtt_files.network(spec, shape)
    mtt_files.write(tmp_path / "replay_buffer_0.pt", [mtt_files.trained(module, shape, 2)])
    (found,) = buffers.read(buffers.files_of(tmp_path), (spec, shape))
    assert found.theta.dtype == torch.float32
    assert len(found.theta) == 3
    images = drawn(4, shape.channels, shape.size, shape.size)
    assert (ours(spec, shape)(found.theta[-1], images) - module(images)).abs().max() <= 1e-6


@pytest.mark.parametrize(("spec", "shape"), CASES)
def test_the_matching_loss_is_theirs(spec: ConvNet, shape: ImageShape, tmp_path: Path) -> None:
    """Their loop on their module: from the first snapshot, three steps on the images, then the distance to the last one."""
    module = mtt_files.network(spec, shape)
    snapshots = mtt_files.trained(module, shape, 2)
    mtt_files.write(tmp_path / "replay_buffer_0.pt", [snapshots])
    (found,) = buffers.read([tmp_path / "replay_buffer_0.pt"])
    images, labels = drawn(shape.classes, shape.channels, shape.size, shape.size), torch.arange(shape.classes)
    settings = Distillation(initialisation="noise", iterations=1, syn_steps=3, expert_epochs=2)
    steps = inner_loop.draw_steps(len(images), 3, len(images), (), torch.Generator().manual_seed(0))
    points = way_points(found.theta[0], found.theta[1:3], settings)
    rule = InnerRule(momentum=0.0, weight_decay=0.0, coefficient=1.0)
    given = (images, labels, torch.tensor(0.02), found.theta[0], steps, points, rule)
    loss = inner_loop.matching_gradient(Derivatives(ours(spec, shape)), *given).terms.sum()
    assert abs(float(loss) - float(their_loss(module, snapshots, images, labels, 0.02))) <= 1e-6


def their_loss(module: Any, snapshots: list[list[Tensor]], images: Tensor, labels: Tensor, syn_lr: float) -> Tensor:
    names = [name for name, _ in module.named_parameters()]
    start, target = snapshots[0], torch.cat([p.reshape(-1) for p in snapshots[2]])
    student = [p.clone().requires_grad_() for p in start]
    for _ in range(3):
        logits = functional_call(module, dict(zip(names, student, strict=True)), (images,))
        gradients = torch.autograd.grad(F.cross_entropy(logits, labels), student)
        student = [(p - syn_lr * g).detach().requires_grad_() for p, g in zip(student, gradients, strict=True)]
    end, begin = (torch.cat([p.detach().reshape(-1) for p in parameters]) for parameters in (student, start))
    return F.mse_loss(end, target, reduction="sum") / F.mse_loss(begin, target, reduction="sum")


def test_files_follow_each_other_by_number(tmp_path: Path) -> None:
    contents = mtt_files.write_buffers(tmp_path, SPEC, SHAPE, [1] * 11)
    (tmp_path / "notes.txt").write_text("mine")
    files = buffers.files_of(tmp_path)
    assert [file.stem.rpartition("_")[2] for file in files] == [str(number) for number in range(11)]
    for found, (trajectory,) in zip(buffers.read(files, (SPEC, SHAPE)), contents, strict=True):
        assert torch.equal(found.theta, torch.stack([torch.cat([p.reshape(-1) for p in parts]) for parts in trajectory]))
    assert buffers.files_of(files[3]) == [files[3]]


def test_trajectories_need_their_file_no_more(tmp_path: Path) -> None:
    ((first, second),) = mtt_files.write_buffers(tmp_path, SPEC, SHAPE, [2])
    found = list(buffers.read(buffers.files_of(tmp_path)))
    (tmp_path / "replay_buffer_0.pt").write_bytes(b"")
    assert [one.index for one in found] == [0, 1]
    for one, trajectory in zip(found, (first, second), strict=True):
        assert torch.equal(one.theta[1], torch.cat([p.reshape(-1) for p in trajectory[1]]))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="says what is mapped on Linux alone")
def test_no_more_than_one_file_is_held(tmp_path: Path) -> None:
    mtt_files.write_buffers(tmp_path, SPEC, SHAPE, [2, 2, 2])
    held = []
    for trajectory in buffers.read(buffers.files_of(tmp_path)):
        mapped = set(re.findall(r"replay_buffer_[0-9]+\.pt", Path("/proc/self/maps").read_text()))
        held.append((trajectory.path.name, mapped))
    assert held == [(path.name, {path.name}) for path in buffers.files_of(tmp_path) for _ in range(2)]
    assert "replay_buffer_" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    snapshots = [[p.to(dtype) for p in parts] for parts in mtt_files.trained(mtt_files.network(SPEC, SHAPE), SHAPE, 2)]
    (found,) = buffers.read([mtt_files.write(tmp_path / "b.pt", [snapshots])])
    assert found.theta.dtype == torch.float32
    assert torch.equal(found.theta[2], torch.cat([p.reshape(-1).float() for p in snapshots[2]]))


def test_parameters_and_tuples_will_do(tmp_path: Path) -> None:
    """Saved as nn.Parameter, with gradients asked for, and with channels last."""
    snapshots = mtt_files.trained(mtt_files.network(SPEC, SHAPE), SHAPE, 1)
    turned = [[p.contiguous(memory_format=torch.channels_last) if p.ndim == 4 else p for p in parts] for parts in snapshots]
    other = tuple(tuple(map(torch.nn.Parameter, parts)) for parts in turned)
    (found,) = buffers.read([mtt_files.write(tmp_path / "b.pt", (other,))])
    assert torch.equal(found.theta[0], torch.cat([p.reshape(-1) for p in snapshots[0]]))
    assert not found.theta.requires_grad


@pytest.mark.parametrize(("spec", "shape"), CASES[:3])
def test_the_network_is_found_by_its_shapes(spec: ConvNet, shape: ImageShape, tmp_path: Path) -> None:
    mtt_files.write_buffers(tmp_path, spec, shape, [1])
    shapes = buffers.shapes_of(tmp_path / "replay_buffer_0.pt")
    found, candidates = network_of(shapes)
    assert (found, candidates[0]) == (spec, shape)
    for candidate in candidates:
        check_network(shapes, found, candidate)
    sides = {candidate.size for candidate in candidates}
    for size in {8, 16, 28, 32, *range(shape.size, shape.size + 12)} - sides:
        with pytest.raises(ArtifactError):
            check_network(shapes, found, replace(shape, size=size))


@pytest.mark.parametrize(
    ("spec", "shape", "words"),
    [
        (ConvNet(depth=3, width=8), SHAPE, "they have depth 2, not 3"),
        (ConvNet(depth=2, width=16), SHAPE, "they have width 8, not 16; '0.weight' has the shape 8x3x3x3, not 16x3x3x3"),
        (SPEC, ImageShape(1, 16, 5), "they read 3 channels, not 1"),
        (SPEC, ImageShape(3, 16, 10), r"they tell 5 classes apart, not 10; '9.weight' has the shape 5x128, not 10x128"),
        (SPEC, ImageShape(3, 32, 5), "their last block leaves a side of 4 pixels, not 8"),
        (ConvNet(depth=2, width=8, norm="none"), SHAPE, "they have a norm: true, not false"),
        (
            ConvNet(depth=2, width=8, pooling="none"),
            SHAPE,
            "a side of 4 pixels, not 16, as of images of another size or without",
        ),
        (LeNet(family="LeNet"), SHAPE, "'0.weight' has the shape 8x3x3x3, not 6x3x5x5"),
    ],
)
def test_another_network_is_refused_with_the_first_difference(spec: ConvNet, shape: ImageShape, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        check_network(shapes_of(SPEC, SHAPE), spec, shape)


def test_running_statistics_are_in_no_buffer() -> None:
    with pytest.raises(UserError, match="norm 'batch' keeps running statistics"):
        check_network(shapes_of(SPEC, SHAPE), ConvNet(depth=2, width=8, norm="batch"), SHAPE)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ((), "0 parameter tensors"),
        (((128, 784), (128,), (10, 128), (10,)), "4 parameter tensors, the first of shape 128x784"),  # an MLP
        (((6, 3, 5, 5), (6,), (10, 600), (10,)), "parameter 1 of 4 has the shape 6x3x5x5, not 6x3x3x3"),
        (((8, 3, 3, 3), (8,), (8, 16, 16), (8, 16, 16), (5, 512), (5,)), "MTT's layernorm"),
        (((8, 3, 3, 3), (8,), (5, 8 * 15), (5,)), "reads 120 numbers, which are no 8 square maps"),
        (((8, 3, 3, 3), (8,), (5, 8), (6,)), "parameter 4 of 4 has the shape 6, not 5"),
        (((8, 3, 3, 3), (8,), (8,), (8,), (8, 8, 1, 1), (8,), (8,), (8,), (5, 8), (5,)), "8x8x1x1, not 8x8x3x3"),
        (((8, 3, 3, 3), (8,), (5, 8 * 600 * 600), (5,)), "leaves 600x600 pixels"),
        (((0, 3, 3, 3), (0,), (5, 0), (5,)), "reads 0 numbers"),
    ],
)
def test_what_is_no_convnet_has_to_be_named(shapes: recognition.Shapes, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        network_of(shapes)


def test_their_layer_norm_is_refused() -> None:
    with pytest.raises(UserError, match="use experts with instance norm"):
        network_of(shapes_of(SPEC, SHAPE, norm="pixels"))


def test_what_shapes_leave_open_is_said() -> None:
    assert len(doubts(SPEC, SHAPE)) == len(doubts(ConvNet(depth=3, width=8), ImageShape(1, 28, 10))) == 1
    assert "pads grey images by 3 pixels" in doubts(ConvNet(depth=3, width=8), ImageShape(1, 16, 5))[1]
    assert len(doubts(SPEC, ImageShape(1, 16, 5))) == 1, "with such a depth, MTT's code refuses grey images of this size"
    assert "ConvNetGAP" in doubts(ConvNet(depth=4, width=8), SHAPE)[1]
    spec, shape = ConvNet(depth=3, width=8), ImageShape(1, 16, 5)
    module = mtt_files.network(spec, shape)  # grey and not 28x28: the same shapes, another function
    theta, images = networks.flatten(module), drawn(2, 1, 16, 16)
    check_network(shapes_of(spec, shape), spec, shape)
    assert (ours(spec, shape)(theta, images) - module(images)).abs().max() > 1e-3


def sound(epochs: int = 2) -> list[list[Tensor]]:
    return mtt_files.trained(mtt_files.network(SPEC, SHAPE), SHAPE, epochs)


def changed(snapshot: int, place: int, value: Any) -> list[list[Any]]:
    found: list[list[Any]] = sound()
    found[snapshot][place] = value
    return found


def with_number(value: float, dtype: torch.dtype = torch.float32) -> list[list[Any]]:
    found = [[p.to(dtype) for p in parts] for parts in sound()]
    found[1][3][2] = value
    return found


def aliased() -> list[list[Tensor]]:
    return mtt_files.trained(mtt_files.network(SPEC, SHAPE), SHAPE, 2, copies=False)


def stuck() -> list[list[Tensor]]:
    found = sound(3)
    return [*found[:2], found[1], *found[2:]]


REFUSED: dict[str, tuple[Any, str]] = {
    "tensor": (torch.ones(3), r"holds a tensor of shape \(3,\), but a buffer is a list of trajectories"),
    "state": ({"net": sound()[0]}, "holds an object of type dict, but"),
    "empty": ([], "holds no trajectory"),
    "no snapshots": ([[]], "trajectory 0 of .*x.pt is an empty list"),
    "numbers": ([[1, 2]], "snapshot 0 of trajectory 0 of .* is an object of type int"),
    "flat": (sound(), r"snapshot 0 of trajectory 0 of .*x.pt is a tensor of shape \(8, 3, 3, 3\)"),
    "texts": ([[["a"], ["b"]]], "parameter 1 in snapshot 0 .* is an object of type str"),
    "nothing": ([changed(1, 2, None)], "parameter 3 in snapshot 1 .* is an object of type NoneType"),
    "one": ([sound()[:1]], "has a single snapshot"),
    "empty snapshot": ([[*sound(), []]], "snapshot 3 of trajectory 0 .* is an empty list"),
    "integers": ([changed(2, 1, torch.arange(8))], "parameter 2 in snapshot 2 .* of int64 and not of real numbers"),
    "complex": ([changed(0, 1, torch.ones(8, dtype=torch.complex64))], "a tensor of another kind than plain numbers"),
    "sparse": ([changed(0, 1, torch.ones(8).to_sparse())], "a tensor of another kind than plain numbers"),
    "expanded": ([changed(0, 1, torch.ones(1).expand(8))], r"of shape \(8,\), more than what the file holds"),
    "shape": ([changed(2, 1, torch.ones(9))], r"snapshot 2 of .* \(parameter 2 has the shape \(9,\), not \(8,\)\)"),
    "count": ([[sound()[0], sound()[1][:-1]]], r"snapshot 1 .* \(9 parameters, not 10\)"),
    "nan": ([with_number(float("nan"))], "snapshot 1 of trajectory 0 of .* holds 1 numbers that are not finite"),
    "infinite": ([sound(), with_number(float("inf"), torch.float16)], "snapshot 1 of trajectory 1 of .* not finite"),
    "overflow": ([with_number(1e300, torch.float64)], "not finite"),
    "aliased": ([aliased()], r"all 3 snapshots of trajectory 0 of .*x.pt are equal, .*`p.detach\(\).cpu\(\)`"),
    "stuck": ([stuck()], "snapshots 1 and 2 of trajectory 0 of .* are equal, though an epoch lies between them"),
    "lengths": ([sound(), sound(3)], "trajectory 1 of .* has 4 snapshots, where trajectory 0 of .* has 3"),
    "networks": (
        [sound(), mtt_files.trained(mtt_files.network(ConvNet(depth=2, width=4), SHAPE), SHAPE, 2)],
        r"trajectory 1 of .* is of another network than trajectory 0 of .* \(parameter 1 has the shape \(4, 3, 3, 3\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_buffer_says_where(name: str, tmp_path: Path) -> None:
    value, words = REFUSED[name]
    path = mtt_files.write(tmp_path / "x.pt", value)
    with pytest.raises(ArtifactError, match=words) as refusal:
        list(buffers.read([path]))
    assert "\n" not in str(refusal.value)


def test_another_network_than_asked_for_is_refused_at_once(tmp_path: Path) -> None:
    mtt_files.write_buffers(tmp_path, SPEC, SHAPE, [1])
    with pytest.raises(ArtifactError, match="they tell 5 classes apart, not 7"):
        next(buffers.read(buffers.files_of(tmp_path), (SPEC, ImageShape(3, 16, 7))))


def test_a_file_of_another_network_is_found_when_it_is_reached(tmp_path: Path) -> None:
    mtt_files.write_buffers(tmp_path, SPEC, SHAPE, [2])
    other = mtt_files.trained(mtt_files.network(SPEC, ImageShape(3, 32, 5)), ImageShape(3, 32, 5), 2)
    mtt_files.write(tmp_path / "replay_buffer_1.pt", [other])
    found = buffers.read(buffers.files_of(tmp_path))
    assert [next(found).index for _ in range(2)] == [0, 1]
    with pytest.raises(ArtifactError, match=r"trajectory 0 of .*_1.pt is of another network than trajectory 0 of .*_0.pt"):
        next(found)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_place_without_buffers(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="does not exist" if name == "nowhere" else r"holds no replay_buffer_\*.pt"):
        buffers.files_of(tmp_path / name)
