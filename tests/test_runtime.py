"""What the machine lends: threads, device, allocator, the choice to compile, and where the work lives."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from src.ground import host, runtime
from src.ground.errors import UserError
from src.settings.runtime import Runtime
from src.stages import work


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's own state comes back; none of the variables that are read is set at first."""
    for name in ("CUBLAS_WORKSPACE_CONFIG", "CXX", "DVC_ROOT", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that what a test leaves behind is withdrawn
        monkeypatch.delenv(name)
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(strict, warn_only=warns)


def cuda(monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)


def compiler(monkeypatch: pytest.MonkeyPatch, folder: Path, *names: str) -> None:
    """A PATH that holds nothing but these programs."""
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_start_sets_the_threads_and_reproducible_kernels() -> None:
    torch.use_deterministic_algorithms(False)
    assert torch.get_num_threads() == 1  # conftest's
    runtime.start(Runtime(device="cpu"))
    assert torch.get_num_threads() == 1
    runtime.start(Runtime(device="cpu", threads=2))
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(
    ("asked", "present", "given"),
    [("cpu", False, "cpu"), ("cpu", True, "cpu"), ("auto", False, "cpu"), ("auto", True, "cuda"), ("cuda", True, "cuda")],
)
def test_device(asked: str, present: bool, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, present)
    assert runtime.start(Runtime(device=asked)) == torch.device(given)
    # no reproducible kernel exists there for the gradient of grid_sample
    assert torch.is_deterministic_algorithms_warn_only_enabled() == (given == "cuda")


def test_any_kernels_where_speed_goes_before_bytes() -> None:
    runtime.start(Runtime(device="cpu", deterministic=False))
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
    runtime.start(Runtime(device="cpu"))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark


def test_absent_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, False)
    with pytest.raises(UserError, match=r"runtime\.device is 'cuda'.*'auto' or 'cpu'"):
        runtime.start(Runtime(device="cuda"))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="the setting is glibc's")
