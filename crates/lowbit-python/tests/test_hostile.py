"""Whatever is passed, to whatever entry: an error that says what was wrong, and never a crash."""

import inspect
import itertools

import pytest
import torch

import lowbit
from lowbit import _native, formats, ops, rules
from lowbit import functional as F
from lowbit.backends import PackedWeight, stable

REFUSALS = (ValueError, TypeError)


def address(t):
    return t.data_ptr(), t.numel()


SEARCHED = "sub1-v10-c16"
"""A format whose codes a search finds, with a codebook that few weights are enough for."""

# Regions of bytes: anywhere is aligned, and codes may end in bytes that fill a wider dtype.
BYTES = set()


def byte_address(t):
    BYTES.add(address(t))
    return address(t)


def passed(w):
    """A weight as native functions take it."""
    nested = None
    if w.nested_absmax is not None:
        parts = (w.nested_absmax, w.nested_map, w.nested_offset)
        nested = (*map(address, parts), w.nested_block_size)
    scales = (byte_address if w.scales.itemsize == 1 else address)(w.scales)
    halves = w.scales.dtype is torch.float16
    optional = (None if part is None else address(part) for part in (w.codebook, w.means))
    return (
        tuple(w.shape),
        w.block_size,
        byte_address(w.codes),
        (scales, halves),
        nested,
        *optional,
    )


