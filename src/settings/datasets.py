"""The section `prepare`: data sets, and how they are split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from src.settings.base import NAME, NAME_RULE, Positive, PositiveReal, Settings, Sha256, Told, spelled_alike

OTHER_TENSORS = ("similarity", "syn_lr")  # of an export of tuples


def _with_train(folders: dict[str, str]) -> dict[str, str]:
    if "train" not in folders:
        raise ValueError("must name the folder of the training split as train, where it names any")
    return folders


SplitFolders = Literal["none"] | Annotated[dict[Literal["train", "val", "test"], str], AfterValidator(_with_train)]


TRANSFORMERS = "transformers"  # the encoder of texts, and the package that it takes
TOKENS = 64  # of a text, where the settings name no number
ZCA_EPS = 0.1


class ImageModality(Settings):
    """Pictures."""

    kind: Literal["image"]
    """Which modality it is."""
    column: Told | None = None
    """Of a table: the column of paths or bytes; null is one called as the modality."""
    size: Positive | None = None
    """Side of the square images, pixels; null keeps those of a known source."""
    channels: Literal[1, 3] | None = None
    """1 turns images grey, 3 makes them colour; null is 3, or what a known source has."""


class TextModality(Settings):
    """Texts, a column of numbers a character that is the same for each character in whatever data set: drawn once for all from
    the character's number in Unicode. What is learned are such columns."""

    kind: Literal["text"]
    """Which modality it is."""
    column: Told | None = None
    """Of a table: the column of texts, or of lists of several; null is one called as the modality."""
    length: Positive = 16
    """Characters that are read; longer texts are cut, shorter ones end in zeros."""
    numbers: Positive = 16
    """Numbers of each character."""


class AudioModality(Settings):
    """Sounds, as logarithmic mel spectrograms that are square pictures."""

    kind: Literal["audio"]
    """Which modality it is."""
    column: Told | None = None
    """Of a table: the column of paths of wav files; null is one called as the modality."""
    size: Annotated[int, Field(ge=2)] = 32
    """Mel bands, and moments in time."""
    seconds: PositiveReal = 1.0
    """That are heard: longer sounds are cut, shorter ones followed by silence."""


class VectorModality(Settings):
    """Vectors of numbers as they are."""

    kind: Literal["vector"]
    """Which modality it is."""
    column: Told | None = None
    """Of a table: the column of lists of numbers, or of paths of .npy files; null is one called as the modality."""


class FeaturesModality(Settings):
    """Pictures or texts as vectors that a frozen encoder, whose weights lie on disk, makes of them once, in `prepare`."""

    kind: Literal["features"]
    """Which modality it is."""
    column: Told | None = None
    """Of a table: the column of pictures or texts; null is one called as the modality."""
    encoder: Told
    """What reads them: of pictures a classification model of torchvision by its name, as resnet50, whose vector is what its
    last linear layer reads; of texts transformers, a model in Hugging Face's layout, whose vector is the first token's."""
    weights: Told
    """Where its weights are: the file of a state dict, .safetensors, .pth or .pt; of transformers the folder with config.json,
    model.safetensors and the tokenizer."""
    size: Positive | None = None
    """Side of the square pictures that are read, pixels; null is what the model was published with."""
    tokens: Positive = TOKENS
    """Of a text that are read; longer ones are cut."""

    @model_validator(mode="after")
    def _is_of_pictures_or_texts(self) -> FeaturesModality:
        if held(self) == "text" and self.size is not None:
            raise ValueError(f"size is of pictures, and {self.encoder} reads texts: leave it out")
        if held(self) == "image" and self.tokens != TOKENS:
            raise ValueError(f"tokens are of texts, and {self.encoder} reads pictures: leave them out")
        return self


Modality = Annotated[
    ImageModality | TextModality | AudioModality | VectorModality | FeaturesModality, Field(discriminator="kind")
]


