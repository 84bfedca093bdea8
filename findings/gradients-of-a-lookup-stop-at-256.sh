#!/usr/bin/env bash
# torch 2.13.0 on a CPU: the gradient of a bfloat16 picture that images[index] takes a thousand times is that of 256 times.
#
# Guess before running: a sum that autograd makes of many bfloat16 gradients is made in float32 and rounded at its end, as torch's
# sums are, so that images[index], index_select and gather, which take the same rows, give the same gradient.
# Seen: what images[index], or an embedding's look-up, hands back to one picture is added up in bfloat16, where 256 + 1 is 256. Of
# ones, as the gradient of a sum has them, 1,000 make 256 and 100,000 make 256; in float16 it stops at 2,048. index_select, gather
# and repeat_interleave give 1,000 in the same place. Where the ones differ, it is off by as much: the gradient of the mean
# over 4,000 draws of a picture has an eighth of its length. So who takes a small synthetic set many times in half precision takes
# it by index_select, or keeps the pictures in float32 and rounds them after they were taken.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import warnings

import torch
import torch.nn.functional as F

warnings.simplefilter("error")
WAYS = {
    "images[index]": lambda images, index: images[index],
    "embedding": lambda images, index: F.embedding(index, images),
    "index_select": lambda images, index: images.index_select(0, index),
    "gather": lambda images, index: images.gather(0, index[:, None].expand(-1, images.shape[1])),
    "repeat_interleave": lambda images, index: images.repeat_interleave(len(index) // len(images), 0),
    "float32, then rounded": lambda images, index: images.float()[index].to(images.dtype),
}
STOPS = {"images[index]", "embedding"}


def gradient(way, dtype, times, weights):
    """Of ten pictures of 12 pixels that are each taken so many times, weighted by (10 * times, 12)."""
    images = torch.zeros(10, 12, dtype=dtype, requires_grad=True)
    taken = WAYS[way](images, torch.arange(10).repeat_interleave(times))
    (found,) = torch.autograd.grad(taken, images, weights.to(dtype))
    return found.double()


torch.manual_seed(0)
uneven = torch.rand(10 * 4000, 12).bfloat16()
exact = uneven.double().reshape(10, 4000, 12).sum(1)
for way in WAYS:
    found = [gradient(way, torch.bfloat16, times, torch.ones(10 * times, 12)) for times in (200, 1000, 100_000)]
    half = gradient(way, torch.float16, 10_000, torch.ones(100_000, 12))
    off = ((gradient(way, torch.bfloat16, 4000, uneven) - exact).norm() / exact.norm()).item()
    assert all(len(one.unique()) == 1 for one in (*found, half)), way
    numbers = [one[0, 0].item() for one in (*found, half)]
    print(f"torch {torch.__version__}, {way}: 200, 1,000 and 100,000 ones", *[f"{one:.0f}" for one in numbers[:3]], end="")
    print(f"; 10,000 of float16 {numbers[3]:.0f}; 4,000 uneven ones off by {off:.1%}")
    wanted = [200, 256, 256, 2048] if way in STOPS else [200, 1000, 100_000, 10_000]
    assert all(abs(one - want) <= 0.01 * want for one, want in zip(numbers, wanted, strict=True)), way
    assert off > 0.5 if way in STOPS else off < 0.01, way
PY
echo "as described"
