#!/usr/bin/env bash
# torch 2.13.0: a DataLoader whose workers persist takes other batches from the second epoch on, and can't be gone on with.
#
# Guess before running: persistent_workers=True saves the time of starting workers and nothing else: with a generator of the loader's
# own the order of each epoch is that of any number of workers, and a run that begins again at the generator's state after an
# epoch goes on as if it had never stopped.
# Seen: the first epoch is the same for no workers, two, and two that persist; with these all later ones differ. Each new iterator
# draws the workers' seed from the generator before the order, and persisting workers are not given a new one. For the same reason
# a loader that begins at the state after the first epoch has another second one than the loader that went on, while without
# persisting workers it is the same. So who promises the same bytes for any number of workers, or after an interruption, hands in
# a sampler with a generator of its own, under which all is as guessed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/orders.py" <<'PY'
import warnings

import torch
from torch.utils.data import DataLoader, RandomSampler

warnings.simplefilter("error")
EPOCHS = 3
WORKERS = {"no workers": {}, "two": {"num_workers": 2}, "two that persist": {"num_workers": 2, "persistent_workers": True}}


def loader(draws, own_sampler, workers):
    images = range(20)
    if own_sampler:
        return DataLoader(images, batch_size=5, sampler=RandomSampler(images, generator=draws), **workers)
    return DataLoader(images, batch_size=5, shuffle=True, generator=draws, **workers)


def epoch(loading):
    return torch.cat(list(loading)).tolist()


def run(own_sampler, workers):
    """The orders of a run, and those of one that stops after the first epoch and begins again at its generator's state."""
    draws = torch.Generator().manual_seed(0)
    loading = loader(draws, own_sampler, workers)
    orders, state = [epoch(loading)], draws.get_state()
    orders += [epoch(loading) for _ in range(EPOCHS - 1)]
    again = torch.Generator()
    again.set_state(state)
    loading = loader(again, own_sampler, workers)
    return orders, orders[:1] + [epoch(loading) for _ in range(EPOCHS - 1)]


if __name__ == "__main__":
    for own_sampler in (False, True):
        plain, _ = run(own_sampler, {})
        for name, workers in WORKERS.items():
            orders, resumed = run(own_sampler, workers)
            same = [found == wanted for found, wanted in zip(orders, plain, strict=True)]
            print(f"torch {torch.__version__}, {'a sampler of its own' if own_sampler else 'shuffle=True'}, {name}: epochs as ", end="")
            print(f"without workers {same}, gone on with as without a stop {resumed == orders}")
            differs = not own_sampler and "persist" in name
            assert same == ([True, False, False] if differs else [True] * EPOCHS)
            assert (resumed == orders) != differs
PY
"$folder/venv/bin/python" "$folder/orders.py"
echo "as described"
