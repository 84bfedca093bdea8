"""`precision: bfloat16`, on a CPU, by what reaches the operators: the same in all training, and nothing of it elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from src.bench import engine, training
from src.bench.problem import matching_problem
from src.bench.settings import EvaluateSetting, ExpertsSetting, MatchingSetting
from src.loops import outer
from src.maths import inner_loop
from src.maths.inner_loop import InnerRule
from src.maths.networks import FlatNetwork
from src.maths.targets.snapshots import WayPoint
from src.settings import resolved
from src.settings.params import Params, parse
from src.stages import distill, evaluate, experts, plan, plan_steps, prepare
from src.stages.plan_steps import Subject
from src.stages.records import experts_record
from src.store.values import Record, Statistics, SyntheticSet
from tests.small_run import STORE

CPU = torch.device("cpu")
PRODUCTS = {"convolution", "convolution_backward", "addmm", "mm", "bmm"}
BETWEEN = {"native_group_norm", "avg_pool2d"}
TINY: dict[str, Any] = {"size": 8, "channels": 1, "classes": 4, "width": 4, "depth": 2, "compile": "off", "device": "cpu"}


class Types(TorchDispatchMode):
    """The types of the first tensor that operators read, in training alone: what scores has no gradient.

    What is differentiated by hand has none either, and is float32 as scores are: `everything` counts them too.
    """

    def __init__(self, everything: bool = False) -> None:
        super().__init__()
        self.everything = everything
        self.products: set[torch.dtype] = set()
        self.between: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if self.everything or torch.is_grad_enabled() or name == "convolution_backward":
            self.products |= {one.dtype for one in args[:2] if name in PRODUCTS}
            self.between |= {args[0].dtype} if name in BETWEEN else set()
        return function(*args, **(kwargs or {}))


@pytest.fixture
def params(valid_params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Every path of training, in this process; images prepared."""
    monkeypatch.chdir(tmp_path)
    valid_params["runtime"] |= {"precision": "bfloat16", "compile": "off", "workers": 1}
    valid_params["networks"]["B2"] = {"depth": 2, "width": 8, "norm": "batch"}
    valid_params["experts"]["smooth"] |= {"count": 1, "epochs": 4, "gradient_penalty": 2.0}
    valid_params["distill"]["ast"] |= {"syn_steps": 3, "max_start_epoch": 1}
    valid_params["runs"] = {"one": {**valid_params["runs"]["one"], "cross": ["B2"]}}
    found = parse(valid_params)
    prepare.run(STORE, resolved.data_set(found, "digits"))
    return found


def subject(params: Params) -> Subject:
    return plan_steps.Subject(resolved.run(params, "one"), STORE.load_statistics(params.runs["one"].dataset), CPU)


def train_experts(params: Params) -> None:
    statistics = STORE.load_statistics("digits")
    experts.train_all(
        STORE, resolved.buffer(params, "smooth"), statistics, experts_record(STORE, resolved.buffer(params, "smooth")), CPU
    )


def match(params: Params) -> None:
    """The inner loop with its second derivatives."""
    given = subject(params)
    network, (images, labels) = FlatNetwork(given.module()), given.noise(10)
    derivatives, _, _ = outer.differentiate(params.distillations["one"], params.runtime, given.spec, network, images)
    steps = inner_loop.draw_steps(10, 3, 10, (), torch.Generator())
    theta = torch.zeros(network.dimension).uniform_(-0.1, 0.1)
    end = WayPoint(3, theta + 0.01, 1.0, torch.ones(()))
    rule = InnerRule(0.9, 0.0, coefficient=1.0)
    inner_loop.matching_gradient(derivatives, images, labels, torch.tensor(0.01), theta, steps, [end], rule)


def train_students(network: str) -> Callable[[Params], None]:
    def train(params: Params) -> None:
        statistics: Statistics = STORE.load_statistics("digits")
        images, labels = subject(params).noise(10)
        synthetic = SyntheticSet(images, labels, torch.tensor(0.01))
        STORE.save_synthetic("one", synthetic, Record("synthetic set", {}))
        evaluate.predict_all(
            STORE, resolved.run(params, "one"), (network, params.networks[network]), synthetic, statistics, CPU
        )

    return train


def measure(params: Params) -> None:
    plan.measure(params.runtime, subject(params))


def bench(kind: str) -> Callable[[Params], None]:
    def run(params: Params) -> None:
        shared = {**TINY, "precision": params.runtime.precision}
        if kind == "matching":
            setting = MatchingSetting(**shared, ipc=1, syn_steps=2)
            with _disable_current_modes():  # its experts are a part of the problem, float32 on both sides
                given = matching_problem(setting, CPU)
            engine.image_gradient(engine.derivatives(setting, given, params.runtime)[0], given)
        elif kind == "experts":
            training.experts(ExpertsSetting(**shared, workers=1, images=8, gradient_penalty=1.0))
        else:
            training.evaluate(EvaluateSetting(**shared, workers=1, ipc=1, epochs=1))

    return run


PATHS: dict[str, Callable[[Params], None]] = {
    "experts": train_experts,
    "inner loop": match,
    "students": train_students("D2"),
    "students with statistics": train_students("B2"),
    "plan": measure,
    "bench": bench("matching"),
    "bench experts": bench("experts"),
    "bench evaluate": bench("evaluate"),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_training_is_in_the_precision_asked_for(path: str, precision: Any, params: Params) -> None:
    asked = params.runtime.model_copy(update={"precision": precision})
    with Types(everything=precision == "float32") as found:
        PATHS[path](replace(params, runtime=asked))
    expected = {getattr(torch, precision)}
    assert (found.products, found.between) == (expected, expected)


@pytest.mark.parametrize(
    "path", [path for path in PATHS if path != "students with statistics" and not path.startswith("bench")]
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_kernels_convolve_in_the_precision_asked_for(path: str, precision: Any, params: Params) -> None:
    """By what the passes back read: forward, scores in float32 are convolutions too."""
    read: set[torch.dtype] = set()

    class Back(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.overloadpacket.__name__ == "convolution_backward":
                read.update(one.dtype for one in args[:3])
            return function(*args, **(kwargs or {}))

    asked = params.runtime.model_copy(update={"precision": precision, "compile": "auto"})
    with Back():
        PATHS[path](replace(params, runtime=asked))
    assert read == {getattr(torch, precision)}


def test_an_expert_chooses_initial_images_in_float32(params: Params) -> None:
    distil = params.distillations["one"].model_copy(update={"iterations": 0, "initialisation": "representative"})
    given, chosen = replace(params, distillations={"one": distil}), []
    thetas = torch.zeros(5, FlatNetwork(subject(given).module()).dimension).uniform_(-0.1, 0.1)
    STORE.save_trajectory("smooth", 0, thetas, experts_record(STORE, resolved.buffer(given, "smooth")))
    for precision in ("float32", "bfloat16"):
        asked = replace(given, runtime=given.runtime.model_copy(update={"precision": precision}))
        chosen.append(distill.initial_images(STORE, resolved.run(asked, "one"), STORE.load_statistics("digits"), CPU)[0])
    assert torch.equal(*chosen)


def test_a_score_is_a_figure_of_float32(params: Params) -> None:
    """Students that were trained in bfloat16 predict in float32."""
    read: list[torch.dtype] = []

    class Scoring(Types):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not torch.is_grad_enabled() and function.overloadpacket.__name__ == "convolution":
                read.append(args[0].dtype)
            return function(*args, **(kwargs or {}))

    with Scoring():
        train_students("D2")(params)
    assert set(read) == {torch.float32}
