"""What of a loop can be stored on the way, and goes into a checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Stored = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and all that is none
