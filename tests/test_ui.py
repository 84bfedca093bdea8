"""The MLflow UI in a real browser: what a person sees of AST, MTT and a study with its trials."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import mlflow
import numpy as np
import pytest

from src.tracking import mlflow_store
from src.tracking import tracker as tracking
from src.tracking.tracker import Nest
from tests.imports import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]

SECONDS = 60.0  # that a page may take
TEXT, IMAGES = "document.body ? document.body.innerText : ''", "[...document.images].map(i => i.naturalWidth + ' ' + i.src)"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError


def run(name: str, ipc: int, height: float) -> None:
    with tracking.track("digits", name, "run", {}) as tracker:
        tracker.params({"run": {"ipc": ipc}, "distill": {"method": name.split("-")[-1]}})
        for step in range(20):
            tracker.metrics({"matching_loss": height / (step + 1)}, step)
        for step in (0, 10, 20):
            tracker.image("synthetic", np.full((64, 64, 3), 10 * step, np.uint8), step)
        tracker.metrics({"test_accuracy_mean": 0.9})


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The UI on a store with two runs and a study of two trials."""
    folder = tmp_path_factory.mktemp("ui")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run("digits-ipc1-ast", 1, 2.0)
        run("digits-ipc1-mtt", 1, 1.0)
        with tracking.track("digits-studies", "tune digits-ipc1-ast", "study", {}) as study:
            for number in range(2):
                with (
                    tracking.nested(Nest("digits-studies", study.opening)),
                    tracking.track("digits", f"trial-{number:03d}", "trial", {}) as trial,
                ):
                    trial.metrics({"val_accuracy_mean": 0.5})
        port = free_port()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "src.cli", "ui", "--port", str(port)]
        server = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}/#"
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def browse(address: str, script: str, done: Callable[[Any], bool], profile: Path) -> Any:
    """What a script finds in a page, once it is what was waited for."""
    port = free_port()
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1600,2000", f"--user-data-dir={profile}")
    browser = subprocess.Popen(
        [str(CHROMIUM), *options, f"--remote-debugging-port={port}", "about:blank"], stderr=subprocess.DEVNULL
    )
    try:
        return asyncio.run(_browse(f"http://127.0.0.1:{port}/json", address, script, done))
    finally:
        browser.terminate()
        browser.wait()


async def _browse(tabs: str, address: str, script: str, done: Callable[[Any], bool]) -> Any:
    async with aiohttp.ClientSession() as session:
        found = await _until(lambda: _tabs(session, tabs), bool)
        page = next(tab["webSocketDebuggerUrl"] for tab in found if tab["type"] == "page")
        async with session.ws_connect(page, max_msg_size=0) as socket:
            await _ask(socket, "Page.navigate", url=address)

            async def look() -> Any:
                answer = await _ask(socket, "Runtime.evaluate", expression=script, returnByValue=True)
                return answer["result"].get("value")

            return await _until(look, done)


async def _tabs(session: aiohttp.ClientSession, address: str) -> Any:
    try:
        async with session.get(address) as answer:
            return await answer.json(content_type=None)
    except aiohttp.ClientError:
        return None


async def _ask(socket: Any, method: str, **params: Any) -> Any:
    await socket.send_json({"id": 1, "method": method, "params": params})
    while "result" not in (message := await socket.receive_json()):
        pass
    return message["result"]


async def _until(look: Callable[[], Awaitable[Any]], done: Callable[[Any], bool]) -> Any:
    end, found = time.monotonic() + SECONDS, None
    while time.monotonic() < end:
        found = await look()
        if done(found):
            return found
        await asyncio.sleep(0.5)
    raise AssertionError(f"not seen in {SECONDS:.0f} s: {found}")


def test_runs_curves_and_images_side_by_side(address: str, tmp_path: Path) -> None:
    chosen = quote("params.`run.ipc` = '1'")
    page = f"{address}/experiments/1/runs?compareRunsMode=CHART&searchFilter={chosen}"
    wanted = ("digits-ipc1-ast", "digits-ipc1-mtt", "matching_loss", "test_accuracy_mean", "synthetic")
    text = browse(page, TEXT, lambda text: bool(text) and all(word in text for word in wanted), tmp_path)
    assert all(word in text for word in wanted)

    def loaded(images: list[str] | None) -> list[str]:
        return [image for image in images or [] if "synthetic" in image and not image.startswith("0 ")]

    assert len(loaded(browse(page, IMAGES, lambda images: len(loaded(images)) == 2, tmp_path))) == 2


def test_a_study_has_its_trials_inside(address: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(mlflow_store.uri())
    found = client.get_experiment_by_name("digits-studies")
    assert found is not None
    page = f"{address}/experiments/{found.experiment_id}/runs?compareRunsMode=TABLE"
    opened = "(document.querySelector('.ag-row button') || document.body).click(), document.body.innerText"
    words = ("tune digits-ipc1-ast", "trial-000", "trial-001")
    text = browse(page, opened, lambda text: bool(text) and all(word in text for word in words), tmp_path)
    assert all(word in text for word in words)
