"""plan for a GPU: the memory that a run's loops take, counted on a pretended device, and whether and how it fits.

It needs neither a GPU nor images: of a data set that is not prepared, but that everybody knows, what is known is enough.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from rich.console import Console

from src.editing import presets
from src.ground import fake_cuda
from src.ground.errors import ArtifactError, UserError
from src.ground.fake_cuda import DEVICE
from src.loops import expert_memory, student_memory
from src.loops.counted import FLOAT, SHARE, Task
from src.maths import augmentation, distillation, networks
from src.maths.derivatives import Derivatives
from src.maths.distillation import Real, Start
from src.maths.networks import FlatNetwork, ImageShape
from src.pages.tables import Table
from src.settings import params, resolved
from src.settings.base import AugmentationKind
from src.settings.datasets import Dataset
from src.settings.distillation import Distillation
from src.settings.resolved import DataSet, Run
from src.store.store import Store
from src.store.values import Statistics

GIB = 2**30
# behind an iteration's steps
READS = (
    "src.maths.distillation.iterate",
    "src.maths.distillation._check",
    "src.maths.targets.nearest.",  # which step it is, once a loop
    "src.maths.protocol._check_finite",
    "src.loops.students.",
)
# source -> channels, side in pixels (None: many), classes, training images, test images (None: no split of its own)
KNOWN: Mapping[str, tuple[int, int | None, int, int, int | None]] = {
    "cifar10": (3, 32, 10, 50_000, 10_000),
    "cifar100": (3, 32, 100, 50_000, 10_000),
    "digits": (1, 8, 10, 1_797, None),
    "fashion_mnist": (1, 28, 10, 60_000, 10_000),
    "imagenette": (3, None, 10, 9_469, 3_925),
    "imagewoof": (3, None, 10, 9_025, 3_929),
    "mnist": (1, 28, 10, 60_000, 10_000),
    "svhn": (3, 32, 10, 73_257, 26_032),
    "tiny_imagenet": (3, 64, 200, 100_000, 10_000),
}


@dataclass(frozen=True)
class Facts:
    """What of a data set takes memory."""

    shape: ImageShape
    train: int  # images
    val: int
    scored: int  # of the largest split that is


@dataclass(frozen=True)
class Need:
    """Bytes that a part of a run holds at most on the device; `batch` is what there is to lower, with its setting's name."""

    bytes: int
    setting: str
    batch: int
    smaller: Callable[[int], int]  # the bytes with another batch

    def largest(self, limit: float) -> int:
        """The largest batch that takes no more than `limit` bytes, 0 where none does: memory grows about evenly with it."""
        half = max(self.batch // 2, 1)
        per_image = (self.bytes - self.smaller(half)) / max(self.batch - half, 1)
        found = max(0, min(self.batch, int(self.batch - (self.bytes - limit) / per_image))) if per_image > 0 else 0
        while found and self.smaller(found) > limit:
            found -= max(found // 20, 1)
        return found


@dataclass(frozen=True)
class Needs:
    """What the parts of a run take; None where it hasn't that part."""

    experts: Need | None
    distil: Need | None
    students: Need  # all at once
    student: Need  # each alone, as they are trained where they don't fit together
    side_by_side: Callable[[float], int]  # experts at once in so many bytes

    def evaluate(self, total: float) -> Need:
        return self.students if self.students.bytes <= SHARE * total else self.student

    def parts(self, total: float) -> list[Need]:
        return [need for need in (self.experts, self.distil, self.evaluate(total)) if need is not None]


def run(store: Store, run: Run, memory: float | None) -> None:
    """Print whether and how a run fits a GPU of `memory` GiB, by default this machine's."""
    total = GIB * memory if memory is not None else _of_this_machine()
    needs = needs_of(run, facts_of(store, run.dataset))
    Console(highlight=False, markup=False).print(_table(run, needs, total))


def table(memories: Sequence[float]) -> None:
    """Print how every preset fits GPUs of so many GiB, in float32."""
    found = Table("preset", "an expert", "distilling", "evaluating", *(f"{memory:g} GiB" for memory in memories))
    for preset in presets.load().values():
        chosen = params.parse({"seed": 0, "report": {"title": "presets"}, **preset.sections})
        own = resolved.run(chosen, preset.name)
        needs = needs_of(own, facts_known(own.dataset.settings))
        sizes = (f"{need.bytes / GIB:.2f}" if need else "" for need in (needs.experts, needs.distil, needs.students))
        found.add_row(preset.name, *sizes, *(answer(needs, GIB * memory) for memory in memories))
    Console(highlight=False, markup=False, width=160).print(found)


def answer(needs: Needs, total: float) -> str:
    """In a word: whether it fits into so many bytes, with how many experts side by side, or what to lower."""
    words = _lowered(needs, total, "{} {}")
    if not words and needs.experts is None:
        words = ["fits"]
    elif not words:
        several = needs.side_by_side(total)
        words = [f"{several} expert{'s' if several > 1 else ''}"]
    return ", ".join([*words, *(["students one by one"] if needs.evaluate(total) is needs.student else [])])


def _lowered(needs: Needs, total: float, words: str) -> list[str]:
    """What must be lowered, in these words of a setting and its value, or is too large all the same."""
    too_large = [need for need in needs.parts(total) if need.bytes > SHARE * total]
    values = ((need.setting, need.largest(SHARE * total)) for need in too_large)
    return [words.format(setting, value) if value else f"too small for {setting} 1" for setting, value in values]


def _table(run: Run, needs: Needs, total: float) -> Table:
    found = Table(f"{run.name} on a GPU of {total / GIB:g} GiB", "")
    if needs.experts is not None:
        several = needs.side_by_side(total)
        found.add_row("an expert", f"{needs.experts.bytes / GIB:.2f} GiB")
        found.add_row("experts side by side", f"{several}")
    if needs.distil is not None:
        found.add_row("distilling", f"{needs.distil.bytes / GIB:.2f} GiB")
    evaluate = needs.evaluate(total)
    how = "all students at once" if evaluate is needs.students else "each student alone"
    found.add_row("evaluating", f"{evaluate.bytes / GIB:.2f} GiB, {how}")
    lower = _lowered(needs, total, "lower {} to {}")
    found.add_row("fits", f"no: {', '.join(lower)}" if lower else "yes")
    found.add_row("of the GPU's memory, for tensors", f"{SHARE:.0%}")
    return found


def needs_of(run: Run, facts: Facts) -> Needs:
    """The memory of a run's experts, iterations and students."""
    asked, settings = run.runtime, run.distillation
    task, buffer = Task(run.spec, facts.shape, asked.precision == "bfloat16"), run.buffer
    count = facts.train if run.ipc == "all" else run.ipc * facts.shape.classes
    experts = distil = None
    if (own := run.trained) is not None:

        def of_experts(batch: int) -> int:
            return expert_memory.experts(task, own.model_copy(update={"batch_size": batch}), facts.train, facts.val, 1)

        experts = Need(of_experts(own.batch_size), "experts.batch_size", own.batch_size, of_experts)
    if settings.iterations:

        def of_images(batch: int) -> int:
            return distilling(task, settings.model_copy(update={"batch_syn": batch}), count, facts.train)

        batch = min(settings.batch_syn or count, count)
        distil = Need(of_images(batch), "batch_syn", batch, of_images)

    def of_students(batch: int, together: bool) -> int:
        held, chosen = facts.scored, run.evaluation.model_copy(update={"batch_size": batch})
        tasks = (replace(task, spec=spec) for spec in run.networks.values())
        return max(student_memory.students(one, chosen, count, held, together) for one in tasks)

    batch = min(run.evaluation.batch_size, count)
    students, student = (
        Need(of_students(batch, together), "evaluate.batch_size", batch, functools.partial(of_students, together=together))
        for together in (True, False)
    )

    def at_once(total: float) -> int:
        assert buffer is not None
        most = min(buffer.settings.count, asked.workers or buffer.settings.count)
        return expert_memory.side_by_side(task, buffer.settings, facts.train, facts.val, most, total)

    return Needs(experts, distil, students, student, at_once)


def distilling(task: Task, settings: Distillation, count: int, real: int) -> int:
    """Bytes of the outer loop on `count` synthetic images: of a few inner steps, and P numbers for each other one, or 3 P where
    the student learns by Adam; and of all `real` training images, where their loss is asked for.
    """
    steps = max(2, settings.expert_epochs)
    plain = {"iterations": 1, "max_start_epoch": 1, "lr_img": 1.0, "lr_lr": 1.0, "lr_init": 1.0, "snapshot_every": 1}
    begun = {"initialisation": "random", "given": None, "initial_run": None}
    asked = settings.model_copy(update={**plain, **begun, "syn_steps": steps})
    network = FlatNetwork(networks.build(task.spec, task.shape, torch.Generator()))
    kept = network.dimension * (3 if settings.inner_optimiser == "adam" else 1)
    waiting = 0 if settings.real is None else task.image_bytes(max(real - settings.real.images, 0))
    return _counted(task, asked, count) + (settings.syn_steps - steps) * kept * FLOAT + waiting


@functools.cache
def _counted(task: Task, settings: Distillation, count: int) -> int:
    asked = settings.model_copy(update={"augmentation": _dearest(task, settings, count)})
    return fake_cuda.peak(lambda: _iterate(task, asked, count), READS)


def _dearest(task: Task, settings: Distillation, count: int) -> tuple[AugmentationKind, ...]:
    """The kind of augmentation that takes most, as only one is drawn for a step."""
    batch = min(settings.batch_syn or count, count)
    sizes = {kind: fake_cuda.peak(functools.partial(_augment, task, kind, batch)) for kind in settings.augmentation}
    return (max(sizes, key=lambda kind: sizes[kind]),) if sizes else ()


def _augment(task: Task, kind: AugmentationKind, count: int) -> None:
    images = torch.from_numpy(task.arrays(count)[0]).to(DEVICE).requires_grad_()
    draw = augmentation.draw((kind,), count, torch.Generator()).to(DEVICE, images.dtype)
    augmented = augmentation.apply(draw, images)
    torch.autograd.grad(augmented, images, grad_outputs=augmented.detach())


def _iterate(task: Task, settings: Distillation, count: int) -> None:
    network = FlatNetwork(networks.build(task.spec, task.shape, torch.Generator()).to(DEVICE))
    derivatives = Derivatives(network, task.bfloat16)
    images, labels = (torch.from_numpy(x).to(DEVICE) for x in task.arrays(count))
    snapshots = torch.zeros(settings.expert_epochs + 1, network.dimension)
    starts = [Start(snapshots.to(DEVICE), 0) for _ in range(settings.trajectories_per_iteration)] if settings.matches else []
    logits = torch.zeros(count, task.shape.classes).to(DEVICE) if settings.labels == "learned" else None
    state, draws = distillation.start(images, settings, logits), torch.Generator().manual_seed(0)
    real = None
    if settings.real is not None:
        shown, classes = (torch.from_numpy(x).to(DEVICE) for x in task.arrays(settings.real.images))
        real = Real(shown, classes, lambda _: torch.zeros(network.dimension))
    distillation.iterate(network, derivatives, state, labels, starts, settings, draws, real=real)


def facts_of(store: Store, dataset: DataSet) -> Facts:
    """Of a data set that is prepared, or known. Raises ArtifactError where it is neither."""
    try:
        found: Statistics = store.load_statistics(dataset.name)
    except ArtifactError:
        if dataset.settings.source not in KNOWN:
            raise
        return facts_known(dataset.settings)
    sizes = {split: sum(own.values()) for split, own in found.counts.items()}
    train, val = sizes.pop("train"), sizes["val"]
    return Facts(found.image_shape, train, val, max(sizes.values()))


def facts_known(settings: Dataset) -> Facts:
    """As `prepare` would split it."""
    channels, size, classes, images, test = KNOWN[settings.source]
    size = settings.size or size
    if size is None:
        raise UserError(f"prepare: {settings.source} has images of many sizes: set size, the side to which they are resized")
    val, own_test = round(settings.val_fraction * images), round(settings.test_fraction * images)
    train = images - val - (own_test if test is None else 0)
    train, test = min(train, settings.train_images or train), own_test if test is None else test
    return Facts(ImageShape(settings.channels or channels, size, classes), train, val, max(val, test))


def _of_this_machine() -> float:
    """Bytes of its GPU."""
    if not torch.cuda.is_available():
        raise UserError(
            "--device cuda plans for this machine's GPU, but torch finds none: say how large another is by --memory"
        )
    _, total = torch.cuda.mem_get_info()
    return float(total)
