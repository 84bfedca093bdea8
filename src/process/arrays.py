"""What data are on their way into other processes."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]  # what joblib maps into its processes; a torch tensor would be copied to each
