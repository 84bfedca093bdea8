"""Parts of a cluster that need no dask: experts by parts, as a job array trains them, and the GPU of a slot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from src.cli import pipeline
from src.ground.errors import UserError
from src.process import errands, hand
from src.settings import params as reading
from src.settings import resolved
from src.stages import experts, prepare
from tests.small_run import STORE


@pytest.mark.slow
def test_experts_by_parts_are_found_complete(
    valid_params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    valid_params["experts"]["smooth"] |= {"count": 3, "epochs": 5, "batch_size": 256}
    params = reading.parse(valid_params)
    prepare.run(STORE, resolved.data_set(params, "digits"))
    found = resolved.buffer(params, "smooth")
    for part in (range(2, 3), range(2)):
        experts.run_some(STORE, found, part)
    assert not STORE.expert_curves_file("smooth").exists()
    before = {path: path.stat().st_mtime_ns for path in STORE.trajectories_folder("smooth").iterdir()}
    experts.run(STORE, found)
    assert {path: path.stat().st_mtime_ns for path in STORE.trajectories_folder("smooth").iterdir()} == before
    assert len(before) == 3 and STORE.expert_curves_file("smooth").exists()
    with pytest.raises(UserError, match="--only 2-3: smooth has experts 0 to 2"):
        experts.run_some(STORE, found, range(2, 4))


@pytest.mark.parametrize(("text", "expected"), [("3", range(3, 4)), ("0-9", range(10))])
def test_a_span_names_both_ends(text: str, expected: range) -> None:
    assert pipeline.span(text) == expected


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1-b", "0-"])
def test_what_names_no_experts_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="names no experts"):
        pipeline.span(text)


@pytest.mark.parametrize(("number", "expected"), [(0, 0), (1, 1), (2, None)])
def test_each_slot_has_a_gpu_of_its_own(number: int, expected: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv(errands.GPU, str(number))
    if expected is None:
        with pytest.raises(UserError, match="more threads than its 2 GPUs: start it with --nthreads 2"):
            hand._choose_gpu()
    else:
        hand._choose_gpu()
    assert chosen == ([] if expected is None else [expected])
