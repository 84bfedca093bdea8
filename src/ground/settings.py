"""The typed settings: one frozen class for each section of params.yaml, every field with unit, paper symbol and effect.

Papers: AST is arXiv 2310.10541, MTT is arXiv 2203.11932, DSA is arXiv 2102.08259.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
PositiveReal = Annotated[float, Field(gt=0)]
NonNegativeReal = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
AugmentationKind = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]
Norm = Literal["instance", "layer", "group", "batch", "none"]


def _once(kinds: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"a kind stands twice in {', '.join(kinds)}: name each once, as all have the same chance")
    return kinds


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"a name stands twice in {', '.join(names)}: name each once")
    return names


def _with_train(folders: dict[str, str]) -> dict[str, str]:
    if "train" not in folders:
        raise ValueError("must name the folder of the training split as train, where it names any")
    return folders


# strict=False only lets YAML's list become a tuple; the items stay checked
Augmentation = Annotated[tuple[AugmentationKind, ...], Field(strict=False), AfterValidator(_once)]
SplitFolders = Literal["none"] | Annotated[dict[Literal["train", "val", "test"], str], AfterValidator(_with_train)]
Names = Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_different)]


class Settings(BaseModel):
    """Frozen, strict, without unknown keys, without infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Runtime(Settings):
    """What the machine gives to a stage."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; auto takes CUDA where torch finds it."""
    threads: Positive | None = None
    """Threads of one torch operation. Null leaves torch's choice (the cores) to distillation, and gives one to each expert
    and student, as these fill the cores side by side. Other counts may round differently."""
    workers: Positive | None = None
    """Processes that train experts or students at the same time on CPUs; null takes as many as the cores hold. Results do
    not depend on it, memory does: each needs its own."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of all training, that of experts, synthetic images and students: in bfloat16, convolutions and matrix products take and
    give numbers of half the bits, and on CPUs so does what stands between them; parameters, images, losses and steps stay
    float32. So do scores and the choice of initial images, which is all that a run with 0 iterations makes. Processors without
    instructions for bfloat16 take several times as long as in float32, and stages say so."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile for all training; auto compiles where the work is long enough to pay for it."""
    deterministic: bool = True
    """Only kernels that give the same bytes again. On CPUs it costs nothing that can be measured; on CUDA false lets cuDNN
    try out and take its fastest kernels, which add in any order."""
    checkpoint_seconds: NonNegativeReal = 60.0
    """Seconds of work between two checkpoints of experts, distill and evaluate; more where writing one takes over 2 % of them.
    0 writes one after every step. Changes no result."""


class Dataset(Settings):
    """A data set and how it is split: a value of the section `prepare`."""

    source: str
    """Where the real images come from: the name of a known data set, or a path to images of your own."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Digest of the decoded images and labels that this pipeline is about; others are refused. Null takes any."""
    size: Positive | None = None
    """Side of the square images, pixels: others are resized to it on the shorter side, then cut at the centre. Null keeps."""
    channels: Literal[1, 3] | None = None
    """1 turns images grey, 3 makes them colour; null keeps grey sources grey, and takes colour where any image has it."""
    skip_broken: bool = False
    """Leave out images that can't be read, instead of refusing the source."""
    splits: SplitFolders | None = Field(default=None, exclude_if=lambda value: value is None)  # so that older records hold
    """Of image folders, where names do not tell: none where the top folders are the classes, or the folder of each split, as
    in {train: part_a, test: part_b}. Null goes by the usual names, and asks where they leave a doubt."""
    label_column: str | None = Field(default=None, exclude_if=lambda value: value is None)  # so that older records hold
    """Column of a Parquet source that holds the labels; null takes the ClassLabel of its metadata, or a column called label."""
    path: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """Where the source lies on this machine, if not where `source` says: the same images from anywhere are the same data set,
    and no record holds it. Of a known data set any form will do; null looks for it, or downloads it."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the images (of the training images, where the source has a test split of its own) cut off as validation
    split, stratified by class: all selection and tuning uses it. A source's own validation split goes before."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the images cut off as test split, stratified by class, where the source has none: opened by `evaluate`
    alone."""
    train_images: Positive | None = None
    """Keep so many images of the training split, stratified by class; null keeps all."""
    whitening: Literal["none", "zca"] = "none"
    """What networks read: pixels normalised by each channel's mean and std (none), or decorrelated by ZCA (CIFAR's custom)."""
    zca_eps: PositiveReal = 0.1
    """Added to the eigenvalues of the covariance before their inverse root, so that noise is not blown up."""

    @model_validator(mode="after")
    def _leaves_training_images(self) -> Dataset:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1, to leave training images")
        return self


