"""Where the work belongs, and what of the machine it may have: known without torch, which takes a second to import."""

from __future__ import annotations

import os
from pathlib import Path


def workspace() -> Path:
    """The repository that owns this work, also from a temporary copy that `dvc exp run --temp` makes of it."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def compiled_code() -> Path:
    """Where compiled code is kept, torch's and own kernels: in the repository, elsewhere with the user's other caches."""
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    users = Path(os.environ.get("XDG_CACHE_HOME", Path("~/.cache").expanduser())) / "smooth-distillation"
    return (workspace() / ".cache" if (workspace() / "dvc.yaml").exists() else users) / "torchinductor"


def cores() -> int:
    """Cores that this process may use, a container's limit and the affinity observed."""
    from joblib import cpu_count  # type: ignore[import-untyped] # a fifth of a second to import

    return int(cpu_count())
