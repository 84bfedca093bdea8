#!/usr/bin/env bash
# torch 2.13.0: SGD(differentiable=True) with momentum takes the right steps and gives the wrong gradient through them.
#
# Guess before running: an optimizer with differentiable=True that takes its steps without an error can be differentiated through,
# with momentum as without.
# Seen: the first step's momentum is a detached copy of the gradient, so that whatever came by the first gradient, in every later
# step as well, is missing. The weights after three steps are right, and the gradient of their squares with respect to the data is
# 0.207 where differences give 0.360, or 0.331 for 0.446 with Nesterov's momentum; without momentum, and with Adam, they agree.
# With buffers of zeros in the state before the first step, and no dampening, momentum does as well, since the detached copy is made
# only where there is none. So who differentiates through a student's training by SGD with momentum puts zeros there first, or
# writes the step out.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from torch.optim import SGD, Adam

data, start = torch.tensor([0.7, -1.3], dtype=torch.float64), torch.tensor([0.3, 0.9], dtype=torch.float64)
MOMENTUM = {"lr": 0.1, "momentum": 0.9}


def trained(data, kind, settings, zeros):
    weights = start.clone().requires_grad_().clone()
    optimizer = kind([weights], differentiable=True, **settings)
    if zeros:
        optimizer.state[weights]["momentum_buffer"] = torch.zeros_like(weights)
    for _ in range(3):
        read = weights.clone()  # the step changes the weights in place
        loss = (read * data).sin().sum() + (read - data).square().sum()
        (weights.grad,) = torch.autograd.grad(loss, read, create_graph=True)
        optimizer.step()
    return weights.square().sum()


def by_hand(data, momentum):
    weights, buffer = start.clone(), torch.zeros_like(start)
    for _ in range(3):
        buffer = momentum * buffer + (weights * data).cos() * data + 2 * (weights - data)
        weights = weights - 0.1 * buffer
    return weights.square().sum()


def gradients(*how):
    """Of the first number of the data: what autograd says, and central differences."""
    given, shift = data.clone().requires_grad_(), torch.tensor([1e-6, 0], dtype=torch.float64)
    (found,) = torch.autograd.grad(trained(given, *how), given)
    return found[0].item(), ((trained(data + shift, *how) - trained(data - shift, *how)) / 2e-6).item()


for name, right, *how in (
    ("SGD", True, SGD, {"lr": 0.1}, False),
    ("Adam", True, Adam, {"lr": 0.1}, False),
    ("SGD, momentum", False, SGD, MOMENTUM, False),
    ("SGD, Nesterov", False, SGD, {**MOMENTUM, "nesterov": True}, False),
    ("SGD, momentum, zeros", True, SGD, MOMENTUM, True),
):
    found, differences = gradients(*how)
    print(f"torch {torch.__version__}, {name}: gradient {found:.3f}, by differences {differences:.3f}")
    assert (abs(found - differences) < 1e-6) == right, name
    assert right or abs(found - differences) > 0.1, name
torch.testing.assert_close(trained(data, SGD, MOMENTUM, False), by_hand(data, 0.9), rtol=1e-12, atol=0)
PY
echo "as described"
