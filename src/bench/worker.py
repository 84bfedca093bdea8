"""One measurement, as a process: `python -m src.bench.worker JSON` prints one line of JSON, the figures or an error."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from src.bench import engine, limits, measure, plain, training
from src.bench.process import REMEDY
from src.bench.settings import EvaluateSetting, ExpertsSetting, MatchingSetting, Setting
from src.ground.errors import UserError, out_of_memory
from src.process import stopping

MEASUREMENTS: Mapping[tuple[str, str], tuple[type[Any], Callable[[Any], dict[str, Any]]]] = {
    ("matching", "plain"): (MatchingSetting, plain.matching),
    ("matching", "engine"): (MatchingSetting, engine.matching),
    ("error", "engine"): (MatchingSetting, limits.error),
    ("peak", "engine"): (MatchingSetting, limits.peak),
    ("experts", "plain"): (ExpertsSetting, plain.experts),
    ("experts", "engine"): (ExpertsSetting, training.experts),
    ("experts_together", "engine"): (ExpertsSetting, training.experts_together),
    ("machine", "engine"): (Setting, measure.machine),
    ("evaluate", "plain"): (EvaluateSetting, plain.evaluate),
    ("evaluate", "engine"): (EvaluateSetting, training.evaluate),
}


def main(request: str) -> None:
    """Measure what the JSON `request` asks for: {"task", "side", "setting"}."""
    asked = json.loads(request)
    kind, measurement = MEASUREMENTS[asked["task"], asked["side"]]
    try:
        answer = measurement(kind(**asked["setting"]))
    except UserError as error:
        answer = {"error": str(error)}
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        answer = {"error": f"memory ran out: {REMEDY}"}
    print(json.dumps(answer))


if __name__ == "__main__":
    stopping.signal_when_parent_ends(signal.SIGKILL)
    main(sys.argv[1])
