#!/usr/bin/env python
"""Talk to a model whose weights have four bits.

    python examples/chat.py                                     # models/tinybard, which writes on
    python examples/chat.py --model DIR --quant-type fp4 --device mps
    echo "ROMEO:" | python examples/chat.py --tokens 40

Reads a line, answers, and so on until the end of the input. A model with a chat template is talked
to; any other continues the text. A checkpoint that is quantized already is taken as it is.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

import lowbit

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Load, then answer line by line."""
    options = arguments()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer or options.model)
    model = load(options)
    said: list[dict[str, str]] = []
    text = ""
    print("> ", end="", flush=True)
    for line in sys.stdin:
        if tokenizer.chat_template:
            said.append({"role": "user", "content": line.strip()})
            ids = tokenizer.apply_chat_template(
                said, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
        else:
            text += line
            ids = tokenizer(text, return_tensors="pt").input_ids
        answer = generate(model, tokenizer, ids.to(model.device), options)
        said.append({"role": "assistant", "content": answer})
        text += answer
        print("\n> ", end="", flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=ROOT / "models/tinybard", help="a checkpoint")
    parser.add_argument("--tokenizer", help="a checkpoint that has one, if the model's has not")
    parser.add_argument("--quant-type", default="nf4", help="any format of lowbit.formats.ALL")
    parser.add_argument("--device", default="mps" if torch.backends.mps.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=200, help="at most so many in an answer")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 for the likeliest")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load(options: argparse.Namespace) -> Any:
    """The model, quantized unless it is already."""
    torch.manual_seed(options.seed)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto")
    if getattr(model.config, "quantization_config", None) is None:
        lowbit.quantize_model(model, quant_type=options.quant_type)
        print(model.quantization_report)
        print(f"weights: {lowbit.get_memory_footprint(model)['actual_size_gb'] * 1024:.1f} MiB")
    return model.to(options.device).eval()


def generate(model: Any, tokenizer: Any, ids: torch.Tensor, options: argparse.Namespace) -> str:
    """Print an answer as it is made, and its speed; return it."""
    sampling = {"do_sample": True, "temperature": options.temperature}
    start = time.perf_counter()
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=options.tokens,
        pad_token_id=tokenizer.eos_token_id,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        **(sampling if options.temperature > 0 else {"do_sample": False}),
    )
    made = output[0, ids.shape[1] :]
    print(f"[{len(made) / (time.perf_counter() - start):.1f} tokens a second]")
    return tokenizer.decode(made, skip_special_tokens=True)


if __name__ == "__main__":
    main()
