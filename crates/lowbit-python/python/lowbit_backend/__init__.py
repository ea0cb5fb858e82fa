"""The entry point that `import bitsandbytes` calls: lowbit, if it can be imported.

It stands outside the package `lowbit` because an exception here, or while a package around this
module is imported, would break `import bitsandbytes`.
"""


def register() -> None:
    """Register lowbit's kernels with bitsandbytes; warn if that cannot be done."""
    try:
        from lowbit.integrations import bitsandbytes

        bitsandbytes.register()
    except Exception as error:
        _warn(f"lowbit's kernels are not used for bitsandbytes: {error}")


def _warn(text: str) -> None:
    import contextlib
    import warnings

    # Where warnings are errors, silence is the lesser evil.
    with contextlib.suppress(Exception):
        warnings.warn(text, RuntimeWarning, stacklevel=3)
