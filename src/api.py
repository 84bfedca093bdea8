"""The Python API: distil images of your own in classes, as tensors, without params.yaml, DVC, MLflow or Optuna.

    experts = train_experts(images, labels, epochs=20, count=10, lr=0.05, batch_size=64)
    synthetic = distill(experts, ipc=1, iterations=300, lr_img=10.0, max_start_epoch=18)
    print(evaluate(synthetic, test_images, test_labels))
    synthetic.save("synthetic.safetensors")

Settings are those of params.yaml, by name: fields of `Experts`, `Distillation` and `Protocol` in src/settings. The same
settings and seed give the bytes that the pipeline gives. Mistakes raise UserError, a sentence with value, rule and remedy.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from src.ground import runtime
from src.ground.errors import ParamsError, UserError
from src.loops import expert, outer, students
from src.loops.initial import images as initial_images
from src.loops.initial import logits as logits_of
from src.loops.initial import softened
from src.loops.outer import Loop
from src.maths import initialisation, networks, pixels, protocol, scores
from src.maths.derivatives import choose
from src.maths.distillation import Real
from src.maths.networks import FlatNetwork, ImageShape
from src.maths.pixels import Normalisation, Space, Whitening
from src.settings.base import describe
from src.settings.distillation import Distillation
from src.settings.experts import Experts
from src.settings.networks import FAMILIES, Architecture, ConvNet, Encoders, Linear, Network, TextNet
from src.settings.protocols import Protocol
from src.settings.runtime import Runtime
from src.store import files, tensors, values
from src.store.store import read_synthetic
from src.store.values import Record, SyntheticSet

OF_TUPLES = ("contrast", "similarity", "lr_modalities", "normalised")  # settings that images have no use for
NOT_NAMED = {"dataset": "images", "network": "network"}  # of `Experts`: names of params.yaml, which tensors have none of

IMAGES = 4  # dimensions of pixels (S, C, H, W)
PARTS = {"pixels": (torch.float32,), "labels": (torch.int64, torch.float32), "syn_lr": (torch.float32,)}  # of a synthetic set

Report = Callable[[int, int, Mapping[str, float]], None]  # (units done, of so many, figures of the last one)
Model = TypeVar("Model", bound=BaseModel)


def silent(done: int, total: int, figures: Mapping[str, float]) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class RealImages:
    """Labelled real images as networks read them."""

    images: Tensor  # (N, C, H, W)
    labels: Tensor  # (N,)
    space: Space
    shape: ImageShape

    @property
    def counts(self) -> dict[str, int]:
        """Images of each class, by its number."""
        found = torch.bincount(self.labels, minlength=self.shape.classes).tolist()
        return {str(label): count for label, count in enumerate(found)}


@dataclass(frozen=True)
class ExpertBuffer:
    """Trained experts, and what they were trained on."""

    trajectories: tuple[Tensor, ...]  # (T + 1, P) each
    curves: tuple[Mapping[str, Any], ...]  # a row an expert and epoch
    real: RealImages
    spec: Network
    settings: Experts
    seed: int
    runtime: Runtime


@dataclass(frozen=True)
class Synthetic:
    """A synthetic set with all that training a student on it takes."""

    pixels: Tensor  # (S, C, H, W), not bound to [0, 1]
    labels: Tensor  # (S,) classes, or (S, K) probabilities
    syn_lr: Tensor  # ()
    space: Space
    spec: Network
    classes: int
    history: tuple[Mapping[str, Any], ...] = ()  # a row an iteration
    snapshots: Mapping[int, Tensor] = field(default_factory=dict)  # iteration -> pixels

    @property
    def shape(self) -> ImageShape:
        return ImageShape(self.pixels.shape[1], self.pixels.shape[-1], self.classes)

    @property
    def inputs(self) -> Tensor:
        """The images as networks read them (S, C, H, W)."""
        return self.space.normalise(self.pixels)

    def save(self, path: str | Path) -> None:
        """Write it as `distill` does, whole or not at all; `load_synthetic` and `evaluate --from` read it."""
        _check_set(self, "the set")
        found = SyntheticSet(self.pixels, self.labels, self.syn_lr)
        tensors.save(Path(path), dict(vars(found)), Record(values.SYNTHETIC, {}))


class SyntheticDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A synthetic set for a DataLoader: images (C, H, W) as networks read them, with their label."""

    def __init__(self, synthetic: Synthetic):
        self._images, self._labels = synthetic.inputs, synthetic.labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._images[index], self._labels[index]


