"""The families of networks, each as a sequence of layers whose last one is the linear classifier.

Sources: DC's and MTT's code for images up to 32x32, MTT's ResNet18ImageNet for the stem of large ones, torchvision for the
residual block. Larger images end in an average pooling; on smaller ones the first halvings are left out, so that both end in
as many pixels as 32x32 does: late norms of one or two pixels would erase what was learnt.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.ground.errors import UserError
from src.settings.networks import MLP, VGG11, AlexNet, ConvNet, LeNet, Network, ResNet18

GROUPS: Mapping[str, Callable[[int], int]] = {
    "instance": lambda width: width,
    "layer": lambda width: 1,
    "group": lambda width: 4,
}
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}
POOLINGS: Mapping[str, Callable[[int], nn.Module]] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}

FIELD = 32  # side in pixels that the field's definitions are for
SMALLEST = 8  # side in pixels
LARGE = 128  # side from which ResNet18 has ImageNet's stem
ALEXNET = ((128, 5), (192, 5), (256, 3), (192, 3), (192, 3))  # channels and kernel of each convolution
ALEXNET_POOLED = (0, 1, 4)  # convolutions that a pooling follows
VGG11_CHANNELS = (1, 2, 4, 4, 8, 8, 8, 8)  # of each convolution, in widths
VGG11_POOLED = (0, 1, 3, 5, 7)


def assemble(spec: Network, channels: int, size: int, classes: int) -> nn.Sequential:
    """The network of `spec` for images of so many channels and pixels a side.

    Raises UserError where the image is too small for it, or the width does not fit the norm.
    """
    match spec:
        case ConvNet():
            layers = _convnet(spec, channels, size, classes)
        case MLP():
            layers = _mlp(spec, channels, size, classes)
        case LeNet():
            layers = _lenet(channels, size, classes)
        case AlexNet():
            layers = _alexnet(channels, size, classes)
        case VGG11():
            layers = _vgg11(spec, channels, size, classes)
        case ResNet18():
            layers = _resnet18(spec, channels, size, classes)
    return nn.Sequential(*layers)


class FirstConvolution(nn.Conv2d):
    """A convolution of images: compiled on a CPU in a form that has fast kernels, of the same value but for rounding.

    With one channel, memory with channels last looks contiguous, so that the layers behind copy theirs: a second one, of zeros,
    ends that. The weights' gradient in bfloat16 has no fast kernel for padding wider than the kernel's reach: the rest of it
    becomes pixels. Eager code gains nothing by either.
    """

    def forward(self, images: Tensor) -> Tensor:
        reach = self.kernel_size[0] // 2
        missing, beyond = max(0, 2 - self.in_channels), int(self.padding[0]) - reach
        if not torch.compiler.is_compiling() or images.device.type != "cpu" or not (missing or beyond):
            return super().forward(images)
        pixels = F.pad(images, (beyond, beyond, beyond, beyond, 0, missing))
        return F.conv2d(pixels, F.pad(self.weight, (0, 0, 0, 0, 0, missing)), self.bias, padding=reach)


def _convnet(spec: ConvNet, channels: int, size: int, classes: int) -> list[nn.Module]:
    side = _padded(size)
    _check_depth(spec, side)
    layers: list[nn.Module] = []
    for block in range(spec.depth):
        padding = 1 + (_padded(size) - size) // 2 if block == 0 else 1
        convolution = FirstConvolution if block == 0 else nn.Conv2d
        layers.append(convolution(channels, spec.width, kernel_size=3, padding=padding))
        if spec.norm != "none":
            layers.append(_norm(spec.norm, spec.width))
        layers.append(ACTIVATIONS[spec.activation]())
        if spec.pooling != "none":
            layers.append(POOLINGS[spec.pooling](2))
            side //= 2
        channels = spec.width
    return [*layers, nn.Flatten(), nn.Linear(spec.width * side * side, classes)]


def _mlp(spec: MLP, channels: int, size: int, classes: int) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = channels * size * size
    for _ in range(spec.depth):
        layers += [nn.Linear(inputs, spec.width), nn.ReLU()]
        inputs = spec.width
    return [*layers, nn.Linear(inputs, classes)]


def _lenet(channels: int, size: int, classes: int) -> list[nn.Module]:
    padding = max(0, -(-(FIELD - size) // 2))
    side = ((size + 2 * padding - 4) // 2 - 4) // 2  # each 5x5 convolution takes four pixels off
    return [
        *(nn.Conv2d(channels, 6, kernel_size=5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, kernel_size=5), nn.ReLU(), nn.MaxPool2d(2)),
        *(*_averaged(side, 5), nn.Flatten()),
        *(nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)),
    ]


def _alexnet(channels: int, size: int, classes: int) -> list[nn.Module]:
    _check_size("AlexNet", size)
    side = _padded(size)
    pooled = ALEXNET_POOLED[-_halvings(side, 4, len(ALEXNET_POOLED)) :]
    layers: list[nn.Module] = []
    for place, (width, kernel) in enumerate(ALEXNET):
        padding = kernel // 2 + ((_padded(size) - size) // 2 if place == 0 else 0)
        layers += [nn.Conv2d(channels, width, kernel, padding=padding), nn.ReLU()]
        if place in pooled:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        channels = width
    return [*layers, *_averaged(side, 4), nn.Flatten(), nn.Linear(channels * 4 * 4, classes)]


def _vgg11(spec: VGG11, channels: int, size: int, classes: int) -> list[nn.Module]:
    _check_size("VGG11", size)
    side = _padded(size)
    pooled = VGG11_POOLED[-_halvings(side, 1, len(VGG11_POOLED)) :]
    layers: list[nn.Module] = []
    for place, factor in enumerate(VGG11_CHANNELS):
        width, padding = factor * spec.width, 1 + ((_padded(size) - size) // 2 if place == 0 else 0)
        layers += [nn.Conv2d(channels, width, kernel_size=3, padding=padding), _norm(spec.norm, width), nn.ReLU()]
        if place in pooled:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        channels = width
    return [*layers, *_averaged(side, 1), nn.Flatten(), nn.Linear(channels, classes)]


def _resnet18(spec: ResNet18, channels: int, size: int, classes: int) -> list[nn.Module]:
    _check_size("ResNet18", size)
    layers, side = _stem(spec, channels, size)
    inside, halved = spec.width, _halvings(side - 1, 3, 3)  # strides round up: 28 -> 14 -> 7 -> 4
    for stage, factor in enumerate((1, 2, 4, 8)):
        outside, stride = factor * spec.width, 2 if stage > 3 - halved else 1
        layers += [_residual(spec, inside, outside, stride), _residual(spec, outside, outside, 1)]
        inside = outside
    return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes)]


def _stem(spec: ResNet18, channels: int, size: int) -> tuple[list[nn.Module], int]:
    """The first layers, and the side that they leave."""
    rest = [_norm(spec.norm, spec.width), nn.ReLU()]
    if size < LARGE:
        return [nn.Conv2d(channels, spec.width, kernel_size=3, padding=1, bias=False), *rest], size
    first = nn.Conv2d(channels, spec.width, kernel_size=7, stride=2, padding=3, bias=False)
    return [first, *rest, nn.MaxPool2d(kernel_size=3, stride=2, padding=1)], -(-size // 4)


def _residual(spec: ResNet18, inside: int, outside: int, stride: int) -> nn.Module:
    """torchvision's basic block, with a 1x1 convolution beside it where its output has another shape than its input."""
    from torchvision.models.resnet import BasicBlock  # a second to import, which only this family takes

    norm = functools.partial(_norm, spec.norm)
    beside = None
    if (inside, stride) != (outside, 1):
        beside = nn.Sequential(nn.Conv2d(inside, outside, kernel_size=1, stride=stride, bias=False), norm(outside))
    block: nn.Module = BasicBlock(inside, outside, stride, beside, norm_layer=norm)
    return block