class Architecture(Settings):
    """What all families of networks share. All read square images of 8x8 to 224x224 pixels, of any number of channels."""

    @property
    def keeps_statistics(self) -> bool:
        """Whether its outputs rest on running statistics beside its parameters: it then can be evaluated, not matched."""
        return getattr(self, "norm", "none") == "batch"


class ConvNet(Architecture):
    """Depth blocks of 3x3 convolution, norm, activation, pooling; then one linear layer. D3 W128 is the field's for 32x32."""

    family: Literal["ConvNet"] = "ConvNet"
    """The family this specification belongs to; where it is left out, ConvNet."""
    depth: Positive
    """D, number of blocks; with pooling each halves the side, so 2^D must not exceed it."""
    width: Positive
    """W, channels of every convolution."""
    norm: Norm = "instance"
    """Normalisation, affine: one group a channel (instance), one group (layer), four groups (group), or over the batch with
    running statistics for testing (batch: for evaluation only)."""
    activation: Literal["relu", "leaky_relu", "sigmoid", "gelu"] = "relu"
    """Pointwise nonlinearity after the norm."""
    pooling: Literal["avg", "max", "none"] = "avg"
    """2x2 pooling with stride 2 at the end of each block."""


class MLP(Architecture):
    """Linear layers with ReLU between them, on all pixels at once. The field's has two hidden layers of 128."""

    family: Literal["MLP"]
    """The family this specification belongs to."""
    depth: Positive = 2
    """Hidden layers."""
    width: Positive = 128
    """Units of each hidden layer."""


class LeNet(Architecture):
    """Two 5x5 convolutions with ReLU and max pooling, three linear layers, no norm. Images below 32x32 are padded to it, as
    the field does with 28x28; larger ones end in an average pooling to the 5x5 that 32x32 ends in."""

    family: Literal["LeNet"]
    """The family this specification belongs to."""


class AlexNet(Architecture):
    """The field's for 32x32: five convolutions with ReLU, three max poolings, one linear layer, no norm. Other images end in
    4x4 too: larger ones by an average pooling, smaller ones without the first poolings; 28x28 is padded to 32x32."""

    family: Literal["AlexNet"]
    """The family this specification belongs to."""


class VGG11(Architecture):
    """Eight 3x3 convolutions with norm and ReLU, five max poolings, one linear layer, as the field has it for 32x32. Larger
    images end in a global average, smaller ones go without the first poolings; 28x28 is padded to 32x32."""

    family: Literal["VGG11"]
    """The family this specification belongs to."""
    width: Positive = 64
    """Channels of the first convolution; the later ones have 2, 4 and 8 times as many."""
    norm: Norm = "instance"
    """Normalisation after each convolution, as ConvNet's."""


class ResNet18(Architecture):
    """A stem, eight residual blocks in four stages, global average, one linear layer. Below 128 pixels the stem is a 3x3
    convolution without pooling (the field's for 32x32), from there on 7x7 with stride 2 and max pooling (ImageNet's). Below
    32x32 the first stages don't halve the side where the last one would end in less than 4x4."""

    family: Literal["ResNet18"]
    """The family this specification belongs to."""
    width: Positive = 64
    """Channels of the stem and the first stage; the later ones have 2, 4 and 8 times as many."""
    norm: Norm = "instance"
    """Normalisation after each convolution, as ConvNet's."""


Network = ConvNet | MLP | LeNet | AlexNet | VGG11 | ResNet18
FAMILIES: Mapping[str, type[Network]] = {
    "ConvNet": ConvNet,
    "MLP": MLP,
    "LeNet": LeNet,
    "AlexNet": AlexNet,
    "VGG11": VGG11,
    "ResNet18": ResNet18,
}


