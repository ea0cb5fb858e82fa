"""What examples in docstrings may use without importing it."""

import pytest
import torch

import lowbit


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    torch.manual_seed(0)
    doctest_namespace.update(torch=torch, lowbit=lowbit)
