"""What experts are like, beside what was distilled from them: smooth and accurate ones teach better, the paper says."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from src.maths import networks, smoothness, tasks
from src.maths.networks import FlatNetwork
from src.pages.page import ACCURACY
from src.store.store import Store
from src.studies.variants import Variant


@dataclass(frozen=True)
class Experts:
    """A buffer, over its experts and those of their epochs that the run matches."""

    parameter_step: float  # mean squared parameter step of an epoch: small is smooth
    common_logit_step: float | None  # the part of it along which no student goes; of tuples, which have no logits, None
    accuracy: float  # on the validation split, after the last of the epochs; of tuples their mean recall


@dataclass(frozen=True)
class Point:
    """What students reached on images that were distilled from experts."""

    experts: Experts
    val_accuracy: float  # of tuples the mean recall
    group: str  # of points that differ in their experts alone


def measure(variant: Variant) -> Experts:
    """Of the variant's experts, inside its workspace."""
    store, run = Store(), variant.run
    dataset, buffer, last = run.dataset.name, run.experts, run.distillation.last_epoch
    real, shape = store.load_real(dataset, "val"), store.load_statistics(dataset).shape
    network, task = FlatNetwork(networks.build(run.spec, shape, torch.Generator())), tasks.of(shape, None)
    steps, common, accuracies = [], [], []
    for index in range(buffer.settings.count):
        trajectory = store.read_snapshots(buffer.name, index, 0, last + 1)
        steps.append(smoothness.parameter_steps(trajectory).mean())
        common.append(smoothness.common_logit_steps(trajectory, network).mean())
        measured = task.measured(functools.partial(network, trajectory[last]), real)
        accuracies.append(task.figures(measured, real[1])[task.headline])
    step, common_step = (torch.stack(values).mean().item() for values in (steps, common))
    return Experts(step, None if run.dataset.tuples else common_step, sum(accuracies) / len(accuracies))


def correlations(points: Sequence[Point], score: str = ACCURACY) -> Iterator[tuple[str, str, str, str]]:
    """Spearman's rank correlation of what was distilled with each figure of the experts, a row a group and figure."""
    for group in dict.fromkeys(point.group for point in points):
        own = [point for point in points if point.group == group]
        for name, words in (("parameter_step", "their squared parameter step"), ("accuracy", f"their {score}")):
            x = [getattr(point.experts, name) for point in own]
            if len(set(x)) > 1 and len({point.val_accuracy for point in own}) > 1:
                found = spearmanr(x, [point.val_accuracy for point in own])
                yield group, words, f"{found.statistic:+.2f}", f"{found.pvalue:.2g}"


def figure(points: Sequence[Point], score: str = ACCURACY) -> Figure:
    """What was distilled against the experts' steps, and against their own score; the caller closes the figure."""
    found, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for group in dict.fromkeys(point.group for point in points):
        own = [point for point in points if point.group == group]
        y = [100 * point.val_accuracy for point in own]
        axes[0].plot([point.experts.parameter_step for point in own], y, "o", label=group, alpha=0.75)
        axes[1].plot([100 * point.experts.accuracy for point in own], y, "o", label=group, alpha=0.75)
    axes[0].set(xlabel="experts' squared parameter step of an epoch", ylabel=f"validation {score} of students, %", xscale="log")
    axes[1].set(xlabel=f"validation {score} of the experts, %")
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, fontsize="small")
    return found
