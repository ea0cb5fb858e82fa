"""The one place that translates how others spell arguments: `blocksize` is our `block_size`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

OURS, THEIRS = "block_size", "blocksize"


def also_named(**names: str) -> Callable[[F], F]:
    """Let arguments of a function be called by other names, too: `also_named(other=name)`."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def translated(*args: Any, **kwargs: Any) -> Any:
            for other in kwargs.keys() & names.keys():
                if names[other] in kwargs:
                    raise TypeError(f"{other}, {names[other]}: expected one of them, got both")
                kwargs[names[other]] = kwargs.pop(other)
            return function(*args, **kwargs)

        return translated  # type: ignore[return-value]

    return decorate


def either_spelling(function: F) -> F:
    """Let a function that has a `block_size` be called with `blocksize`, too, and say so."""
    translated = also_named(**{THEIRS: OURS})(function)
    signature = inspect.signature(function)
    shown = [p.replace(name=THEIRS) if p.name == OURS else p for p in signature.parameters.values()]
    translated.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return translated  # type: ignore[return-value]
