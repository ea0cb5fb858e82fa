"""What stands in for the native half of `torch.mps.compile_shader` where there is no Metal.

It keeps that function's calling convention, and is stricter: Metal text is compiled by clang and
run on copies of CPU tensors, so that reading behind one gives NaN and writing there is noticed.
"""

import ctypes
import math
import os
import platform
from pathlib import Path

import torch

GUARD = 64
_SUFFIX = "dylib" if platform.system() == "Darwin" else "so"
_TARGET = Path(os.environ.get("LOWBIT_TARGET", Path(__file__).parents[3] / "target"))
_FILE = _TARGET / "debug" / f"libmetal_standin.{_SUFFIX}"


class _Start(ctypes.Structure):
    _fields_ = (
        ("threads", ctypes.c_uint32 * 3),
        ("group", ctypes.c_uint32 * 3),
        ("simd_width", ctypes.c_uint32),
        ("backward", ctypes.c_bool),
    )


def _load():
    if not _FILE.exists():
        raise RuntimeError(f"no {_FILE}: run `cargo build -p metal-standin`")
    loaded = ctypes.CDLL(str(_FILE))
    loaded.metal_standin_compile.restype = ctypes.c_void_p
    loaded.metal_standin_run.restype = ctypes.c_bool
    return loaded


class Library:
    """Compiled text: its kernels are attributes."""

    compiled = 0
    """How many texts have been compiled."""

    def __init__(self, source):
        self._native = _load()
        message = ctypes.create_string_buffer(1 << 14)
        fast_math = ctypes.c_bool(True)
        length = ctypes.c_size_t(len(message))
        self._handle = self._native.metal_standin_compile(
            source.encode(), fast_math, message, length
        )
        if not self._handle:
            raise SyntaxError(message.value.decode())
        names = ctypes.create_string_buffer(1 << 14)
        handle = ctypes.c_void_p(self._handle)
        self._native.metal_standin_kernels(handle, names, ctypes.c_size_t(len(names)))
        self._names = names.value.decode().split("\n")
        Library.compiled += 1

    def __dir__(self):
        return self._names

    def __getattr__(self, name):
        if name not in self._names:
            raise AttributeError(f"no kernel {name}")

        def kernel(*arguments, threads, group_size, arg_casts=None):
            arguments = [
                t if isinstance(t, torch.Tensor) else _bytes_of(t, (arg_casts or {}).pop(i))
                for i, t in enumerate(arguments)
            ]
            assert not arg_casts, "only what is no tensor is cast"
            self._run(name, arguments, tuple(threads), tuple(group_size))

        return kernel

    def _run(self, name, arguments, threads, group):
        assert 1 <= len(threads) == len(group) <= 3 and math.prod(group) <= 1024
        assert all(isinstance(count, int) and count > 0 for count in threads + group)
        guarded = {}
        for t in arguments:
            assert isinstance(t, torch.Tensor) and t.is_cpu and t.is_contiguous()
            assert t.storage_offset() * t.itemsize % 16 == 0, "a vector would lie across words"
            guarded.setdefault(t.data_ptr(), (t, _guarded(t)))
        buffers = (ctypes.c_void_p * len(arguments))(
            *(guarded[t.data_ptr()][1].data_ptr() for t in arguments)
        )
        start = _Start(_three(threads), _three(group), 32, True)
        message = ctypes.create_string_buffer(1 << 14)
        ran = self._native.metal_standin_run(
            ctypes.c_void_p(self._handle),
            name.encode(),
            buffers,
            ctypes.c_size_t(len(arguments)),
            ctypes.byref(start),
            message,
            ctypes.c_size_t(len(message)),
        )
        if not ran:
            raise RuntimeError(message.value.decode())
        for t, copy in guarded.values():
            assert (copy[t.nbytes :] == 0xFF).all(), f"{name} wrote behind a tensor"
            _bytes(t).copy_(copy[: t.nbytes])


def _bytes_of(numbers, cast):
    """A list that goes with the call: torch copies it."""
    assert isinstance(numbers, list) and cast == "int32" and 0 < 4 * len(numbers) <= 4096
    assert all(type(number) is int and -(2**31) <= number < 2**31 for number in numbers)
    return torch.tensor(numbers, dtype=torch.int32)


def _bytes(t):
    return t.view(-1).view(torch.uint8)


def _guarded(t):
    copy = torch.full((t.nbytes + GUARD,), 0xFF, dtype=torch.uint8)
    copy[: t.nbytes] = _bytes(t)
    return copy


def _three(counts):
    return (ctypes.c_uint32 * 3)(*counts, *[1] * (3 - len(counts)))
