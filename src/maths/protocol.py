"""The evaluation protocol: fresh students, trained on the synthetic set alone. Source: MTT, section 4 (evaluation)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from src.ground.errors import DivergenceError
from src.ground.seeding import continued
from src.maths import augmentation, derivatives, networks
from src.maths.derivatives import Backend, Derivatives, Logits, Loss
from src.settings.networks import Network
from src.settings.protocols import Protocol
from src.settings.runtime import Runtime

PASSES = 3  # work of one step in forward passes
MOMENTUM = "momentum_buffer"  # torch.optim.SGD's name for it
QUICK = 5  # a first derivative compiles in a fifth of the time that the inner loop's second ones take

# (thetas (G, P), batches (G, B, C, H, W), labels (G, B)) -> gradients of G students' cross-entropies (G, P)
Gradients = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Way:
    """How students are trained. The amount of work alone decides, never a clock, so that the same bytes come again."""

    together: bool  # all at once, else each by itself
    backend: Backend
    bfloat16: bool
    flops: float  # floating-point operations of all students
    note: str  # what a user should know of the choice


@dataclass(frozen=True)
class Students:
    """What the training of G students carries from one epoch to the next. Epochs write to none of its tensors."""

    thetas: Tensor  # (G, P)
    momenta: Tensor  # (G, P)
    draws: Tensor  # (G, bytes), the states of their generators
    epochs: int = 0  # finished
    best: Tensor | None = None  # (G, P), each student's best tested epoch; None where the last one counts
    record: Tensor | None = None  # (G,), its accuracy


def choose(asked: Runtime, device: torch.device, settings: Protocol, images: int, forward_flops: float, spec: Network) -> Way:
    """The way to train networks of `spec` on so many synthetic images, of so many operations in a forward pass of one.

    Students train together on a GPU alone: on a CPU one after the other takes as long with an MLP on 10 images of 8x8, and
    half as long with a ConvNet on 100; in bfloat16, their convolutions would be float32. Those with running statistics
    are no function of their parameters: each is a `ModuleStudent`.
    """
    flops = settings.students * PASSES * settings.epochs * images * forward_flops
    bfloat16 = asked.precision == "bfloat16"
    if spec.keeps_statistics:
        return Way(False, "eager", bfloat16, flops, "")
    backend, note = derivatives.choose(asked, device, spec, QUICK * flops)
    return Way(device.type != "cpu", backend, bfloat16, flops, note)


def derivative(network: Logits, way: Way, loss: Loss = F.cross_entropy) -> Gradients:
    """The students' first derivatives in this way; channels last is a tenth faster compiled, and slower eager."""
    if way.together and way.backend != "fused":
        gradients = side_by_side(Derivatives(network, way.bfloat16, loss=loss).loss)
        return gradients if way.backend == "graphs" else derivatives.built(gradients, way.backend)  # as of experts
    layout = torch.channels_last if way.backend == "compiled" and loss is F.cross_entropy else torch.contiguous_format
    return one_by_one(Derivatives(network, way.bfloat16, way.backend, loss=loss).first, layout)


