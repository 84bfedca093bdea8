#!/usr/bin/env bash
# torch 2.13.0 on a CPU: in one autocast region around a training loop the student never sees its new weights.
#
# Guess before running: an optimizer's steps inside torch.autocast("cpu", torch.bfloat16) only round otherwise than outside, so that
# a loop that stands in one region as a whole learns about as well as one that enters a region for each forward pass.
# Seen: until a region is left it keeps the bfloat16 copy of each weight that is a leaf and requires a gradient, and a change in
# place does not end that. Every forward pass is that of the first weights: the loss is the same to the bit in all 50 steps, while
# the float32 weights go ever further along the first gradient, without a word. A student that is unrolled, its weights new tensors
# after each step, learns in the same region, as they are no leaves; so does one with a region for each pass, or under
# cache_enabled=False. So a region that is right around a distillation's unrolled inner loop is wrong around the training of
# experts or of students by an optimizer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import contextlib
import warnings

import torch
import torch.nn.functional as F

warnings.simplefilter("error")
torch.manual_seed(0)
images, labels = torch.randn(20, 12), torch.arange(20) % 4
start = torch.randn(4, 12) / 4


def region(wanted, cached=True):
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=cached) if wanted else contextlib.nullcontext()


def in_place(around, cached=True):
    """The loss before each step of an optimizer, and how far the weights came."""
    weights, losses = start.clone().requires_grad_(), []
    optimizer = torch.optim.SGD([weights], lr=0.5)
    with region(around, cached):
        for _ in range(50):
            optimizer.zero_grad()
            with region(not around):
                logits = F.linear(images, weights)
            assert logits.dtype == torch.bfloat16
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, (weights - start).norm().item()


def unrolled():
    weights, losses = start.clone().requires_grad_(), []
    with region(True):
        for _ in range(50):
            loss = F.cross_entropy(F.linear(images, weights).float(), labels)
            (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
            weights = weights - 0.5 * gradient
            losses.append(loss.item())
    return losses, (weights - start).norm().item()


for name, learns, (losses, way) in (
    ("a region for each pass", True, in_place(around=False)),
    ("one around the loop", False, in_place(around=True)),
    ("one around the loop, no cache", True, in_place(around=True, cached=False)),
    ("one around the loop, unrolled", True, unrolled()),
):
    print(f"torch {torch.__version__}, {name}: loss {losses[0]:.3f}, then {losses[-1]:.3f}; weights moved by {way:.2f}")
    assert losses[-1] < 0.7 * losses[0] if learns else len(set(losses)) == 1, losses
    assert way > 0.5
PY
echo "as described"