def train_experts(
    images: Tensor,
    labels: Tensor,
    *,
    network: Network | None = None,
    val: tuple[Tensor, Tensor] | None = None,
    pixel_max: int = 255,
    zca_eps: float | None = None,
    seed: int = 0,
    machine: Runtime | None = None,
    report: Report = silent,
    **settings: Any,
) -> ExpertBuffer:
    """Train `count` experts on real images (N, C, H, W) with labels (N,), one after the other.

    Images are integers from 0 to `pixel_max`. `val` is images and labels whose accuracy stands in the
    curves; without, it is that on the training images. With `zca_eps` networks read whitened images. `settings` are fields of
    `Experts`; `network` is a ConvNet of depth 3 and width 128 where left out.
    """
    asked = _settings(Experts, {**NOT_NAMED, "count": 1, **settings})
    if asked.imported is not None:
        raise UserError("imported names experts that `import experts` brought into the pipeline: leave it out to train some")
    spec, lent, seed = _specified(network, ConvNet(depth=3, width=128)), _runtime(machine), _root(seed)
    with _lent(lent, lent.threads or 1) as device:
        real = real_images(images, labels, pixel_max, zca_eps)
        held = real if val is None else _in_space(*_pair(val), pixel_max, real)
        flops = asked.count * expert.flops(asked, spec, real.shape, len(real.labels))
        backend, _ = choose(lent, device, spec, flops)
        arrays = ((one.images.numpy(), one.labels.numpy()) for one in (real, held))
        training = expert.Training(asked, spec, real.shape, seed, lent.precision == "bfloat16", backend, *arrays)
        found = [_expert(training, index, device, report) for index in range(asked.count)]
    rows = tuple(row for _, own in found for row in own)
    return ExpertBuffer(tuple(trajectory for trajectory, _ in found), rows, real, spec, asked, seed, lent)


def distill(
    source: ExpertBuffer | RealImages,
    ipc: int | None = None,
    *,
    initial: Synthetic | None = None,
    network: Network | None = None,
    seed: int | None = None,
    machine: Runtime | None = None,
    report: Report = silent,
    **settings: Any,
) -> Synthetic:
    """Optimise `ipc` images a class so that a student trained on them follows the experts, or does well on real images.

    Without experts, `source` is the `real_images` of objective 'real'; `network`, `machine` and the seed, 0, are told then, and
    are otherwise the experts'. With `initial` it begins with another set, its labels and, without lr_init, its syn_lr.
    `settings` are fields of `Distillation`: random initialisation, 1,000 iterations where left out.
    """
    given = _source(source, network, machine)
    distil, root = _method(initial, settings), given.seed if seed is None else _root(seed)
    _check_experts(distil, given)
    with _lent(given.runtime, given.runtime.threads) as device:
        images, labels = (one.to(device) for one in _begun(given, distil, ipc, initial, root))
        initialisation.check_batch(distil.batch, len(labels), "batch_syn")
        function, real = _function(given.spec, given.real.shape, device), given.real
        derivatives, _, _ = outer.differentiate(distil, given.runtime, given.spec, function, images)
        read = functools.partial(_snapshots, given.trajectories)
        loop = Loop(
            "distill", root, distil, len(given.trajectories), read, function, derivatives, labels, real.space,
            _logits(given, distil, images, labels),
            None if initial is None or distil.lr_init is not None else initial.syn_lr.item(),
            _real(given, distil, device),
        )  # fmt: skip
        at = outer.first(loop, images, None if initial is None else initial.pixels)
        furthest = 0
        while at.iteration < distil.iterations:
            at = outer.iterate(loop, at)
            if at.iteration <= furthest:  # after a restore, until it is there again
                continue
            furthest = at.iteration
            report(at.iteration, distil.iterations, {key: at.rows[-1][key] for key in ("matching_loss", "syn_lr")})
    snapshots = {iteration: one.pixels for iteration, one in at.snapshots.items()}
    made = snapshots[at.iteration], outer.labels(loop, at.state).cpu(), at.state.syn_lr.cpu()
    return Synthetic(*made, real.space, given.spec, real.shape.classes, at.rows, snapshots)


