#!/usr/bin/env bash
# torch 2.13.0: a student that begins at an expert's flat checkpoint by vector_to_parameters trains the checkpoint along.
#
# Guess before running: torch.nn.utils.vector_to_parameters, by its documentation "Copy slices of a vector into an iterable of
# parameters", copies, as load_state_dict does, so that the vector is what it was however the network is trained.
# Seen: each parameter becomes a view of the vector. Every step of an optimizer is taken in the vector too: after 20 steps the way
# that the student came from where it began is 0 to the bit, and the first of the expert's checkpoints is the student's end. Two
# students of one vector are one network: the second begins where the first ended. With a copy of the vector, and with
# load_state_dict, all is as guessed. So who begins at a vector that is wanted again, as the start of a segment is in the distance
# by which trajectory matching divides, hands in vector.clone().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

warnings.simplefilter("error")
torch.manual_seed(0)
images, labels = torch.randn(30, 12), torch.arange(30) % 3


def network():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))


def flat(net):
    return parameters_to_vector(net.parameters()).detach()


def trained(net):
    """The loss before the first step; 20 are taken."""
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.5), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0]


def by_dict(vector, net):
    """As load_state_dict copies what another network has, here the parts of the vector."""
    sizes = [value.numel() for value in net.state_dict().values()]
    parts = dict(zip(net.state_dict(), vector.split(sizes), strict=True))
    net.load_state_dict({name: parts[name].view_as(value) for name, value in net.state_dict().items()})


ways = {
    "vector_to_parameters": (True, lambda vector, net: vector_to_parameters(vector, net.parameters())),
    "the same of a clone": (False, lambda vector, net: vector_to_parameters(vector.clone(), net.parameters())),
    "load_state_dict": (False, by_dict),
}
expert = flat(network())
for name, (shared, begin) in ways.items():
    checkpoint, students, losses = expert.clone(), [network(), network()], []
    for student in students:
        begin(checkpoint, student)
        losses.append(trained(student))
    way = (flat(students[0]) - checkpoint).norm().item()
    print(f"torch {torch.__version__}, {name}: the student came {way:.3f} from its checkpoint, which moved by ", end="")
    print(f"{(checkpoint - expert).norm():.3f}; the first loss of two students {losses[0]:.3f}, {losses[1]:.3f}")
    assert torch.equal(checkpoint, expert) != shared
    assert (way == 0) == shared and (losses[0] == losses[1]) != shared
    assert not shared or losses[1] < 0.8 * losses[0]
PY
echo "as described"
