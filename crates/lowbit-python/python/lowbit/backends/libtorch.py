"""Functions of torch's own library, by the names that it exports."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch


def addresses(names: Sequence[str]) -> list[int] | None:
    """Where these functions are, in the library that torch itself calls or in one that it needs.

    None where one of them is in neither.
    """
    for path in sorted(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*")):
        try:
            library = ctypes.CDLL(str(path))
            functions = [getattr(library, name) for name in names]
        except (OSError, AttributeError):
            continue
        return [ctypes.cast(f, ctypes.c_void_p).value or 0 for f in functions]
    return None
