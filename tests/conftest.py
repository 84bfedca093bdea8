"""What several test files share."""

from __future__ import annotations

import gc
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from src.ground import fake_cuda
from src.tracking import mlflow_store
from src.tracking import tracker as tracking
from tests import small_run

LONGEST = "test_pipeline.py"

fake_cuda.ready()  # before any backward pass


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: begun last, it would keep one process busy when the others are done."""
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors are small: a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _tracked_at_once() -> None:
    """By the tests' own process: couriers have tests of their own, and those that run the command line meet them."""
    tracking.apart = False


@pytest.fixture(scope="session", autouse=True)
def fill(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Make a store's file. Its tables take a second: all stores of the tests' own process are copies of the first."""
    first, made = tmp_path_factory.mktemp("first") / "mlflow.db", mlflow_store.fill

    def copied(file: Path) -> None:
        if not first.exists():
            made(first)
        shutil.copyfile(first, file)

    mlflow_store.fill = copied
    return copied


@pytest.fixture(scope="module", autouse=True)
def _what_stays_is_not_searched() -> None:
    """For garbage, which takes a third of a second with all libraries at hand."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _signals_are_heeded() -> None:
    """Jobs in the background ignore signals, and so would all that the tests start."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture
def valid_params() -> dict[str, Any]:
    return small_run.params()
