"""Differentiable siamese augmentation against loops over images and pixels in float64."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from src.maths import augmentation
from src.maths.augmentation import KINDS, Draw

B, C, SIDE = 6, 2, 8


@pytest.fixture
def images() -> Tensor:
    return torch.randn(B, C, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def uniforms(seed: int = 1, batch: int = B) -> Tensor:
    return torch.rand(batch, augmentation.DRAWS, generator=torch.Generator().manual_seed(seed)).double()


def color(x: Tensor, u: list[float]) -> Tensor:
    x = x + (u[0] - 0.5)
    grey = sum(x[c] for c in range(C)) / C
    x = torch.stack([grey + 2 * u[1] * (x[c] - grey) for c in range(C)])
    mean = x.sum() / x.numel()
    return mean + (0.5 + u[2]) * (x - mean)


def crop(x: Tensor, u: list[float]) -> Tensor:
    pad = 1  # an eighth of 8
    r, c = (math.floor(v * (2 * pad + 1)) for v in u[:2])
    padded = torch.nn.functional.pad(x, (pad,) * 4)
    return padded[:, r : r + SIDE, c : c + SIDE]


def cutout(x: Tensor, u: list[float]) -> Tensor:
    x, half = x.clone(), SIDE // 4
    r, c = (math.floor(v * (SIDE + 1)) for v in u[:2])  # centre, between pixels
    x[:, max(r - half, 0) : r + half, max(c - half, 0) : c + half] = 0
    return x


def flip(x: Tensor, u: list[float]) -> Tensor:
    return torch.stack([x[..., SIDE - 1 - j] for j in range(SIDE)], -1) if u[0] < 0.5 else x


def resampled(x: Tensor, source: Callable[[float, float], tuple[float, float]]) -> Tensor:
    """Bilinear, zeros outside; `source` maps a place to where it is read, both about the centre in half sides."""
    half, result = (SIDE - 1) / 2, torch.zeros_like(x)
    for row in range(SIDE):
        for column in range(SIDE):
            across, down = source(column / half - 1, row / half - 1)
            across, down = (across + 1) * half, (down + 1) * half
            for r in (math.floor(down), math.floor(down) + 1):
                for c in (math.floor(across), math.floor(across) + 1):
                    if 0 <= r < SIDE and 0 <= c < SIDE:
                        result[:, row, column] += (1 - abs(down - r)) * (1 - abs(across - c)) * x[:, r, c]
    return result


def scale(x: Tensor, u: list[float]) -> Tensor:
    across, down = (1 / 1.2 + v * (1.2 - 1 / 1.2) for v in u[:2])
    return resampled(x, lambda a, d: (across * a, down * d))


def rotate(x: Tensor, u: list[float]) -> Tensor:
    angle = math.radians(30 * u[0] - 15)
    cos, sin = math.cos(angle), math.sin(angle)
    return resampled(x, lambda a, d: (cos * a - sin * d, sin * a + cos * d))


CLOSED_FORMS = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_each_kind_equals_its_closed_form(kind: str, seed: int, images: Tensor) -> None:
    u = uniforms(seed)
    expected = torch.stack([CLOSED_FORMS[kind](x, row.tolist()) for x, row in zip(images, u, strict=True)])
    torch.testing.assert_close(augmentation.apply(Draw(kind, u), images), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["crop", "cutout"])
def test_extremes_of_the_draw_equal_the_closed_form(kind: str, images: Tensor) -> None:
    last = 1 - 2**-24  # the largest float32 that torch.rand gives
    u = torch.tensor([[a, b, 0.0] for a in (0, 0.5, last) for b in (0, last)], dtype=torch.float32)
    expected = torch.stack([CLOSED_FORMS[kind](x, row.tolist()) for x, row in zip(images, u, strict=True)])
    assert torch.equal(augmentation.apply(Draw(kind, u), images), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_apply_is_pure(kind: str, images: Tensor) -> None:
    draw, kept = Draw(kind, uniforms()), images.clone()
    first = augmentation.apply(draw, images)
    state = torch.get_rng_state()
    assert torch.equal(augmentation.apply(draw, images), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, kept)
    assert torch.equal(draw.uniforms, uniforms())


def test_no_kind_is_the_identity(images: Tensor) -> None:
    draw = augmentation.draw((), B, torch.Generator().manual_seed(0))
    assert draw.kind is None
    assert torch.equal(augmentation.apply(draw, images), images)


@pytest.mark.parametrize(
    ("kind", "neutral"),
    [
        ("color", (0.5, 0.5, 0.5)),
        ("crop", (0.5, 0.5, 0)),
        ("flip", (0.5, 0, 0)),
        ("scale", ((1 - 1 / 1.2) / (1.2 - 1 / 1.2),) * 3),
        ("rotate", (0.5, 0, 0)),
    ],
)
def test_neutral_draws_change_nothing(kind: str, neutral: tuple[float, ...], images: Tensor) -> None:
    u = torch.tensor([neutral] * B, dtype=torch.float64)
    torch.testing.assert_close(augmentation.apply(Draw(kind, u), images), images, rtol=1e-12, atol=1e-12)


def test_opposite_angles_mirror_each_other(images: Tensor) -> None:
    u = uniforms()
    turned = augmentation.apply(Draw("rotate", u), images)
    mirrored = augmentation.apply(Draw("rotate", 1 - u), images.flip(-1)).flip(-1)
    torch.testing.assert_close(turned, mirrored, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_gradient_to_the_images(kind: str | None) -> None:
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    draw = Draw(kind, uniforms(batch=2))
    assert torch.autograd.gradcheck(lambda images: augmentation.apply(draw, images), x)


def test_kinds_are_drawn_with_equal_chances() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = Counter(augmentation.draw(list(KINDS), 1, generator).kind for _ in range(1200))
    assert set(counts) == set(KINDS)
    assert all(140 < count < 260 for count in counts.values())  # 200 each, standard deviation 13
    assert {augmentation.draw(["flip", "crop"], 1, generator).kind for _ in range(30)} == {"flip", "crop"}


def test_draws_follow_the_generator() -> None:
    def drawn(seed: int) -> list[Draw]:
        generator = torch.Generator().manual_seed(seed)
        return [augmentation.draw(list(KINDS), 5, generator) for _ in range(4)]

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert [d.kind for d in first] == [d.kind for d in again]
    assert all(torch.equal(a.uniforms, b.uniforms) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a.uniforms, b.uniforms) for a, b in zip(first, other, strict=True))
    assert all(((d.uniforms >= 0) & (d.uniforms < 1)).all() for d in first)
    assert all(len(d.uniforms[:, 0].unique()) == 5 for d in first)  # each image its own numbers


def test_draws_move_to_another_type() -> None:
    draw = augmentation.draw(["scale"], 3, torch.Generator().manual_seed(0))
    moved = draw.to(torch.device("cpu"), torch.float64)
    assert moved.kind == "scale"
    assert moved.uniforms.dtype == torch.float64
    assert torch.equal(moved.uniforms.float(), draw.uniforms)
