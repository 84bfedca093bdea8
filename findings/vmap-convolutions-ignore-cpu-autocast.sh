#!/usr/bin/env bash
# torch 2.13.0: under vmap, a convolution in CPU autocast stays float32, while a matrix product beside it becomes bfloat16.
#
# Guess before running: torch.func.vmap over a model's parameters runs under autocast("cpu", bfloat16) as the model alone does, with
# the convolution and the linear layer in bfloat16.
# Seen: alone, both give bfloat16. Under vmap the linear layer gives bfloat16 and the convolution float32, without a word: vmap
# calls aten::convolution, and CPU autocast knows conv2d alone.
# So an ensemble trained by vmap in half precision is not, on a CPU: its speed and its rounding are those of float32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
import torch.nn.functional as F
from torch.func import vmap

images, kernels, matrices = torch.randn(3, 2, 3, 8, 8), torch.randn(3, 4, 3, 3, 3), torch.randn(3, 5, 192)


def model(x, kernel, matrix):
    with torch.autocast("cpu", torch.bfloat16):
        return F.conv2d(x, kernel), F.linear(x.flatten(1), matrix)


def types(found):
    return [str(one.dtype).removeprefix("torch.") for one in found]


alone, together = types(model(images[0], kernels[0], matrices[0])), types(vmap(model)(images, kernels, matrices))
print("torch", torch.__version__, "| alone:", *alone, "| vmap:", *together)
assert alone == ["bfloat16", "bfloat16"], alone
assert together == ["float32", "bfloat16"], together
PY