@dataclass(frozen=True)
class _Source:
    """What is distilled from: experts, or none of them."""

    real: RealImages
    spec: Network
    seed: int
    runtime: Runtime
    trajectories: tuple[Tensor, ...] = ()
    last: int = -1  # expert epoch


def _runtime(machine: Runtime | None) -> Runtime:
    """How the machine is used. Raises UserError where it is no Runtime."""
    if machine is not None and not isinstance(machine, Runtime):
        raise UserError(f"machine is a {type(machine).__name__}: give a Runtime, as Runtime(threads=1)")
    return machine or Runtime()


def _source(source: ExpertBuffer | RealImages, network: Network | None, machine: Runtime | None) -> _Source:
    if isinstance(source, RealImages):
        return _Source(source, _specified(network, ConvNet(depth=3, width=128)), 0, _runtime(machine))
    if not isinstance(source, ExpertBuffer):
        raise UserError(
            f"distill from {type(source).__name__}? Give what train_experts gave, or real_images for objective 'real'"
        )
    if network is not None or machine is not None:
        raise UserError("network and machine are those of the experts: leave them out, or give real_images instead of experts")
    return _Source(source.real, source.spec, source.seed, source.runtime, source.trajectories, source.settings.last_epoch)


def _method(initial: Synthetic | None, settings: Mapping[str, Any]) -> Distillation:
    usual: dict[str, Any] = {"initialisation": "random", "iterations": 1000}
    if initial is not None:
        _check_set(initial, "initial")
        if "initialisation" in settings:
            raise UserError(
                f"initial is a set to begin with, and so is initialisation {settings['initialisation']!r}: give one"
            )
        usual |= {"initialisation": "run", "initial_run": "initial", "lr_init": None}
    distil = _settings(Distillation, {**usual, **settings})
    if distil.initialisation == "given" or distil.given is not None:
        raise UserError(
            "initialisation 'given' takes a set that `import synthetic` brought into the pipeline: choose another one"
        )
    if distil.initialisation == "run" and initial is None:
        raise UserError("initialisation 'run' takes the set of a run of params.yaml: give a set of your own as initial")
    return distil


def _check_experts(distil: Distillation, given: _Source) -> None:
    """Raises UserError where experts are asked for that aren't there, or way points that no step of the student matches."""
    if not distil.way_points_fit:
        text = f"{distil.expert_epochs} way points do not fit into {distil.syn_steps} syn_steps"
        raise UserError(f"{text}: lower expert_epochs, or raise syn_steps")
    if distil.asks_experts and not given.trajectories:
        asked = "objective 'matching'" if distil.matches else f"initialisation '{distil.initialisation}' or its labels"
        raise UserError(f"{asked} asks experts, and real images were given: give what train_experts gave, or objective='real'")
    if distil.matches and distil.last_epoch > given.last:
        text = f"max_start_epoch - 1 + expert_epochs = {distil.last_epoch} lies beyond the experts' {given.last} epochs"
        raise UserError(f"{text}: lower one of the two, or train more epochs")


def _begun(
    given: _Source, distil: Distillation, ipc: int | None, initial: Synthetic | None, root: int
) -> tuple[Tensor, Tensor]:
    """Images (S, C, H, W) and labels before the first iteration; experts choose on the CPU, as in the pipeline."""
    real = given.real
    if initial is not None:
        if ipc is not None:
            raise UserError(f"ipc is {ipc!r}, and initial has its own number of images: leave ipc out")
        if initial.shape != real.shape:
            had, wanted = (f"{s.channels}x{s.size}x{s.size} of {s.classes} classes" for s in (initial.shape, real.shape))
            raise UserError(f"initial is of images {had}, not {wanted}: give a set of the same data set")
        return real.space.normalise(initial.pixels), initial.labels
    if not isinstance(ipc, int) or isinstance(ipc, bool) or ipc < 1:
        raise UserError(f"ipc is {ipc!r}: give a number of images a class, 1 or more")
    chooser = _function(given.spec, real.shape, torch.device("cpu"))
    chosen = (distil.initialisation, ipc, root, real.images, real.labels, real.counts, chooser)
    return initial_images(*chosen, lambda: given.trajectories[0][given.last], "ipc")


