"""Whole models: transformers and peft over bitsandbytes' operations, and over our quantizer."""

import json
import os
import subprocess
from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import lowbit
from fresh_process import FreshProcesses
from lowbit.nn import QuantizedLinear

ROOT = Path(__file__).parents[3]
CHECKPOINTS = ROOT / "golden" / "checkpoints"
TARGETS = ["q_proj", "v_proj", "up_proj"]


def load(path, **options):
    return AutoModelForCausalLM.from_pretrained(path, **options)


@torch.no_grad()
def logits(model):
    torch.manual_seed(3)
    return model(torch.randint(3, 500, (1, 24))).logits.float()


def train(model, steps=8):
    """Losses of a model that learns one sequence."""
    ids = torch.randint(3, 500, (2, 24))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    # A small model's layers are smaller than a large codebook.
    "name",
    [f.name if f.codebook else f"{f.name}-v10-c16" for f in lowbit.formats.ALL.values()],
)
def test_every_format_loads_saves_and_reloads(name, nested, tmp_path):
    entry = lowbit.formats.by_name(name)
    if nested and not (entry.can_double_quantize and entry.library):
        with pytest.raises(ValueError, match="double_quant"):
            lowbit.LowbitConfig(name, double_quant=True)
        return
    config = lowbit.LowbitConfig(name, double_quant=nested)
    model = load(CHECKPOINTS / "tiny-bf16", quantization_config=config)
    layer = model.model.layers[0].mlp.up_proj
    assert isinstance(layer, QuantizedLinear) and layer.quant_state.nested is nested
    assert type(model.lm_head) is nn.Linear and len(model.quantization_report.replaced) == 14
    expected = logits(model)
    for round_trip in ("first", "second"):
        model.save_pretrained(tmp_path / round_trip)
        model = load(tmp_path / round_trip)
        assert torch.equal(logits(model), expected)
    written = json.loads((tmp_path / "second" / "config.json").read_text())["quantization_config"]
    assert written == {
        "block_size": None,
        "double_quant": nested,
        "quant_method": "lowbit",
        "quant_type": name,
        "skip_modules": None,
    }
    dense = model.dequantize()
    assert type(dense.model.layers[0].mlp.up_proj) is nn.Linear
    torch.testing.assert_close(logits(dense), expected, rtol=0.1, atol=0.1)


def test_what_is_not_quantized_has_the_dtype_asked_for(tmp_path):
    config = lowbit.LowbitConfig("mxfp4", skip_modules=["lm_head", "down_proj"])
    load(CHECKPOINTS / "tiny-bf16", quantization_config=config).save_pretrained(tmp_path)
    model = load(tmp_path, dtype=torch.float32)
    assert type(model.model.layers[0].mlp.down_proj) is nn.Linear
    kept = [p.dtype for p in model.parameters() if p.is_floating_point()]
    assert len(kept) > 5 and set(kept) == {torch.float32}
    assert logits(model).isfinite().all()


def test_a_damaged_checkpoint_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    config = lowbit.LowbitConfig("mxfp4")
    load(CHECKPOINTS / "tiny-bf16", quantization_config=config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    key = "model.layers.0.mlp.up_proj.weight.absmax"
    tensors[key] = tensors[key][:-1].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RuntimeError):
        load(tmp_path)


def test_configs_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="nf5"):
        lowbit.LowbitConfig("nf5")
    with pytest.raises(ValueError, match="block_size"):
        lowbit.LowbitConfig("nf4", block_size=48)


@pytest.mark.parametrize("name", ["mxfp4", "fp8_e4m3"])
def test_adapters_train_on_every_format_and_merge(name, tmp_path):
    model = load(CHECKPOINTS / "tiny-bf16", quantization_config=lowbit.LowbitConfig(name))
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=TARGETS))
    losses = train(model)
    assert losses[-1] < losses[0] - 0.5
    model.save_pretrained(tmp_path)
    base = load(CHECKPOINTS / "tiny-bf16", quantization_config=lowbit.LowbitConfig(name))
    again = peft.PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(logits(again.eval()), logits(model.eval()))


