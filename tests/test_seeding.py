"""Named generators: determinism, independence, range."""

from __future__ import annotations

import hashlib

import pytest
import torch

from src.ground.seeding import generator, seed_of

NAMES: list[tuple[str | int, ...]] = [
    (),
    ("experts",),
    ("experts", 0),
    ("experts", 1),
    ("experts", 10),
    ("experts", 1, 0),
    ("distill", 0),
    ("ab", "c"),
    ("a", "bc"),
    ("c", "ab"),
]


def test_every_name_and_root_has_its_own_seed() -> None:
    seeds = [seed_of(root, *names) for root in (0, 1, 10) for names in NAMES]
    assert len(set(seeds)) == len(seeds)


def test_seeds_fit_torch_and_use_the_whole_range() -> None:
    seeds = [seed_of(0, i) for i in range(500)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 0.9 * 2**63
    assert min(seeds) < 0.1 * 2**63
    assert all(generator(0, i).initial_seed() == seed for i, seed in enumerate(seeds))


def test_a_seed_never_changes() -> None:
    """Python's own hash differs between processes; artifacts made earlier must stay reproducible."""
    digest = hashlib.sha256(b"7/experts/3").digest()
    assert seed_of(7, "experts", 3) == int.from_bytes(digest[:8], "little") // 2


def test_same_name_same_numbers_whatever_was_drawn_elsewhere() -> None:
    first = torch.rand(8, generator=generator(3, "start", 1))
    torch.rand(5, generator=generator(3, "start", 0))
    torch.rand(5)
    assert torch.equal(torch.rand(8, generator=generator(3, "start", 1)), first)


@pytest.mark.parametrize("other", [(4, "start", 1), (3, "start", 2), (3, "end", 1), (3, "start")])
def test_other_names_give_unrelated_numbers(other: tuple) -> None:
    a, b = (torch.rand(20_000, generator=generator(*names)) for names in ((3, "start", 1), other))
    assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 0.03  # four standard errors


def test_making_a_generator_leaves_the_global_state() -> None:
    before = torch.get_rng_state()
    torch.rand(3, generator=generator(0, "x"))
    assert torch.equal(torch.get_rng_state(), before)
