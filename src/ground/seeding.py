"""Every random number comes from one root seed through a generator with a name.

Names say what the numbers are for, not which run draws them: runs that are compared start from the same initialisations and
see the same draws (common random numbers), so that their difference is the method's.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_of(root: int, *names: str | int) -> int:
    """A seed in [0, 2^63) that depends on the root seed and every name; torch's generators on the CPU take 32 bits of it."""
    text = "/".join([str(root), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(root: int, *names: str | int) -> torch.Generator:
    """A CPU generator named by `names`; draws are made on the CPU and moved, so that devices see the same numbers."""
    return torch.Generator().manual_seed(seed_of(root, *names))


def continued(state: Tensor) -> torch.Generator:
    """A generator that goes on from the state, bytes, of another."""
    generator = torch.Generator()
    generator.set_state(state.clone())  # torch reads a row of a larger tensor from that tensor's beginning
    return generator
