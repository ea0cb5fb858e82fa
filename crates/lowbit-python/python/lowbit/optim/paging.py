"""States in memory-mapped files: as large as the disk allows, resident only while they are used."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor

WINDOW = 1 << 22
"""Numbers of a parameter that are updated before their states are let go."""
MIN_NUMEL = 100_000
"""States of fewer numbers stay in ordinary memory."""


class Pages:
    """Tensors in files without a name, which are gone with the tensors.

    Args:
        directory: where the files are; None for the system's place for temporary files, which may
            be memory itself.
    """

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._maps: dict[int, mmap.mmap] = {}

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros in a file of its own."""
        size = prod(shape) * dtype.itemsize
        with tempfile.TemporaryFile(dir=self._directory) as file:
            file.truncate(size)
            # A private copy of the file's descriptor lives as long as the map does.
            pages = mmap.mmap(file.fileno(), size)
        tensor = torch.frombuffer(pages, dtype=dtype).view(shape)
        self._maps[tensor.data_ptr()] = pages
        return tensor

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor lives here, its beginning included."""
        return tensor.data_ptr() in self._maps

    def keep(self, tensors: Iterable[object]) -> None:
        """Forget all tensors but those; other values are passed over."""
        addresses = {t.data_ptr() for t in tensors if isinstance(t, Tensor)}
        self._maps = {at: pages for at, pages in self._maps.items() if at in addresses}

    def release(self, tensor: Tensor, start: int, numel: int) -> None:
        """Let the memory of some numbers go; the file has them when they are next used."""
        pages = self._maps.get(tensor.data_ptr())
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if pages is None or advice is None:
            return
        size = tensor.element_size()
        first = start * size // mmap.PAGESIZE * mmap.PAGESIZE
        pages.madvise(advice, first, min((start + numel) * size, len(pages)) - first)
