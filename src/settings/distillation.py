"""The section `distill`: methods.

Papers: MTT is arXiv 2203.11932, AST 2310.10541, FTD 2211.11004, TESLA 2211.10586, DATM 2310.05773, ATT 2407.14245, PAD
2408.03360, RaT-BPTT 2311.07025, DSA 2102.08259; of tuples MTT-VL 2308.07545, LoRS 2406.03793.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from src.settings.base import Augmentation, Momentum, NonNegative, NonNegativeReal, Positive, PositiveReal, Settings, Sha256
from src.settings.contrast import Contrast, Similarity

CERTAINTY = 0.7  # a class as good as certain leaves its logits no gradient
CHOOSERS = ("representative", "k_means_embeddings", "herding", "k_center", "classified")  # initialisations that ask experts


def _off(default: Any) -> Any:
    """A part that is off where it is not named; records leave it out then, so that older ones hold."""
    return Field(default=default, exclude_if=lambda value: value == default)


class Given(Settings):
    """A synthetic set that `import synthetic` brought."""

    file: str
    """Its name in data/imported, without the suffix."""
    sha256: Sha256
    """Digest of its tensors."""


class StartGrowth(Settings):
    """DATM: a window of start epochs that grows."""

    max_start_epoch: Positive
    """Start epochs of the first iteration lie below this."""
    iterations: Positive
    """From iteration 0 to this one the bound grows evenly to the method's max_start_epoch, and stays there."""


class RealObjective(Settings):
    """The loss on real images at the end of the inner loop, and the students that it is taken of."""

    images: Positive = 512
    """Real training images of one iteration, drawn without replacement, not augmented."""
    weight: PositiveReal = 1.0
    """Weight of their mean cross-entropy; that of the matching loss is 1."""
    students: Positive = 8
    """Students that learn side by side; each iteration goes on with one of them. Of objective real alone, as the next two."""
    max_age: Positive = 300
    """A student that has taken so many steps is replaced by a fresh one. No more than syn_steps: all are fresh (RaT-BPTT)."""
    max_skip: NonNegative = 0
    """Before the syn_steps that are differentiated a student takes 0 to so many more, uniformly drawn (RaT-BPTT's window)."""
    lr_drop_factor: Annotated[float, Field(gt=0, le=1)] = _off(1.0)
    """Below 1 the syn_steps that are differentiated are a branch at so many times syn_lr, as a protocol's students end, and the
    student goes on from where it stood before them. Of objective real alone."""


