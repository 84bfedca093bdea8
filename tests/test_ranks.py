"""One run on several processes: the derivatives of one, the same bytes for as many; whoever is lost, it ends well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ruamel.yaml import YAML
from torch import Tensor

from src.maths import inner_loop, networks
from src.maths.derivatives import Derivatives
from src.maths.inner_loop import InnerRule, MatchingGradient
from src.maths.networks import FlatNetwork, ImageShape
from src.maths.shared_out import SharedOut
from src.maths.targets.snapshots import WayPoint
from src.settings.networks import ConvNet
from src.store import files
from src.store.store import Store
from tests import studying
from tests.studying import RUN

SHAPE = ImageShape(1, 8, 3)


def at_once(ranks: int, work: Callable[[int, Callable[[Tensor], Tensor]], Any]) -> list[Any]:
    """work(rank, gather) of each rank, in threads that wait for each other."""
    barrier, numbers, found = threading.Barrier(ranks), [torch.empty(0)] * ranks, [None] * ranks

    def one(rank: int) -> None:
        def gather(mine: Tensor) -> Tensor:
            numbers[rank] = mine
            barrier.wait(20)
            together = torch.stack(numbers)
            barrier.wait(20)
            return together

        found[rank] = work(rank, gather)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def gradient(derivatives: Derivatives, soft: bool, batch: int) -> MatchingGradient:
    """Of a loop in float64 on seven images, `batch` a step."""
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(7, 1, 8, 8, generator=draws, dtype=torch.float64)
    labels = torch.arange(7) % SHAPE.classes
    theta = networks.flatten(networks.build(ConvNet(depth=2, width=8), SHAPE, torch.Generator().manual_seed(2))).double()
    steps = inner_loop.draw_steps(7, 5, batch, ("color", "crop"), draws)
    steps = [inner_loop.InnerStep(one.index, one.draw.to(images.device, images.dtype)) for one in steps]
    goals = [WayPoint(step, theta + 0.01 * step, 1.0, torch.ones((), dtype=torch.float64)) for step in (3, 5)]
    given = torch.nn.functional.one_hot(labels, SHAPE.classes).double().softmax(1) if soft else labels
    return inner_loop.matching_gradient(
        derivatives, images, given, torch.tensor(0.1, dtype=torch.float64), theta, steps, goals, InnerRule(0.5, 1e-3, 0.7)
    )


def plain() -> Derivatives:
    return Derivatives(FlatNetwork(networks.build(ConvNet(depth=2, width=8), SHAPE, torch.Generator()).double()))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("ranks", "batch"), [(2, 7), (3, 7), (3, 2)])
def test_the_gradient_is_that_of_one_process(ranks: int, batch: int, soft: bool) -> None:
    """On every rank, to the same bit there; also where a rank has no image of a step."""
    expected = gradient(plain(), soft, batch)
    found = at_once(ranks, lambda rank, gather: gradient(SharedOut(plain(), rank, ranks, gather), soft, batch))
    for one in found:
        for name in ("terms", "images", "syn_lr", *(("labels",) if soft else ())):
            whole, own = getattr(expected, name), getattr(one, name)
            assert (own - whole).norm() <= 1e-10 * whole.norm()
            assert torch.equal(own, getattr(found[0], name))


def test_parts_are_all_images_once() -> None:
    for ranks, count in ((2, 7), (3, 2), (4, 4), (5, 23)):
        taken = [SharedOut(plain(), rank, ranks, lambda x: x)._part(count, rank) for rank in range(ranks)]
        assert [one for part, _ in taken for one in range(count)[part]] == list(range(count))
        assert sum(share for _, share in taken) == pytest.approx(1)
        assert max(len(range(count)[part]) for part, _ in taken) - min(len(range(count)[part]) for part, _ in taken) <= 1


# -- through torchrun

STORE = Store()


def command(ranks: int) -> list[str]:
    start = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone", "--"] if ranks > 1 else []
    return [sys.executable, *start, "-m", "src.cli", "distill", "--run", RUN]


def environment(folder: Path) -> dict[str, str]:
    return {**studying.environment(folder), "GLOO_SOCKET_IFNAME": "lo"}


def distilled(folder: Path, ranks: int) -> dict[str, Tensor]:
    done = subprocess.run(command(ranks), cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = Store(folder / "data")
    return {"pixels": found.load_synthetic(RUN).pixels, "digest": files.digest(found.synthetic_file(RUN))}  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository's top with experts."""
    raw = studying.raw_params()
    raw["runtime"] |= {"checkpoint_seconds": 0.2}
    raw["runs"][RUN]["distill"] |= {"syn_steps": 6, "lr_img": 0.1}
    found = studying.folder_of(tmp_path_factory.mktemp("ranks"), raw)
    done = studying.call(found, f"experts --experts {raw['runs'][RUN]['experts']}")
    assert done.returncode == 0, done.stderr
    return found


