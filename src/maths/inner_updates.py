"""The student's update of one step, and its adjoint: SGD with momentum, or Adam.

Both take g_t = grad L_t(theta_t) + decay * theta_t and end in theta_{t+1} = theta_t - alpha * u_t. The adjoint of a step gets
lam, that of theta_{t+1}, and gives that of g_t:

    SGD:   m_{t+1} = mu * m_t + g_t;  u_t = m_{t+1}
           a = nu - alpha * lam;  nu = mu * a
    Adam:  m_{t+1} = b1 * m_t + (1 - b1) * g_t;  v_{t+1} = b2 * v_t + (1 - b2) * g_t^2
           u_t = (m_{t+1} / c1) / (s + eps),  s = sqrt(v_{t+1} / c2),  c1 = 1 - b1^n,  c2 = 1 - b2^n,  n steps taken
           a_m = nu_m - alpha * lam / (c1 * (s + eps));  a_v = nu_v + alpha * lam * u_t / ((s + eps) * 2 * s * c2)
           a = (1 - b1) * a_m + 2 * (1 - b2) * g_t * a_v;  nu_m = b1 * a_m;  nu_v = b2 * a_v

with nu what the step after it passed back, 0 at the end. For SGD nothing is kept of a step; for Adam g_t and v_{t+1}.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Optimiser = Literal["sgd", "adam"]
ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8  # torch's


@dataclass(frozen=True)
class Moments:
    """What a student's optimiser carries from step to step."""

    first: Tensor  # (P,), SGD's momentum or Adam's mean gradient
    second: Tensor  # (P,), Adam's mean squared gradient; zero for SGD
    steps: int = 0  # taken


class Update(Protocol):
    """One loop's optimiser: every step forward, then the steps that matter back, one by one, the last one first."""

    @property
    def moments(self) -> Moments:
        """As they are after the last step forward."""
        ...

    @property
    def nbytes(self) -> int:
        """What is kept for the way back."""
        ...

    def step(self, theta: Tensor, gradient: Tensor, decay: Tensor, syn_lr: Tensor) -> Tensor:
        """theta_{t+1} (P,), from grad L_t and decay * theta_t."""
        ...

    def back(self, t: int, lam: Tensor, moved: Tensor, syn_lr: Tensor) -> Tensor:
        """The adjoint of g_t (P,), from that of theta_{t+1} and what the step moved, theta_t - theta_{t+1}."""
        ...


def update_of(optimiser: Optimiser, momentum: float, moments: Moments, kept: int) -> Update:
    """An optimiser that goes on from these moments, for `kept` steps that are to go back; 0 for any that are not."""
    return Adam(moments, kept) if optimiser == "adam" else Sgd(momentum, moments)


def rest(theta: Tensor) -> Moments:
    """Those of a student before its first step."""
    return Moments(torch.zeros_like(theta), torch.zeros_like(theta))


class Sgd:
    """SGD with momentum."""

    nbytes = 0

    def __init__(self, momentum: float, moments: Moments):
        self._momentum, self._begun, self._taken = momentum, moments, 0
        self._velocity, self._nu = moments.first, torch.zeros_like(moments.first)

    @property
    def moments(self) -> Moments:
        return Moments(self._velocity, self._begun.second, self._begun.steps + self._taken)

    def step(self, theta: Tensor, gradient: Tensor, decay: Tensor, syn_lr: Tensor) -> Tensor:
        self._velocity = self._momentum * self._velocity + gradient + decay
        self._taken += 1
        return theta - syn_lr * self._velocity

    def back(self, t: int, lam: Tensor, moved: Tensor, syn_lr: Tensor) -> Tensor:
        a = self._nu - syn_lr * lam
        self._nu = self._momentum * a
        return a


class Adam:
    """Adam as torch has it, its step size syn_lr. What it keeps of `kept` steps is one block, as inner_loop's thetas are."""

    def __init__(self, moments: Moments, kept: int):
        self.moments = moments
        self._kept = moments.first.new_zeros(kept, 2, len(moments.first))  # g_t and v_{t+1}
        self._begun, self._nu = moments.steps, rest(moments.first)

    @property
    def nbytes(self) -> int:
        return self._kept.nbytes

    def step(self, theta: Tensor, gradient: Tensor, decay: Tensor, syn_lr: Tensor) -> Tensor:
        (b1, b2), gradient, before = ADAM_BETAS, gradient + decay, self.moments
        first = b1 * before.first + (1 - b1) * gradient
        second = b2 * before.second + (1 - b2) * gradient.square()
        self.moments = Moments(first, second, before.steps + 1)
        if len(self._kept):
            self._kept[before.steps - self._begun] = torch.stack((gradient, second))
        corrected, root = first / _correction(b1, self.moments.steps), _root(second, self.moments.steps)
        return theta - syn_lr * corrected / (root + ADAM_EPS)

    def back(self, t: int, lam: Tensor, moved: Tensor, syn_lr: Tensor) -> Tensor:
        (b1, b2), number = ADAM_BETAS, self._begun + t + 1
        gradient, second = self._kept[t, 0], self._kept[t, 1]
        root = _root(second, number)
        scale = root + ADAM_EPS
        # where the gradient has been 0 so far, u_t has the slope of the mean gradient's alone
        slope = torch.where(root > 0, lam * moved / (scale * 2 * root * _correction(b2, number)), 0)
        first = self._nu.first - syn_lr * lam / (_correction(b1, number) * scale)
        squares = self._nu.second + slope
        self._nu = Moments(b1 * first, b2 * squares)
        return (1 - b1) * first + 2 * (1 - b2) * gradient * squares


def _correction(beta: float, number: int) -> float:
    """c, by which a mean that began with 0 falls short after so many steps."""
    return 1 - float(beta**number)


def _root(second: Tensor, number: int) -> Tensor:
    """s (P,) after so many steps."""
    return (second / _correction(ADAM_BETAS[1], number)).sqrt()
