"""What the figures are held against: a float64 gradient, and the speed of the machine's own convolution."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.bench import engine, measure, plain
from src.bench.problem import build, matching_problem
from src.bench.settings import MatchingSetting
from src.maths.derivatives import PASSES
from src.store import cost

PEAK_SECONDS, PEAK_CALLS = 1.0, 5  # at least, of each precision


def error(setting: MatchingSetting) -> dict[str, Any]:
    """Relative L2 error of both sides' image gradients against the fully unrolled float64 one, on the same numbers."""
    setting = setting.for_error()
    asked, device = engine.start(setting)
    given = matching_problem(setting, device)
    found, _ = engine.derivatives(setting, given, asked)
    gradients = {"engine": engine.image_gradient(found, given), "plain": plain.image_gradient(given)}
    exact = plain.image_gradient(given.double())
    errors = {side: float((value.double() - exact).norm() / exact.norm()) for side, value in gradients.items()}
    return {"errors": errors, "steps": setting.syn_steps}


def peak(setting: MatchingSetting) -> dict[str, Any]:
    """Speed of the network's largest convolution on the batch of one inner step, in GFLOP/s of each precision: the best of
    forward and both passes back, in either order of memory."""
    _, device = engine.start(setting)
    module = build(setting, 0).to(device)
    layer, images = _largest_convolution(module, torch.zeros(1, setting.channels, setting.size, setting.size, device=device))
    batch = torch.randn(setting.count, *images.shape[1:], generator=torch.Generator().manual_seed(0)).to(device)
    speeds = {name: _speed(layer, batch, dtype) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))}
    forward = engine.forward(matching_problem(setting, device)) * setting.count * setting.syn_steps
    work = {"plain": plain.PLAIN_PASSES * forward, "engine": PASSES * forward}  # of one iteration
    return {"gflops": speeds, "work": work, **measure.surroundings(device)}


def _largest_convolution(module: nn.Module, images: Tensor) -> tuple[nn.Conv2d, Tensor]:
    """The convolution with most work on images (1, C, H, W), and what it reads."""
    found: list[tuple[int, nn.Conv2d, Tensor]] = []
    with torch.no_grad():
        for layer in module.children():
            if isinstance(layer, nn.Conv2d):
                found.append((_work(layer, images), layer, images))
            images = layer(images)
    _, largest, images = max(found, key=lambda entry: entry[0])
    return largest, images


def _work(layer: nn.Conv2d, images: Tensor) -> int:
    """Floating-point operations of the layer on images (B, C, H, W): a multiplication and an addition for each weight."""
    return int(2 * layer(images).numel() * layer.weight[0].numel())


def _speed(layer: nn.Conv2d, images: Tensor, dtype: torch.dtype) -> float:
    """GFLOP/s of the fastest pass, each from the median call of those that fit into its share of PEAK_SECONDS."""
    with torch.no_grad():
        output = layer(images)
        work, passes = _work(layer, images), []
        for order in (torch.contiguous_format, torch.channels_last):
            x, weight, gradient = (one.to(dtype).contiguous(memory_format=order) for one in (images, layer.weight, output))
            passes += [functools.partial(_pass, layer, x, weight, gradient, wanted) for wanted in ("output", "input", "weight")]
        return max(work / _median_call(one, images.device) / 1e9 for one in passes)


def _pass(layer: nn.Conv2d, x: Tensor, weight: Tensor, gradient: Tensor, wanted: str) -> None:
    if wanted == "output":
        F.conv2d(x, weight, padding=layer.padding)
        return
    mask = [wanted == "input", wanted == "weight", False]
    padding = [int(side) for side in layer.padding]
    torch.ops.aten.convolution_backward(gradient, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, mask)


def _median_call(call: Callable[[], None], device: torch.device) -> float:
    call()
    timed: list[float] = []
    while sum(timed) < PEAK_SECONDS / 6 or len(timed) < PEAK_CALLS:
        timed.append(cost.seconds(call, device))
    return statistics.median(timed)
