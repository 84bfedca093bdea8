"""torchvision beside a CPU build of torch, in fresh processes: it is prepared once, at the first import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_src_imports_neither_torch_nor_torchvision() -> None:
    loaded = "import src, sys; print(sorted({'torch', 'torchvision', 'numpy', 'mlflow'} & set(sys.modules)))"
    assert python(loaded) == "[]\n"


def test_torchvision_imports_after_src_and_makes_a_grid() -> None:
    code = """
import sys
import src
from src.ground import torchvision_ops
torchvision_ops.install()
assert sum(type(f).__module__ == torchvision_ops.__name__ for f in sys.meta_path) == 1
import torchvision
assert not any(type(f).__module__ == torchvision_ops.__name__ for f in sys.meta_path)
import torch
grid = torchvision.utils.make_grid(torch.arange(4.0).view(4, 1, 1, 1).expand(-1, 3, 2, 2), nrow=2, padding=1)
assert grid.shape == (3, 7, 7), grid.shape
assert grid[:, 1, 1].tolist() == [0, 0, 0] and grid[0, 4, 4] == 3
torchvision.transforms.functional.resize(grid, [14, 14])
torchvision_ops.install()
assert not any(type(f).__module__ == torchvision_ops.__name__ for f in sys.meta_path)
print("ok")
"""
    assert python(code) == "ok\n"