def side_by_side(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Gradients:
    """All students at once by vmap: on a GPU, starting operations takes longer than the work of small ones."""
    return vmap(grad(loss))


def one_by_one(
    first: Callable[[Tensor, Tensor, Tensor], Tensor], layout: torch.memory_format = torch.contiguous_format
) -> Gradients:
    """Each student's first derivative by itself, so that the others' number can't even change its rounding."""

    def gradients(thetas: Tensor, batches: Tensor, labels: Tensor) -> Tensor:
        students = zip(thetas, batches, labels, strict=True)
        return torch.stack([first(theta, batch.contiguous(memory_format=layout), y) for theta, batch, y in students])

    return gradients


def train_students(
    network: Logits,
    thetas: Tensor,
    images: Tensor,
    labels: Tensor,
    syn_lr: float,
    settings: Protocol,
    generators: Sequence[torch.Generator],
    on_epoch: Callable[[], None] = lambda: None,
    gradients: Gradients | None = None,
    score: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Trained parameters (G, P) of G students that start at `thetas` (G, P); `gradients` None: of `network`, all at once.

    Labels are classes (S,) or probabilities (S, K). Each student draws its batches and augmentations from its own generator,
    so that its result does not depend on how many others are trained beside it. SGD with momentum and L2 decay as
    torch.optim.SGD has them. With `score`, parameters (G, P) to accuracies (G,) on the CPU, each student's best tested epoch is
    returned instead of the last. Raises DivergenceError where a student's parameters stop being finite.
    """
    gradients = gradients or side_by_side(Derivatives(network).loss)
    students = start(thetas, generators, choosing=score is not None)
    for later in epochs(students, images, labels, syn_lr, settings, gradients, score):
        students = later
        on_epoch()
    return chosen(students)


def start(thetas: Tensor, generators: Sequence[torch.Generator], choosing: bool = False) -> Students:
    """Students before their first epoch; with `choosing`, the best tested epoch of each is what counts."""
    draws = torch.stack([one.get_state() for one in generators])
    students = Students(thetas, torch.zeros_like(thetas), draws)
    if not choosing:
        return students
    return replace(students, best=thetas, record=torch.full((len(thetas),), -1.0, dtype=torch.float64))


def chosen(students: Students) -> Tensor:
    """Parameters (G, P) of the epoch that counts."""
    return students.thetas if students.best is None else students.best


def epochs(
    students: Students,
    images: Tensor,
    labels: Tensor,
    syn_lr: float | Tensor,
    settings: Protocol,
    gradients: Gradients,
    score: Callable[[Tensor], Tensor] | None = None,
    until: int | None = None,
) -> Iterator[Students]:
    """The students after each further epoch, `until` so many or all are finished; syn_lr may be one for each parameter (P,).

    Raises DivergenceError where a student's parameters stop being finite.
    """
    for epoch in range(students.epochs, settings.epochs if until is None else until):
        lr = _lr(syn_lr, epoch, settings)
        generators = [continued(state) for state in students.draws]
        thetas, momenta = students.thetas, students.momenta
        orders = torch.stack([torch.randperm(len(images), generator=g) for g in generators])  # (G, S)
        for index in orders.split(settings.batch_size, dim=1):
            batch = _augmented(images, index, settings, generators)
            gradient = gradients(thetas, batch, labels[index.to(labels.device, non_blocking=True)])
            momenta = settings.momentum * momenta + gradient + settings.weight_decay * thetas
            thetas = thetas - lr * momenta
        _check_finite(thetas, epoch, syn_lr)
        draws = torch.stack([one.get_state() for one in generators])
        students = replace(students, thetas=thetas, momenta=momenta, draws=draws, epochs=epoch + 1)
        if score is not None and _is_tested(epoch, settings):
            students = _with_best(students, score(thetas))
        yield students


def _with_best(students: Students, reached: Tensor) -> Students:
    """With this epoch where it is a student's best; `reached` (G,) are the accuracies."""
    assert students.best is not None
    assert students.record is not None
    better = (reached > students.record).to(students.thetas.device)[:, None]
    best = torch.where(better, students.thetas, students.best)
    return replace(students, best=best, record=torch.maximum(students.record, reached))


class ModuleStudent:
    """One student whose network is no function of its parameters, trained in place, running statistics included.

    Draws, schedule, `score` and errors are those of `train_students`. `state` after an epoch, given to `resume` of another,
    lets that one go on to the same parameters.
    """

    def __init__(self, module: nn.Module, settings: Protocol, generator: torch.Generator):
        self.module = module
        self._settings = settings
        self._generator = generator
        self.finished = 0  # epochs
        momentum, decay = settings.momentum, settings.weight_decay
        self._optimiser = torch.optim.SGD(module.parameters(), 1.0, momentum=momentum, weight_decay=decay)
        self._record = -1.0
        self._best: dict[str, Tensor] | None = None  # parameters and statistics of the best tested epoch

    def epochs(
        self,
        images: Tensor,
        labels: Tensor,
        syn_lr: float,
        bfloat16: bool = False,
        score: Callable[[nn.Module], float] | None = None,
        until: int | None = None,
    ) -> Iterator[None]:
        """Train, and stop for a moment after each epoch; after the last of all the module is the one that counts."""
        settings, module = self._settings, self.module
        for epoch in range(self.finished, settings.epochs if until is None else until):
            for group in self._optimiser.param_groups:
                group["lr"] = _lr(syn_lr, epoch, settings)
            module.train()
            for index in torch.randperm(len(images), generator=self._generator).split(settings.batch_size):
                batch = _augmented(images, index[None], settings, [self._generator])[0]
                _step(module, self._optimiser, batch, labels[index.to(labels.device, non_blocking=True)], bfloat16)
            module.eval()  # running statistics take the place of the batch's
            _check_finite(networks.flatten(module), epoch, syn_lr)
            if score is not None and _is_tested(epoch, settings) and (reached := score(module)) > self._record:
                self._record, self._best = reached, _copied(module.state_dict())
            self.finished = epoch + 1
            yield
        if self.finished == settings.epochs and self._best is not None:
            module.load_state_dict(self._best)

    def state(self) -> dict[str, Tensor]:
        """All that later epochs depend on, but for how many are finished: copies, as training writes to its tensors."""
        found = (self._optimiser.state[parameter].get(MOMENTUM) for parameter in self.module.parameters())
        parts = {
            "module": self.module.state_dict(),
            "best": self._best or {},
            "momenta": {str(position): momentum for position, momentum in enumerate(found) if momentum is not None},
            "": {"draws": self._generator.get_state(), "record": torch.tensor(self._record, dtype=torch.float64)},
        }
        return _copied({f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()})

    def resume(self, state: Mapping[str, Tensor], epochs: int) -> None:
        """Take the place of the student whose `state` after so many epochs this is."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = tensor
        self.module.load_state_dict(parts["module"])
        self._best, self._record = parts.get("best"), parts[""]["record"].item()
        parameters = list(self.module.parameters())
        for position, momentum in parts.get("momenta", {}).items():
            parameter = parameters[int(position)]
            self._optimiser.state[parameter][MOMENTUM] = momentum.to(parameter.device)
        self._generator.set_state(parts[""]["draws"])
        self.finished = epochs


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _step(student: nn.Module, optimiser: torch.optim.Optimizer, batch: Tensor, labels: Tensor, bfloat16: bool) -> None:
    """One step down the cross-entropy, a scalar in the batch's precision."""
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=bfloat16):
        logits = student(batch)
    optimiser.zero_grad()
    F.cross_entropy(logits.to(batch.dtype), labels).backward()
    optimiser.step()


def _lr(syn_lr: float | Tensor, epoch: int, settings: Protocol) -> float | Tensor:
    return syn_lr * (settings.lr_drop_factor if epoch > settings.epochs // 2 else 1.0)


def _is_tested(epoch: int, settings: Protocol) -> bool:
    """Whether an epoch, counted from 0, takes part in the choice of the best one."""
    return (epoch + 1) % settings.test_every == 0 or epoch + 1 == settings.epochs


def _check_finite(parameters: Tensor, epoch: int, syn_lr: float | Tensor) -> None:
    if not torch.isfinite(parameters).all():
        largest = syn_lr.max().item() if isinstance(syn_lr, Tensor) else syn_lr
        raise DivergenceError(
            f"students diverged in epoch {epoch + 1} with syn_lr {largest:g}: lower the run's lr_init or lr_lr"
        )


def _augmented(images: Tensor, index: Tensor, settings: Protocol, generators: Sequence[torch.Generator]) -> Tensor:
    """Batches (G, B, C, H, W), each student's with its own draw."""
    batches = []
    for rows, generator in zip(index, generators, strict=True):
        draw = augmentation.draw(settings.augmentation, len(rows), generator).to(images.device, images.dtype)
        batches.append(augmentation.apply(draw, images[rows.to(images.device, non_blocking=True)]))
    return torch.stack(batches)
