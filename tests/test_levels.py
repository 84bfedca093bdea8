"""Pictures: contrast is as it is within [0, 1], and lowered image by image where pixels leave it; no image is lost."""

from __future__ import annotations

import pytest
import torch

from src.pages import levels, pictures


def images(*, low: float, high: float, count: int = 3) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def test_images_between_black_and_white_are_shown_as_they_are() -> None:
    real = images(low=0.0, high=1.0)
    assert torch.equal(levels.shown(real), real)
    assert torch.equal(levels.shown(real[0]), real[0])


def test_a_few_numbers_beyond_are_cut_off() -> None:
    real = images(low=0.0, high=1.0, count=1)
    real.view(-1)[:15] = 4.0  # 15 of 300 are a twentieth
    real.view(-1)[15:30] = -4.0
    assert torch.equal(levels.shown(real), real.clamp(0, 1))


def test_of_images_that_go_beyond_a_twentieth_is_cut_off_at_either_end() -> None:
    far = images(low=-2.0, high=4.0)
    found = levels.shown(far)
    for one, wild in zip(found, far, strict=True):
        assert int((one == 0).sum()) == int((one == 1).sum()) == 16  # fifteen beyond, and the one that is black or white
        order = wild.flatten().argsort()
        assert (one.flatten()[order].diff() >= 0).all()


def test_each_image_has_its_own_contrast() -> None:
    real, far = images(low=0.0, high=1.0), images(low=0.0, high=9.0)
    mixed = torch.stack((real[0], far[1]))
    assert torch.equal(levels.shown(mixed), torch.stack((real[0], levels.shown(far[1]))))


@pytest.mark.parametrize(("value", "expected"), [(-1.0, 0.0), (0.0, 0.0), (0.25, 0.25), (1.0, 1.0), (2.0, 1.0)])
def test_images_of_one_number(value: float, expected: float) -> None:
    assert (levels.shown(torch.full((1, 8, 8), value)) == expected).all()


def places(labels: list[int], square: bool = False, classes: int = 0) -> list[list[int]]:
    """The shade of each image in the picture, by its number from 1 on; 0 where there is none. Labels are soft where there are
    so many `classes`.
    """
    pixels = torch.arange(1, len(labels) + 1)[:, None, None, None].expand(-1, 1, 48, 48) / 100
    told = torch.tensor(labels)
    told = torch.nn.functional.one_hot(told, classes).float() if classes else told
    picture = torch.from_numpy(pictures.grid(pixels, told, square))[..., 0]
    shades = (picture[pictures.GAP :: 50, pictures.GAP :: 50] / 2.55).round().int()
    return [[0 if shade == 100 else shade for shade in row] for row in shades.tolist()]


def test_a_row_a_class_of_equally_many_images() -> None:
    assert places([1, 0, 1, 0]) == [[2, 4], [1, 3]]
    assert places([0] * 12 + [1] * 11) == [list(range(1, 11)), list(range(13, 23))]
    assert places([1, 0, 1, 0], square=True) == [[2, 4], [1, 3]]


def test_images_whose_soft_label_is_another_class_are_not_lost() -> None:
    assert places([0, 2, 2, 3]) == [[1, 2, 3, 4]]
    assert places([1, 0, 1, 0, 1]) == [[2, 4, 1, 3, 5]]
    assert places([0, 1, 2, 2, 4], square=True) == [[1, 2, 3], [4, 5, 0]]
    assert places([0] * 9 + [1] * 11) == [list(range(1, 11)), list(range(11, 21))]
    assert places([0] * 19 + [1] * 4) == [list(range(1, 11)), [20, 21, 22, 23] + 6 * [0]]
    assert places(list(range(11))) == [list(range(1, 11)), [11] + 9 * [0]]
    drifted = [0] * 12 + [1] * 18  # of three classes with ten images each, none of which is of the last one by now
    assert places(drifted, classes=3) == [list(range(first, first + 10)) for first in (1, 11, 21)]
    assert places(drifted, classes=2) == [list(range(1, 11)), list(range(13, 23))]
