"""Weights to test formats with."""

import torch


def weights(entry, *shape, dtype=torch.float32):
    """Rows of very different sizes, the first of zeros, as the format can have them.

    They have signs if its values do. There are more rows than asked for where a format packs
    several together.
    """
    rows = -(-shape[0] // entry.stacked_rows) * entry.stacked_rows
    w = torch.randn(rows, *shape[1:]) * torch.logspace(-3, 3, rows)[:, None]
    w[0] = 0.0
    signed = entry.codebook is None or entry.codebook[0] < 0 or entry.encoder[2]
    return (w if signed else w.abs()).to(dtype)
