"""The two packages for Apple Silicon, by their names: their examples, as they are written there."""

import inspect
import sys

import peft
import pytest
import torch
import transformers

import lowbit
from fresh_process import FreshProcesses

lowbit.compat.install()

import bitsandbytes_mps  # noqa: E402
import mps_bitsandbytes  # noqa: E402

dev = "mps" if torch.backends.mps.is_available() else "cpu"

SIGNATURES = {
    "bitsandbytes_mps": {
        "quantize_4bit": "input blocksize=64 quant_type=2",
        "dequantize_4bit": "packed absmax blocksize=64 quant_type=2 numel=-1 "
        "output_dtype=torch.float16",
        "gemv_4bit": "x w absmax output_features blocksize=64 quant_type=2",
        "gemm_4bit": "x w absmax output_features blocksize=64 quant_type=2",
        "linear_4bit": "x w absmax output_features blocksize=64 quant_type=2 bias=None",
    },
    "mps_bitsandbytes": {
        "QuantState": "absmax shape=None code=None blocksize=64 quant_type=nf4 "
        "dtype=torch.float16 offset=None state2=None",
        "quantize_4bit": "A absmax=None out=None blocksize=64 compress_statistics=False "
        "quant_type=nf4 quant_storage=torch.uint8",
        "dequantize_4bit": "A quant_state=None absmax=None out=None blocksize=64 quant_type=nf4",
        "matmul_4bit": "A B quant_state bias=None compute_dtype=None",
        "quantize_nf4": "A absmax=None out=None blocksize=64 compress_statistics=False "
        "quant_storage=torch.uint8",
        "dequantize_fp4": "A quant_state=None absmax=None out=None blocksize=64",
        "matmul_nf4": "input weight_packed weight_state bias=None",
        "quantize_blockwise": "A code=None absmax=None out=None blocksize=4096 nested=False",
        "dequantize_blockwise": "A quant_state=None absmax=None code=None out=None blocksize=4096 "
        "nested=False",
        "dequantize_rowwise": "quantized scales dtype=torch.float16",
        "matmul_int8": "a b a_scales b_scales dtype=torch.float16",
        "matmul_fp8_e4m3": "input weight weight_scales bias=None dtype=torch.float16",
        "dequant_absmax": "absmax_quant absmax_scales blocksize=256",
        "matmul_colrow": "input weight_int8 weight_row_scales weight_col_scales bias=None "
        "dtype=torch.float16",
        "spmm_coo": "row_indices col_indices values dense sparse_rows sparse_cols",
        "sparse_coo_from_dense": "tensor threshold=0.0",
        "create_normal_map": "offset=0.9677083 use_extra_value=True",
        "Linear4bit": "in_features out_features bias=True device=None "
        "compute_dtype=torch.float16 quant_type=nf4 blocksize=64 compress_statistics=False",
        "Linear8bit": "in_features out_features bias=True device=None use_cache=True "
        "compute_dtype=torch.float16",
        "LinearFP8": "in_features out_features bias=True device=None compute_dtype=torch.float16",
        "Embedding4bit": "num_embeddings embedding_dim padding_idx=None quant_type=nf4 "
        "blocksize=64 device=None dtype=torch.float16",
        "OutlierAwareLinear": "in_features out_features bias=True threshold=6.0 "
        "compute_dtype=torch.float16 device=None",
        "SwitchBackLinear": "in_features out_features bias=True compute_dtype=torch.float16 "
        "device=None",
        "quantize_model": "model quantization_config=None load_in_4bit=False load_in_8bit=False "
        "device=None compute_dtype=torch.float16 modules_to_not_convert=None",
    },
}