def test_files_of_the_command_load(tmp_path):
    """`lowbit quantize` and this package write the same keys."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    found = [p for p in (target / "release/lowbit", target / "debug/lowbit") if p.exists()]
    if not found:
        pytest.skip("the command is not built: cargo build --bin lowbit")
    for name in ("mxfp4", "fp8_e4m3", "nf4"):
        out = tmp_path / name
        command = [found[0], "quantize", CHECKPOINTS / "tiny-bf16", out, "--format", name]
        subprocess.run(command, check=True, capture_output=True)
        options = lowbit.LowbitConfig(name, compute_dtype=torch.bfloat16)
        if lowbit.formats.by_name(name).library == "bitsandbytes":
            options = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type=name, bnb_4bit_compute_dtype=torch.bfloat16
            )
        here = load(CHECKPOINTS / "tiny-bf16", quantization_config=options)
        assert torch.equal(logits(load(out)), logits(here)), name


def test_it_is_registered_whichever_is_imported_first():
    processes = FreshProcesses()
    program = (
        "import {0}, {1}, transformers.quantizers.auto as a;"
        "assert 'lowbit' in a.AUTO_QUANTIZER_MAPPING; import lowbit; lowbit.LowbitConfig('mxfp4')"
    )
    for first, second in [("lowbit", "transformers"), ("transformers", "lowbit")]:
        ended = processes.run(program.format(first, second))
        assert ended.ok, ended.printed
    processes.close()


# What follows is users' code, unchanged: nothing of it knows of lowbit.


def four_bit(**options):
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        **options,
    )


@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_models_are_those_of_cuda(nested, tmp_path):
    """Quantized here, they compute what the checkpoint does that transformers wrote on a GPU."""
    config = four_bit(bnb_4bit_use_double_quant=nested)
    model = load(CHECKPOINTS / "tiny-bf16", quantization_config=config)
    golden = load(CHECKPOINTS / ("tiny-nf4-dq" if nested else "tiny-nf4"))
    torch.testing.assert_close(logits(model), logits(golden), rtol=0, atol=0.02)
    prompt = torch.tensor([[5, 6, 7, 8]])
    words = [m.generate(prompt, max_new_tokens=8, do_sample=False) for m in (model, golden)]
    assert words[0].shape == (1, 12)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_eight_bit_models_compute_what_their_weights_stand_for():
    model = load(CHECKPOINTS / "tiny-int8")
    dense = load(CHECKPOINTS / "tiny-bf16")
    difference = (logits(model) - logits(dense)).norm() / logits(dense).norm()
    assert difference < 0.05


def test_qlora_trains_merges_and_saves(tmp_path):
    config = four_bit(bnb_4bit_use_double_quant=True)
    model = load(CHECKPOINTS / "tiny-bf16", quantization_config=config)
    model = peft.prepare_model_for_kbit_training(model)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=TARGETS))
    losses = train(model)
    assert losses[-1] < losses[0] - 0.5
    adapted = logits(model.eval())
    model.save_pretrained(tmp_path)
    merged = logits(model.merge_and_unload())
    assert (merged - adapted).norm() / adapted.norm() < 0.3  # Rounded to four bits again.
    again = load(CHECKPOINTS / "tiny-bf16", quantization_config=config)
    again = peft.PeftModel.from_pretrained(peft.prepare_model_for_kbit_training(again), tmp_path)
    torch.testing.assert_close(logits(again.eval()), adapted)


@pytest.mark.parametrize("optimizer", ["paged_adamw_8bit", "adamw_bnb_8bit", "lion_32bit"])
def test_the_trainer_runs_and_resumes_with_bitsandbytes_optimizers(optimizer, tmp_path):
    model = load(CHECKPOINTS / "tiny-bf16", quantization_config=four_bit())
    model = peft.prepare_model_for_kbit_training(model)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=TARGETS))
    ids = torch.randint(3, 500, (24,))
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        optim=optimizer,
        max_steps=4,
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        logging_steps=1,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    data = [{"input_ids": ids, "labels": ids}] * 8
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4 and losses[-1] < losses[0]
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    again = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert again[2:] == pytest.approx(losses[2:], rel=1e-3)