class Experts(Settings):
    """How a set of experts is trained on the real training split: a value of the section `experts`."""

    dataset: str
    """Data set, a key of `prepare`."""
    network: str
    """Network, a key of `networks`."""
    count: Positive
    """Number of experts; each is one trajectory of the buffer."""
    epochs: Positive
    """T, epochs of each expert; the trajectory holds T + 1 snapshots."""
    stop_epoch: Positive | None = None
    """Train and keep the first so many of the T epochs, as clipping and learning rate follow T; null trains all. Runs need
    max_start_epoch - 1 + expert_epochs; representative initialisation takes the last one kept."""
    batch_size: Positive = 256
    """Real images of one training step."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the experts; momentum applies to sgd only."""
    lr: PositiveReal
    """Learning rate of the experts (AST 0.003 with momentum 0.9; MTT 0.01 without)."""
    momentum: Momentum = 0.0
    """Momentum of the experts' SGD (AST 0.9, MTT 0)."""
    weight_decay: NonNegativeReal = 0.0
    """L2 decay added to the gradient (AST 1e-3, MTT 0)."""
    lr_drop_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The learning rate is multiplied by this once, from epoch T // 2 + 1 on (AST 0.6; 1 means no drop)."""
    augmentation: Augmentation = ()
    """Kinds of differentiable siamese augmentation (DSA); one is drawn for each batch."""
    clipping_loss: bool = False
    """AST part 1: scale the cross-entropy of the first epochs down, so that the early steps stay small."""
    clipping_start: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Coefficient of the cross-entropy in epoch 0."""
    clipping_end: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Coefficient in the last scaled epoch; it is 1 afterwards."""
    clipping_epochs: Positive = 10
    """Number of scaled epochs; the coefficient rises linearly over them."""
    gradient_penalty: NonNegativeReal = 0.0
    """AST part 2: lambda, weight of the gradient penalty (AST 2, 0 switches it off)."""
    gradient_penalty_axes: Literal["channels", "image"] = "channels"
    """The norm's axes: per pixel over the channels (AST's code), or over the whole image (as in WGAN-GP)."""

    @property
    def last_epoch(self) -> int:
        """The last epoch that is trained and kept."""
        return self.epochs if self.stop_epoch is None else self.stop_epoch

    @model_validator(mode="after")
    def _stops_within_its_epochs(self) -> Experts:
        if self.last_epoch > self.epochs:
            raise ValueError(f"stop_epoch {self.stop_epoch} lies beyond the {self.epochs} epochs: lower it, or set null")
        return self


class Distillation(Settings):
    """How the synthetic set is initialised and optimised: a method of the section `distill` with a run's own values."""

    initialisation: Literal["representative", "random", "noise", "k_means_embeddings", "herding", "k_center"]
    """AST part 3 (representative): real images nearest to the K-means centres of an expert's logits; random real ones; noise;
    or, by the embeddings of an expert, those nearest to K-means centres, those of herding, or the k-center greedy ones."""
    iterations: Annotated[int, Field(ge=0)]
    """Outer steps; 0 keeps the initial images, which makes the initialisation itself a baseline. A run with more of them than
    before goes on where it ended."""
    syn_steps: Positive = 20
    """N, student steps of one iteration."""
    expert_epochs: Positive = 2
    """M, expert epochs that N student steps are matched to."""
    max_start_epoch: Positive = 1
    """Start epochs s are drawn from 0 .. max_start_epoch - 1."""
    batch_syn: Positive | None = None
    """Synthetic images of one student step; null takes all."""
    lr_img: PositiveReal = 100.0
    """Learning rate of the images."""
    lr_lr: NonNegativeReal = 1e-5
    """Learning rate of syn_lr; 0 keeps syn_lr at lr_init."""
    lr_init: PositiveReal = 0.01
    """Initial syn_lr (alpha), the student's learning rate."""
    syn_lr_min: PositiveReal = 1e-5
    """syn_lr is set back to this where an outer step would take it below: a negative rate would climb the loss."""
    trajectories_per_iteration: Positive = 1
    """Expert trajectories that one iteration is matched to; their gradients are averaged."""
    outer_momentum: Momentum = 0.5
    """Momentum of the outer SGD, for images and syn_lr."""
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

    @property
    def last_epoch(self) -> int:
        """The last expert epoch that is matched: M epochs after the latest start."""
        return self.max_start_epoch - 1 + self.expert_epochs

    @property
    def asks_experts(self) -> bool:
        """Whether they are matched, or choose the initial images."""
        return self.iterations > 0 or self.initialisation not in ("random", "noise")


SCORES: Mapping[str, str] = {"last": "last epoch", "best_test": "best epoch on the test split"}