class Distillation(Settings):
    """How the synthetic set is initialised and optimised: a method of the section `distill` with a run's own values."""

    initialisation: Literal[
        "representative", "random", "noise", "k_means_embeddings", "herding", "k_center", "classified", "given", "run"
    ]  # fmt: skip
    """AST part 3 (representative): real images nearest to the K-means centres of an expert's logits; random real ones; noise;
    or, by the embeddings of an expert, those nearest to K-means centres, those of herding or the k-center greedy ones; or, of
    those that an expert classifies rightly, random ones (DATM: classified); or those that are `given`, or of `initial_run`."""
    given: Given | None = Field(default=None, exclude_if=lambda value: value is None)  # so that older records hold
    """An imported synthetic set, with 0 iterations as it is. Its learning rate is told by lr_init."""
    initial_run: str | None = _off(None)
    """Of initialisation run: the run, a key of `runs`, of the same data set and images per class, of tuples with the same kind
    and rank of similarity. Its labels come with it, and its syn_lr where lr_init is null."""
    iterations: NonNegative
    """Outer steps; 0 keeps the initial images, which makes the initialisation itself a baseline. A run with more of them than
    before goes on where it ended."""
    objective: Literal["matching", "real", "both"] = _off("matching")
    """What is lowered: the distance to experts; or, without any, the loss of students on `real` images (RaT-BPTT); or their sum
    over students that start where experts were."""
    real: RealObjective | None = _off(None)
    """Of objective real or both."""
    target: Literal["end", "nearest"] = _off("end")
    """Student step that is matched: the last one (MTT), or the one nearest to the expert's snapshot (ATT)."""
    nearest_by: Literal["l2", "l1"] = _off("l2")
    """Of target nearest: the distance that chooses the step, squared L2 (ATT's paper) or L1 (its public code)."""
    unmatched_depth: Annotated[float, Field(ge=0, lt=1)] = _off(0.0)
    """PAD: share of the network's parameter tensors, counted from the images and rounded down, that is not matched."""
    gradient: Literal["exact", "tesla"] = _off("exact")
    """Gradient of the inner loop: exact, or TESLA's, for which a student's step depends on the images of no earlier one."""
    syn_steps: Positive = 20
    """N, student steps of one iteration."""
    expert_epochs: Positive = 2
    """M, expert epochs that N student steps are matched to."""
    max_start_epoch: Positive = 1
    """Start epochs s are drawn from 0 .. max_start_epoch - 1."""
    min_start_epoch: NonNegative = _off(0)
    """DATM: start epochs s are drawn from here on; late ones suit many images."""
    start_growth: StartGrowth | None = _off(None)
    """DATM: the window of start epochs is narrower at first; null has it whole from the first iteration on."""
    batch_syn: Positive | None = None
    """Synthetic images of one student step; null takes all."""
    lr_img: PositiveReal = 100.0
    """Learning rate of the images."""
    lr_lr: NonNegativeReal = 1e-5
    """Learning rate of syn_lr; 0 keeps syn_lr at lr_init."""
    lr_init: PositiveReal | None = 0.01
    """Initial syn_lr (alpha), the student's learning rate; null takes that of initial_run."""
    syn_lr_min: PositiveReal = 1e-5
    """syn_lr is set back to this where an outer step would take it below: a negative rate would climb the loss."""
    labels: Literal["fixed", "expert", "learned"] = _off("fixed")
    """Those of the initial images; softmax of the target expert's logits of the images, anew in each iteration (TESLA); or
    learned as softmax of logits (DATM): from soft ones that the initial images have, else from the mean over the experts that
    classify the image rightly in the end, or, with none of these, from `label_certainty`."""
    label_certainty: Annotated[float, Field(gt=0, lt=1)] = _off(CERTAINTY)
    """Of learned labels that begin with neither: the share of the image's class; what is left is shared by all alike."""
    lr_label: NonNegativeReal = _off(0.0)
    """Learning rate of the learned labels' logits (DATM 2 to 10)."""
    label_momentum: Momentum = _off(0.0)
    """Momentum of the outer SGD for learned labels (DATM 0.9)."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = _off(None)
    """FTD: what is kept and scored is the running mean of the images and soft labels over iterations, with this decay (0.999 to
    0.9999); null keeps the last ones."""
    trajectories_per_iteration: Positive = 1
    """Expert trajectories that one iteration is matched to; their gradients are averaged."""
    outer_optimiser: Literal["sgd", "adam"] = _off("sgd")
    """Optimiser of images, syn_lr and learned labels."""
    outer_momentum: Momentum = 0.5
    """Momentum of the outer SGD, for images and syn_lr."""
    inner_optimiser: Literal["sgd", "adam"] = _off("sgd")
    """Optimiser of the student; syn_lr is its learning rate."""
    inner_momentum: Momentum = 0.0
    """mu, momentum of the student's SGD (AST 0.9, MTT 0)."""
    inner_weight_decay: NonNegativeReal = 0.0
    """L2 decay of the student's SGD."""
    augmentation: Augmentation = ()
    """Kinds of DSA for the student; one is drawn for each step."""
    balanced_loss: bool = False
    """AST part 4: scale the student's cross-entropy by the start epoch, up for late starts, down for early ones."""
    balance_base: Annotated[float, Field(gt=1)] = 5.0
    """Base of the logarithm of the balanced loss."""
    balance_offset: Annotated[float, Field(gt=1)] = 8.0
    """Offset inside the logarithm of the balanced loss."""
    intermediate_loss: Literal["off", "sum", "ramp"] = "off"
    """AST part 5: match the M - 1 inner way points too, with weight 1 (sum) or k / M (ramp)."""
    weight_perturbation: NonNegativeReal = 0.0
    """AST part 6: a, strength of the relative noise on the start point's convolution weights (AST 1, 0 is off)."""
    on_divergence: Literal["stop", "restore"] = "stop"
    """What follows on numbers that are not finite or absurd: the end of the run, or its continuation from the last iteration
    that is a multiple of 100, with half of lr_img from then on; three times at most."""
    snapshot_every: Positive = 1000
    """Iterations from one moment at which the images are kept, for pictures and `evaluate --snapshots`, to the next; before the
    first iteration and after the last one they always are."""

    contrast: Contrast | None = _off(None)
    """Of tuples: the student's loss. Null is that of MTT-VL, infonce at a temperature of 0.07."""
    similarity: Similarity | None = _off(None)
    """Of tuples: the similarity that is learned with them as the target of the loss; null takes each tuple for similar to
    itself alone (MTT-VL)."""
    lr_modalities: Mapping[str, PositiveReal] | None = _off(None)
    """Of tuples: the learning rate of each modality, by its name; null has lr_img for all."""
    normalised: Literal["all", "modality"] = _off("all")
    """Of tuples: what the matching loss divides by, the expert's way of all parameters together, or, as a sum over modalities,
    that of each encoder (MTT-VL, LoRS)."""

    @property
    def batch(self) -> int | None:
        """Synthetic images that a student step is to take; None for all, or where no step is taken."""
        return self.batch_syn if self.iterations else None

    @property
    def last_epoch(self) -> int:
        """The last expert epoch that is matched: M epochs after the latest start."""
        return self.max_start_epoch - 1 + self.expert_epochs

    @property
    def loss(self) -> str:
        """What an iteration lowers, in words."""
        words = {"matching": "matching loss", "real": "loss on real images", "both": "loss of matching and real images"}
        return words[self.objective]

    @property
    def way_points_fit(self) -> bool:
        """Whether each way point, where these are matched, has a step of the student's of its own."""
        return self.intermediate_loss == "off" or self.expert_epochs <= self.syn_steps

    @property
    def matches(self) -> bool:
        """Whether students are matched to experts."""
        return self.iterations > 0 and self.objective != "real"

    @property
    def learns_labels(self) -> bool:
        """Whether the labels of images, or the similarity of tuples, change from one iteration to the next."""
        return self.labels == "learned" or self.similarity is not None

    @property
    def asks_experts(self) -> bool:
        """Whether they are matched, or choose the initial images or their labels."""
        labels = self.labels == "expert" or (self.labels == "learned" and self.objective != "real")
        return self.matches or self.initialisation in CHOOSERS or labels

    @property
    def targets(self) -> tuple[str, ...]:
        """The modules of src/maths/targets that iterations take."""
        kind = "nearest" if self.target == "nearest" else "modalities" if self.normalised == "modality" else "snapshots"
        matched = (kind,) if self.matches else ()
        return (*matched, "real") if self.iterations and self.objective != "matching" else matched

    @model_validator(mode="after")
    def _goes_together(self) -> Distillation:
        for wrong, sentence in _rules(self):
            if wrong:
                raise ValueError(sentence)
        return self


