"""The two packages for Apple Silicon that came before, by their names and signatures.

`lowbit.compat.bitsandbytes_mps` and `lowbit.compat.mps_bitsandbytes` have their functions and
classes, with our kernels and bitsandbytes' byte format underneath. After `install()`, programs that
import those packages find ours.
"""

from __future__ import annotations

import importlib
import sys

_MODULES = {
    "bitsandbytes_mps": ["bitsandbytes_mps"],
    "mps_bitsandbytes": [
        "mps_bitsandbytes",
        "mps_bitsandbytes.functional",
        "mps_bitsandbytes.integration",
        "mps_bitsandbytes.nn",
        "mps_bitsandbytes.optim",
    ],
}


def install(*packages: str) -> None:
    """Make `import bitsandbytes_mps` and `import mps_bitsandbytes` find ours.

    Args:
        packages: the names of those to install; none for both.

    Raises:
        ValueError: for any other name.
        ImportError: if the package of that name has been imported already.

    >>> lowbit.compat.install()
    >>> import mps_bitsandbytes
    >>> mps_bitsandbytes.Linear4bit is lowbit.compat.mps_bitsandbytes.Linear4bit
    True
    """
    for package in packages or tuple(_MODULES):
        if package not in _MODULES:
            raise ValueError(f"packages: expected some of {list(_MODULES)}, got {package!r}")
        for name in _MODULES[package]:
            ours = importlib.import_module(f"lowbit.compat.{name}")
            if sys.modules.get(name, ours) is not ours:
                raise ImportError(f"{name} is imported already; call lowbit.compat.install() first")
            sys.modules[name] = ours