class Protocol(Settings):
    """How students are trained on a synthetic set and scored: a value of the section `evaluate`.

    The defaults are MTT's. AST's code has weight_decay 1e-3, lr_drop_factor 0.5 and score best_test. Soft labels need no
    setting: where the synthetic set has them, students learn the probabilities, as DATM's do.
    """

    students: Annotated[int, Field(ge=2)] = 5
    """Fresh students; accuracies are mean and standard deviation over them."""
    epochs: Positive = 1000
    """Epochs over the synthetic set; the learning rate is syn_lr."""
    batch_size: Positive = 256
    """Synthetic images of one step, at most."""
    momentum: Momentum = 0.9
    """Momentum of the students' SGD."""
    weight_decay: NonNegativeReal = 5e-4
    """L2 decay of the students' SGD."""
    lr_drop_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The learning rate is multiplied by this once, from epoch epochs // 2 + 1 on."""
    augmentation: Augmentation = ()
    """Kinds of DSA; one is drawn for each step and student."""
    score: Literal["last", "best_test"] = "last"
    """The epoch that is scored: the last one, which is then tested once; or, as AST's code does, each student's best one on
    the test split. That selects on the test split and reports more than an honest choice would find: for comparison only."""
    test_every: Positive = 100
    """Epochs from one test to the next, with best_test; the last epoch is always tested."""

    @property
    def scored(self) -> str:
        """The epoch that is scored, in words."""
        return SCORES[self.score]

    @property
    def selects_on_test(self) -> bool:
        return self.score == "best_test"


class Report(Settings):
    """The closing page."""

    title: str = "Dataset distillation"
    """Heading of the page."""


class Range(Settings):
    """Values that a study may try for one parameter: all from low to high, or one of the choices."""

    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value."""
    log: bool = False
    """Draw evenly over orders of magnitude instead of over the values."""
    choices: Annotated[tuple[bool | int | float | str | None, ...], Field(strict=False)] = ()
    """The values themselves, instead of low and high; a single one keeps the parameter at it."""

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Range:
        ends = (self.low, self.high)
        if bool(self.choices) == any(end is not None for end in ends) or (not self.choices and None in ends):
            raise ValueError("give low and high, or choices")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low {self.low:g} must lie below high {self.high:g}")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("log needs a low above 0")
        return self


class Ranges(Settings):
    """Ranges of one data set that differ from those of src/studies/space.py, by the field's name."""

    distill: Mapping[str, Range] = {}
    """Fields of Distillation: the student side."""
    experts: Mapping[str, Range] = {}
    """Fields of Experts: the expert side."""

    @model_validator(mode="after")
    def _names_fields(self) -> Ranges:
        for section, model in (("distill", Distillation), ("experts", Experts)):
            for name in getattr(self, section):
                if name not in model.model_fields:
                    raise ValueError(f"{section}.{name} is no setting: choose from {', '.join(model.model_fields)}")
        return self


class Tune(Settings):
    """Studies: how parameters are searched, and by how many students they are judged, on the validation split alone."""

    trials: Positive = 30
    """Trials of a study, all in all."""
    students: Annotated[int, Field(ge=2)] = 5
    """Fresh students of a finished trial; their mean validation accuracy is its value."""
    epochs: Positive | None = None
    """Epochs of these students; null takes those of the run's protocol."""
    rungs: Positive = 3
    """Moments, evenly spaced over the iterations, at which a trial is scored; the last one is its end, and at those before a
    trial below the median of the finished ones is given up. 1 gives none up."""
    rung_students: Annotated[int, Field(ge=2)] = 2
    """Fresh students at the moments before the end."""
    ranges: Mapping[str, Ranges] = {}
    """Ranges by data set, a key of `prepare`."""


class RunDistill(BaseModel):
    """A method's name and the run's own values for fields of Distillation, which go before the method's."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, use_attribute_docstrings=True)

    method: str
    """Method, a key of `distill`."""


class Run(Settings):
    """One named run: a synthetic set, from its initialisation to its test accuracy."""

    dataset: str
    """Data set, a key of `prepare`."""
    network: str
    """Network that is matched and evaluated, a key of `networks`."""
    experts: str | None
    """Experts whose trajectories are matched, or who choose images, a key of `experts`; null for a baseline that asks none."""
    ipc: Positive | Literal["all"]
    """Images per class; all takes the whole training split (the upper reference, not distilled)."""
    distill: RunDistill
    """The method and this run's own values."""
    evaluate: str
    """Evaluation protocol, a key of `evaluate`."""
    cross: Names = ()
    """Further networks that fresh students are scored with, keys of `networks`. They learn with the synthetic set's own
    syn_lr (MTT's way), though it was learned for the run's network."""

    @model_validator(mode="after")
    def _crosses_to_other_networks(self) -> Run:
        if self.network in self.cross:
            raise ValueError(f"cross names the run's own network '{self.network}', which is always scored: leave it out")
        return self