def _logits(given: _Source, distil: Distillation, images: Tensor, labels: Tensor) -> Tensor | None:
    """What learned labels start from, (S, K) on the device: what experts say of the images, or the labels that these have."""
    if distil.labels != "learned":
        return None
    if not given.trajectories or labels.is_floating_point():
        return softened(labels, given.real.shape.classes, distil.label_certainty)
    network = _function(given.spec, given.real.shape, torch.device("cpu"))
    last = (trajectory[given.last] for trajectory in given.trajectories)
    return logits_of(network, last, images.cpu(), labels.cpu()).to(images.device)


def _real(given: _Source, distil: Distillation, device: torch.device) -> Real | None:
    """Where the loss on real images is asked for."""
    if distil.real is None:
        return None
    found, build = given.real, functools.partial(networks.build, given.spec, given.real.shape)
    return Real(found.images.to(device), found.labels.to(device), lambda draws: networks.flatten(build(draws)))


def evaluate(
    synthetic: Synthetic,
    images: Tensor,
    labels: Tensor,
    *,
    network: Network | None = None,
    pixel_max: int = 255,
    seed: int = 0,
    machine: Runtime | None = None,
    report: Report = silent,
    **settings: Any,
) -> list[float]:
    """Accuracy on real images (N, C, H, W) with labels (N,) of each of `students` fresh students.

    `settings` are fields of `Protocol`, MTT's where left out; `network` is the synthetic set's own where left out.
    """
    asked = _settings(Protocol, settings)
    if asked.selects_on_test:
        raise UserError("score 'best_test' chooses on the images that it scores: leave it out, or use the command line")
    _check_set(synthetic)
    held = _in_space(images, labels, pixel_max, None, synthetic.space, synthetic.shape)
    found = _trained(synthetic, network, asked, seed, _runtime(machine), report, held)
    return [scores.accuracy(predicted, held.labels) for predicted in found.predicted]


def train_student(
    synthetic: Synthetic,
    *,
    network: Network | None = None,
    seed: int = 0,
    machine: Runtime | None = None,
    report: Report = silent,
    **settings: Any,
) -> nn.Module:
    """One network trained on the synthetic set alone: a module that reads images as `synthetic.space` normalises pixels.

    It is the first student of `evaluate` under the same seed and settings, on the CPU, in evaluation mode.
    """
    asked = _settings(Protocol, {**settings, "students": 2})  # a protocol has two or more; the first is trained
    if asked.selects_on_test:
        raise UserError("score 'best_test' chooses on real images, of which a student is given none: leave it out")
    _check_set(synthetic)
    spec, shape = _specified(network, synthetic.spec), synthetic.shape
    found = _trained(synthetic, spec, asked, seed, _runtime(machine), report, None, only=1)
    module = networks.build(spec, shape, torch.Generator())
    # copied: a module that was trained by itself is hooked into the signals that end a stage, and each view into one vector
    # would be pickled with all of it
    last = found.last
    module.load_state_dict(last.state_dict() if isinstance(last, nn.Module) else FlatNetwork(module).unflatten(last))
    return module.eval()


