"""The families of networks: known numbers of parameters, every size, and the definitions at the size they were made for."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.ground.errors import UserError
from src.maths import protocol
from src.maths.derivatives import Derivatives
from src.maths.networks import FlatNetwork, ImageShape, build, flatten
from src.settings.networks import FAMILIES, MLP, VGG11, AlexNet, ConvNet, LeNet, Network, ResNet18

SIZES = (8, 28, 32, 64, 128, 224)
SMALL: dict[str, Network] = {
    "ConvNet": ConvNet(depth=2, width=4),
    "MLP": MLP(family="MLP", width=16),
    "LeNet": LeNet(family="LeNet"),
    "AlexNet": AlexNet(family="AlexNet"),
    "VGG11": VGG11(family="VGG11", width=4),
    "ResNet18": ResNet18(family="ResNet18", width=4),
}


def made(spec: Network, channels: int = 3, size: int = 32, classes: int = 10, seed: int = 0) -> Any:
    return build(spec, ImageShape(channels, size, classes), seeded(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(count, channels, size, size, generator=seeded(9))


def test_every_family_is_tried() -> None:
    assert [*SMALL, "Encoders"] == list(FAMILIES)  # the last, which read no images in classes, in test_contrast.py


def linear(*sizes: int) -> int:
    return sum(before * after + after for before, after in pairwise(sizes))


def convolution(inputs: int, outputs: int, kernel: int, bias: bool = True) -> int:
    return inputs * outputs * kernel**2 + outputs * bias


def vgg11_parameters(norm: bool) -> int:
    widths = (3, 64, 128, 256, 256, 512, 512, 512, 512)
    return sum(convolution(i, o, 3) + 2 * o * norm for i, o in pairwise(widths)) + linear(512, 10)


def resnet18_parameters(classes: int = 10, stem: int = 3) -> int:
    """Two convolutions and norms a block, two blocks a stage, and a 1x1 convolution with a norm beside three of them."""
    total = convolution(3, 64, stem, False) + 2 * 64
    for inputs, width in ((64, 64), (64, 128), (128, 256), (256, 512)):
        total += convolution(inputs, width, 3, False) + 3 * convolution(width, width, 3, False) + 4 * 2 * width
        total += (convolution(inputs, width, 1, False) + 2 * width) * (inputs != width)
    return total + linear(512, classes)


COUNTED = [
    (ConvNet(depth=3, width=128), 320_010),
    (MLP(family="MLP"), linear(3072, 128, 128, 10)),
    (LeNet(family="LeNet"), convolution(3, 6, 5) + convolution(6, 16, 5) + linear(400, 120, 84, 10)),
    (AlexNet(family="AlexNet"), 1_872_202),
    (VGG11(family="VGG11"), vgg11_parameters(True)),
    (VGG11(family="VGG11", norm="batch"), 9_231_114),  # as public CIFAR code has it
    (VGG11(family="VGG11", norm="none"), vgg11_parameters(False)),
    (ResNet18(family="ResNet18"), resnet18_parameters()),
    (ResNet18(family="ResNet18", norm="batch"), 11_173_962),  # as public CIFAR code has it
]


@pytest.mark.parametrize(("spec", "parameters"), COUNTED, ids=lambda x: getattr(x, "family", x))
def test_numbers_of_parameters_are_the_fields(spec: Network, parameters: int) -> None:
    assert len(flatten(made(spec))) == parameters


def test_at_224_pixels_resnet18_is_imagenets() -> None:
    network = made(ResNet18(family="ResNet18", norm="batch"), size=224, classes=1000)
    assert len(flatten(network)) == resnet18_parameters(1000, stem=7) == 11_689_512


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", SMALL)
def test_every_size_gives_logits_and_finite_gradients(family: str, size: int, channels: int) -> None:
    network = made(SMALL[family], channels, size, 7)
    logits = network(images(2, channels, size))
    assert logits.shape == (2, 7)
    F.cross_entropy(logits[:1], torch.tensor([3])).backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert sum(gradient.abs().max() > 0 for gradient in gradients if gradient is not None) >= len(gradients) // 2


@pytest.mark.parametrize("norm", ["instance", "layer", "group", "batch"])
@pytest.mark.parametrize("family", ["ConvNet", "VGG11", "ResNet18"])
@pytest.mark.parametrize("size", [8, 12, 16, 28, 40])
def test_logits_rest_on_the_images_at_every_size(size: int, family: str, norm: str) -> None:
    """An instance norm of a single pixel would leave nothing of them."""
    network = made(SMALL[family].model_copy(update={"norm": norm}), size=size)
    logits = network(images(6, size=size))
    assert logits.std(dim=0).mean() > 1e-3 * logits.abs().mean()


@pytest.mark.parametrize(("family", "least", "most"), [("AlexNet", 4, 7), ("VGG11", 1, 1), ("ResNet18", 4, 7)])
def test_small_images_end_in_as_many_pixels_as_those_of_the_field(family: str, least: int, most: int) -> None:
    """Before the average: norms of one or two pixels would leave little of an image."""
    for size in range(8, 33):
        *layers, _flatten, classifier = made(SMALL[family], size=size)
        maps = nn.Sequential(*(one for one in layers if not isinstance(one, nn.AdaptiveAvgPool2d)))(images(1, size=size))
        assert least <= maps.shape[-1] <= most, size
        assert classifier.in_features == made(SMALL[family])[-1].in_features


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize("family", ["LeNet", "AlexNet", "VGG11"])
def test_nothing_is_added_at_the_fields_size(family: str, size: int) -> None:
    pools = [layer for layer in made(SMALL[family], size=size) if isinstance(layer, nn.AdaptiveAvgPool2d)]
    assert not pools
    assert any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in made(SMALL[family], size=64))


@pytest.mark.parametrize("family", ["ConvNet", "LeNet", "AlexNet", "VGG11"])
def test_28_pixels_are_32_with_zeros_around(family: str) -> None:
    x = images(2, size=28)
    small, large = made(SMALL[family], size=28), made(SMALL[family], size=32)
    assert torch.equal(flatten(small), flatten(large))
    torch.testing.assert_close(small(x), large(F.pad(x, (2, 2, 2, 2))))


def test_lenet_pads_smaller_images_to_32_pixels() -> None:
    x, spec = images(2, size=8), SMALL["LeNet"]
    torch.testing.assert_close(made(spec, size=8)(x), made(spec)(F.pad(x, (12, 12, 12, 12))))


def loaded(reference: nn.Module, network: nn.Module) -> Any:
    """`reference` in eval mode with the tensors of `network`, in their order."""
    with torch.no_grad():
        for buffer in network.buffers():
            if buffer.is_floating_point():  # running statistics that are no identity
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=seeded(3)))
    state, given = reference.state_dict(), network.state_dict().values()
    reference.load_state_dict(dict(zip(state, given, strict=False)))
    assert [tensor.shape for tensor in state.values()] == [tensor.shape for tensor in given][: len(state)]
    network.eval()
    return reference.eval()


def test_at_128_pixels_resnet18_is_torchvisions() -> None:
    import torchvision

    network = made(ResNet18(family="ResNet18", norm="batch"), size=128)
    reference = loaded(torchvision.models.resnet18(num_classes=10), network)
    x = images(1, size=128)
    torch.testing.assert_close(network(x), reference(x))


def test_vgg11_has_torchvisions_convolutions() -> None:
    from torchvision.models import vgg

    network = made(VGG11(family="VGG11", norm="batch"))
    features = loaded(vgg.make_layers(vgg.cfgs["A"], batch_norm=True), network)
    x = images(2)
    torch.testing.assert_close(network[:-1](x), features(x).flatten(1))


def relu_pool(x: Tensor, pool: bool = True) -> Tensor:
    return F.max_pool2d(x.relu(), 2) if pool else x.relu()


def test_lenet_and_alexnet_are_their_definitions_at_32_pixels() -> None:
    x = images(2)
    network = made(LeNet(family="LeNet"))
    w = list(network.parameters())
    h = relu_pool(F.conv2d(relu_pool(F.conv2d(x, w[0], w[1])), w[2], w[3])).flatten(1)
    h = F.linear(F.linear(h, w[4], w[5]).relu(), w[6], w[7]).relu()
    torch.testing.assert_close(network(x), F.linear(h, w[8], w[9]))

    network = made(AlexNet(family="AlexNet"))
    w, h = list(network.parameters()), x
    for layer, (padding, pool) in enumerate([(2, True), (2, True), (1, False), (1, False), (1, True)]):
        h = relu_pool(F.conv2d(h, w[2 * layer], w[2 * layer + 1], padding=padding), pool)
    torch.testing.assert_close(network(x), F.linear(h.flatten(1), w[10], w[11]))


@pytest.mark.parametrize("family", SMALL)
def test_the_flat_view_is_the_network(family: str) -> None:
    network, other = made(SMALL[family], size=16), made(SMALL[family], size=16, seed=1)
    x = images(3, size=16)
    flat, theta = FlatNetwork(network), flatten(other)
    torch.testing.assert_close(flat(theta, x), other(x))
    assert flat.dimension == len(theta)


@pytest.mark.parametrize("family", SMALL)
def test_students_have_the_same_gradients_side_by_side(family: str) -> None:
    """Also where layers work in place, which vmap must not be upset by."""
    students = [made(SMALL[family], size=16, seed=seed).double() for seed in range(2)]
    thetas, batches = torch.stack([flatten(student) for student in students]), images(6, size=16).double().view(2, 3, 3, 16, 16)
    labels, derivatives = torch.tensor([[0, 1, 2], [3, 4, 5]]), Derivatives(FlatNetwork(students[0]))
    together = protocol.side_by_side(derivatives.loss)(thetas, batches, labels)
    torch.testing.assert_close(together, protocol.one_by_one(derivatives.first)(thetas, batches, labels), rtol=1e-9, atol=1e-12)
    F.cross_entropy(students[1](batches[1]), labels[1]).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in students[1].parameters()])
    torch.testing.assert_close(together[1], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", SMALL)
def test_features_are_what_the_last_layer_reads(family: str) -> None:
    network, other = made(SMALL[family], size=16), made(SMALL[family], size=16, seed=1)
    x = images(3, size=16)
    found = FlatNetwork(network).features(flatten(other), x)
    torch.testing.assert_close(found, other[:-1](x))
    assert found.shape == (3, other[-1].in_features)
    assert all(not module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("family", ["ConvNet", "VGG11", "ResNet18"])
def test_everything_is_drawn_from_the_generator(family: str, norm: str) -> None:
    spec = SMALL[family].model_copy(update={"norm": norm})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = made(spec).state_dict()
        torch.manual_seed(2)
        second = made(spec).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, module in made(spec).named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            assert 0.3 * bound < module.weight.abs().max() <= bound, name
        if isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            assert (module.weight.eq(1).all(), module.bias.eq(0).all()) == (True, True)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            assert (module.running_mean.eq(0).all(), module.running_var.eq(1).all()) == (True, True)
    assert not torch.equal(flatten(made(spec, seed=4)), flatten(made(spec)))


@pytest.mark.parametrize("family", ["ConvNet", "VGG11", "ResNet18"])
def test_batch_norm_is_refused_as_a_function_of_parameters(family: str) -> None:
    spec = SMALL[family].model_copy(update={"norm": "batch"})
    assert spec.keeps_statistics
    with pytest.raises(UserError, match="running statistics"):
        FlatNetwork(made(spec))


@pytest.mark.parametrize("family", ["AlexNet", "VGG11", "ResNet18"])
def test_images_below_8_pixels_are_refused(family: str) -> None:
    with pytest.raises(UserError, match=f"7x7 pixels are too small for {family}, which takes 8x8"):
        made(SMALL[family], size=7)


def test_convolutions_of_resnet18_are_all_of_its_weights_but_norms_and_classifier() -> None:
    network = made(SMALL["ResNet18"])
    flat = FlatNetwork(network)
    convolutions = sum(s.stop - s.start for s in flat.convolutions)
    assert len(flat.convolutions) == 1 + 16 + 3
    assert convolutions == sum(p.numel() for p in network.parameters() if p.dim() == 4)