Rule = tuple[bool, str]  # what contradicts itself, and what to do then


def _rules(own: Distillation) -> Iterator[Rule]:
    yield from _of_window(own)
    yield from _of_labels(own)
    yield from _of_beginning(own)
    yield from _of_matching(own)
    yield from _of_student(own)
    yield from _of_real(own)


def _of_window(own: Distillation) -> Iterator[Rule]:
    """Of the start epochs."""
    growth = own.start_growth
    window = f"the window of start epochs ends before it starts: max_start_epoch {own.max_start_epoch}"
    yield (
        own.min_start_epoch >= own.max_start_epoch,
        f"{window} must lie above min_start_epoch {own.min_start_epoch}",
    )
    if growth is not None:
        yield (
            not own.min_start_epoch < growth.max_start_epoch <= own.max_start_epoch,
            f"start_growth.max_start_epoch {growth.max_start_epoch} must lie above min_start_epoch {own.min_start_epoch} "
            f"and not above max_start_epoch {own.max_start_epoch}, to which it grows",
        )


def _of_labels(own: Distillation) -> Iterator[Rule]:
    """Of what is kept and learned beside the images."""
    yield (
        own.ema is not None and not own.iterations,
        "ema averages over iterations, which are 0: set iterations, or ema to null",
    )
    yield (
        own.labels == "expert" and not own.matches,
        "labels 'expert' are those of the expert that an iteration matches, and none is matched: use 'learned' or 'fixed'",
    )
    yield (
        own.labels != "learned" and bool(own.lr_label or own.label_momentum),
        f"lr_label and label_momentum move labels that are learned, and these are '{own.labels}': set labels to learned, or "
        "both to 0",
    )
    yield (
        own.outer_optimiser == "adam" and own.label_momentum > 0,
        f"label_momentum {own.label_momentum:g} is of SGD, and outer_optimiser is adam: set it to 0",
    )
    yield (
        own.labels != "learned" and own.label_certainty != CERTAINTY,
        f"label_certainty is of labels that are learned, and these are '{own.labels}': set labels to learned, or leave it out",
    )


