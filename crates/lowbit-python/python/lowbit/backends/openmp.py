"""Which OpenMP torch runs on, so that our kernels run on its threads and not beside them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch


def parallel() -> int:
    """Address of `GOMP_parallel` in the library that torch itself calls; 0 where it calls none.

    OpenMP's threads wait in a loop for some milliseconds after each operation of torch, and share
    the cores with threads that anybody else starts meanwhile. `LOWBIT_OPENMP=off` makes our kernels
    start their own all the same.
    """
    if os.environ.get("LOWBIT_OPENMP") == "off" or not torch.backends.openmp.is_available():
        return 0
    for path in sorted(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*")):
        try:
            # Of the handle of a library, symbols are looked up in what that library depends on.
            function = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0
