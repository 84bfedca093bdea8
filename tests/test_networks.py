"""The ConvNet: sizes, shapes, initialisation; and the flat view of any network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from src.ground.errors import UserError
from src.maths.families.convnet import FirstConvolution
from src.maths.networks import FlatNetwork, ImageShape, Modality, TupleShape, build, flatten
from src.settings.networks import ConvNet, Encoders, TextNet


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer_shapes(network: nn.Module, images: torch.Tensor) -> list[torch.Size]:
    shapes = []
    for layer in network:
        images = layer(images)
        shapes.append(images.shape)
    return shapes


@pytest.mark.parametrize(("classes", "parameters"), [(10, 320_010), (100, 504_420)])
def test_the_fields_network_has_the_published_number_of_parameters(classes: int, parameters: int) -> None:
    network = build(ConvNet(depth=3, width=128), ImageShape(3, 32, classes), generator())
    assert FlatNetwork(network).dimension == parameters == len(flatten(network))


def test_grey_28_pixels_become_32() -> None:
    spec = ConvNet(depth=3, width=8)
    small = build(spec, ImageShape(1, 28, 10), generator())
    large = build(spec, ImageShape(1, 32, 10), generator())
    assert [p.shape for p in small.parameters()] == [p.shape for p in large.parameters()]
    assert torch.equal(flatten(small), flatten(large))
    assert layer_shapes(small, torch.zeros(2, 1, 28, 28)) == layer_shapes(large, torch.zeros(2, 1, 32, 32))
    padded = torch.nn.functional.pad(x := torch.randn(2, 1, 28, 28, generator=generator()), (2, 2, 2, 2))
    torch.testing.assert_close(small(x), large(padded))


@pytest.mark.parametrize("padding", [1, 3])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_first_convolution_means_the_same_compiled(channels: int, padding: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its value and all gradients, in float64 against torch's own."""
    ours = FirstConvolution(channels, 4, kernel_size=3, padding=padding).double()
    images = torch.randn(2, channels, 12, 12, generator=generator(), dtype=torch.float64, requires_grad=True)
    given = [images, ours.weight, ours.bias]
    expected = torch.nn.functional.conv2d(*given, padding=padding)
    assert torch.equal(ours(images), expected), "eager: torch's own, to the last digit"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = ours(images)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(expected.shape, generator=generator(), dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad(x, given, cotangent) for x in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "depth"), [(8, 2), (16, 2), (28, 3), (32, 3), (64, 4), (128, 5)])
def test_logits_have_one_column_a_class(size: int, depth: int, channels: int) -> None:
    network = build(ConvNet(depth=depth, width=4), ImageShape(channels, size, 7), generator())
    assert network(torch.zeros(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("norm", ["instance", "layer", "group", "none"])
def test_norm_is_over_the_named_groups(norm: str) -> None:
    network = build(ConvNet(depth=2, width=8, norm=norm), ImageShape(3, 8, 4), generator())
    groups = [layer.num_groups for layer in network if isinstance(layer, nn.GroupNorm)]
    assert groups == {"instance": [8, 8], "layer": [1, 1], "group": [4, 4], "none": []}[norm]
    x = torch.randn(2, 3, 8, 8, generator=generator())
    assert network(x).isfinite().all()
    if norm == "instance":
        expected = nn.functional.instance_norm(network[0](x))
        torch.testing.assert_close(network[1](network[0](x)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", lambda x: x.clamp(min=0)),
        ("leaky_relu", lambda x: torch.where(x > 0, x, 0.01 * x)),
        ("sigmoid", lambda x: 1 / (1 + (-x).exp())),
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
    ],
)
def test_activation(activation: str, function) -> None:
    network = build(ConvNet(depth=1, width=4, activation=activation), ImageShape(1, 8, 4), generator())
    x = torch.linspace(-3, 3, 4 * 64).view(1, 4, 8, 8)
    torch.testing.assert_close(network[2](x), function(x))


@pytest.mark.parametrize(("pooling", "side"), [("avg", 2), ("max", 2), ("none", 8)])
def test_pooling(pooling: str, side: int) -> None:
    network = build(ConvNet(depth=2, width=4, pooling=pooling), ImageShape(1, 8, 4), generator())
    assert network[-1].in_features == 4 * side * side
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 4)
    if pooling != "none":
        tiles = torch.arange(64.0).view(1, 1, 8, 8).unfold(2, 2, 2).unfold(3, 2, 2)
        expected = tiles.mean((-2, -1)) if pooling == "avg" else tiles.amax((-2, -1))
        assert torch.equal(network[3](torch.arange(64.0).view(1, 1, 8, 8)), expected)


def test_too_deep_a_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"depth 4 .* 8 pixels .* depth 3 or less"):
        build(ConvNet(depth=4, width=4), ImageShape(1, 8, 10), generator())
    build(ConvNet(depth=3, width=4), ImageShape(1, 8, 10), generator())
    build(ConvNet(depth=4, width=4, pooling="none"), ImageShape(1, 8, 10), generator())


