#!/usr/bin/env bash
# torch 2.13.0: a checkpointed augmentation that draws from a torch.Generator of its own is differentiated at other draws.
#
# Guess before running: checkpoint(preserve_rng_state=True), the default, runs the function a second time with the draws of the
# first, whichever generator they came from; or its check that the second run was like the first (determinism_check) complains.
# Seen: the global generators alone are put back. One that is handed to torch.randn goes on where it was, so that the second run
# has other draws: the loss is that of the first, the gradient that of no function at all, without a word, as the check compares
# shapes and types, not values. It also leaves the generator further on than it would be. With the global generator, and with the
# noise drawn outside and handed in, gradients are those without checkpoint to the bit. So who gives each part of a run a generator
# of its own, for reproducible runs, draws outside of what is checkpointed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import warnings

import torch
from torch.utils.checkpoint import checkpoint

warnings.simplefilter("error")
generator = torch.Generator()
images = torch.linspace(-1, 1, 32).reshape(4, 8)


def student(weights, noise=None, draws=None):
    noise = torch.randn(4, 8, generator=draws) if noise is None else noise
    return ((images + noise) @ weights).tanh().square().mean()


def differentiated(how, reentrant):
    """The loss, its gradient, and the generator's next number, once plainly and once by a checkpoint."""
    found = []
    for kept in (False, True):
        torch.manual_seed(0)
        generator.manual_seed(0)
        weights = torch.linspace(-1, 1, 24).reshape(8, 3).requires_grad_()
        noise = torch.randn(4, 8, generator=generator) if how == "drawn outside" else None
        given = (weights, noise, generator if how == "own generator" else None)
        loss = checkpoint(student, *given, use_reentrant=reentrant) if kept else student(*given)
        loss.backward()
        found.append((loss.item(), weights.grad, torch.randn((), generator=generator).item()))
    return found


for reentrant in (False, True):
    for how in ("global generator", "drawn outside", "own generator"):
        (loss, plain, after), (loss_too, kept, after_too) = differentiated(how, reentrant)
        off = ((kept - plain).norm() / plain.norm()).item()
        print(f"torch {torch.__version__}, use_reentrant={reentrant}, {how}: gradient off by {off:.0%} of its length")
        assert loss == loss_too
        assert off > 0.1 if how == "own generator" else off == 0
        assert (after == after_too) == (how != "own generator")
PY
echo "as described"
