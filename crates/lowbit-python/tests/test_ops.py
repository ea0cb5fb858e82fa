"""The custom operations under everything that looks at operations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lowbit import eager, formats, ops
from lowbit import functional as F

FORMATS = list(formats.ALL)


def weight(quant_type, n=8, k=64, double_quant=False):
    entry = formats.by_name(quant_type)
    double_quant &= entry.can_double_quantize
    codes, state = F.quantize(torch.rand(n, k) + 0.1, quant_type, double_quant=double_quant)
    return state.weight(codes)


@pytest.mark.parametrize("quant_type", FORMATS)
@pytest.mark.parametrize("double_quant", [False, True])
def test_opcheck(quant_type, double_quant):
    w = weight(quant_type, 64, double_quant=double_quant)
    x, dy = torch.randn(3, 64, requires_grad=True), torch.randn(3, 64, requires_grad=True)
    bias = torch.randn(64, requires_grad=True)
    entry = formats.by_name(quant_type)
    size = entry.geometry((64, 64)).block_size
    if entry.encoder is None:
        torch.library.opcheck(ops.search, (torch.randn(64, 64), quant_type, size, None, 0))
    else:
        torch.library.opcheck(ops.quantize, (torch.rand(64, 64), quant_type, size))
    torch.library.opcheck(ops.dequantize, (torch.bfloat16, *w))
    torch.library.opcheck(ops.linear, (x, bias, *w))
    torch.library.opcheck(ops.linear, (x.detach().bfloat16(), None, *w))
    torch.library.opcheck(ops.linear_transposed, (dy, *w))


def test_opcheck_of_the_others():
    a, b = torch.ones(3, 64, dtype=torch.int8), torch.ones(8, 64, dtype=torch.int8)
    sums = ops.int8_matmul(a, b)
    torch.library.opcheck(ops.double_quantize, (torch.rand(1000),))
    torch.library.opcheck(ops.int8_matmul, (a, b))
    torch.library.opcheck(
        ops.int8_rescale, (sums, torch.rand(3), torch.rand(8), torch.rand(8), torch.float16)
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_whole_graphs_compile_and_train(dynamic):
    codes, state = F.quantize_4bit(torch.randn(16, 64), compress_statistics=True)

    def model(x, bias):
        return torch.nn.functional.silu(F.linear_4bit(x, codes, state, bias)).square().mean()

    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for m in (3, 5, 1):
        x, bias = torch.randn(m, 64, requires_grad=True), torch.randn(16, requires_grad=True)
        plain = torch.autograd.grad(model(x, bias), (x, bias))
        torch.testing.assert_close(torch.autograd.grad(compiled(x, bias), (x, bias)), plain)


def test_quantizing_compiles():
    def there_and_back(w):
        return F.dequantize(*F.quantize(w, "nf4", double_quant=True))

    w = torch.randn(4, 96)
    compiled = torch.compile(there_and_back, fullgraph=True)
    assert torch.equal(compiled(w), there_and_back(w))


def test_gradients_have_gradients():
    w = weight("nf4")
    x = torch.randn(3, 64, dtype=torch.float32, requires_grad=True)
    dense = ops.dequantize(torch.float32, *w)
    y = eager.linear(x, None, w)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    dx.square().sum().backward()
    reference = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(
        (reference @ dense.T).square().sum(), reference, create_graph=True
    )
    expected.square().sum().backward()
    torch.testing.assert_close(dx, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(x.grad, reference.grad, rtol=1e-4, atol=1e-2)


def test_eager_code_and_the_operation_agree():
    w, x, bias = weight("nf4"), torch.randn(3, 64), torch.randn(8)
    assert torch.equal(eager.linear(x, bias, w), ops.linear(x, bias, *w))
    grads = []
    for call in (lambda x, bias: eager.linear(x, bias, w), lambda x, b: ops.linear(x, b, *w)):
        inputs = x.clone().requires_grad_(), bias.clone().requires_grad_()
        grads.append(torch.autograd.grad(call(*inputs).square().sum(), inputs))
    assert all(map(torch.equal, *grads))


class Names(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **kwargs or {})


def test_whoever_listens_hears_the_operation():
    w, x = weight("nf4"), torch.randn(3, 64)
    with Names() as heard:
        eager.linear(x, None, w)
    assert "lowbit::linear" in heard.names
    with torch.profiler.profile() as profile:
        eager.linear(x, None, w)
    assert "lowbit::linear" in {event.name for event in profile.events()}
    with FlopCounterMode(display=False):
        eager.linear(x, None, w)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = eager.linear(mode.from_tensor(x), None, w)
        assert y.shape == (3, 8) and type(y) is not torch.Tensor
    meta = w._replace(codes=w.codes.to("meta"), scales=w.scales.to("meta"))
    assert eager.linear(x.to("meta"), None, meta).device.type == "meta"
    program = torch.export.export(_Layer(w), (x,))
    assert "lowbit.linear" in str(program.graph)


class _Layer(torch.nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = w
        self.codes = torch.nn.Buffer(w.codes)

    def forward(self, x):
        return eager.linear(x, None, self.w._replace(codes=self.codes))


def test_no_dense_copy_of_the_weight_is_made_in_training():
    n = k = 1024
    codes, state = F.quantize_4bit(torch.randn(n, k))
    x = torch.randn(4, k, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        F.linear_4bit(x, codes, state).sum().backward()
    largest = max(abs(event.cpu_memory_usage) for event in profile.events())
    assert 0 < largest < n * k