def test_freed_memory_is_kept() -> None:
    """By default each of these tensors is mapped anew, 12,288 pages of 4 KiB; now only until the heap has settled."""
    runtime.start(Runtime(device="cpu"))

    def faults_of(uses: int) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(uses):
            torch.ones(48 * 2**20 // 4)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults_of(10)
    assert faults_of(10) < 3 * 12_288


@pytest.mark.parametrize(
    ("precision", "device", "has", "said"),
    [
        ("bfloat16", "cpu", {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False, "avx2": True}, True),
        ("bfloat16", "cpu", {"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ("bfloat16", "cpu", {"architecture": "aarch64", "bf16": True}, False),
        ("bfloat16", "cpu", {"architecture": "aarch64", "neon": True, "bf16": False}, True),
        ("bfloat16", "cuda", {"avx512_bf16": False}, False),
        ("float32", "cpu", {"avx512_bf16": False}, False),
        ("tf32", "cuda", {}, False),
    ],
)
def test_bfloat16_without_instructions_for_it_is_said(
    precision: str, device: str, has: dict[str, object], said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    sentence = runtime.precision_note(Runtime(precision=precision), torch.device(device))
    assert bool(sentence) == said
    assert not said or "set it to 'float32'" in sentence


def test_cpus_have_no_tf32() -> None:
    assert "this is float32" in runtime.precision_note(Runtime(precision="tf32"), torch.device("cpu"))


@pytest.fixture
def flags() -> Iterator[None]:
    """Given back as they were."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [one.allow_tf32 for one in backends]
    yield
    for one, value in zip(backends, before, strict=True):
        one.allow_tf32 = value


@pytest.mark.usefixtures("flags")
@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_float32_on_cuda_is_what_it_says(precision: str, tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newer flags, which the compiler reads, say the same."""
    cuda(monkeypatch, True)
    runtime.start(Runtime(device="cuda", precision=precision))
    backends = torch.backends
    assert (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32) == (tf32, tf32)
    found = backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision
    assert [one == "tf32" for one in found] == [tf32, tf32]


@pytest.mark.usefixtures("flags")
def test_what_is_captured_for_other_kernels_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, True)
    asked = [{}, {"precision": "tf32"}, {"deterministic": False}, {"precision": "bfloat16"}]
    found = []
    for one in asked:
        runtime.start(Runtime(device="cuda", **one))
        found.append(runtime.numerics())
    assert len(set(found)) == 3
    assert found[0] == found[3]  # bfloat16 is a part of what is asked for, and rounds no other product


def test_a_stage_says_what_makes_it_slow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert work.start(Runtime(device="cpu", precision="bfloat16"), "digits") == torch.device("cpu")
    assert "digits: runtime.precision is 'bfloat16'" in capsys.readouterr().err
    work.start(Runtime(device="cpu"), "digits")
    assert capsys.readouterr().err == ""


LONG, SHORT = 2 * runtime.COMPILE_FLOPS, runtime.COMPILE_FLOPS / 2


@pytest.mark.parametrize(
    ("asked", "flops", "compiles"),
    [
        ("off", SHORT, False),
        ("off", LONG, False),
        ("auto", SHORT, False),
        ("auto", LONG, True),
        ("on", 0.0, True),
        ("on", SHORT, True),
        ("on", LONG, True),
    ],
)
def test_compiling(asked: str, flops: float, compiles: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(monkeypatch, tmp_path, "g++")
    chosen, sentence = runtime.compiles(Runtime(compile=asked), flops)
    assert chosen == compiles
    assert ("compiling" in sentence) if compiles else (sentence == "")
    assert ("TORCHINDUCTOR_CACHE_DIR" in os.environ) == compiles


@pytest.mark.parametrize(("asked", "flops"), [("on", 0.0), ("on", LONG), ("auto", LONG)])
def test_no_compiler_means_eager_and_says_so(asked: str, flops: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(monkeypatch, tmp_path)
    chosen, sentence = runtime.compiles(Runtime(compile=asked), flops)
    assert not chosen
    assert "the C++ compiler 'g++' is not found" in sentence
    assert "install g++" in sentence
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


@pytest.mark.parametrize(("asked", "flops"), [("off", LONG), ("auto", SHORT)])
def test_a_missing_compiler_is_not_mentioned_where_none_is_wanted(
    asked: str, flops: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(monkeypatch, tmp_path)
    assert runtime.compiles(Runtime(compile=asked), flops) == (False, "")


@pytest.mark.parametrize(
    ("said", "sentence"), [("fatal error: omp.h: No such file", "omp.h: No such file"), ("", "exit code 1")]
)
def test_a_broken_compiler_means_eager_and_says_why(
    said: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(monkeypatch, tmp_path, "g++")
    (tmp_path / "g++").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n", encoding="utf-8")
    chosen, text = runtime.compiles(Runtime(compile="on"), LONG)
    assert not chosen
    assert "'g++' does not work, so this runs eagerly" in text
    assert sentence in text


def test_cxx_names_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(monkeypatch, tmp_path, "clang++")
    assert not runtime.compiles(Runtime(compile="on"), LONG)[0]
    monkeypatch.setenv("CXX", "clang++")
    assert runtime.compiles(Runtime(compile="on"), LONG)[0]
    monkeypatch.setenv("CXX", "missing++")
    assert not runtime.compiles(Runtime(compile="on"), LONG)[0]


def test_compiled_code_is_kept_in_the_workspace_unless_said_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a repository it is with the user's other caches."""
    compiler(monkeypatch, tmp_path, "g++")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "owner"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert host.compiled_code() == tmp_path / "caches" / "smooth-distillation" / "torchinductor"
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "dvc.yaml").touch()
    runtime.compiles(Runtime(compile="on"), LONG)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "owner" / ".cache" / "torchinductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    runtime.compiles(Runtime(compile="on"), LONG)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"


def test_workspace_is_dvcs_root_or_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, owner = tmp_path / "here", tmp_path / "owner"
    here.mkdir()
    monkeypatch.chdir(here)
    assert host.workspace() == here.resolve()
    monkeypatch.setenv("DVC_ROOT", str(owner))
    assert host.workspace() == owner.resolve()
    monkeypatch.setenv("DVC_ROOT", "../owner")
    assert host.workspace() == owner.resolve()


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="getrusage's unit is known for these")
def test_peak_memory_is_in_mebibytes() -> None:
    before = runtime.peak_memory_mib(torch.device("cpu"))
    assert 50 < before < 100_000
    held = torch.ones(int((before + 64) * 2**20) // 4)
    assert runtime.peak_memory_mib(torch.device("cpu")) >= held.nbytes / 2**20
