#!/usr/bin/env bash
# torch 2.13.0: set_deterministic_debug_mode asks all of torch for reproducible results, but for torch.compile.
#
# Guess before running: set_deterministic_debug_mode("error"), which torch documents as another interface of
# use_deterministic_algorithms(True), leaves torch in the same state.
# Seen: are_deterministic_algorithms_enabled() is True after either, but torch._inductor.config.deterministic, by which the compiler
# forgoes kernels chosen by a clock (how a GPU's sums are split, and so how they round), is True after use_deterministic_algorithms
# alone, and stays so when the debug mode is set back to "default". So who compiles and promises the same bytes calls the former.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import sys

import torch
import torch._inductor.config as compiler

seen = []
for step, ask in {
    "set_deterministic_debug_mode('error')": lambda: torch.set_deterministic_debug_mode("error"),
    "use_deterministic_algorithms(True)": lambda: torch.use_deterministic_algorithms(True),
    "set_deterministic_debug_mode('default')": lambda: torch.set_deterministic_debug_mode("default"),
}.items():
    ask()
    seen.append((torch.are_deterministic_algorithms_enabled(), compiler.deterministic))
    print(f"torch {torch.__version__}, {step}: algorithms {seen[-1][0]}, compiler {seen[-1][1]}")
sys.exit(seen != [(True, False), (True, True), (False, True)])
PY