def load_synthetic(
    path: str | Path, *, space: Space | None = None, network: Network | None = None, classes: int | None = None
) -> Synthetic:
    """A synthetic set that `save`, `distill` or `export` wrote.

    `export` tells in set.json beside it how networks read its pixels, for which network it was learned, and its classes; of
    another file `space` and `network` have to be given.
    """
    file = Path(path)
    found = read_synthetic(file, "give a file that save, distill or export wrote")
    if found.pixels.dim() != IMAGES:
        raise UserError(f"{file} holds tuples, and this works on images in classes: use `python -m src.cli evaluate`")
    card = file.parent / "set.json"
    remedy = f"delete {card}, and give space and network"
    told = files.read_json(card, remedy) if card.exists() else {}
    with files.understood(card, remedy):
        told = dict(told)
        if space is None and told.get("whitening") == "none":
            space = Normalisation(*(torch.tensor(told["dataset"][figure]) for figure in ("mean", "std")))
        if network is None and "network" in told:
            network = _network(told["network"])
        known = len(told["dataset"]["classes"]) if told else found.class_count
    if space is None or network is None:
        text = f"{file} does not tell how networks read it"
        raise UserError(f"{text}: give space, as real_images(...).space, and network, as ConvNet(depth=3, width=128)")
    if not isinstance(space, Normalisation | Whitening):
        raise UserError(f"space is {space!r}: give that of the data set, as real_images(...).space")
    least, asked = found.class_count, known if classes is None else classes
    if not isinstance(asked, int) or asked < least or (found.labels.is_floating_point() and asked > least):
        raise UserError(f"classes is {asked!r}, but the labels of {file} are of {least}: give that many, or leave it out")
    try:
        space.normalise(found.pixels[:1])
    except RuntimeError:
        shape = "x".join(map(str, found.pixels.shape[1:]))
        raise UserError(
            f"the images of {file} are {shape}, which this space does not read: give that of their data set"
        ) from None
    return Synthetic(found.pixels, found.labels, found.syn_lr, space, _specified(network, network), asked)


def real_images(images: Tensor, labels: Tensor, pixel_max: int = 255, zca_eps: float | None = None) -> RealImages:
    """Real images as networks read them, and the space that is fitted on them: normalised by channel, or whitened."""
    whole = _integers(images, pixel_max)
    classes = _numbers(whole, labels)
    held = classes.unique()  # ascending
    if len(held) <= int(held[-1]):
        missing = int((held != torch.arange(len(held))).int().argmax())
        raise UserError(f"no image is of class {missing}: number the classes from 0 on without a gap")
    if len(held) < 2:
        raise UserError("all images are of one class, which nothing can be learned of: give two or more")
    if zca_eps is not None:
        if isinstance(zca_eps, bool) or not isinstance(zca_eps, int | float) or not zca_eps > 0:
            raise UserError(f"zca_eps is {zca_eps!r}: give a number above 0, as 0.1")
        space: Space = pixels.fit_whitening(whole, pixel_max, zca_eps)
    else:
        space = pixels.fit_normalisation(whole, pixel_max)
    shape = ImageShape(whole.shape[1], whole.shape[-1], len(held))
    return RealImages(pixels.inputs(space, whole, pixel_max), classes, space, shape)


def _in_space(
    images: Tensor,
    labels: Tensor,
    pixel_max: int,
    like: RealImages | None,
    space: Space | None = None,
    shape: ImageShape | None = None,
) -> RealImages:
    """Other real images, as networks read them that read `like`, or this space."""  # fmt: skip
    whole = _integers(images, pixel_max)
    classes = _numbers(whole, labels)
    used, wanted = (like.space, like.shape) if like is not None else (space, shape)
    assert used is not None and wanted is not None
    if (whole.shape[1], whole.shape[-1]) != (wanted.channels, wanted.size) or int(classes.max()) >= wanted.classes:
        raise UserError(
            f"images are {whole.shape[1]}x{whole.shape[2]}x{whole.shape[3]} of {int(classes.max()) + 1} classes, not "
            f"{wanted.channels}x{wanted.size}x{wanted.size} of {wanted.classes}: give images of the same data set"
        )
    return RealImages(pixels.inputs(used, whole, pixel_max), classes, used, wanted)