def held(modality: Modality) -> str:
    """The kind that a source has of it."""
    if isinstance(modality, FeaturesModality):
        return "text" if modality.encoder == TRANSFORMERS else "image"
    return modality.kind


def _named(modality: str) -> str:
    if not NAME.fullmatch(modality):
        raise ValueError(f"can't be a name: {NAME_RULE}")
    if modality in OTHER_TENSORS:
        raise ValueError(f"can't be a name: exports have another tensor called {modality}, so take another word")
    return modality


ModalityName = Annotated[str, AfterValidator(_named)]


class Dataset(Settings):
    """A data set and how it is split: a value of the section `prepare`."""

    source: Told
    """Where the real images come from: the name of a known data set, or a path to images of your own."""
    sha256: Sha256 | None = None
    """Digest of the decoded images and labels, or items and rows, that this pipeline is about, before they are split; others
    are refused. Null takes any."""
    size: Positive | None = None
    """Side of the square images, pixels: others are resized to it on the shorter side, then cut at the centre. Null keeps."""
    channels: Literal[1, 3] | None = None
    """1 turns images grey, 3 makes them colour; null keeps grey sources grey, and takes colour where any image has it."""
    skip_broken: bool = False
    """Leave out images that can't be read, and rows of tuples with such or without a value, instead of refusing the source."""
    splits: SplitFolders | None = Field(default=None, exclude_if=lambda value: value is None)  # so that older records hold
    """Of image folders, where names do not tell: none where the top folders are the classes, or the folder of each split, as
    in {train: part_a, test: part_b}. Null goes by the usual names, and asks where they leave a doubt."""
    label_column: Told | None = Field(default=None, exclude_if=lambda value: value is None)  # so that older records hold
    """Column of a Parquet source that holds the labels; null takes the ClassLabel of its metadata, or a column called label."""
    path: Told | None = Field(default=None, exclude_if=lambda value: value is None)
    """Where the source lies on this machine, if not where `source` says: the same images from anywhere are the same data set,
    and no record holds it. Of a known data set any form will do; null looks for it, or downloads it."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the images (of the training images, where the source has a test split of its own) cut off as validation
    split, stratified by class: all selection and tuning uses it. A source's own validation split goes before."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the images cut off as test split, stratified by class, where the source has none: opened by `evaluate`
    alone."""
    train_images: Annotated[int, Field(ge=1)] | None = None  # data sets may have more than counts go to
    """Keep so many images of the training split, stratified by class; null keeps all."""
    whitening: Literal["none", "zca"] = "none"
    """What networks read: pixels normalised by each channel's mean and std (none), or decorrelated by ZCA (CIFAR's custom)."""
    zca_eps: PositiveReal = ZCA_EPS
    """Added to the eigenvalues of the covariance before their inverse root, so that noise is not blown up."""

    modalities: Mapping[ModalityName, Modality] | None = Field(default=None, exclude_if=lambda value: value is None)
    """Of a source of tuples, whose parts belong together, such as a picture and its caption: each modality by a name. Null is a
    source of images in classes."""

    @model_validator(mode="after")
    def _is_images_or_tuples(self) -> Dataset:
        if self.modalities is None:
            return self
        if len(self.modalities) < 2:
            raise ValueError(f"modalities name {len(self.modalities)}: a tuple has two or more")
        for name, problem in spelled_alike(self.modalities).items():
            raise ValueError(f"modality '{name}' {problem}")
        of_images = {"size": self.size, "channels": self.channels, "splits": self.splits, "label_column": self.label_column}
        told = [name for name, value in of_images.items() if value is not None]
        told += ["whitening"] if self.whitening != "none" else []
        told += ["zca_eps"] if self.zca_eps != ZCA_EPS else []
        if told:
            raise ValueError(f"{', '.join(told)} are of images in classes: leave them out, and describe each of the modalities")
        return self

    @model_validator(mode="after")
    def _leaves_training_images(self) -> Dataset:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1, to leave training images")
        return self
