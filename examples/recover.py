#!/usr/bin/env python
"""Recovery: how much of what a model loses below two bits a short training brings back.

Quantizes a model, then trains LoRA adapters beside its frozen codes to say what the model said
before (its logits are the target, so any text will do), and prints how much of the loss comes back:

    python examples/recover.py                                 # models/tinybard at 0.8 bits
    python examples/recover.py --format t158 --steps 200
    python examples/recover.py --quantized DIR                 # what `lowbit quantize` wrote
"""

from __future__ import annotations

import argparse
from pathlib import Path

import peft
import torch
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

import lowbit

ROOT = Path(__file__).parents[1]
SEED = 0


def main() -> None:
    """Quantize, measure, train, measure again."""
    options = arguments()
    torch.manual_seed(SEED)
    teacher = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    teacher = teacher.to(options.device).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    train = windows(options.text, tokenizer, options)
    held_out = windows(options.held_out, tokenizer, options)[: options.windows]

    original = loss_of(teacher, held_out)
    student = adapted(quantized(options), options.rank)
    before = loss_of(student, held_out)
    print(f"original: {original:.3f} on {options.held_out.name}")
    print(f"quantized: {before:.3f}", flush=True)
    fit(student, teacher, train, options)
    after = loss_of(student, held_out)
    print(f"recovered: {after:.3f}")
    adapters = sum(p.numel() for p in student.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in teacher.parameters())
    back = 100 * (before - after) / max(before - original, 1e-9)
    print(f"{back:.0f} % of the loss came back, with adapters of {100 * adapters / frozen:.1f} %")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=ROOT / "models/tinybard", help="a checkpoint")
    parser.add_argument("--format", default="sub1", help="one of `lowbit formats`")
    parser.add_argument("--quantized", help="what `lowbit quantize` wrote, in place of --format")
    parser.add_argument("--text", type=Path, default=ROOT / "models/tinybard/train.txt")
    parser.add_argument("--held-out", type=Path, default=ROOT / "models/tinybard/validation.txt")
    parser.add_argument("--device", default="mps" if torch.backends.mps.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8, help="windows in a step")
    parser.add_argument("--window", type=int, default=128, help="tokens in a window")
    parser.add_argument("--windows", type=int, default=64, help="of the held-out text")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    return parser.parse_args()


def quantized(options: argparse.Namespace) -> torch.nn.Module:
    """The model with linear layers of that format, as they are stored or quantized now."""
    source = options.quantized or options.model
    config = None if options.quantized else lowbit.LowbitConfig(quant_type=options.format)
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, quantization_config=config
    )
    return model.to(options.device)


def adapted(model: torch.nn.Module, rank: int) -> torch.nn.Module:
    """LoRA on every quantized layer; nothing else is trained."""
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config)


def windows(text: Path, tokenizer: object, options: argparse.Namespace) -> torch.Tensor:
    """The text's tokens in windows, `[windows, window]`."""
    ids = tokenizer(text.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
    count = len(ids) // options.window
    if count == 0:
        raise SystemExit(f"{text}: expected at least {options.window} tokens, got {len(ids)}")
    return ids[: count * options.window].view(count, options.window).to(options.device)


def fit(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    data: torch.Tensor,
    options: argparse.Namespace,
) -> None:
    """Train the adapters to give the teacher's probabilities, with a rate that falls to nothing."""
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = lowbit.optim.AdamW8bit(trained, lr=options.lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    student.train()
    for step in range(options.steps):
        batch = data[torch.randint(len(data), (options.batch,))]
        target = log_softmax(teacher(input_ids=batch).logits, dim=-1)
        said = log_softmax(student(input_ids=batch).logits, dim=-1)
        loss = kl_div(said, target, log_target=True, reduction="none").sum(-1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        falling.step()
        if step % 20 == 0 or step == options.steps - 1:
            print(f"step {step:3}: divergence {loss.item():.3f}", flush=True)


@torch.no_grad()
def loss_of(model: torch.nn.Module, data: torch.Tensor) -> float:
    """Mean loss of a token."""
    model.eval()
    losses = [model(input_ids=part, labels=part).loss for part in data.split(8)]
    return torch.stack(losses).mean().item()


if __name__ == "__main__":
    main()
