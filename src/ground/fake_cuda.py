"""A CUDA device that needs no GPU: its tensors have shapes and no numbers, and the memory they would take is counted.

Operations on the host are done; those that touch the device are torch's fake ones (FakeTensorMode). So a loop runs as it would
on a GPU, and ends with a DeviceCrossingError where one would fail or wait: where an operation mixes both memories, or the host
asks the device for a number.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.ground.errors import UserError

DEVICE = torch.device("cuda:0")
BLOCK = 512  # bytes that torch's allocator on CUDA rounds up to
GUARDS, CUDA = "_ZN3c104impl26device_guard_impl_registryE", 1  # torch's array of devices' guards as C++ names it, CUDA's place
HOOKS = "_ZN2at6detail12getCUDAHooksEv"  # gives the object that knows whether torch has CUDA
METHODS = 256  # of such an object, at most
NOT_HERE = f"torch {torch.__version__} can't pretend to have a GPU: plan for one where torch finds it"
SOURCES = str(Path(__file__).resolve().parents[1])


class DeviceCrossingError(RuntimeError):
    """An operation on tensors of both memories, or a number that the host asks the device for."""


class FakeCuda(TorchDispatchMode):
    """Within it, tensors may lie on `DEVICE`.

    `reads` are beginnings of names of functions, such as 'src.maths.distillation.iterate', that may ask the device for numbers:
    ones come back.
    """

    def __init__(self, reads: Sequence[str] = ()):
        super().__init__()
        self.live = 0  # bytes of all tensors on the device
        self.peak = 0  # the most that these have been
        self._reads = tuple(reads)
        self._known: set[int] = set()
        self._stack = ExitStack()

    def __enter__(self) -> FakeCuda:
        self._stack.enter_context(_pretended())
        self._stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [x for x in given if x.device.type == DEVICE.type]
        target = kwargs.get("device")
        wanted = target is not None and torch.device(target).type == DEVICE.type
        if not there and not wanted:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if there and _reads_host(func, target, given):
            self._check_reader(func)
            with unset_fake_temporarily():
                return _ones(func, there[0], kwargs)
        if func not in COPIES:
            _check_same_memory(func, given, there)
        found = func(*args, **kwargs)
        for out in tree_leaves(found):
            if isinstance(out, FakeTensor) and out.device.type == DEVICE.type:
                self._count(out.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._known.add(key)
        weakref.finalize(storage, self._freed, key, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def _check_reader(self, func: Any) -> None:
        """The innermost function of this repository that is running must be one that may read."""
        reader = _innermost(sys._getframe())
        if not reader.startswith(self._reads):
            raise DeviceCrossingError(f"{reader} asks the device for a number ({func}): the host would wait for it")


def peak(work: Callable[[], object], reads: Sequence[str] = ()) -> int:
    """Bytes that the tensors of work on `DEVICE` hold at most; what may be read is FakeCuda's."""
    gc.collect()  # what others left would be freed within
    with FakeCuda(reads) as device:
        work()
    return device.peak


COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
SCALARS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.equal.default)
SIZED_BY_NUMBERS = (torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default)


def _reads_host(func: Any, target: Any, given: Sequence[Tensor]) -> bool:
    """Whether the operation gives the host numbers of the device, or needs them to know its output's size."""
    if func is torch.ops.aten._to_copy.default:
        return target is not None and torch.device(target).type == "cpu"
    if func is torch.ops.aten.copy_.default:
        return given[0].device.type == "cpu"
    return func in SCALARS or func in SIZED_BY_NUMBERS


def _ones(func: Any, tensor: Tensor, kwargs: Mapping[str, Any]) -> Any:
    """What is given for numbers that nobody knows."""
    if func in SCALARS:
        return True if tensor.dtype is torch.bool else 1.0 if tensor.is_floating_point() else 1
    return torch.ones(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype)


def _check_same_memory(func: Any, given: Sequence[Tensor], there: Sequence[Tensor]) -> None:
    """Numbers alone (0-dimensional tensors) may come from the host: a kernel takes them as arguments."""
    if there and any(x.dim() > 0 and x.device.type != DEVICE.type for x in given):
        shapes = ", ".join(f"{tuple(x.shape)} on {x.device.type}" for x in given)
        raise DeviceCrossingError(f"{_innermost(sys._getframe())} mixes both memories in {func}: {shapes}")


def _innermost(frame: FrameType | None) -> str:
    """The innermost function of this repository on the stack, such as 'src.maths.inner_loop._forward'."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(SOURCES) and file != __file__:
            return f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "code outside of this repository"


def ready() -> None:
    """Have torch put a guard that does nothing where CUDA's would be: to be called before a process's first backward pass.

    There autograd counts devices, which it asks their guards. torch does the same for fake tensors where it was built for CUDA
    and that guard counts no device. Built without, it has no guard to ask: one whose every answer is 0 stands there until torch
    has replaced it.
    """
    guards = (ctypes.c_void_p * (CUDA + 1)).in_dll(_library(), GUARDS)
    guard = ctypes.c_void_p(ctypes.addressof(_ALWAYS_ZERO))
    if guards[CUDA] is None:
        guards[CUDA] = ctypes.addressof(guard)
    torch._C._ensureCUDADeviceGuardSet()


@contextmanager
def _pretended() -> Iterator[None]:
    """torch takes CUDA for granted, also where it is built without or finds no device."""
    common, cuda = torch.cuda.amp.common, torch.cuda
    before = common.amp_definitely_not_available, cuda.is_bf16_supported, torch._C._get_cudnn_enabled()
    torch._C._set_cudnn_enabled(False)  # its resampling has no fake operation; torch's own takes the same memory
    try:
        if torch.cuda.is_available():
            yield
            return
        ready()
        common.amp_definitely_not_available = lambda: False  # or autocast would switch itself off
        cuda.is_bf16_supported = lambda *_, **__: True
        with _answers_that_cuda_is_there():
            yield
    finally:
        common.amp_definitely_not_available, cuda.is_bf16_supported = before[:2]
        torch._C._set_cudnn_enabled(before[2])


@contextmanager
def _answers_that_cuda_is_there() -> Iterator[None]:
    """Autograd asks an object of C++ whether torch has CUDA, and a context there. Here its every answer is yes.

    Nothing else asks it: what runs on the device are no kernels.
    """
    get = _library()[HOOKS]
    get.restype = ctypes.c_void_p
    hooks = ctypes.c_void_p.from_address(get())
    before, hooks.value = hooks.value, ctypes.addressof(_ALWAYS_YES)
    try:
        yield
    finally:
        hooks.value = before


def _library() -> ctypes.CDLL:
    """torch's C++, with the symbols that are needed; raises UserError where it has them no more."""
    library = ctypes.CDLL(torch._C.__file__)
    if not all(hasattr(library, name) for name in (GUARDS, HOOKS)):
        raise UserError(NOT_HERE)
    return library


def _methods(answer: int) -> ctypes.Array[ctypes.c_void_p]:
    """Methods of an object of C++, which begins with their address: all give this answer."""
    return (ctypes.c_void_p * METHODS)(*METHODS * [ctypes.cast(_SAY[answer], ctypes.c_void_p).value])


_SAY = [ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0), ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)]
_ALWAYS_ZERO, _ALWAYS_YES = _methods(0), _methods(1)
