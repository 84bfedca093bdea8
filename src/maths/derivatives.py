"""First and second derivatives of a network's loss on one batch: where all the time of the inner loop goes.

The loss is the cross-entropy of classes, which is the task where none is named, or any other function of outputs and labels.
Both derivatives are functions of (theta, batch, labels), in the tensors' own precision or with bfloat16 between the layers.
Augmentation, L2 decay and the balanced coefficient stay outside: they are linear in these, so that one function serves every
step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from src.ground import runtime
from src.ground.graphs import Arguments, Recorded, Result
from src.maths import by_hand
from src.maths.by_hand import ByHand, Sweep
from src.maths.networks import FlatNetwork
from src.settings.networks import Network
from src.settings.runtime import Runtime

Logits = Callable[[Tensor, Tensor], Tensor]  # (theta (P,), images (B, C, H, W)) -> (B, K)
Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs (B, ...), labels (B, ...)) -> the batch's loss ()
# autograd; by hand on own kernels; autograd through torch.compile; and on a GPU, as CUDA graphs, autograd or by hand
Backend = Literal["eager", "kernels", "compiled", "graphs", "fused"]
KEPT = 4  # networks whose derivatives a process keeps: compiled they took a minute, recorded they hold memory
PASSES = 12  # work of one inner step, forward and backward, in forward passes: 3 for `first`, 9 for autograd's `second`


def choose(asked: Runtime, device: torch.device, spec: Network, flops: float) -> tuple[Backend, str]:
    """How to differentiate a network for so many floating-point operations, and a sentence for the user where there is one.

    The choice rests on the settings, the device, the compiler and the amount of work, never on a timing: the backends round
    differently, and the same parameters must give the same bytes.
    """
    if asked.compile != "off" and device.type == "cpu" and by_hand.knows(spec) and not by_hand.problem():
        return "kernels", ""
    if asked.compile != "off" and device.type == "cuda":
        fuses, note = runtime.fuses() if by_hand.knows(spec) else (False, "")
        return "fused" if fuses else "graphs", note
    compiled, note = runtime.compiles(asked, flops)
    return "compiled" if compiled else "eager", note


def built(function: Callable[Arguments, Result], backend: Backend) -> Callable[Arguments, Result]:
    """A pure function of tensors in the form that a backend runs."""
    if backend == "compiled":
        return runtime.compiled(function)
    return Recorded(function) if backend in ("graphs", "fused") else function


class Derivatives:
    """Derivatives of loss(network(theta, batch), labels); labels are classes (B,) or numbers, as probabilities (B, K)."""

    def __init__(
        self,
        network: Logits,
        bfloat16: bool = False,
        backend: Backend = "eager",
        memory_mib: int = 0,
        loss: Loss = F.cross_entropy,
    ):
        """A loop may take `memory_mib`. Raises TypeError where the backend is by hand and the network none that they know."""
        self._network = network
        self._loss = loss
        self._bfloat16 = bfloat16
        self._memory = memory_mib * 2**20
        self._by_hand: ByHand | None = None
        if backend in ("kernels", "fused"):
            if not isinstance(network, FlatNetwork):
                raise TypeError("kernels differentiate a FlatNetwork")
            hand = ByHand(network, bfloat16)
            if backend == "kernels":
                self._by_hand = hand
            else:  # a recording keeps nothing, so that there are no sweeps
                self._first, self._second = hand.first, hand.second  # type: ignore[method-assign]
        self._first, self._second = built(self._first, backend), built(self._second, backend)  # type: ignore[method-assign]

    def loss(self, theta: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
        """The batch's loss, a scalar in the precision of theta."""
        with self._autocast(theta.device.type):
            outputs = self._network(theta, batch)
        return self._loss(outputs.to(theta.dtype), labels)

    def first(self, theta: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
        """The gradient with respect to theta, (P,)."""
        return self.sweep(theta, batch, labels)[0]

    def sweep(self, theta: Tensor, batch: Tensor, labels: Tensor) -> tuple[Tensor, Sweep | None]:
        """`first`, and what of it `second` can use again at the same point; None where it can't."""
        if self._by_hand is not None:
            return self._by_hand.sweep(theta, batch, labels)
        return self._first(theta, batch, labels), None

    def second(self, theta: Tensor, batch: Tensor, labels: Tensor, a: Tensor, sweep: Sweep | None = None) -> tuple[Tensor, ...]:
        """The gradient of <first, a> with respect to theta (P,), batch (B, C, H, W) and, if real numbers, labels (B, K).

        `sweep` saves time and changes no bit.
        """
        if self._by_hand is not None:
            return self._by_hand.second(theta, batch, labels, a, sweep)
        return self._second(theta, batch, labels, a)

    def room(self, batch: Tensor, taken: int) -> int:
        """So many sweeps over batches (B, C, H, W) fit into what a loop may take, `taken` bytes of which are gone."""
        return 0 if self._by_hand is None else max(self._memory - taken, 0) // self._by_hand.sweep_bytes(batch)

    def kept_bytes(self, batch: Tensor, taken: int, steps: int) -> int:
        """Of all sweeps that a loop of so many steps keeps."""
        return 0 if self._by_hand is None else min(self.room(batch, taken), steps) * self._by_hand.sweep_bytes(batch)

    def _first(self, theta: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
        theta = theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(theta, batch, labels), theta)
        return gradient

    def _second(self, theta: Tensor, batch: Tensor, labels: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        inputs = [x.detach().requires_grad_() for x in (theta, batch, labels) if x.is_floating_point()]
        targets = inputs[2] if len(inputs) == 3 else labels
        (gradient,) = torch.autograd.grad(self.loss(inputs[0], inputs[1], targets), inputs[0], create_graph=True)
        return torch.autograd.grad(gradient, inputs, grad_outputs=a)

    def _autocast(self, device: str) -> AbstractContextManager[object]:
        return torch.autocast(device, torch.bfloat16) if self._bfloat16 else contextlib.nullcontext()