class Raw:
    """Arguments of each native function that are as they should be, and what they point to."""

    def __init__(self, n=8, k=64):
        self.w = torch.randn(n, k)
        codes, state = F.quantize_4bit(self.w, compress_statistics=True)
        signs, signs_state = F.quantize(self.w, "bin1")
        searched, searched_state = F.quantize(self.w, SEARCHED)
        self.kept = (
            state.weight(codes.view(-1)),
            signs_state.weight(signs)._replace(means=torch.zeros(n)),
            searched_state.weight(searched),
        )
        weight, with_means, with_codebook = map(passed, self.kept)
        self.x, self.y, self.bias = torch.randn(3, k), torch.zeros(3, n), torch.randn(n)
        self.dx, self.out = torch.zeros(3, k), torch.zeros(n, k)
        self.codes = torch.zeros(n * k // 2, dtype=torch.uint8)
        self.scales = torch.zeros(n * k // 64)
        self.bytes = torch.zeros(len(self.scales), dtype=torch.uint8)
        self.ints = torch.ones(3, k, dtype=torch.int8)
        self.sums = torch.zeros(3, 3, dtype=torch.int32)
        self.few, self.one, self.nine = torch.zeros(1), torch.zeros(1), torch.zeros(3, 3)
        x, y, sums = map(address, (self.x, self.y, self.sums))
        ints = byte_address(self.ints)
        three = address(self.bias[:3])
        self.rows = torch.ones_like(self.w, dtype=torch.int8)
        rows = ((n, k), k, byte_address(self.rows), (address(self.bias), False), None, None, None)
        parts = searched, searched_state.absmax, searched_state.codebook
        self.made, self.importance = tuple(map(torch.empty_like, parts)), torch.rand(k)
        made_codes, made_scales, made_book = self.made
        self.firsts = torch.zeros(3, dtype=torch.int64)
        self.ids, self.found = torch.tensor([7, 0, 2]), torch.zeros(3, k)
        self.values, self.sums_of_rows = torch.randn(3), torch.zeros(n, k)
        self.p, self.g = torch.randn(3, k), torch.randn(3, k)
        self.moments = torch.zeros(2, 3, k)
        ids = address(self.ids)
        self.a, self.b = torch.randn(2, k), torch.randn(n, 2)
        self.hidden, self.dy = torch.zeros(3, 2), torch.randn(3, n)
        self.da, self.db = torch.zeros(2, k), torch.zeros(n, 2)
        adapter = (address(self.a), address(self.b), 2, 0.5)
        self.calls = {
            "quantize": [
                "nf4",
                "f32",
                address(self.w),
                (n, k),
                64,
                byte_address(self.codes),
                address(self.scales),
            ],
            "search": [
                SEARCHED,
                address(self.w),
                (n, k),
                k,
                address(self.importance),
                7,
                byte_address(made_codes),
                address(made_scales),
                address(made_book),
            ],
            "double_quantize": [
                address(self.scales),
                byte_address(self.bytes),
                address(self.few),
                address(self.one),
            ],
            "dequantize": ["nf4", weight, "f32", address(self.out)],
            "linear": ["nf4", weight, "f32", x, address(self.bias), y],
            "linear_transposed": [SEARCHED, with_codebook, "f32", y, address(self.dx)],
            "int8_matmul": [ints, ints, k, sums],
            "int8_rescale": ["f32", sums, three, three, None, address(self.nine)],
            "int8_linear": ["int8", rows, "f32", x, 6.0, address(self.bias), y],
            "embedding": ["bin1", with_means, ids, "f32", address(self.found)],
            "sparse_matmul": [
                "f32",
                (n, 3),
                ids,
                address(self.firsts),
                address(self.values),
                None,
                x,
                address(self.sums_of_rows),
            ],
            "low_rank": ["f32", adapter, x, address(self.y), address(self.hidden)],
            "low_rank_backward": [
                "f32",
                adapter,
                x,
                address(self.hidden),
                address(self.dy),
                *map(address, (self.dx, self.da, self.db)),
            ],
            "optimizer_update": [
                "adam",
                rules.Settings(lr=0.1),
                1,
                "f32",
                address(self.p),
                address(self.g),
                [(address(m), None) for m in self.moments],
            ],
        }


def hostile_region(region):
    start, length = region
    huge = 2**62
    if region not in BYTES:
        yield from [(start + 1, length), (start, length + 1)]
    yield from [(0, length), (start, huge), (start, 2**63), (2**64 - 4, length)]
    yield from [(start, max(length - 1, 0)), (start, 0), (start, -1)]
    yield from [(start,), (start, length, 1), None, "memory", (1.5, length), ("a", "b"), start]


def hostile(value):
    """Values of the wrong kind, size or range in the place of one that is right."""
    if isinstance(value, rules.Settings):
        yield from [None, 7, ()]
        yield from (
            value._replace(**{field: other}) for field in value._fields for other in ("", [])
        )
    elif isinstance(value, list):
        for other in hostile(tuple(value)):
            yield list(other) if isinstance(other, tuple) else other
    elif isinstance(value, tuple) and type(value[0]) is int and value[0] > 2**16:
        yield from hostile_region(value)
    elif isinstance(value, tuple):
        for i, part in enumerate(value):
            for other in hostile(part):
                yield (*value[:i], other, *value[i + 1 :])
        yield from [value[:-1], (), 7]
        if len(value) != 4:  # Without its nested scales, a weight has f32 ones.
            yield None
    elif isinstance(value, str):
        yield from ["", "f64", "nf5", "\0", "x" * 10_000, None, 3, b"nf4"]
    elif isinstance(value, bool):
        # That f16 scales are f32 ones is as little to be seen as a wrong dtype is.
        yield from [True, 2, None, "yes"]
    elif isinstance(value, int):
        yield from [0, -1, 1, 3, 63, 2**31, 2**62, 2**64, None, 1.5, "64"]
    elif isinstance(value, float):
        yield from [-1.0, float("nan"), None, "6", ()]


def is_legitimate(name, position, value, other):
    """Whether what looks hostile has a meaning after all."""
    if other == value:
        return True
    if isinstance(other, tuple) and len(other) == 7:
        if other[:6] == value[:6] and other[6] is None:
            return True  # Means are optional.
        if other[:4] == value[:4] and other[4]:
            *same, block_size = other[4] if isinstance(other[4], tuple) else [other[4]]
            if same == list(value[4][:3]) and isinstance(block_size, int):
                return block_size >= value[3][0][1]  # All scales are one block.
    if name == "optimizer_update" and position == 2:
        return other in (1, 3, 63, 2**31, 2**62)  # Steps.
    if name.startswith("low_rank") and position == 1:
        return isinstance(other, tuple) and other[:3] == value[:3] and type(other[-1]) is float
    if name == "low_rank_backward":
        return position == 5 and other is None  # No gradient of x.
    if name == "search":
        is_seed = position == 5 and isinstance(other, int) and 0 <= other < 2**64
        return is_seed or (position == 4 and other is None)
    if name == "int8_linear":
        return position == 5 and other is None
    no_part = other is None and name in ("linear", "dequantize", "linear_transposed")
    return no_part or (name == "linear" and position == 4 and other is None)


@pytest.mark.parametrize("name", list(Raw().calls))
def test_native_functions_refuse_what_they_cannot_take(name):
    function = getattr(_native, name)
    raw = Raw()
    arguments = raw.calls[name]
    function(*arguments)
    refused = 0
    for i, value in enumerate(arguments):
        for other in hostile(value):
            if is_legitimate(name, i, value, other):
                continue
            try:
                function(*arguments[:i], other, *arguments[i + 1 :])
            except REFUSALS:
                refused += 1
            else:
                pytest.fail(f"argument {i}: {other!r} was taken instead of {value!r}")
    with pytest.raises(TypeError):
        function(*arguments[:-1])
    with pytest.raises(TypeError):
        function(*arguments, 1)
    assert refused >= 30


def test_native_functions_do_not_write_what_they_read():
    raw = Raw()
    quant_type, weight, dtype, x, bias, _ = raw.calls["linear"]
    for overlapping in (x, (weight[2][0], 24), (weight[3][0][0], 24 // 4), bias):
        size = 3 * 8
        with pytest.raises(ValueError, match="y: expected"):
            _native.linear(quant_type, weight, dtype, x, bias, (overlapping[0], size))
    a = raw.calls["quantize"]
    with pytest.raises(ValueError, match="codes: expected"):
        _native.quantize(*a[:5], (a[2][0], a[5][1]), a[6])
    with pytest.raises(ValueError, match="scales: expected"):
        _native.quantize(*a[:6], (a[2][0], a[6][1]))
    good = raw.calls["search"]
    outputs = {"codes": 6, "scales": 7, "codebook": 8}
    for i, (name, place) in enumerate(outputs.items()):
        for taken in (1, 4, *list(outputs.values())[:i]):
            bad = good.copy()
            bad[place] = (good[taken][0], good[place][1])
            with pytest.raises(ValueError, match=f"{name}: expected memory of its own"):
                _native.search(*bad)


@pytest.mark.parametrize(
    "name",
    [
        *("", "nf5", "\0", "NF4", "sub1 ", "x" * 10_000, None, 3, b"nf4", ["nf4"]),
        *("nf4-v10-c16", "sub1-v10", "sub1-c16", "sub1-v10-c16-", "sub1-v10-c16-v10-c16"),
        *("sub1-v0-c0", "sub1-v-1-c16", "sub1-v17-c16", "sub1-v10-c15", "sub1-v10-c8192"),
        *("sub1-v3-c16", "sub1-v10-c16.0", f"sub1-v{2**64}-c16", f"sub1-v10-c{10**400}"),
    ],
    ids=lambda name: repr(name)[:24],
)
def test_names_of_no_format_are_refused(name):
    with pytest.raises(REFUSALS):
        _native.format_by_name(name)
    with pytest.raises(ValueError, match="quant_type: "):
        formats.by_name(name)


def test_every_native_function_that_takes_memory_is_among_them():
    others = {
        "formats",
        "format_by_name",
        "optimizers",
        "instruction_set",
        "conformance",
        "set_threads",
        "use_openmp",  # Nothing can be told of the address of a function.
        "after_fork",
        *("describe", "stable_symbols", "register_stable"),  # In test_stable.py.
    }
    functions = {name for name, f in vars(_native).items() if inspect.isbuiltin(f)}
    others |= {name for name in functions if name.startswith("plan_")}  # In test_mps.py.
    others.add("optimizer_params")  # Below.
    assert functions - others == set(Raw().calls)


@pytest.mark.parametrize(
    ("place", "bad"),
    [(0, "zz"), (1, None), (2, -1), (2, 0), (3, "f64"), (4, -1), (4, 2**63), (5, None), (6, "no")],
)
def test_numbers_of_a_step_on_a_gpu_are_refused(place, bad):
    good = ["adam", rules.Settings(lr=0.1), 1, "f32", 10, False, False]
    assert _native.optimizer_params(*good)
    good[place] = bad
    with pytest.raises(REFUSALS):
        _native.optimizer_params(*good)


@pytest.mark.parametrize("bad", [-1, 8, 2**62, -(2**63)])
def test_indices_outside_are_refused(bad):
    raw = Raw()
    raw.ids[1] = bad
    for name in ("embedding", "sparse_matmul"):
        with pytest.raises(ValueError):
            getattr(_native, name)(*raw.calls[name])
    raw = Raw()
    raw.firsts[1] = bad
    with pytest.raises(ValueError):
        _native.sparse_matmul(*raw.calls["sparse_matmul"])


def test_optimizers_do_not_write_what_they_read():
    raw = Raw()
    good = raw.calls["optimizer_update"]
    (m, v), p, g = good[6], good[4], good[5]
    for bad in ((p, p, [m, v]), (p, g, [m, m]), (p, g, [(p, None), v]), (p, g, [m, (g, None)])):
        with pytest.raises(ValueError, match="expected"):
            _native.optimizer_update(*good[:4], *bad)


def weight_of(**changes):
    codes, state = F.quantize_4bit(torch.randn(8, 64), compress_statistics=True)
    return list(state.weight(codes)._replace(**changes))


def rows_of():
    codes, state = F.quantize(torch.randn(8, 64), "int8")
    return state.weight(codes)


HOSTILE_TENSORS = [
    torch.empty(0),
    torch.empty(0, dtype=torch.uint8),
    torch.randn(1),
    torch.randn(8, 63),
    torch.randn(64, 16).T,
    torch.randn(8, 64, dtype=torch.float64),
    torch.randn(8, 64, dtype=torch.complex64),
    torch.zeros(8, 64, dtype=torch.bool),
    torch.zeros(8, 64, dtype=torch.int64),
    torch.randn(8, 64, device="meta"),
    torch.randn(8, 64).to_sparse(),
    torch.zeros((), dtype=torch.uint8),
    torch.full((8, 64), float("nan")),
    torch.randn(1).expand(8, 64),
]
HOSTILE = {
    torch.Tensor: HOSTILE_TENSORS,
    type(None): HOSTILE_TENSORS,
    str: ["", "nf5", "int8"],
    int: [0, -1, 1, 3, 2**31, 2**62],
    float: [-1.0, float("nan"), "6", None],
    torch.Size: [[], [0], [8], [-8, 64], [8, -64], [2**40, 2**40], [8, 65], [64, 8], [1, 8, 64]],
    torch.dtype: [torch.float64, torch.int8, torch.complex64, torch.uint8],
}
OPERATIONS = {
    "quantize": (ops.quantize, lambda: [torch.randn(8, 64), "nf4", 64]),
    "search": (ops.search, lambda: [torch.randn(8, 64), SEARCHED, 64, torch.rand(64), 7]),
    "double_quantize": (ops.double_quantize, lambda: [torch.rand(100)]),
    "dequantize": (ops.dequantize, lambda: [torch.float32, *weight_of()]),
    "linear": (ops.linear, lambda: [torch.randn(3, 64), torch.randn(8), *weight_of()]),
    "linear_transposed": (ops.linear_transposed, lambda: [torch.randn(3, 8), *weight_of()]),
    "int8_matmul": (
        ops.int8_matmul,
        lambda: [torch.ones(3, 64, dtype=torch.int8), torch.ones(8, 64, dtype=torch.int8)],
    ),
    "int8_rescale": (
        ops.int8_rescale,
        lambda: [
            torch.ones(3, 8, dtype=torch.int32),
            torch.rand(3),
            torch.rand(8),
            torch.rand(8),
            torch.float32,
        ],
    ),
    "int8_linear": (ops.int8_linear, lambda: [torch.randn(3, 64), torch.randn(8), 6.0, *rows_of()]),
    "embedding": (ops.embedding, lambda: [torch.tensor([1, 7]), torch.float32, *weight_of()]),
    "sparse_matmul": (
        ops.sparse_matmul,
        lambda: [
            torch.Size([4, 8]),
            torch.tensor([0, 3]),
            torch.tensor([7, 0]),
            torch.randn(2),
            None,
            torch.randn(8, 64),
        ],
    ),
}


@pytest.mark.skipif(stable._operations is None, reason="torch has no stable interface")
@pytest.mark.parametrize("name", ["linear_now", "linear_transposed_now"])
def test_products_at_once_never_crash(name):
    w = PackedWeight(*weight_of())
    description = _native.describe(w.format, *w.shape, w.block_size, w.nested_block_size)
    x = torch.randn(3, 64 if name == "linear_now" else 8)
    good = [x, w.codes, w.scales, description, *w[2:7]]
    good += [torch.randn(8)] if name == "linear_now" else []
    operation = getattr(torch.ops.lowbit, name)
    assert operation(*good) is not None
    refused = taken = 0
    for i in range(len(good)):
        for other in [*HOSTILE_TENSORS, None, 2**62, 2**63 - 1, -1, -(2**63), "x"]:
            try:
                result = operation(*good[:i], other, *good[i + 1 :])
            except RuntimeError:
                result = None
            refused, taken = refused + (result is None), taken + (result is not None)
    # No bias has a meaning, as has another offset.
    assert refused > 10 * taken


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_operations_of_torch_never_crash(name):
    operation, arguments = OPERATIONS[name]
    expected = operation(*arguments())
    refused = taken = 0
    for i, value in enumerate(arguments()):
        for other in HOSTILE[type(value)]:
            good = arguments()
            try:
                result = operation(*good[:i], other, *good[i + 1 :])
            except (*REFUSALS, RuntimeError, NotImplementedError, MemoryError):
                refused += 1
            except IndexError as error:
                assert "ids: expected indices" in str(error)
                refused += 1
            else:
                assert type(result) is type(expected)
                taken += 1
    # Some of it has a meaning: other shapes of activations, an outlandish offset.
    assert refused > taken


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"codes": torch.zeros(255, dtype=torch.uint8)}, "bytes of codes"),
        ({"codes": torch.zeros(512, 2, dtype=torch.uint8)[:, 0]}, "codes"),
        ({"scales": torch.zeros(7, dtype=torch.uint8)}, "scales"),
        ({"nested_absmax": torch.zeros(2)}, "nested absmax"),
        ({"nested_absmax": torch.zeros(1, dtype=torch.float16)}, "nested_absmax"),
        ({"nested_absmax": None}, "scales"),
        ({"nested_map": torch.zeros(255)}, "nested map"),
        ({"nested_map": None}, "nested_map"),
        ({"nested_offset": torch.zeros(2)}, "nested_offset"),
        ({"nested_block_size": 0}, "nested block"),
        ({"codebook": torch.zeros(15)}, "codebook"),
        ({"means": torch.zeros(8)}, "means"),
        ({"format": "nf5"}, "nf5"),
        ({"shape": [8, 63]}, "rows of K = 63"),
        ({"shape": [7, 64]}, "bytes of codes"),
        ({"block_size": 48}, "block_size"),
        ({"block_size": 128}, "scales"),
    ],
)
def test_a_weight_that_does_not_fit_is_named(changes, named):
    w = PackedWeight(*weight_of(**changes))
    with pytest.raises(REFUSALS, match=named):
        ops.linear(torch.randn(3, 64), None, *w)
    assert stable.linear(torch.randn(3, 64), None, w) is None