@pytest.mark.parametrize("package", SIGNATURES)
def test_signatures(package):
    module = sys.modules[package]
    for name, expected in SIGNATURES[package].items():
        positional = [
            p.name if p.default is p.empty else f"{p.name}={p.default}"
            for p in inspect.signature(getattr(module, name)).parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        assert " ".join(positional) == expected, name
        assert name in module.__all__


def test_other_names_of_arguments():
    """Those of an older version, or of its documentation."""
    m, w = mps_bitsandbytes, torch.randn(64, 128)
    packed, state = m.quantize_nf4(tensor=w, block_size=64)
    x = torch.randn(2, 128)
    expected = m.matmul_nf4(x, packed, state)
    y = m.matmul_nf4(input=x, weight_packed=packed, weight_absmax_or_state=state, bias=None)
    assert torch.equal(y, expected)
    codes, scales = m.quantize_fp8_e4m3(w)
    fp8 = m.matmul_fp8_e4m3(x=x, w=codes, s=scales, bias=None, dtype=torch.float32)
    assert torch.equal(fp8, m.matmul_fp8_e4m3(x, codes, scales, dtype=torch.float32))
    rows, columns, values, n, k = m.sparse_coo_from_dense(t=torch.eye(3), threshold=0)
    named = {"row_idx": rows, "col_idx": columns, "dense": torch.eye(3)}
    size = {"sparse_rows": n, "sparse_cols": k}
    assert torch.equal(m.spmm_coo(values=values, **named, **size), torch.eye(3))
    q, scale = m.quantize_sparse_coo(rows, columns, values)[2:]
    y = m.spmm_coo_int8(v_i8=q, v_scale=scale, **named, **size)
    assert torch.equal(y, torch.eye(3).half())
    with pytest.raises(TypeError, match="row_idx, row_indices"):
        m.spmm_coo(row_indices=rows, values=values, **named, **size)


def test_example_of_bitsandbytes_mps():
    from bitsandbytes_mps import NF4, dequantize_4bit, gemm_4bit, gemv_4bit, quantize_4bit

    weight = torch.randn(4096, 4096, dtype=torch.float16, device=dev)
    packed, absmax = quantize_4bit(weight.flatten(), blocksize=64, quant_type=NF4)
    weight_deq = dequantize_4bit(
        packed,
        absmax,
        blocksize=64,
        quant_type=NF4,
        numel=weight.numel(),
        output_dtype=torch.float16,
    )
    x = torch.randn(4096, dtype=torch.float16, device=dev)
    y = gemv_4bit(
        x,
        packed.view(4096, -1),
        absmax.view(4096, -1),
        output_features=4096,
        blocksize=64,
        quant_type=NF4,
    )
    X = torch.randn(8, 4096, dtype=torch.float16, device=dev)
    Y = gemm_4bit(
        X,
        packed.view(4096, -1),
        absmax.view(4096, -1),
        output_features=4096,
        blocksize=64,
        quant_type=NF4,
    )
    assert packed.dtype is torch.uint8 and packed.shape == (4096 * 2048,)
    weight_deq = weight_deq.view(4096, 4096).float()
    error = (weight_deq - weight.float()).abs().mean()
    assert error < 0.07332
    for got, expected in ((y, weight_deq @ x.float()), (Y, X.float() @ weight_deq.t())):
        assert got.dtype is torch.float16
        assert (got.float() - expected).norm() / expected.norm() < 2e-3


def test_every_vector_of_a_batch_is_multiplied():
    w, x = torch.randn(24, 96), torch.randn(2, 5, 96)
    for quant_type in (bitsandbytes_mps.NF4, bitsandbytes_mps.FP4):
        packed, absmax = bitsandbytes_mps.quantize_4bit(w, 64, quant_type)
        dense = bitsandbytes_mps.dequantize_4bit(
            packed, absmax, 64, quant_type, w.numel(), torch.float32
        )
        args = (packed.view(24, -1), absmax, 24, 64, quant_type)
        expected = x @ dense.view(24, 96).t()
        for product in (bitsandbytes_mps.gemv_4bit, bitsandbytes_mps.gemm_4bit):
            torch.testing.assert_close(product(x, *args), expected, rtol=1e-4, atol=1e-4)
        bias = torch.randn(24)
        biased = bitsandbytes_mps.linear_4bit(x, *args, bias=bias)
        torch.testing.assert_close(biased, expected + bias, rtol=1e-4, atol=1e-4)


def test_bad_arguments_are_named():
    packed, absmax = bitsandbytes_mps.quantize_4bit(torch.randn(8, 64))
    with pytest.raises(ValueError, match="quant_type"):
        bitsandbytes_mps.quantize_4bit(torch.randn(64), quant_type=3)
    with pytest.raises(ValueError, match="block_size"):
        bitsandbytes_mps.quantize_4bit(torch.randn(64), blocksize=48)
    with pytest.raises(ValueError):
        bitsandbytes_mps.gemv_4bit(torch.randn(64), packed, absmax[:-1], 8)
    with pytest.raises(TypeError, match="blocksize, block_size"):
        mps_bitsandbytes.quantize_4bit(torch.randn(64), blocksize=64, block_size=64)
    with pytest.raises(ValueError, match="packages"):
        lowbit.compat.install("numpy")


def test_examples_of_mps_bitsandbytes():
    from mps_bitsandbytes import (
        BitsAndBytesConfig,
        Embedding4bit,
        Embedding8bit,
        EmbeddingFP4,
        Linear4bit,
        Linear8bit,
        LinearFP8,
        double_quant,
        matmul_nf4,
        quantize_model,
        quantize_nf4,
    )

    linear = torch.nn.Linear(1024, 512).half().to(dev)
    linear_4bit = Linear4bit.from_linear(linear)
    linear_fp4 = Linear4bit.from_linear(linear, quant_type="fp4")
    linear_int8 = Linear8bit.from_linear(linear)
    linear_fp8 = LinearFP8.from_linear(linear)
    input = torch.randn(2, 1024, dtype=torch.float16, device=dev)
    expected = torch.nn.functional.linear(input.float(), linear.weight.float(), linear.bias.float())
    for layer, limit in (
        (linear_4bit, 0.15),
        (linear_fp4, 0.2),
        (linear_int8, 0.02),
        (linear_fp8, 0.04),
    ):
        y = layer(input)
        assert y.dtype is torch.float16
        assert (y.float() - expected).norm() / expected.norm() < limit

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16
    )
    your_model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
    model = quantize_model(your_model, quantization_config=config, device=dev)
    assert type(model[0]) is Linear4bit and type(model[1]) is torch.nn.Linear

    weight = torch.randn(512, 1024, device=dev, dtype=torch.float16)
    packed, absmax = quantize_nf4(weight, block_size=64)
    output = matmul_nf4(input, packed, absmax)
    assert torch.equal(output, matmul_nf4(input, packed.view(512, -1), absmax.absmax))
    absmax_quant, absmax_scales = double_quant(absmax)
    restored = mps_bitsandbytes.dequant_absmax(absmax_quant, absmax_scales)
    assert (restored - absmax.absmax).abs().max() < 0.05

    embed = torch.nn.Embedding(500, 128).half().to(dev)
    ids = torch.tensor([[3, 499, 0]], device=dev)
    for table, limit in ((Embedding4bit, 0.15), (EmbeddingFP4, 0.2), (Embedding8bit, 0.02)):
        quantized = table.from_embedding(embed)
        rows = quantized(ids).float()
        assert (rows - embed(ids).float()).norm() / embed(ids).float().norm() < limit
        again = table(500, 128, device=dev)
        again.load_state_dict(quantized.state_dict())
        assert torch.equal(again.half()(ids), quantized(ids))


