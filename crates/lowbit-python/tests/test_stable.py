"""Products that torch calls without Python in between: they give what others do, or nothing."""

import resource

import pytest
import torch

from lowbit import _native, eager, formats
from lowbit import functional as F
from lowbit.backends import cpu, stable

SUPPORTED = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 9)
pytestmark = pytest.mark.skipif(not SUPPORTED, reason="torch before 2.9 has no such interface")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def long_way(monkeypatch):
    """Products without these: a function that turns them off for a call."""

    def call(function, *arguments):
        with monkeypatch.context() as context:
            context.setattr(stable, "_operations", None)
            return function(*arguments)

    return call


def weight(quant_type, n=8, k=64, **options):
    codes, state = F.quantize(torch.rand(n, k) + 0.1, quant_type, **options)
    return state.weight(codes)


def test_torch_has_taken_them():
    assert stable._operations is not None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("quant_type", [*formats.ALL, "sub1-v10-c16"])
def test_they_give_the_same_bytes(quant_type, double_quant, dtype, long_way):
    double_quant &= formats.by_name(quant_type).can_double_quantize
    w = weight(quant_type, 64, double_quant=double_quant)
    bias = torch.randn(64, dtype=dtype)
    for shape in ((64,), (1, 64), (3, 64), (2, 1, 5, 64), (0, 64), (2, 0, 64)):
        x = torch.randn(shape, dtype=dtype)
        for given in (None, bias):
            y = stable.linear(x, given, w)
            assert y.dtype is dtype and torch.equal(y, long_way(cpu.multiply, x, given, w))
        dx = stable.linear_transposed(x, w)
        assert dx.dtype is dtype and torch.equal(dx, long_way(cpu.multiply_transposed, x, w))


def test_scales_and_means_of_files_are_taken_too(long_way):
    w = weight("bin1")
    assert w.scales.dtype is torch.float16
    x = torch.randn(3, 64)
    for other in (
        w._replace(scales=w.scales.float()),
        w._replace(means=torch.ones(w.scales.numel())),
        weight("nf4")._replace(codebook=torch.linspace(-1, 1, 16)),
        weight("nf4", quant_storage=torch.bfloat16),
    ):
        y = stable.linear(x, None, other)
        assert torch.equal(y, long_way(cpu.multiply, x, None, other))


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(64, 3).T,
        torch.randn(3, 128)[:, ::2],
        torch.randn(3, 64).to_sparse(),
        torch.randn(3, 64, device="meta"),
        torch.randn(3, 64, dtype=torch.float64),
        torch.ones(3, 64, dtype=torch.int64),
        torch.randn(3, 63),
        torch.randn(65, 1),
        torch.tensor(1.0),
        torch.randn(0),
        None,
        "x",
    ],
    ids=lambda x: f"{type(x).__name__}{list(getattr(x, 'shape', []))}",
)
def test_they_leave_what_is_not_in_order(x):
    w = weight("nf4", 64)
    assert stable.linear(x, None, w) is None
    assert stable.linear_transposed(x, w) is None
    if isinstance(x, torch.Tensor):
        assert stable.linear(torch.randn(3, 64), x, w) is None
    for name in ("codes", "scales"):
        assert stable.linear(torch.randn(3, 64), None, w._replace(**{name: x})) is None


def test_tensors_are_given_back():
    """A handle that is not deleted would keep its tensor's memory: 400 MB of these."""
    w = weight("nf4", 64, 1 << 14, double_quant=True)
    bias = torch.randn(64)

    def largest():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def call(times):
        for _ in range(times):
            x, fresh = torch.zeros(64, 1 << 14), w._replace(codes=w.codes.clone())
            assert stable.linear(x, bias, fresh) is not None
            assert stable.linear(x.double(), bias.clone(), fresh) is None
            assert stable.linear(x, bias, fresh._replace(nested_map=None)) is None

    call(5)
    before = largest()
    call(100)
    unit = 1 if torch.backends.mps.is_built() else 1024  # Bytes on macOS, kilobytes elsewhere.
    assert (largest() - before) * unit < 100e6


def test_layers_and_their_gradients_are_the_same_without_them(long_way):
    codes, state = F.quantize_nf4(torch.randn(8, 64))
    x, bias = torch.randn(3, 64, requires_grad=True), torch.randn(8, requires_grad=True)

    def results():
        with torch.no_grad():
            y = F.linear_4bit(x, codes, state, bias)
        return y, *torch.autograd.grad(F.linear_4bit(x, codes, state, bias).sum(), (x, bias))

    assert long_way(eager.linear_now, x.detach(), None, codes, state) is None
    assert all(map(torch.equal, results(), long_way(results)))


def test_registration_is_refused():
    names = _native.stable_symbols()
    for bad in ([], [0] * (len(names) - 1), [0] * len(names), [1] * len(names)):
        # Ones are no functions, but nothing calls them: torch has its functions already.
        with pytest.raises(ValueError, match="addresses: expected"):
            _native.register_stable(bad)
    for bad in (None, ["a"] * len(names), [-1] * len(names)):
        with pytest.raises((TypeError, ValueError)):
            _native.register_stable(bad)


@pytest.mark.parametrize(
    "bad", [("nf5", 8, 64, 64, 0), ("nf4", -1, 64, 64, 0), ("nf4", 8, 2**64, 64, 0), ("nf4", 8)]
)
def test_descriptions_are_refused(bad):
    with pytest.raises((TypeError, ValueError)):
        _native.describe(*bad)
