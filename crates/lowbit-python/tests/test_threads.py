"""Kernels run on the threads of torch's OpenMP, as many as torch uses, or on their own."""

import os
import subprocess
import sys

import pytest
import torch

from lowbit import functional
from lowbit.backends import threads

# Prints the result's bytes' sum, and how many threads kernels added to those that torch has.
PROGRAM = """
import os, torch
from lowbit import functional
torch.set_num_threads(3)
x = torch.arange(40 * 512, dtype=torch.float32).reshape(40, 512).sin()
w = torch.arange(512 * 512, dtype=torch.float32).reshape(512, 512).cos()
x @ w, (w * 2).sum()
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
codes, state = functional.quantize_4bit(w)
y = functional.linear_4bit(x, codes, state)
print(y.view(torch.int32).sum().item(), threads() - before)
"""


def run(openmp):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "LOWBIT_OPENMP": openmp},
        capture_output=True,
        text=True,
        check=True,
    )
    total, added = map(int, result.stdout.split())
    return total, added


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.skipif(threads.parallel() == 0, reason="torch runs on no OpenMP that can be called")
def test_kernels_start_no_threads_beside_those_of_torch():
    ours, added = run("off")
    assert added > 0, "threads of our own are not counted: the test would notice nothing"
    theirs, none = run("on")
    assert none == 0
    assert ours == theirs


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_child_of_a_fork_has_threads_of_its_own():
    w = torch.randn(512, 512)
    x = torch.randn(40, 512)
    codes, state = functional.quantize_4bit(w)
    before = functional.linear_4bit(x, codes, state)
    child = os.fork()
    if child == 0:
        same = torch.equal(functional.linear_4bit(x, codes, state), before)
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_no_result(threads):
    torch.manual_seed(0)
    w = torch.randn(512, 512)
    x = torch.randn(40, 512)
    usual = torch.get_num_threads()
    codes, state = functional.quantize_4bit(w)
    expected = functional.linear_4bit(x, codes, state)
    try:
        torch.set_num_threads(threads)
        again, _ = functional.quantize_4bit(w)
        assert torch.equal(again, codes)
        assert torch.equal(functional.linear_4bit(x, codes, state), expected)
    finally:
        torch.set_num_threads(usual)