def test_qlora_as_its_readme_has_it():
    from mps_bitsandbytes import BitsAndBytesConfig, quantize_model

    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, **heads))
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(quantize_model(model, quantization_config=config), lora)
    ids = torch.randint(0, 64, (2, 12), device=model.device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(8):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_states_go_both_ways_with_bitsandbytes():
    import bitsandbytes.functional as bnb

    w = torch.randn(32, 96)
    for nested in (False, True):
        packed, state = mps_bitsandbytes.quantize_4bit(w, compress_statistics=nested)
        theirs = bnb.QuantState.from_dict(state.as_dict(packed=True), torch.device("cpu"))
        restored = mps_bitsandbytes.dequantize_4bit(packed, state)
        assert torch.equal(bnb.dequantize_4bit(packed, theirs), restored)
        back = mps_bitsandbytes.QuantState.from_dict(theirs.as_dict(packed=True))
        assert isinstance(back, mps_bitsandbytes.QuantState) and back.blocksize == 64
        assert torch.equal(mps_bitsandbytes.dequantize_4bit(packed, back), restored)
        assert torch.equal(mps_bitsandbytes.dequantize_4bit(packed, state.to("cpu")), restored)


def test_out_and_absmax_are_written():
    w = torch.randn(4, 64)
    out, absmax = torch.empty(128, 1, dtype=torch.uint8), torch.empty(4)
    packed, state = mps_bitsandbytes.quantize_4bit(w, absmax=absmax, out=out)
    assert packed is out and state.absmax is absmax
    restored = mps_bitsandbytes.dequantize_4bit(packed, state, out=torch.empty(4, 64))
    assert (restored - w).abs().mean() < 0.1
    with pytest.raises(ValueError, match="out"):
        mps_bitsandbytes.quantize_4bit(w, out=torch.empty(3))


def test_eight_bits_by_rows_and_columns():
    m = mps_bitsandbytes
    w, x = torch.randn(16, 64), torch.randn(3, 64)
    w[:, 5] *= 30
    q, rows, columns = m.quantize_colrow(w)
    dense = m.dequantize_colrow(q, rows, columns, torch.float32)
    assert (dense - w).norm() / w.norm() < 0.01
    y = m.matmul_colrow(x, q, rows, columns, torch.ones(16), torch.float32)
    torch.testing.assert_close(y, x @ dense.t() + 1, rtol=1e-3, atol=1e-2)
    by_column, by_row, col_stats, row_stats, none = m.double_quant(x)
    assert none is None and by_row.shape == by_column.shape == x.shape
    assert torch.equal(row_stats, x.abs().amax(1)) and torch.equal(col_stats, x.abs().amax(0))
    a, b = m.quantize_rowwise(x), m.quantize_rowwise(w)
    product = m.matmul_int8(a[0], b[0].t(), a[1], b[1], torch.float32)
    assert (product - x @ w.t()).norm() / (x @ w.t()).norm() < 0.05


def test_sparse_products():
    m = mps_bitsandbytes
    w = torch.randn(6, 9) * (torch.rand(6, 9) < 0.3)
    x = torch.randn(9, 4)
    rows, cols, values, *size = m.sparse_coo_from_dense(w)
    torch.testing.assert_close(m.spmm_coo(rows, cols, values, x, *size), w @ x)
    quantized = m.quantize_sparse_coo(rows, cols, values)
    y = m.spmm_coo_int8(*quantized, x, *size, torch.float32)
    assert (y - w @ x).abs().max() < 0.1
    with pytest.raises(ValueError, match="dense"):
        m.spmm_coo(rows, cols, values, x[:-1], *size)


def test_switchback_trains():
    linear = torch.nn.Linear(64, 16)
    layer = mps_bitsandbytes.SwitchBackLinear.from_linear(linear)
    model = torch.nn.Sequential(layer)
    callback = mps_bitsandbytes.SwitchBackLinearCallback(model)
    target = torch.nn.Linear(64, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.randn(256, 64)
    losses = []
    for _ in range(60):
        loss = (model(x) - target(x).detach()).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        callback.sync()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20
    layer.weight.data.zero_()
    before = layer(x)
    layer.sync_weights()
    assert torch.equal(layer(x)[0], layer.bias) and not torch.equal(before[0], layer.bias)


def test_installing_finds_programs_that_import_the_packages():
    processes = FreshProcesses()
    program = (
        "import lowbit; lowbit.compat.install()\n"
        "from mps_bitsandbytes.nn import Linear4bit\n"
        "from mps_bitsandbytes.functional import quantize_4bit\n"
        "import bitsandbytes_mps, mps_bitsandbytes, lowbit.compat.mps_bitsandbytes as ours\n"
        "assert mps_bitsandbytes is ours and Linear4bit is ours.Linear4bit"
    )
    assert processes.run(program) == (True, "")
    late = (
        "import sys, types; sys.modules['bitsandbytes_mps'] = types.ModuleType('theirs')\n"
        "import lowbit\n"
        "try:\n    lowbit.compat.install()\n"
        "except ImportError as error:\n    assert 'first' in str(error)\n"
        "else:\n    raise AssertionError"
    )
    assert processes.run(late) == (True, "")
    processes.close()
