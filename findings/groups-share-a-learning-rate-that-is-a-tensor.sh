#!/usr/bin/env bash
# torch 2.13.0: where the learning rate is a tensor, an optimizer's groups have one together, and schedulers work on it once a group.
#
# Guess before running: SGD(groups, lr=torch.tensor(0.1)), as a rate has to be for a recorded or compiled step, gives each group a
# rate of its own, which starts at 0.1, as lr=0.1 does.
# Seen: all groups that name no rate hold the same tensor, and schedulers write into it. ReduceLROnPlateau divides by ten once for
# each group: with images, labels and a step size in three groups the rate falls from 0.1 to 0.0001 at one plateau. LambdaLR with a
# function for each group gives all of them what the last one says, so that a group which was to be held at 0.1 is at 0. StepLR,
# and each scheduler where there is one group, is as guessed, and so is everything where each group is given a tensor of its own.
# Nothing is said; so who goes over from a number to a tensor writes "lr": torch.tensor(...) into every group.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import warnings

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR

warnings.simplefilter("error")
RATES = {
    "a number": lambda parts: torch.optim.SGD([{"params": [part]} for part in parts], lr=0.1),
    "a tensor": lambda parts: torch.optim.SGD([{"params": [part]} for part in parts], lr=torch.tensor(0.1)),
    "tensors of their own": lambda parts: torch.optim.SGD([{"params": [part], "lr": torch.tensor(0.1)} for part in parts], lr=0.1),
}


def plateau(optimizer):
    scheduler = ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
    for loss in (1.0, 1.0):
        optimizer.step()
        scheduler.step(loss)


def own_functions(optimizer):
    scheduler = LambdaLR(optimizer, [lambda step: 1.0, lambda step: 0.1**step, lambda step: 0.0])
    optimizer.step()
    scheduler.step()


def steps(optimizer):
    scheduler = StepLR(optimizer, step_size=1, gamma=0.1)
    optimizer.step()
    scheduler.step()


WANTED = {plateau: [0.01, 0.01, 0.01], own_functions: [0.1, 0.01, 0.0], steps: [0.01, 0.01, 0.01]}
SHARED = {plateau: [0.0001, 0.0001, 0.0001], own_functions: [0.0, 0.0, 0.0], steps: [0.01, 0.01, 0.01]}
for schedule in WANTED:
    for name, made in RATES.items():
        images, labels, size = (torch.ones(2, requires_grad=True) for _ in range(3))
        optimizer = made([images, labels, size])
        for part in (images, labels, size):
            part.grad = torch.ones(2)
        schedule(optimizer)
        found = [float(group["lr"]) for group in optimizer.param_groups]
        print(f"torch {torch.__version__}, {schedule.__name__}, {name}:", *[f"{rate:.4g}" for rate in found])
        torch.testing.assert_close(found, (SHARED if name == "a tensor" else WANTED)[schedule], rtol=1e-5, atol=1e-9)
PY
echo "as described"