def test_four_groups_need_a_width_of_fours() -> None:
    with pytest.raises(UserError, match="width 6"):
        build(ConvNet(depth=1, width=6, norm="group"), ImageShape(1, 8, 10), generator())


def test_same_generator_same_bytes_whatever_the_global_state() -> None:
    spec, shape = ConvNet(depth=2, width=8), ImageShape(3, 8, 10)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = flatten(build(spec, shape, generator(5)))
        torch.manual_seed(2)
        assert torch.equal(flatten(build(spec, shape, generator(5))), first)
    assert not torch.equal(flatten(build(spec, shape, generator(6))), first)


def test_initialisation_is_torchs_default() -> None:
    """Seeded alike, torch's own reset_parameters draws the same stream, so the numbers are equal one by one."""
    network = build(ConvNet(depth=2, width=16), ImageShape(3, 8, 10), generator(7))
    theta = flatten(network)
    layers = [layer for layer in network if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        bound = layer.weight[0].numel() ** -0.5
        for parameter in (layer.weight, layer.bias):
            assert 0.5 * bound < parameter.abs().max() <= bound
        # a uniform law on (-b, b) has the standard deviation b / sqrt(3)
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for layer in layers:
            layer.reset_parameters()
    torch.testing.assert_close(flatten(network), theta, rtol=1e-6, atol=1e-8)


def test_flat_network_is_the_network() -> None:
    network = build(ConvNet(depth=2, width=4), ImageShape(2, 8, 3), generator())
    x = torch.randn(5, 2, 8, 8, generator=generator())
    flat, theta = FlatNetwork(network), flatten(network)
    assert torch.equal(flat(theta, x), network(x))
    other = build(ConvNet(depth=2, width=4), ImageShape(2, 8, 3), generator(1))
    assert torch.equal(flat(flatten(other), x), other(x))
    for name, part in flat.unflatten(theta).items():
        assert torch.equal(part, network.get_parameter(name))


def test_flatten_shares_no_memory() -> None:
    for network in (build(ConvNet(depth=1, width=4), ImageShape(1, 8, 3), generator()), nn.Linear(3, 1, bias=False)):
        theta = flatten(network)
        kept = theta.clone()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(1)
        assert torch.equal(theta, kept)
        assert not theta.requires_grad


def test_convolutions_select_exactly_the_convolution_weights() -> None:
    network = build(ConvNet(depth=2, width=4), ImageShape(2, 8, 3), generator())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0 if parameter.dim() == 4 else 0.0)
    theta = flatten(network)
    slices = FlatNetwork(network).convolutions
    assert [s.stop - s.start for s in slices] == [4 * 2 * 9, 4 * 4 * 9]
    selected = torch.cat([theta[s] for s in slices])
    assert selected.eq(1).all()
    assert selected.sum() == theta.sum()


def test_convolutions_along_texts_are_among_them() -> None:
    encoders = {"image": ConvNet(depth=1, width=4), "text": TextNet(family="TextNet", width=6)}
    spec = Encoders(family="Encoders", embedding=5, encoders=encoders)
    shape = TupleShape((Modality("image", (1, 8, 8)), Modality("text", (3, 7))))
    flat = FlatNetwork(build(spec, shape, generator()))
    places = torch.arange(flat.dimension)
    selected = [places[part] for part in flat.convolutions]
    expected = [part.flatten() for part in flat.unflatten(places).values() if part.dim() > 2]  # linear layers have two
    assert [len(part) for part in selected] == [4 * 9, 6 * 3 * 3, 6 * 6 * 3]
    assert all(torch.equal(one, other) for one, other in zip(selected, expected, strict=True))


def test_running_statistics_are_refused() -> None:
    with pytest.raises(UserError, match="running statistics"):
        FlatNetwork(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
