"""Tuples of two and three modalities: the adjoint against the unrolled loop, losses and targets against restated ones."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from src.maths import contrast, inner_loop, networks
from src.maths.contrast import Contrastive
from src.maths.derivatives import Derivatives
from src.maths.inner_loop import InnerRule, InnerStep
from src.maths.networks import FlatNetwork, Modality, TupleShape
from src.maths.targets import base as targets
from src.maths.targets.base import Course
from src.settings.contrast import Contrast, Similarity
from src.settings.distillation import Distillation
from src.settings.networks import Encoders

S, BATCH, RANK = 6, 4, 2
ENCODERS = {
    "image": {"depth": 1, "width": 3},
    "text": {"family": "TextNet", "depth": 1, "width": 4},
    "sound": {"family": "MLP", "depth": 1, "width": 5},
}
SHAPES = {"image": (1, 8, 8), "text": (3, 6), "sound": (7,)}
TEMPERATURE = 0.5
Kind = Literal["low_rank", "proxy"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(modalities: int) -> tuple[FlatNetwork, Tensor]:
    """Encoders in float64, and their parameters (P,)."""
    names = list(ENCODERS)[:modalities]
    spec = Encoders.model_validate({"family": "Encoders", "embedding": 5, "encoders": {name: ENCODERS[name] for name in names}})
    shape = TupleShape(tuple(Modality(name, SHAPES[name]) for name in names))
    module = networks.build(spec, shape, seeded(0)).double()
    return FlatNetwork(module), networks.flatten(module)


def similarity(kind: Kind | None) -> Similarity | None:
    return None if kind is None else Similarity(kind=kind, rank=RANK, scale=1.5, lr=1.0)


def learned(kind: Kind | None, modalities: int, count: int = S) -> Tensor:
    """Labels in float64, of a learned similarity no two rows alike, some targets above 1/2 beside the diagonal."""
    if kind is None:
        return torch.arange(count)
    found = similarity(kind)
    assert found is not None
    return torch.randn(count, contrast.numbers(found, modalities), generator=seeded(4)).double()


def goals(kind: Kind | None, labels: Tensor, modalities: int) -> list[Tensor]:
    """Each pair's target, entry by entry."""
    count, found = len(labels), []
    for pair in range(modalities * (modalities - 1) // 2):
        rows = []
        for i, j in itertools.product(range(count), repeat=2):
            entry = torch.tensor(float(i == j), dtype=torch.float64)
            if kind == "proxy":
                entry = entry + 1.5 / RANK * (labels[i] * labels[j]).sum()
            if kind == "low_rank":
                own, other = (labels[k][pair * (1 + 2 * RANK) :][: 1 + 2 * RANK] for k in (i, j))
                entry = own[0] * entry + 1.5 / RANK * (own[1 : 1 + RANK] * other[1 + RANK :]).sum()
            rows.append(entry)
        found.append(torch.stack(rows).view(count, count))
    return found


def restated(loss: str, directions: Tensor, labels: Tensor, kind: Kind | None) -> Tensor:
    """The loss from its definition, with probabilities instead of logits."""
    modalities, total = directions.shape[1], []
    for (i, j), goal in zip(itertools.combinations(range(modalities), 2), goals(kind, labels, modalities), strict=True):
        z = directions[:, i] @ directions[:, j].T / TEMPERATURE
        if loss == "infonce":
            rows, columns = z.softmax(1).log(), z.softmax(0).log()
            total.append(-((goal * rows).sum(1).mean() + (goal * columns).sum(0).mean()) / 2)
        else:
            p = z.sigmoid()
            each = -(goal * p.log() + (1 - goal) * (1 - p).log())
            alike = goal > 0.5
            total.append((each[alike].mean() + each[~alike].mean()) / 2)
    return sum(total) / len(total)  # type: ignore[return-value]


@pytest.mark.parametrize("loss", ["infonce", "wbce"])
@pytest.mark.parametrize("kind", [None, "low_rank", "proxy"])
@pytest.mark.parametrize("modalities", [2, 3])
def test_loss_is_its_definition(modalities: int, kind: Kind | None, loss: Any) -> None:
    flat, theta = network(modalities)
    tuples = torch.randn(S, sum(len(torch.zeros(SHAPES[n]).flatten()) for n in list(ENCODERS)[:modalities])).double()
    labels = learned(kind, modalities)
    directions = flat(theta, tuples)
    found = Contrastive(Contrast(loss=loss, temperature=TEMPERATURE), similarity(kind))(directions, labels)
    assert directions.norm(dim=2).sub(1).abs().max() < 1e-12
    assert (found - restated(loss, directions, labels, kind)).abs() < 1e-12


def unrolled(given: dict[str, Any], steps: list[InnerStep], rule: InnerRule, loss: str, kind: Kind | None) -> dict[str, Tensor]:
    """The matching loss through the whole graph of the loop, and its gradients."""
    names = ("images", "syn_lr", *(["labels"] if given["labels"].is_floating_point() else []))
    leaves = {name: given[name].clone().requires_grad_() for name in names}
    labels, theta = leaves.get("labels", given["labels"]), given["theta_start"].clone().requires_grad_()
    rates = torch.cat([rate.expand(size) for rate, size in zip(leaves["syn_lr"], rule.parts, strict=True)])
    start, velocity = theta, torch.zeros_like(theta)
    for step in steps:
        value = restated(loss, given["network"](theta, leaves["images"][step.index]), labels[step.index], kind)
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        velocity = rule.momentum * velocity + rule.coefficient * gradient + rule.weight_decay * theta
        theta = theta - rates * velocity
    whole, target = given["normalised"] == "all", given["target"]
    parts = (
        [(theta, start, target)] if whole else list(zip(*(x.split(rule.parts) for x in (theta, start, target)), strict=True))
    )
    end = sum(((a - b).square().sum() / (c - b).square().sum() for a, c, b in parts), torch.zeros((), dtype=torch.float64))
    found = torch.autograd.grad(end, list(leaves.values()))
    return {"loss": end, **dict(zip(leaves, found, strict=True))}


@pytest.mark.parametrize("loss", ["infonce", "wbce"])
@pytest.mark.parametrize("kind", [None, "low_rank", "proxy"])
@pytest.mark.parametrize(("modalities", "normalised"), [(2, "all"), (2, "modality"), (3, "all"), (3, "modality")])
def test_adjoint_is_the_unrolled_gradient(modalities: int, normalised: Any, kind: Kind | None, loss: Any) -> None:
    flat, theta = network(modalities)
    assert sum(flat.parts) == flat.dimension
    rule = InnerRule(momentum=0.9, weight_decay=1e-2, coefficient=0.73, parts=flat.parts)
    width = sum(int(torch.tensor(SHAPES[n]).prod()) for n in list(ENCODERS)[:modalities])
    target = theta + 0.3 * torch.randn(len(theta), generator=seeded(1)).double()
    given: dict[str, Any] = {
        "network": flat,
        "images": torch.randn(S, width, generator=seeded(2)).double(),
        "labels": learned(kind, modalities),
        "syn_lr": torch.linspace(0.02, 0.06, modalities).double(),
        "theta_start": theta,
        "target": target,
        "normalised": normalised,
    }
    steps = inner_loop.draw_steps(S, 5, BATCH, (), seeded(3))
    settings = Distillation(initialisation="noise", iterations=1, syn_steps=5, expert_epochs=1, normalised=normalised)
    loss_of = Contrastive(Contrast(loss=loss, temperature=TEMPERATURE), similarity(kind))
    derivatives = Derivatives(flat, loss=loss_of)
    course = Course(theta, target[None], 0, derivatives, None, settings, flat.parts)
    found = inner_loop.matching_gradient(
        derivatives,
        given["images"],
        given["labels"],
        given["syn_lr"],
        theta,
        steps,
        targets.made(settings.targets, course),
        rule,
    )
    expected = unrolled(given, steps, rule, loss, kind)
    assert (found.terms.sum() - expected.pop("loss")).abs() < 1e-10
    assert (found.labels is None) == (kind is None)
    for name, theirs in expected.items():
        ours = getattr(found, name)
        assert ours.shape == theirs.shape
        assert theirs.abs().max() > 0
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm(), name


def test_first_similarities() -> None:
    """LoRS starts from the identity, the proxy near it, and each takes as many numbers as it says."""
    kinds: tuple[Kind, ...] = ("low_rank", "proxy")
    for kind, modalities in itertools.product(kinds, (2, 3)):
        settings = Similarity(kind=kind, rank=4, lr=1.0)
        labels = contrast.first(settings, S, modalities, seeded(0))
        assert labels.shape == (S, contrast.numbers(settings, modalities))
        away = contrast.targets(labels, settings, contrast.pairs(modalities)) - torch.eye(S)
        assert away.shape == (contrast.pairs(modalities), S, S)
        assert away.abs().max() <= (0 if kind == "low_rank" else 0.1)
    assert contrast.first(None, S, 2, seeded(0)).tolist() == list(range(S))


def test_a_lone_tuple_has_a_loss() -> None:
    """The last batch of an epoch may hold one alone: nothing to tell it from."""
    directions = torch.nn.functional.normalize(torch.randn(1, 2, 5, generator=seeded(0)), dim=2)
    losses: tuple[Any, ...] = ("infonce", "wbce")
    for loss in losses:
        value = Contrastive(Contrast(loss=loss))(directions, torch.arange(1))
        assert torch.isfinite(value)
