"""Provenance: the packages that made an artifact, as its record tells them. Its code is told by `code`, to DVC and to MLflow.

The code is in no artifact, so that one which other code makes with the same bytes is the same artifact.
"""

from __future__ import annotations

import platform
from importlib.metadata import version

PACKAGES = ("numpy", "pillow", "pyarrow", "safetensors", "scikit-learn", "scipy", "torch", "torchvision")


def packages() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