def _norm(norm: str, width: int) -> nn.Module:
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm2d(width)
    if norm == "group" and width % 4:
        raise UserError(f"norm 'group' makes 4 groups, but width {width} is not a multiple of 4: choose one that is")
    return nn.GroupNorm(GROUPS[norm](width), width)


def _halvings(side: int, least: int, most: int) -> int:
    """How often a side can be halved, rounding down, before it falls below `least`; `most` times at most."""
    return min(most, (side // least).bit_length() - 1)


def _averaged(side: int, most: int) -> list[nn.Module]:
    """What brings a larger side down to `most`: nothing at the size that the field's definition is for."""
    return [nn.AdaptiveAvgPool2d(most)] if side > most else []


def _padded(size: int) -> int:
    """28x28 images are padded to 32x32 in the first convolution, as the field does."""
    return FIELD if size == 28 else size


def _check_depth(spec: ConvNet, side: int) -> None:
    if spec.pooling != "none" and side < 2**spec.depth:
        raise UserError(
            f"network depth {spec.depth} halves a side of {side} pixels below 1: "
            f"use depth {side.bit_length() - 1} or less, or pooling 'none'"
        )


def _check_size(family: str, size: int) -> None:
    if size < SMALLEST:
        raise UserError(
            f"images of {size}x{size} pixels are too small for {family}, which takes {SMALLEST}x{SMALLEST} and more: "
            "set the data set's size, or use a ConvNet or an MLP"
        )
