"""First and second derivatives of a network's cross-entropy on one batch: where all the time of the inner loop goes.

Both are functions of (theta, batch, labels), eager or compiled, in the tensors' own precision or under bfloat16 autocast. The
eager second one is written by hand for the networks that `by_hand` knows.
Augmentation, L2 decay and the balanced coefficient stay outside: they are linear in these, so that one compiled function
serves every step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from src.ground import runtime
from src.maths.by_hand import Second, second_of
from src.maths.first_by_hand import First, first_of

Logits = Callable[[Tensor, Tensor], Tensor]  # (theta (P,), images (B, C, H, W)) -> (B, K)
PASSES = 12  # work of one inner step, forward and backward, in forward passes: 3 for `first`, 9 for `second`, by hand 8


class Derivatives:
    """Derivatives of CE(network(theta, batch), labels); labels are classes (B,) or probabilities (B, K)."""

    def __init__(self, network: Logits, bfloat16: bool = False, compiled: bool = False):
        self._network = network
        self._bfloat16 = bfloat16
        self._compiled = compiled
        eager = not compiled and not bfloat16
        self.first: First = (first_of(network) if eager else None) or self._first
        self.second: Second = (second_of(network) if eager else None) or self._second
        if compiled:
            self.first, self.second = runtime.compiled(self._first), runtime.compiled(self._second)

    def loss(self, theta: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy, a scalar in the precision of theta."""
        with self._autocast(theta.device.type):
            logits = self._network(theta, batch)
        return F.cross_entropy(logits.to(theta.dtype), labels)

    def _first(self, theta: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
        """The gradient with respect to theta, (P,)."""
        theta = theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(theta, batch, labels), theta)
        return gradient

    def _second(self, theta: Tensor, batch: Tensor, labels: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        """The gradient of <first, a> with respect to theta (P,), batch (B, C, H, W) and, if probabilities, labels (B, K)."""
        inputs = [x.detach().requires_grad_() for x in (theta, batch, labels) if x.is_floating_point()]
        targets = inputs[2] if len(inputs) == 3 else labels
        (gradient,) = torch.autograd.grad(self.loss(inputs[0], inputs[1], targets), inputs[0], create_graph=True)
        return torch.autograd.grad(gradient, inputs, grad_outputs=a)

    def _autocast(self, device: str) -> AbstractContextManager[object]:
        return torch.autocast(device, torch.bfloat16) if self._bfloat16 else contextlib.nullcontext()
