"""The one place that translates `blocksize`, as others spell it, to `block_size`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

OURS, THEIRS = "block_size", "blocksize"


def either_spelling(function: F) -> F:
    """Let a function that has a `block_size` be called with `blocksize`, too, and say so."""

    @functools.wraps(function)
    def translated(*args: Any, **kwargs: Any) -> Any:
        if THEIRS in kwargs:
            if OURS in kwargs:
                raise TypeError(f"{THEIRS}, {OURS}: expected one of them, got both")
            kwargs[OURS] = kwargs.pop(THEIRS)
        return function(*args, **kwargs)

    signature = inspect.signature(function)
    shown = [p.replace(name=THEIRS) if p.name == OURS else p for p in signature.parameters.values()]
    translated.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return translated  # type: ignore[return-value]
