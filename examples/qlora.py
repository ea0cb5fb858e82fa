#!/usr/bin/env python
"""QLoRA: fine-tune a model whose weights have four bits.

Quantizes a model to NF4 with double quantization, trains LoRA adapters on a text, saves them, loads
them again, merges them, and says what each of these does to the loss:

    python examples/qlora.py                                  # models/tinybard, a minute on a CPU
    python examples/qlora.py --model DIR --text FILE --device mps
    torchrun --nproc-per-node 2 examples/qlora.py             # weights sharded over two processes

Under torchrun every process keeps a part of the quantized weights (FSDP), seen as floating-point
numbers, which FSDP can shard. `examples/fsdp.yaml` is the same for `accelerate launch`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import peft
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import lowbit

ROOT = Path(__file__).parents[1]
DISTRIBUTED = "WORLD_SIZE" in os.environ


def main() -> None:
    """Train, save, merge, load."""
    options = arguments()
    rank, world = start_processes()
    torch.manual_seed(options.seed)
    train, held_out = windows(options)
    model = with_adapters(quantized(options), options)
    before = loss_of(model, train), loss_of(model, held_out)
    say(f"before: {before[0]:.3f} on the text, {before[1]:.3f} on what is held out")

    if DISTRIBUTED:
        shard(model)
    fit(model, train, options, rank, world)
    after = loss_of(model, train), loss_of(model, held_out)
    say(f"after:  {after[0]:.3f} on the text, {after[1]:.3f} on what is held out")
    save(model, options.output)

    if rank == 0:
        # What was saved is all that is needed: the base model is quantized anew.
        loaded = peft.PeftModel.from_pretrained(quantized(options), options.output)
        say(f"loaded: {loss_of(loaded, train):.3f} on the text")
        merged = loaded.merge_and_unload()
        say(f"merged: {loss_of(merged, train):.3f} on the text, adapters rounded into four bits")
        footprint = lowbit.get_memory_footprint(merged)
        say(f"all weights: {footprint['actual_size_gb'] * 1024:.1f} MiB")
    if DISTRIBUTED:
        dist.barrier()
        dist.destroy_process_group()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=ROOT / "models/tinybard", help="a checkpoint")
    parser.add_argument("--text", type=Path, default=ROOT / "models/tinybard/validation.txt")
    parser.add_argument("--output", type=Path, default=Path("qlora-adapters"))
    parser.add_argument("--device", default="mps" if torch.backends.mps.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8, help="windows in a step, of all processes")
    parser.add_argument("--window", type=int, default=128, help="tokens in a window")
    parser.add_argument("--windows", type=int, default=32, help="of the text to train on")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def quantized(options: argparse.Namespace) -> torch.nn.Module:
    """The model, its linear layers in NF4 with double quantization."""
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    config = lowbit.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        # FSDP shards nothing but floating-point numbers. The bytes are the same.
        bnb_4bit_quant_storage=torch.float32 if DISTRIBUTED else torch.uint8,
    )
    model = lowbit.quantize_model(model, config, device=options.device)
    say(str(model.quantization_report).splitlines()[0])
    return model


def with_adapters(model: torch.nn.Module, options: argparse.Namespace) -> torch.nn.Module:
    """LoRA on every quantized layer; nothing else is trained."""
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=2 * options.rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def windows(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Token windows to train on, and as many that follow in the text."""
    text = options.text.read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(options.model)(text, return_tensors="pt").input_ids[0]
    count = min(options.windows, len(ids) // options.window // 2)
    if count == 0:
        raise SystemExit(f"{options.text}: expected at least {2 * options.window} tokens")
    ids = ids[: 2 * count * options.window].view(2, count, options.window).to(options.device)
    return ids[0], ids[1]


def fit(
    model: torch.nn.Module, data: torch.Tensor, options: argparse.Namespace, rank: int, world: int
) -> None:
    """Train the adapters on random windows; each process takes its part of a batch."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.lr)
    model.train()
    for step in range(options.steps):
        # The same in every process, so that the parts are those of one batch.
        batch = data[torch.randint(len(data), (options.batch,)).tolist()]
        part = batch[rank::world]
        loss = model(input_ids=part, labels=part).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = loss.detach() / world
        if DISTRIBUTED:
            dist.all_reduce(loss)
        if step % 10 == 0 or step == options.steps - 1:
            say(f"step {step:3}: loss {loss.item():.3f}")


@torch.no_grad()
def loss_of(model: torch.nn.Module, data: torch.Tensor) -> float:
    """Mean loss of a token."""
    model.eval()
    losses = [model(input_ids=part, labels=part).loss for part in data.split(8)]
    return torch.stack(losses).mean().item()


def start_processes() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if not DISTRIBUTED:
        return 0, 1
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), dist.get_world_size()


def shard(model: torch.nn.Module) -> None:
    """Spread the parameters over the processes: each block gathers its own while it runs."""
    for module in model.modules():
        if type(module).__name__.endswith("DecoderLayer"):
            fully_shard(module)
    fully_shard(model)
    mine = sum(p.to_local().nbytes for p in model.parameters())
    whole = sum(p.nbytes for p in model.parameters())
    say(f"this process keeps {mine / 2**20:.1f} of {whole / 2**20:.1f} MiB of parameters")


def save(model: torch.nn.Module, directory: Path) -> None:
    """The adapters, gathered from all processes, in peft's layout."""
    state = {key: value for key, value in model.state_dict().items() if "lora_" in key}
    state = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in state.items()}
    if not DISTRIBUTED or dist.get_rank() == 0:
        model.save_pretrained(directory, state_dict=state)
        say(f"saved {sum(v.nbytes for v in state.values()) / 2**20:.2f} MiB to {directory}")


def say(text: str) -> None:
    """Print, in the first process."""
    if not DISTRIBUTED or dist.get_rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    main()
