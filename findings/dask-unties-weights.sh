#!/usr/bin/env bash
# dask distributed 2026.8.0 and torch 2.13.0: a network that shares a weight or a layer comes back from a worker with two of it.
#
# Guess before running: a module that is a task's result, or that client.scatter hands out, is what pickle makes of it: tied weights,
# as those of a text model's embedding and its output layer, are one parameter again.
# Seen: distributed has a way of its own for torch modules, which takes each attribute by itself. The result, bare or in a tuple or
# dictionary, has two equal parameters where the worker had one, and a layer that stood in two places is two layers. All values are
# right, so that it predicts the same; trained further, the two go apart, and a flat vector of the parameters is
# longer than the worker's. As an argument of client.submit the same module stays tied, since that is pickled. So who sends
# networks sends their state_dict and builds them anew, or pickles them to bytes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet distributed==2026.8.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > tied.py <<'PY'
import pickle

import numpy as np
import torch
from distributed import Client, LocalCluster
from torch import nn

WORDS = torch.arange(6).reshape(2, 3)


def made():
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    network = nn.Sequential(nn.Embedding(7, 4), layer, nn.Tanh(), layer, nn.Linear(4, 7, bias=False))
    network[4].weight = network[0].weight
    return network


def made_with_name():
    return {"network": made(), "name": "student"}


def look(network):
    """Whether a weight and a layer are shared, numbers in all, the outputs, and how far one step takes tied weights apart."""
    tied, same = network[0].weight is network[4].weight, network[1] is network[3]
    outputs = network(WORDS)
    numbers = sum(part.numel() for part in network.parameters())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    outputs.square().sum().backward()
    optimizer.step()
    return tied, same, numbers, outputs.detach().numpy(), (network[0].weight - network[4].weight).norm().item()


def main():
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, Client(cluster) as client:
        seen = {
            "here": (True, look(made())),
            "pickled": (True, look(pickle.loads(pickle.dumps(made())))),
            "an argument": (True, client.submit(look, made()).result(timeout=300)),
            "a result, pickled": (True, look(pickle.loads(client.submit(pickle.dumps, made()).result(timeout=300)))),
            "a result": (False, look(client.submit(made).result(timeout=300))),
            "in a dictionary": (False, look(client.submit(made_with_name).result(timeout=300)["network"])),
            "scattered": (False, client.submit(look, client.scatter(made())).result(timeout=300)),
        }
    _, (*_, numbers, outputs, _) = seen["here"]
    for name, (kept, (tied, same, count, found, apart)) in seen.items():
        print(f"{name}: weight shared {tied}, layer shared {same}, {count} numbers, tied weights apart by {apart:.3f} after a step")
        assert tied == same == kept and (count == numbers) == kept, name
        assert np.allclose(found, outputs, rtol=1e-5, atol=1e-6) and (apart == 0) == kept, name


if __name__ == "__main__":
    main()
PY
"$folder/venv/bin/python" tied.py 2> errors || { cat errors; exit 1; }
echo "as described"
