"""Calls that a user gets wrong: each is refused in words that name the argument."""

import pytest
import torch

import lowbit
from lowbit import functional as F
from lowbit import nn, optim
from lowbit.compat import bitsandbytes_mps, mps_bitsandbytes

W = torch.linspace(-1, 1, 64 * 128).view(64, 128)
X = torch.linspace(-1, 1, 3 * 128).view(3, 128)
CODES, STATE = F.quantize_4bit(W)
ROWS, SCALES = F.quantize_rowwise(W)
SPARSE = F.sparse_coo_from_dense(torch.eye(4))
NESTED = F.double_quant(torch.rand(300))
LAYERS = (
    nn.Linear4bit,
    nn.Linear8bit,
    nn.LinearFP8,
    nn.Linear8bitLt,
    nn.OutlierAwareLinear,
    nn.SwitchBackLinear,
)
EMBEDDINGS = (nn.Embedding4bit, nn.EmbeddingNF4, nn.EmbeddingFP4, nn.Embedding8bit)
OPTIMIZERS = ("Adam", "AdamW8bit", "Lion", "RMSprop8bit", "Adagrad", "AdEMAMix8bit", "LAMB")


def parameter():
    p = torch.nn.Parameter(torch.ones(64, 100))
    p.grad = torch.ones(64, 100)
    return p


def two_layers():
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))


def of_functions():
    s, m = F, mps_bitsandbytes
    rows, cols, values, *size = SPARSE
    eye = torch.eye(4)
    for name in ("quantize_4bit", "quantize_nf4", "quantize_rowwise", "quantize_fp8_e4m3"):
        yield getattr(s, name), (W.to_sparse(),), "to_dense"
        yield getattr(s, name), (W.double(),), "float64"
    for name in ("quantize_rowwise", "quantize_fp8_e4m3"):
        yield getattr(s, name), (W.double(),), "^t: "
        yield getattr(s, name), (torch.empty(4, 0),), "^t: .*number or more"
        yield getattr(s, name), (torch.tensor(1.0),), "^t: "
    yield s.double_quant, (SCALES.to_sparse(),), "absmax"
    yield s.matmul_int8, (ROWS[0].short(), ROWS.t(), SCALES[:1], SCALES), "^a: "
    yield s.matmul_int8, (torch.tensor(1).char(), ROWS.t(), SCALES[:1], SCALES), "^a: "
    yield s.matmul_fp8_e4m3, (X, None, SCALES), "^w: "
    yield s.int8_linear, (X, ROWS, SCALES, None, "6"), "^threshold: "
    yield s.dequant_absmax, (*NESTED[:2], None), "^offset: "
    yield s.dequant_absmax, (*NESTED[:2], torch.ones(3)), "^offset: "
    yield s.spmm_coo, (None, cols, values, eye, *size), "^row_indices: "
    yield s.spmm_coo, (rows, cols, values, eye, 4.0, 4), "^sparse_rows: "
    yield s.spmm_coo, (rows[:0], cols[:0], values[:0], eye, -1, 4), "^sparse_rows: "
    yield s.spmm_coo_int8, (rows, cols, values.char(), 1.0, eye, *size), "^values_scale: "
    yield s.spmm_coo_int8, (rows, cols, None, SCALES[:1], eye, *size), "^values_int8: "
    yield s.is_available, ("nowhere",), "^device: .*nowhere"
    yield lowbit.QuantState.from_dict, (None,), "^qs_dict: "
    b = bitsandbytes_mps
    yield b.gemv_4bit, (None, CODES, STATE.absmax, 64), "^x: "
    yield b.gemv_4bit, (X[0], None, STATE.absmax, 64), "^w: "
    yield b.gemv_4bit, (X[0], CODES, None, 64), "^absmax: "
    yield b.gemv_4bit, (X[0], CODES, STATE.absmax, -64), "^output_features: "
    yield b.gemm_4bit, (None, CODES, STATE.absmax, 64), "^x: "
    yield b.dequantize_4bit, (CODES, None), "^absmax: "
    yield m.double_quant, (None,), "^absmax: "
    yield m.dequant_absmax, (NESTED[0], None), "^absmax_scales: "
    yield m.dequant_absmax, (NESTED[0], torch.empty(0)), "^absmax_scales: "
    yield m.quantize_colrow, (W[0],), "^tensor: "
    yield m.quantize_colrow, (None,), "^tensor: "
    yield m.quantize_colrow, (torch.full((2, 2), torch.nan),), "^tensor: .*finite"
    yield m.matmul_colrow, (X[:, :5], *m.quantize_colrow(W)), r"^x: expected \[.., 128\]"
    yield m.matmul_4bit, (None, CODES, STATE.absmax), "^A: "
    yield m.create_normal_map, (2.0,), "^offset: "


@pytest.mark.parametrize(("call", "arguments", "said"), list(of_functions()))
def test_functions(call, arguments, said):
    with pytest.raises((ValueError, TypeError), match=said):
        call(*arguments)


MIXED = {
    "dequantize": (F.dequantize, (CODES, STATE)),
    "dequantize_rowwise": (F.dequantize_rowwise, (ROWS, SCALES)),
    "dequantize_blockwise": (F.dequantize_blockwise, F.quantize_blockwise(W)),
    "embedding": (F.embedding, (torch.tensor([1]), CODES, STATE)),
    "linear": (F.linear, (X, CODES, STATE)),
    "int8_linear": (F.int8_linear, (X, ROWS, SCALES)),
    "matmul_int8": (F.matmul_int8, (ROWS, ROWS.t(), SCALES, SCALES)),
    "matmul_fp8_e4m3": (F.matmul_fp8_e4m3, (X, *F.quantize_fp8_e4m3(W))),
    "dequant_absmax": (F.dequant_absmax, (NESTED[0], NESTED[1], NESTED[2])),
    "spmm_coo": (F.spmm_coo, (*SPARSE[:3], torch.eye(4), 4, 4)),
}


