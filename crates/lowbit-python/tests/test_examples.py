"""The programs in examples/, as their own words say they are run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[3] / "examples"
SMALL = ["--steps", "6", "--windows", "4", "--batch", "4", "--window", "64", "--device", "cpu"]


def run(*command, **options):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(printed):
    found = {
        what: float(loss) for what, loss in re.findall(r"(.+): +(?:loss )?(\d+\.\d+)", printed)
    }
    return {what.strip(): loss for what, loss in found.items()}


@pytest.fixture(scope="module")
def trained_alone(tmp_path_factory):
    output = tmp_path_factory.mktemp("alone")
    return losses(run(EXAMPLES / "qlora.py", *SMALL, "--output", output)), output


def test_qlora_lowers_the_loss_and_its_adapters_come_back(trained_alone):
    loss, _ = trained_alone
    assert loss["after"] < loss["before"] - 0.3
    assert loss["loaded"] == pytest.approx(loss["after"], abs=2e-3)
    assert loss["merged"] < loss["before"] - 0.2


def test_qlora_over_two_processes_trains_the_same_adapters(trained_alone, tmp_path):
    expected, directory = trained_alone
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    printed = run(*launch, EXAMPLES / "qlora.py", *SMALL, "--output", tmp_path)
    kept, whole = map(float, re.search(r"keeps ([\d.]+) of ([\d.]+) MiB", printed).groups())
    assert kept < 0.6 * whole
    loss = losses(printed)
    for what in ("before", "after", "loaded", "step   0", "step   5"):
        assert loss[what] == pytest.approx(expected[what], abs=0.02), what
    alone = load_file(directory / "adapter_model.safetensors")
    together = load_file(tmp_path / "adapter_model.safetensors")
    assert alone.keys() == together.keys() and len(alone) == 2 * 42
    for name, adapter in alone.items():
        assert torch.cosine_similarity(adapter.flatten(), together[name].flatten(), 0) > 0.99, name


@pytest.mark.parametrize("model", ["tinybard", "tinybard-nf4dq"])
def test_chat_answers_line_by_line(model):
    program = [EXAMPLES / "chat.py", "--device", "cpu", "--tokens", 8, "--temperature", 0]
    if model != "tinybard":
        models = EXAMPLES.parent / "models"
        program += ["--model", models / model, "--tokenizer", models / "tinybard"]
    printed = run(*program, input="ROMEO:\nJULIET:\n")
    assert printed.count("tokens a second") == 2
    assert ("quantized 42 of 43" in printed) == (model == "tinybard")


def test_a_short_training_recovers_a_part_of_the_loss():
    small = ["--steps", "10", "--batch", "4", "--window", "64", "--windows", "8", "--device", "cpu"]
    loss = losses(run(EXAMPLES / "recover.py", *small))
    assert loss["original"] < loss["recovered"] < loss["quantized"] - 0.1
