"""GPU memory that experts take, and how many of them it holds side by side: two steps and an epoch's end are counted."""

from __future__ import annotations

import functools

from src.ground import fake_cuda
from src.ground.fake_cuda import DEVICE
from src.loops import expert
from src.loops.counted import SHARE, Task
from src.settings.experts import Experts

READS = ("src.loops.expert.", "src.maths.expert_training.", "src.maths.scores.")  # an epoch's figures, and its snapshot


def experts(task: Task, settings: Experts, train: int, val: int, count: int) -> int:
    """Bytes of `count` experts side by side, all training and validation images included."""
    batches, scored = min(train, 2 * settings.batch_size), task.scored(val)
    plain = {"dataset": "", "network": "", "count": 1, "epochs": 1, "stop_epoch": None, "lr": 1.0}  # all that takes no memory
    counted = _counted(task, settings.model_copy(update=plain), batches, scored, count)
    return counted + task.image_bytes(train - batches + val - scored)


@functools.cache
def _counted(task: Task, settings: Experts, train: int, val: int, count: int) -> int:
    training = expert.Training(settings, task.spec, task.shape, 0, task.bfloat16, "eager", task.arrays(train), task.arrays(val))

    def work() -> None:
        first = [expert.first(training, index, DEVICE) for index in range(count)]
        for _ in expert.steps_together(training, range(count), first, DEVICE):
            pass

    try:
        return fake_cuda.peak(work, READS)
    finally:
        expert.forget()


def side_by_side(task: Task, settings: Experts, train: int, val: int, most: int, memory: float) -> int:
    """How many experts a GPU of so many bytes trains at once: `most` at most, and one at least."""
    if most == 1:
        return 1
    one, two = (experts(task, settings, train, val, count) for count in (1, 2))
    return max(1, min(most, 1 + int((SHARE * memory - one) // max(two - one, 1))))
