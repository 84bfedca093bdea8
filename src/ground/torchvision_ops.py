"""Lets torchvision import beside a torch build that its compiled operators do not fit.

torchvision's wheel is linked against CUDA. Beside a CPU build of torch its operator library does not load, and its import
then fails because two operators (`nms`, `qnms`) that it registers fake kernels for were never declared. Declaring them
while the real library does load aborts the process, so the library is probed first.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_declared: list[object] = []  # a torch Library withdraws its declarations when it is collected


def install() -> None:
    """Prepare torchvision's operators at its first import, whoever imports it; costs nothing until then."""
    if "torchvision" not in sys.modules and not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing: on the first request for torchvision it steps aside and prepares the operators."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_missing_operators()
        return None


def _declare_missing_operators() -> None:
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
