"""Between pixels and what networks read: per-channel statistics and ZCA, against other implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from src.ground.errors import DataError
from src.maths import pixels
from src.maths.pixels import Space


def photographs(count: int = 600, channels: int = 3, size: int = 6, seed: int = 0) -> Tensor:
    """Integers 0 .. 255 whose neighbours are alike, as in real images."""
    noise = torch.randn(count, channels, size + 2, size + 2, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 3, stride=1)
    return (128 + 180 * smooth).clamp(0, 255).to(torch.uint8)


def test_normalisation_is_numpys_mean_and_std() -> None:
    images = photographs()
    found = pixels.fit_normalisation(images, 255)
    real = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(found.mean, real.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found.std, real.std(axis=(0, 2, 3)), rtol=1e-6)


def test_a_constant_channel_keeps_std_one() -> None:
    images = photographs()
    images[:, 1] = 7
    assert pixels.fit_normalisation(images, 255).std[1] == 1


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photographs(100)
    whole = pixels.fit_normalisation(images, 255), pixels.fit_whitening(images, 255, 0.1)
    inputs = [pixels.inputs(space, images, 255) for space in whole]
    monkeypatch.setattr(pixels, "BLOCK", 7)
    parts = pixels.fit_normalisation(images, 255), pixels.fit_whitening(images, 255, 0.1)
    assert torch.equal(parts[0].mean, whole[0].mean)
    torch.testing.assert_close(parts[1].matrix, whole[1].matrix, rtol=1e-5, atol=1e-6)
    for space, expected in zip(whole, inputs, strict=True):
        torch.testing.assert_close(pixels.inputs(space, images, 255), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("eps", [0.1, 1e-3])
def test_whitening_equals_one_by_singular_values(eps: float) -> None:
    """Without a covariance: the right singular vectors of the centred images (kornia's definition, divided by N)."""
    images = photographs()
    real = images.flatten(1).numpy().astype(np.float64) / 255
    mean = real.mean(axis=0)
    _, singular, vectors = np.linalg.svd(real - mean, full_matrices=False)
    matrix = vectors.T / np.sqrt(singular**2 / len(real) + eps) @ vectors
    found = pixels.fit_whitening(images, 255, eps)
    np.testing.assert_allclose(found.matrix, matrix, rtol=1e-5, atol=1e-5)
    expected = ((real - mean) @ matrix).reshape(images.shape)
    np.testing.assert_allclose(pixels.inputs(found, images, 255), expected, rtol=1e-5, atol=1e-5)


def test_whitened_numbers_are_uncorrelated() -> None:
    """With a small eps the covariance is nearly the identity; with eps 0.1 its eigenvalues are v / (v + 0.1)."""
    images = photographs(2000, size=4)
    white = pixels.inputs(pixels.fit_whitening(images, 255, 1e-6), images, 255).flatten(1).double()
    covariance = white.T @ white / len(white)
    torch.testing.assert_close(covariance, torch.eye(48).double(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_way_back_gives_the_pixels(channels: int) -> None:
    images = photographs(channels=channels)
    real = images.float() / 255
    spaces: list[Space] = [pixels.fit_normalisation(images, 255), pixels.fit_whitening(images, 255, 0.1)]
    for space in spaces:
        assert (space.to_pixels(space.normalise(real)) - real).abs().max() < 1e-4
        images_back = space.normalise(space.to_pixels(3 * torch.randn(real.shape, generator=torch.Generator().manual_seed(1))))
        assert torch.isfinite(images_back).all()


def test_too_large_images_are_refused_with_the_figure() -> None:
    with pytest.raises(DataError, match=r"3x64x64 needs two matrices of 12,288 x 12,288, 1\.2 GB"):
        pixels.fit_whitening(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), 255, 0.1)


def test_whitening_does_not_depend_on_how_many_threads_there_are() -> None:
    images = torch.randint(0, 256, (200, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            space = pixels.fit_whitening(images, 255, 0.1)
            assert torch.get_num_threads() == threads
            found.append((space.matrix, space.inverse, space.normalise(images[:10].float() / 255)))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