@pytest.mark.parametrize("name", MIXED)
def test_nothing_is_computed_from_memory_that_is_not_there(name):
    """With one tensor on "meta" torch would run nothing, and answer with what memory held."""
    call, good = MIXED[name]
    call(*good)
    for i, argument in enumerate(good):
        if hasattr(argument, "to"):
            mixed = [*good[:i], argument.to("meta"), *good[i + 1 :]]
            with pytest.raises((ValueError, TypeError), match=r"expected it on|on cpu|on meta"):
                call(*mixed)


@pytest.mark.parametrize("kind", LAYERS)
def test_layers(kind):
    for sizes in ((-1, 8), ("a", 8), (8, -1)):
        with pytest.raises((ValueError, TypeError), match=r"^(in|out|input|output)_features: "):
            kind(*sizes)
    for linear in (None, torch.nn.Conv2d(1, 1, 1)):
        with pytest.raises(TypeError, match=r"^linear: "):
            kind.from_linear(linear)
    layer = kind(64, 8)
    for x in (None, torch.ones(2, 64, dtype=torch.int64), torch.eye(64).to_sparse()):
        with pytest.raises(TypeError, match=r"^x: "):
            layer(x)
    if kind is not nn.Linear8bitLt:
        options = {} if kind is nn.SwitchBackLinear else {"bias": False}
        for dtype in ("bfloat16", torch.int8):
            with pytest.raises(TypeError, match=r"^compute_dtype: "):
                kind(64, 8, compute_dtype=dtype, **options)


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
def test_quantized_weights_are_not_made_trainable(storage):
    layer = nn.Linear4bit(64, 8, quant_storage=storage)
    for make in (layer.requires_grad_, layer.weight.requires_grad_):
        with pytest.raises(ValueError, match=r"^requires_grad: .*adapter"):
            make()
    assert not layer.requires_grad_(False).weight.requires_grad


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embeddings(kind):
    with pytest.raises(ValueError, match=r"^padding_idx: "):
        kind(10, 64, 99)
    with pytest.raises(ValueError, match=r"^num_embeddings: "):
        kind(-1, 64)
    with pytest.raises(TypeError, match=r"^embedding: "):
        kind.from_embedding(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"^embedding: .*max_norm"):
        kind.from_embedding(torch.nn.Embedding(10, 64, max_norm=1.0))
    with pytest.raises(TypeError, match=r"^ids: "):
        kind(10, 64)(None)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    kind, p = getattr(optim, name), parameter()
    for params in (None, p):
        with pytest.raises(TypeError, match=r"^params: "):
            kind(params)
    for options, said in (
        ({"lr": "fast"}, "^lr: "),
        ({"weight_decay": None}, "^weight_decay: "),
        ({"page_dir": "/nowhere"}, "^page_dir: .*/nowhere"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            kind([p], **options)
    optimizer = kind([p])
    for state in ({}, None):
        with pytest.raises(ValueError, match=r"^state_dict: "):
            optimizer.load_state_dict(state)
    optimizer.step()
    p.data, p.grad = torch.ones(10, 10), torch.ones(10, 10)
    with pytest.raises(ValueError, match=r"^step: .*64, 100\].*\[10, 10\]"):
        optimizer.step()


def test_betas():
    p = parameter()
    for betas in ((0.9,), (0.9, 0.9, 0.9), 0.9, "fast", None):
        with pytest.raises((ValueError, TypeError), match=r"^betas: "):
            optim.Adam([p], betas=betas)
    assert optim.Adam([p], betas="(0.5, 0.75)").defaults["betas"] == (0.5, 0.75)


def test_the_manager():
    manager = optim.GlobalOptimManager.get_instance()
    module = torch.nn.Linear(2, 2)
    for call, said in (
        (lambda: manager.override_config(None, "lr", 1.0), "^parameters: "),
        (lambda: manager.override_config("weight", "lr", 1.0), "^parameters: "),
        (lambda: manager.override_config(module.weight, "optim_bit", 32), "optim_bits.*optim_bit'"),
        (lambda: manager.register_parameters(None), "^params: "),
        (lambda: manager.register_module_override(None, "weight", {}), "^module: "),
        (lambda: manager.register_module_override(module, "wieght", {}), "^param_name: .*wieght"),
        (lambda: manager.register_module_override(module, "weight", None), "^config: "),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            call()
    assert not manager.pid2config and not manager.module_weight_config_triple


def test_models():
    for call, said in (
        (lambda: lowbit.quantize_model(None, load_in_4bit=True), "^model: "),
        (lambda: lowbit.get_memory_footprint(None), "^model: "),
        (lambda: lowbit.quantize_model(two_layers(), load_in_4bit=True, device="x"), "^device: "),
        (
            lambda: lowbit.quantize_model(two_layers(), load_in_4bit=True, compute_dtype="half"),
            "^compute_dtype: ",
        ),
        (lambda: lowbit.BitsAndBytesConfig(load_in_4bit="yes"), "^load_in_4bit: "),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            call()
