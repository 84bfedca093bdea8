#!/usr/bin/env bash
# safetensors 0.8.0 and torch 2.13.0 on x86-64: weights that are read back equal, give products of other bits than before.
#
# Guess before running: a tensor that torch.equal calls equal gives the same bytes in every operation, on one machine and thread, so
# that training goes on from a file of safetensors bit for bit.
# Seen: safe_open's get_tensor gives memory at any address that is a multiple of the numbers' own size, while torch allocates at
# multiples of 64. MKL's product of one row with a matrix, as a linear layer has it for a batch of one, rounds by where the matrix
# lies: of 45 products of equal weights, of ten to a hundred classes and 128 to 2,048 features, most have other bits (31 on an AMD EPYC
# with AVX-512). Copied by .clone() all 45 are as before, and so they are under MKL_CBWR=COMPATIBLE. So who
# resumes from such a file and promises the same bytes copies what is read.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
cat > "$folder/products.py" <<'PY'
import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file

torch.manual_seed(0)
torch.set_num_threads(1)
path, other, copied, places = sys.argv[1], 0, 0, set()
for classes in (10, 32, 100):
    for features in (128, 512, 2048):
        weights, row = torch.randn(classes, features), torch.randn(1, features)
        before = row @ weights.T
        for numbers in range(1, 6):  # of a tensor that lies before it in the file
            save_file({"before": torch.zeros(numbers), "weights": weights}, path)
            with safe_open(path, "pt") as file:
                found = file.get_tensor("weights")
            assert torch.equal(found, weights)
            places.add(found.data_ptr() % 64)
            other += not torch.equal(row @ found.T, before)
            copied += not torch.equal(row @ found.clone().T, before)
print(f"addresses modulo 64: {sorted(places)}; of 45 products {other} have other bits, of copied weights {copied}")
sys.exit(not (other > 10 and copied == 0))
PY
"$folder/venv/bin/python" "$folder/products.py" "$folder/weights.safetensors"
MKL_CBWR=COMPATIBLE "$folder/venv/bin/python" "$folder/products.py" "$folder/weights.safetensors" | tee "$folder/compatible" || true
grep -q "of 45 products 0 have other bits" "$folder/compatible"
echo "as described"