def _check_set(synthetic: object, name: str = "what students learn from") -> None:
    """Raises UserError unless it is a set with tensors as `Synthetic` has them: kernels go by their memory alone."""
    if not isinstance(synthetic, Synthetic):
        raise UserError(f"{name} is of the type {type(synthetic).__name__}: give what distill or load_synthetic gave")
    for part, kinds in (("spec", Network), ("space", Normalisation | Whitening)):
        if not isinstance(getattr(synthetic, part), kinds):
            text = f"{name} has a {part} of the type {type(getattr(synthetic, part)).__name__}"
            raise UserError(f"{text}: give what distill or load_synthetic gave")
    for part, dtypes in PARTS.items():
        tensor = getattr(synthetic, part)
        if not isinstance(tensor, Tensor) or tensor.dtype not in dtypes or not tensor.isfinite().all():
            allowed = " or ".join(str(dtype) for dtype in dtypes)
            raise UserError(
                f"{name} has {part} that are no tensor of finite {allowed}: give what distill or load_synthetic gave"
            )
    shapes, labels = [tuple(getattr(synthetic, part).shape) for part in PARTS], synthetic.labels
    soft, count = labels.is_floating_point(), shapes[0][:1]
    if len(shapes[0]) != IMAGES or 0 in shapes[0] or shapes[1:] != [(*count, synthetic.classes) if soft else count, ()]:
        told = ", ".join(f"{part} {shape}" for part, shape in zip(PARTS, shapes, strict=True))
        raise UserError(f"{name} has the shapes {told}: give (S, C, H, W), (S,) classes or (S, K) probabilities, and ()")
    if not soft and not 0 <= int(labels.min()) <= int(labels.max()) < synthetic.classes:
        text = f"{name} has labels from {int(labels.min())} to {int(labels.max())}"
        raise UserError(f"{text}, but its classes are 0 to {synthetic.classes - 1}: give those")


def _pair(val: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(val, tuple | list) or len(val) != 2:
        raise UserError("val is not two tensors: give the pair (images, labels)")
    return val[0], val[1]


def _root(seed: int) -> int:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"seed is {seed!r}: give a whole number, 0 or more")
    return seed


def _integers(images: Tensor, pixel_max: int) -> Tensor:
    """The images (N, C, H, W) on the CPU, once it is sure that they are integers: statistics are exact on these."""
    if not isinstance(pixel_max, int) or pixel_max < 1:
        raise UserError(f"pixel_max is {pixel_max!r}: give the largest value that a pixel may have, 255 for 8 bits")
    _check_plain(images, "images")
    if images.dim() != 4 or images.shape[2] != images.shape[3]:
        raise UserError(f"images have the shape {tuple(images.shape)}: give square ones, (N, C, H, W)")
    images = images.long() if images.dtype in (torch.uint16, torch.uint32, torch.uint64) else images  # torch has no min of them
    if images.is_floating_point() or images.is_complex():
        text = "images are real numbers: give integers from 0 to pixel_max"
        raise UserError(f"{text}; (255 * images).round().to(torch.uint8) makes them of [0, 1]")
    if images.numel() == 0 or int(images.min()) < 0 or int(images.max()) > pixel_max:
        raise UserError(f"images are none, or not within 0 and pixel_max, {pixel_max}: give another pixel_max")
    return images.cpu()


def _check_plain(given: object, name: str) -> None:
    """Raises UserError unless it is a tensor whose numbers lie in memory one after the other."""
    if not isinstance(given, Tensor):
        raise UserError(f"{name} are of the type {type(given).__name__}: give a tensor, as torch.as_tensor({name}) makes one")
    if given.layout != torch.strided or given.is_quantized or given.is_meta:
        raise UserError(f"{name} are a sparse, quantised or meta tensor: give plain numbers, as {name}.to_dense() has them")


def _numbers(images: Tensor, labels: Tensor) -> Tensor:
    """The labels (N,) in int64 on the CPU, once it is sure that they are classes of these images."""
    _check_plain(labels, "labels")
    whole = not (labels.is_floating_point() or labels.is_complex())
    if labels.shape != images.shape[:1] or not whole or int(labels.long().min()) < 0:
        text = f"labels have the shape {tuple(labels.shape)} and the type {labels.dtype}"
        raise UserError(f"{text}: give one class for each image, from 0 on")
    return labels.long().cpu()