def good_4bit():
    return F.quantize_4bit(torch.randn(8, 64))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: F.quantize_4bit([1.0]), "w"),
        (lambda: F.quantize_4bit(torch.ones(64, dtype=torch.int32)), "w"),
        (lambda: F.quantize_4bit(torch.ones(64), block_size=48), "block_size"),
        (lambda: F.quantize_4bit(torch.ones(64), block_size=64.0), "block_size"),
        (lambda: F.quantize_4bit(torch.ones(64), quant_type="int8"), "quant_type"),
        (lambda: F.quantize_4bit(torch.ones(64), quant_type="nf5"), "quant_type"),
        (lambda: F.quantize_4bit(torch.ones(64), quant_storage="bf16"), "quant_storage"),
        (lambda: F.quantize_4bit(torch.full((64,), torch.inf)), "index 0"),
        (lambda: F.quantize(torch.ones(64), "fp8_e4m3"), "shape"),
        (lambda: F.quantize(torch.ones(2, 64), "mxfp4", double_quant=True), "double_quant"),
        (lambda: F.quantize(torch.ones(8, 64), SEARCHED, seed=-1), "seed"),
        (lambda: F.quantize(torch.ones(8, 64), SEARCHED, importance=torch.ones(63)), "importance"),
        (lambda: F.quantize(torch.ones(8, 64), SEARCHED, importance=-torch.ones(64)), "importance"),
        (
            lambda: F.quantize(torch.ones(8, 64), SEARCHED, importance=torch.ones(64).char()),
            "importance: expected a floating point",
        ),
        (lambda: F.dequantize(good_4bit()[0], None), "state"),
        (lambda: F.dequantize(None, good_4bit()[1]), "codes"),
        (lambda: F.dequantize(*good_4bit(), dtype=torch.int8), "dtype"),
        (lambda: F.dequantize(good_4bit()[0][1:], good_4bit()[1]), "codes"),
        (lambda: F.dequantize_nf4(*F.quantize_fp4(torch.ones(64))), "state"),
        (lambda: F.linear([1.0] * 64, *good_4bit()), "x"),
        (lambda: F.linear(torch.ones(2, 63), *good_4bit()), "x"),
        (lambda: F.linear(torch.tensor(1.0), *good_4bit()), "x"),
        (lambda: F.linear(torch.ones(2, 64).double(), *good_4bit()), "x"),
        (lambda: F.linear(torch.ones(2, 64), *good_4bit(), torch.ones(7)), "bias"),
        (lambda: F.linear(torch.ones(2, 64), *good_4bit(), torch.ones(8).half()), "bias"),
        (lambda: F.linear(torch.ones(2, 64), *good_4bit(), 1.0), "bias"),
        (lambda: F.linear(torch.ones(64), *F.quantize_nf4(torch.ones(64))), "state.shape"),
        (lambda: F.linear(torch.ones(2, 64, device="meta"), *good_4bit()), "x"),
        (
            lambda: F.linear_4bit(torch.ones(64), *F.quantize(torch.ones(8, 64), "int8")),
            "quant_type",
        ),
        (lambda: F.gemv_4bit(torch.ones(2, 64), *good_4bit()), "x"),
        (lambda: F.gemm_4bit(torch.ones(64), *good_4bit()), "x"),
        (lambda: F.quantize_rowwise(torch.tensor(1.0)), "t"),
        (lambda: F.dequantize_rowwise(torch.ones(2, 4), torch.ones(2)), "codes"),
        (lambda: F.dequantize_rowwise(torch.ones(2, 4).char(), torch.ones(3)), "scales"),
        (lambda: F.matmul_int8(torch.ones(2, 4), *[torch.ones(4, 2).char()] * 3), "a"),
        (lambda: F.matmul_fp8_e4m3(torch.ones(4), torch.ones(2, 4), torch.ones(2)), "w"),
        (lambda: F.quantize_blockwise(torch.ones(64), torch.ones(255)), "code"),
        (lambda: F.quantize_blockwise(torch.ones(64), block_size=0), "block_size"),
        (lambda: F.double_quant(torch.ones(4).half()), "absmax"),
        (lambda: F.dequant_absmax(torch.ones(4).byte(), None, torch.ones(())), "nested"),
        (lambda: F.int8_linear(torch.ones(2, 4), torch.ones(2, 4), torch.ones(2)), "w"),
        (lambda: F.int8_linear(torch.ones(4), torch.ones(2, 4).char(), torch.ones(3)), "scales"),
        (lambda: F.embedding(torch.ones(3), *good_4bit()), "ids"),
        (lambda: F.embedding(torch.tensor([1]), *F.quantize_nf4(torch.ones(64))), "state.shape"),
        (lambda: lowbit.nn.EmbeddingNF4.from_embedding(torch.nn.Linear(4, 4)), "embedding"),
        (lambda: lowbit.nn.Embedding4bit(4, 64, quant_type="int8"), "quant_type"),
        (lambda: lowbit.nn.Linear8bitLt(64, 8, threshold=-1.0), "threshold"),
        (lambda: lowbit.nn.Linear8bitLt(64, 8, index=3), "index"),
        (lambda: lowbit.QuantState.from_dict({}), "quant_type"),
        (lambda: lowbit.QuantState.from_dict({"quant_type": "nf4"}), "absmax"),
        (lambda: lowbit.nn.Linear4bit(64, 8, quant_type="int8"), "quant_type"),
        (lambda: lowbit.nn.Linear4bit(64, 8, block_size=7), "block_size"),
        (lambda: lowbit.nn.Linear4bit(64, 8).requantize(torch.ones(8, 63)), "weight"),
        (lambda: lowbit.nn.Linear4bit.from_linear(torch.nn.Conv1d(1, 1, 1)), "linear"),
    ],
)
def test_arguments_are_named(call, named):
    with pytest.raises(REFUSALS, match=named):
        call()


