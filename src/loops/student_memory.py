"""GPU memory that students take, and whether it holds all of them at once: two epochs and their scores are counted."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from src.ground import fake_cuda
from src.ground.fake_cuda import DEVICE
from src.loops import students as loops
from src.loops.counted import SHARE, Task
from src.maths import protocol
from src.settings.protocols import Protocol
from src.settings.runtime import Runtime

READS = ("src.maths.protocol._check_finite", "src.loops.students.")  # once an epoch, and what is predicted


def fit(task: Task, settings: Protocol, count: int, split: int, memory: float) -> bool:
    """Whether a GPU of so many bytes holds all students at once; the rest is as `students` has it."""
    return students(task, settings, count, split) <= SHARE * memory


def students(task: Task, settings: Protocol, count: int, split: int, together: bool = True) -> int:
    """Bytes of all students or of one, on `count` synthetic images, and of scores on splits of `split` images at most."""
    batches, scored = min(count, 2 * settings.batch_size), task.scored(split)
    counted = _counted(task, settings.model_copy(update={"epochs": 2, "test_every": 1}), batches, scored, together)
    return counted + task.image_bytes(count - batches + split - scored)


@functools.cache
def _counted(task: Task, settings: Protocol, count: int, split: int, together: bool) -> int:
    asked = Runtime(precision="bfloat16" if task.bfloat16 else "float32", compile="off")
    way = protocol.choose(asked, DEVICE, settings, count, 1, task.spec)
    images, labels = (torch.from_numpy(array) for array in task.arrays(split))
    training = loops.Training(
        settings, task.spec, task.shape, 0, replace(way, together=together and way.together), *task.arrays(count), 0.01,
        ("test",), "test" if settings.selects_on_test else None, lambda _: (images, labels),
    )  # fmt: skip

    def work() -> None:
        found = loops.start(training, 0, DEVICE)
        for _ in found.epochs(settings.epochs):
            pass
        loops.predict(training, "test", found.predictors(), DEVICE)

    try:
        return fake_cuda.peak(work, READS)
    finally:
        loops.forget()