def begun_anew(folder: Path, iterations: int) -> None:
    """Nothing of the run is left, which is to have so many iterations."""
    raw = YAML(typ="safe").load((folder / "params.yaml").read_text(encoding="utf-8"))
    raw["runs"][RUN]["distill"]["iterations"] = iterations
    YAML(typ="safe").dump(raw, folder / "params.yaml")
    for path in (*(folder / "data/distill").rglob("*.*"), *(folder / ".cache/checkpoints/distill").rglob("*.safetensors")):
        path.unlink()


@pytest.mark.slow
def test_a_run_on_several_processes_is_that_of_one(folder: Path) -> None:
    begun_anew(folder, 12)
    alone = distilled(folder, 1)
    for ranks in (2, 3):
        begun_anew(folder, 12)
        once = distilled(folder, ranks)
        begun_anew(folder, 12)
        assert distilled(folder, ranks)["digest"] == once["digest"]
        assert (once["pixels"] - alone["pixels"]).norm() <= 1e-3 * alone["pixels"].norm()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_killed_ends_all_and_one_goes_on(lost: int, folder: Path) -> None:
    begun_anew(folder, 60)
    running = subprocess.Popen(
        command(2), cwd=folder, env=environment(folder), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    checkpoints = folder / ".cache/checkpoints/distill"
    while not list(checkpoints.rglob("*.safetensors")):
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    by_rank = {one.environ().get("RANK"): one for one in psutil.Process(running.pid).children() if "RANK" in one.environ()}
    start = time.monotonic()
    os.kill(by_rank[str(lost)].pid, signal.SIGKILL)
    _, said = running.communicate(timeout=60)
    assert time.monotonic() - start < 60
    assert running.returncode != 0
    assert said.count("another process of this run is gone") == 1
    assert "LostRankError" not in said
    assert not list((folder / "data/distill").rglob("synthetic.safetensors"))
    done = subprocess.run(command(1), cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{RUN}: resumed at iteration" in done.stderr


@pytest.mark.slow
def test_a_stop_is_agreed_on(folder: Path) -> None:
    """Ctrl-C reaches all of them, SIGTERM torchrun alone, which passes it on."""
    begun_anew(folder, 60)
    running = subprocess.Popen(command(2), cwd=folder, env=environment(folder), stderr=subprocess.PIPE, text=True)
    while not list((folder / ".cache/checkpoints/distill").rglob("*.safetensors")):
        time.sleep(0.05)
    running.terminate()
    _, said = running.communicate(timeout=60)
    assert said.count("Stopped by SIGTERM: what is done is kept") == 1, said
    assert "is gone" not in said


@pytest.mark.slow
def test_rank_0_may_load_for_longer_than_numbers_take(tmp_path: Path) -> None:
    """What it tells is waited for, though another rank would count as gone by then."""
    script = tmp_path / "told.py"
    script.write_text(
        "import os, time\n"
        "from src.process import ranks\n"
        "ranks.WAIT_SECONDS = 10.0\n"  # meeting each other takes some of it, where other work goes on
        "group = ranks._group('cpu')\n"
        "if os.environ['RANK'] == '0':\n"
        "    time.sleep(14)\n"
        "print(os.environ['RANK'], 'was told', group.told('of it' if os.environ['RANK'] == '0' else None), flush=True)\n",
        encoding="utf-8",
    )
    started = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    there = {**environment(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(started, env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 was told of it", "1 was told of it"]
