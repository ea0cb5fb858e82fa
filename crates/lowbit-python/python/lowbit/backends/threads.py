"""Threads: as many as torch uses, and its own where those are OpenMP's."""

from __future__ import annotations

import os

import torch

from lowbit import _native
from lowbit.backends import libtorch

_threads = 0
_wanted = torch.get_num_threads


def follow_torch() -> None:
    """Use as many threads as torch does."""
    global _threads
    threads = _wanted()
    if threads != _threads:
        _threads = threads
        _native.set_threads(threads)


def parallel() -> int:
    """Address of `GOMP_parallel` in the library that torch itself calls; 0 where it calls none.

    OpenMP's threads wait in a loop for some milliseconds after each operation of torch, and share
    the cores with threads that anybody else starts meanwhile. `LOWBIT_OPENMP=off` makes our kernels
    start their own all the same.
    """
    if os.environ.get("LOWBIT_OPENMP") == "off" or not torch.backends.openmp.is_available():
        return 0
    found = libtorch.addresses(["GOMP_parallel"])
    return 0 if found is None else found[0]


_native.use_openmp(parallel())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_native.after_fork)