@contextmanager
def _lent(asked: Runtime, threads: int | None) -> Iterator[torch.device]:
    """The machine as the settings want it, and as it was afterwards."""
    before, mode, tried = torch.get_num_threads(), torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    rounded = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield runtime.start(asked.model_copy(update={"threads": threads}))
    finally:
        torch.set_num_threads(before)
        torch.set_deterministic_debug_mode(mode)
        if "torch._inductor.config" in sys.modules:  # which takes two seconds to load
            runtime.tell_compiler()
        torch.backends.cudnn.benchmark = tried
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = rounded
        runtime.give_memory_back()
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def _settings(model: type[Model], given: Mapping[str, Any]) -> Model:
    try:
        found = model.model_validate(given)
    except ValidationError as error:
        raise ParamsError(model.__name__, describe(error, model, given)) from None
    told = [name for name in OF_TUPLES if name in given and getattr(found, name) != model.model_fields[name].default]
    if told:
        raise UserError(f"{told[0]} is of tuples, and these are images in classes: leave it out, or use the command line")
    return found


def _specified(network: Network | None, usual: Network) -> Network:
    if network is not None and not isinstance(network, Architecture):
        text = f"network is {network!r}: give the specification of one, of src.settings.networks"
        raise UserError(f"{text}, as ConvNet(depth=3, width=128)")
    if isinstance(network, Encoders | TextNet | Linear):
        raise UserError(f"network is of the family {network.family}, which reads no images: give another")
    return network or usual


def _network(told: Mapping[str, Any]) -> Network:
    return _settings(FAMILIES[told["family"]], told)


def _expert(training: expert.Training, index: int, device: torch.device, report: Report) -> tuple[Tensor, list[dict[str, Any]]]:
    """One expert's trajectory (T + 1, P) and its curves."""
    one, epochs = expert.first(training, index, device), training.settings.last_epoch
    for one in expert.steps(training, index, one, device):  # noqa: B020, each takes the place of the one before
        if one.state.between_epochs:
            figures = {key: value for key, value in one.rows[-1].items() if isinstance(value, float)}
            report(index * epochs + len(one.rows), training.settings.count * epochs, figures)
    return expert.curves(training, one)


def _function(spec: Network, shape: ImageShape, device: torch.device) -> FlatNetwork:
    """A network as a function; its own parameters are never used."""
    return FlatNetwork(networks.build(spec, shape, torch.Generator()).to(device))


def _snapshots(trajectories: tuple[Tensor, ...], index: int, start: int, stop: int) -> Tensor:
    return trajectories[index][start:stop]


@dataclass(frozen=True)
class _Trained:
    predicted: tuple[Tensor, ...]  # classes (N,) of each student
    last: Any  # parameters (P,) of the last student, or its module


def _trained(
    synthetic: Synthetic,
    network: Network | None,
    asked: Protocol,
    seed: int,
    lent: Runtime,
    report: Report,
    held: RealImages | None,
    only: int | None = None,
) -> _Trained:
    """Students after their last epoch, and what they predict of the images."""  # fmt: skip
    spec, shape, seed = _specified(network, synthetic.spec), synthetic.shape, _root(seed)
    with _lent(lent, lent.threads or 1) as device:
        flops = students.forward_flops(spec, shape)
        way = protocol.choose(lent, device, asked, len(synthetic.labels), flops, spec)
        way = way if only is None else replace(way, together=False)  # of all together the last one would be kept
        images, labels = synthetic.inputs.numpy(), synthetic.labels.numpy()
        splits = () if held is None else ("test",)
        training = students.Training(
            asked, spec, shape, seed, way, images, labels, synthetic.syn_lr.item(), splits, None,
            lambda split: (held.images, held.labels) if held else (torch.empty(0), torch.empty(0)),
        )  # fmt: skip
        predicted: list[Tensor] = []
        groups = only or (1 if way.together else asked.students)
        for group in range(groups):
            trained = students.start(training, group, device)
            for done, _ in enumerate(trained.epochs(asked.epochs), start=1):
                report(group * asked.epochs + done, groups * asked.epochs, {})
            for split in splits:
                predicted += students.predict(training, split, trained.predictors(), device).cpu().unbind()
    return _Trained(tuple(predicted), trained.result())