@pytest.mark.parametrize("quant_type", list(formats.ALL))
@pytest.mark.parametrize("shape", [(0, 64), (8, 0), (0, 0), (1, 1), (3, 5)])
def test_small_and_empty_shapes(quant_type, shape):
    w, entry = torch.rand(shape) + 0.5, formats.by_name(quant_type)
    if shape[0] % entry.stacked_rows or (entry.codebook is None and w.numel()):
        # Rows that no layout holds; a codebook larger than the weights.
        with pytest.raises(ValueError, match=r"multiple of|as many as codes"):
            F.quantize(w, quant_type)
        return
    codes, state = F.quantize(w, quant_type)
    assert F.dequantize(codes, state).shape == shape
    n, k = shape
    for m in (0, 1, 3):
        x = torch.ones(m, k, requires_grad=True)
        y = F.linear(x, codes, state)
        assert y.shape == (m, n)
        y.sum().backward()
        assert x.grad.shape == (m, k)
        torch.testing.assert_close(y, x @ F.dequantize(codes, state).T, rtol=1e-4, atol=1e-4)


def test_files_of_states_that_lie_are_refused():
    good = good_4bit()[1].as_dict()
    lies = {
        "quant_type": ["nf5", None, 3],
        "absmax": [None, torch.ones(8).byte(), [1.0]],
        "blocksize": [None, "64", 1.5],
        "dtype": ["float33", None, "nn"],
        "shape": [None, 8, "8x64"],
    }
    for key, values in lies.items():
        for value in values:
            with pytest.raises(REFUSALS, match=key):
                lowbit.QuantState.from_dict(good | {key: value})
    assert len(list(itertools.chain(*lies.values()))) == 15