def _of_beginning(own: Distillation) -> Iterator[Rule]:
    """Of the set that another run ended with."""
    yield (
        (own.initialisation == "run") != (own.initial_run is not None),
        "initialisation 'run' and initial_run go together: set both, or none",
    )
    yield (
        own.lr_init is not None and own.lr_init < own.syn_lr_min,
        f"lr_init {own.lr_init} lies below syn_lr_min {own.syn_lr_min:g}, where no learning rate stays: change one of the two",
    )
    yield (
        own.lr_init is None and own.initialisation != "run",
        "lr_init null takes the syn_lr of an initial run, and initialisation is no run: give a number",
    )


def _of_matching(own: Distillation) -> Iterator[Rule]:
    """Of the student's steps that are matched."""
    yield (
        own.target == "nearest" and own.intermediate_loss != "off",
        "target 'nearest' matches a step that the student chooses, intermediate_loss those at fixed ones: use one of the two",
    )
    yield (
        own.target != "nearest" and own.nearest_by != "l2",
        "nearest_by chooses the step of target 'nearest': set that, or leave it out",
    )
    yield (
        own.normalised == "modality" and own.target == "nearest",
        "normalised 'modality' is of encoders that are matched at fixed steps: set target to end",
    )


def _of_student(own: Distillation) -> Iterator[Rule]:
    """Of how the student learns."""
    yield (
        own.inner_optimiser == "adam" and own.inner_momentum > 0,
        f"inner_momentum {own.inner_momentum:g} is of SGD, and inner_optimiser is adam: set it to 0",
    )
    yield (
        own.gradient == "tesla" and own.inner_optimiser == "adam",
        "gradient 'tesla' holds for students that learn by SGD: set inner_optimiser to sgd, or gradient to exact",
    )


def _of_real(own: Distillation) -> Iterator[Rule]:
    """Of the loss on real images."""
    yield (
        (own.objective == "matching") != (own.real is None),
        "objective 'real' or 'both' and the settings `real` go together: set both, or none",
    )
    matching = {
        "target": own.target != "end",
        "intermediate_loss": own.intermediate_loss != "off",
        "balanced_loss": own.balanced_loss,
        "weight_perturbation": own.weight_perturbation > 0,
        "unmatched_depth": own.unmatched_depth > 0,
        "min_start_epoch": own.min_start_epoch > 0,
        "start_growth": own.start_growth is not None,
        "normalised": own.normalised != "all",
        "trajectories_per_iteration": own.trajectories_per_iteration > 1,
    }
    used = ", ".join(name for name, is_on in matching.items() if is_on)
    yield (
        own.objective == "real" and bool(used),
        f"objective 'real' matches no expert, which {used} is about: leave it out, or use objective both",
    )
    if own.real is not None:
        going_on, usual = ("students", "max_age", "max_skip", "lr_drop_factor"), RealObjective()
        chosen = ", ".join(name for name in going_on if getattr(own.real, name) != getattr(usual, name))
        yield (
            own.objective == "both" and bool(chosen),
            f"real.{chosen} is of objective 'real': with 'both' the student goes on from an expert, so leave it out",
        )
        yield (
            own.real.lr_drop_factor < 1 and not own.real.max_skip,
            f"real.lr_drop_factor {own.real.lr_drop_factor:g} leaves a student where it stood, and with real.max_skip 0 it "
            "takes no other steps: set max_skip to twice syn_steps, or lr_drop_factor to 1",
        )
