"""Optimizers: bitsandbytes' steps, its state dicts both ways, paging, overrides."""

import copy
import inspect
import io
import pathlib
import pickle

import bitsandbytes
import peft
import pytest
import torch
import transformers
from safetensors import safe_open

import lowbit
from fresh_process import FreshProcesses
from lowbit import optim, rules
from lowbit.backends import cpu, dense_optim
from lowbit.optim.optimizer import QUANT_STATE

ROOT = pathlib.Path(__file__).parents[3]
GOLDEN = ROOT / "golden" / "bnb-cuda.safetensors"
TINYBARD = ROOT / "models" / "tinybard"
CLASSES = [name for name in optim.__all__ if name[0] != "B" and name != "GlobalOptimManager"]
NEEDED = {"SGD": {"lr": 1e-2, "momentum": 0.9}, "LARS": {"lr": 1e-2, "momentum": 0.9}}
FAMILIES = ["Adam", "AdamW", "Lion", "SGD", "RMSprop", "Adagrad", "AdEMAMix"]


def needed(name):
    return next((v for k, v in NEEDED.items() if name.startswith(k)), {})


def make(name, params, library=optim, **options):
    return getattr(library, name)(params, **needed(name) | options)


def parameter(*shape, dtype=torch.float32):
    p = torch.nn.Parameter(torch.randn(shape, dtype=dtype))
    p.grad = torch.randn(shape, dtype=dtype) * 1e-2
    return p


def train(optimizer, params, steps=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = (torch.randn(p.shape, generator=generator) * 1e-2).to(p.dtype)
        optimizer.step()


def states(optimizer):
    """All tensors of a state dict, by parameter and key."""
    found = {}
    for key, state in optimizer.state_dict()["state"].items():
        for name, value in (state | state.get(QUANT_STATE, {})).items():
            if isinstance(value, torch.Tensor):
                found[key, name] = value
    return found


def same(a, b):
    assert a.keys() == b.keys()
    for key, t in a.items():
        assert t.dtype == b[key].dtype and torch.equal(t, b[key]), key


processes = pytest.fixture(scope="module")(lambda: FreshProcesses())


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_takes_what_that_of_bitsandbytes_takes(name):
    theirs = inspect.signature(getattr(bitsandbytes.optim, name)).parameters
    given = {
        key: p.default for key, p in theirs.items() if p.default is not p.empty and key != "args"
    }
    params = [parameter(4)]
    ours = make(name, params, **{k: v for k, v in given.items() if k not in needed(name)})
    expected = make(name, [parameter(4)], bitsandbytes.optim)
    assert ours.defaults.items() >= expected.defaults.items()
    assert ours.optim_bits == expected.args.optim_bits
    assert ours.min_8bit_size == expected.args.min_8bit_size
    assert ours.max_unorm == expected.args.max_unorm
    assert ours.is_paged == expected.is_paged


def test_there_is_every_class_of_bitsandbytes():
    theirs = {n for n, c in vars(bitsandbytes.optim).items() if inspect.isclass(c)}
    assert theirs - set(optim.__all__) == {"PytorchLARS"}


@pytest.mark.parametrize("name", FAMILIES)
def test_golden_steps_are_those_of_bitsandbytes(name):
    with safe_open(GOLDEN, "pt") as file:

        def read(what):
            return file.get_tensor(f"opt.{name.lower()}8bit.{what}")

        keys = [k for k in file.keys() if k.startswith(f"opt.{name.lower()}8bit.state.")]  # noqa: SIM118
        p = torch.nn.Parameter(read("p0"))
        decay = {"weight_decay": 0.1} if name in ("AdamW", "Lion") else {}
        optimizer = make(f"{name}8bit", [p], **decay | {"lr": 1e-2})
        for step in range(3):
            p.grad = read(f"g{step}")
            optimizer.step()
            torch.testing.assert_close(p.data, read(f"p{step + 1}"), rtol=0, atol=2e-6)
        for key in keys:
            got, expected = optimizer.state[p][key.rpartition(".")[2]], file.get_tensor(key)
            assert got.shape == expected.shape and got.dtype == expected.dtype, key
            torch.testing.assert_close(got, expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*FAMILIES, "LAMB", "LARS"])
def test_state_dicts_go_both_ways_and_training_goes_on(name, dtype, bits):
    shapes = [(64, 80), (7,)]
    ours = [torch.nn.Parameter(torch.randn(s).to(dtype)) for s in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizer, other = (
        make(f"{name}{bits}bit", ours),
        make(f"{name}{bits}bit", theirs, bitsandbytes.optim),
    )
    train(optimizer, ours)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    theirs_now = states(other)
    for key, t in states(optimizer).items():
        assert torch.equal(t, theirs_now[key]), key
    for p, q in zip(ours, theirs, strict=True):
        q.data.copy_(p.data)
    # bitsandbytes' classes on our kernels: the same steps to the bit.
    train(optimizer, ours, seed=2)
    train(other, theirs, seed=2)
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)
    # And back, into a fresh optimizer.
    back = make(f"{name}{bits}bit", theirs)
    back.load_state_dict(other.state_dict())
    train(optimizer, ours, seed=3)
    train(back, theirs, seed=3)
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)
    same(states(optimizer), states(back))


@pytest.mark.parametrize("name", FAMILIES)
def test_bitsandbytes_own_kernels_take_nearly_the_same_steps(processes, name):
    """It rounds otherwise in a few places: a code in a hundred may be another, and its step."""
    program = f"""
import torch, bitsandbytes, lowbit
start, options = torch.linspace(-1, 1, 8192), {needed(name)}
limits = {{8: 1e-3, 32: 2e-5}}
if "{name}" == "AdEMAMix":
    del limits[32]  # It fails there: `test_features.py` waits for its repair.
for bits, most in limits.items():
    p, q = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours = getattr(lowbit.optim, f"{name}{{bits}}bit")([p], **options)
    theirs = getattr(bitsandbytes.optim, f"{name}{{bits}}bit")([q], **options)
    for step in range(5):
        g = torch.randn(8192, generator=torch.Generator().manual_seed(step))
        p.grad, q.grad = g.clone(), g.clone()
        ours.step(); theirs.step()
    apart = (p - q).abs().mean() / (p - start).abs().mean()
    assert apart < most, (bits, apart)
    if bits == 8:
        for key in ours.state[p].keys() & {{"state1", "state2"}}:
            others = (ours.state[p][key] != theirs.state[q][key]).float().mean()
            assert others < 0.01, (key, others)
"""
    ended = processes.run(program, LOWBIT_BNB_BACKEND="off")
    assert ended.ok, ended.printed


@pytest.mark.parametrize("name", FAMILIES)
def test_training_resumes_to_the_bit(name):
    def fresh():
        torch.manual_seed(5)
        params = [parameter(70, 90), parameter(5)]
        return params, make(f"{name}8bit", params, weight_decay=0.01)

    params, optimizer = fresh()
    train(optimizer, params)
    file = io.BytesIO()
    torch.save({"p": [p.detach() for p in params], "o": optimizer.state_dict()}, file)
    train(optimizer, params, seed=4)

    others, resumed = fresh()
    saved = torch.load(io.BytesIO(file.getvalue()))
    resumed.load_state_dict(saved["o"])
    for p, data in zip(others, saved["p"], strict=True):
        p.data.copy_(data)
    train(resumed, others, seed=4)
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
    same(states(optimizer), states(resumed))


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("name", rules.ALL)
def test_steps_in_torch_alone_are_those_of_the_kernels(name, bits):
    rule, n = rules.ALL[name], 1000
    settings = rules.Settings(
        lr=1e-2,
        beta1=0.9,
        beta2=0.99,
        beta3=0.999,
        alpha=2.0,
        eps=1e-8,
        weight_decay=0.1,
        dampening=0.25,
        grad_scale=0.5,
        max_update_norm=0.02 if bits == 32 else 0.0,
    )
    ours, dense = ([torch.linspace(-2, 1, n)] for _ in range(2))
    for tensors in (ours, dense):
        for _ in rule.moments:
            tensors.append(torch.zeros(n, dtype=torch.uint8 if bits == 8 else torch.float32))
            tensors.append(torch.zeros(4) if bits == 8 else None)
    for step in range(1, 6):
        g = torch.randn(n, generator=torch.Generator().manual_seed(step))
        g[3] = torch.inf if bits == 8 else 0.0
        for run, tensors in ((cpu, ours), (dense_optim, dense)):
            moments = list(zip(tensors[1::2], tensors[2::2], strict=True))
            run.optimizer_update(name, settings, step, tensors[0], g, moments)
    for a, b in zip(ours, dense, strict=True):
        if a is not None and a.dtype is torch.uint8:
            # One rounding more or less may tip a code, and its step.
            assert (a.int() - b.int()).abs().max() <= 1 and (a != b).float().mean() < 0.01
        elif a is not None:
            torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("name", [*FAMILIES, "LAMB", "LARS"])
def test_numbers_without_a_gradient_are_skipped_as_on_cuda(name, bits):
    start = torch.randn(64, 80)
    plain, ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(3))
    optimizers = {
        plain: make(f"{name}{bits}bit", [plain]),
        ours: make(f"{name}{bits}bit", [ours], skip_zeros=True),
        theirs: make(name, [theirs], bitsandbytes.optim, optim_bits=bits),
    }
    optimizers[theirs].args.skip_zeros = True
    rare = torch.rand(64, 80) < 0.2
    for step in range(2):
        if step:
            before = ours.detach().clone(), optimizers[ours].state[ours]["state1"].clone()
        g = torch.randn(64, 80) * (rare if step else 1.0)
        for p, optimizer in optimizers.items():
            p.grad = g.clone()
            optimizer.step()
    state, expected = (optimizers[p].state[p]["state1"] for p in (ours, plain))
    if bits == 32 and name != "AdEMAMix":  # Where the kernels of bitsandbytes look at it.
        assert torch.equal(ours[~rare], before[0][~rare])
        assert torch.equal(state[~rare], before[1][~rare])
        ours, state, plain, expected = (t[rare] for t in (ours, state, plain, expected))
        theirs = theirs[rare]
    assert torch.equal(ours, plain) and torch.equal(state, expected)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("library", [optim, bitsandbytes.optim], ids=["lowbit", "bitsandbytes"])
def test_the_norm_of_a_limited_update_is_kept(library):
    lamb, lars = parameter(50, 50), parameter(50, 50)
    for name, p, norm in (("LAMB", lamb, 50.0), ("LARS", lars, lars.grad.norm().item())):
        optimizer = make(name, [p], library)
        optimizer.step()
        # Of signs, in the first step of LAMB.
        assert optimizer.state[p]["unorm_vec"].item() == pytest.approx(norm, rel=1e-3)


def test_small_parameters_and_those_that_the_manager_names_have_32_bits():
    manager = optim.GlobalOptimManager.get_instance()
    layer = torch.nn.Linear(128, 128)
    other = parameter(128, 128)
    manager.register_parameters(layer.parameters())
    manager.override_config(other, "optim_bits", 32)
    manager.register_module_override(layer, "weight", {"lr": 0.0})
    layer.weight.grad, layer.bias.grad = torch.ones(128, 128), torch.ones(128)
    before = layer.weight.detach().clone()
    optimizer = optim.Adam8bit([*layer.parameters(), other])
    try:
        optimizer.step()
        dtypes = [optimizer.state[p]["state1"].dtype for p in (*layer.parameters(), other)]
        assert dtypes == [torch.uint8, torch.float32, torch.float32]
        assert torch.equal(layer.weight, before)
    finally:
        manager.initialize()
    with pytest.raises(RuntimeError, match="get_instance"):
        optim.GlobalOptimManager()
    with pytest.raises(ValueError, match="key"):
        manager.override_config(other)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Lion", "AdEMAMix"])
@pytest.mark.parametrize("bits", [8, 32])
def test_paged_states_change_nothing(name, bits, tmp_path):
    shape = (401, 300)
    torch.manual_seed(0)
    plain = [parameter(*shape), parameter(3)]
    paged = copy.deepcopy(plain)
    a = make(f"{name}{bits}bit", plain)
    b = make(f"Paged{name}{bits}bit", paged, page_dir=str(tmp_path))
    assert b.is_paged
    train(a, plain)
    train(b, paged)
    for p, q in zip(plain, paged, strict=True):
        assert torch.equal(p, q)
    same(states(a), states(b))
    c = make(f"Paged{name}{bits}bit", paged)
    c.load_state_dict(b.state_dict())
    c.load_state_dict(b.state_dict())
    assert len(c._pages._maps) == len(b._pages._maps) > 0  # The first ones are gone.
    same(states(a), states(c))


def test_paged_states_are_resident_only_while_they_are_used(processes, tmp_path):
    program = f"""
import torch, lowbit
def resident():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
p = torch.nn.Parameter(torch.zeros(48 << 20))  # 192 MB, and twice as much in states
p.grad = torch.ones_like(p)
small = torch.nn.Parameter(torch.zeros(200000)); small.grad = torch.ones_like(small)
lowbit.optim.Adam32bit([small]).step()
before = resident()
optimizer = lowbit.optim.PagedAdam32bit([p], page_dir={str(tmp_path)!r})
most = 0
for _ in range(2):
    optimizer.step()
    most = max(most, resident())
assert optimizer.state[p]["state1"].nbytes == 192 << 20
print(most - before)
"""
    ended = processes.run(program)
    assert ended.ok, ended.printed
    grown = int(ended.printed.split()[-1])
    assert grown < 64, f"{grown} MB more are resident, of 384 MB of states"


def test_optimizers_are_copied_and_pickled():
    params = [parameter(64, 64)]
    optimizer = optim.AdamW8bit(params)
    train(optimizer, params)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        (p,) = other.param_groups[0]["params"]
        assert other.optim_bits == 8 and torch.equal(p, params[0])
        train(other, [p], seed=9)
    train(optimizer, params, seed=9)
    assert torch.equal(p, params[0])


def test_a_gradient_that_is_not_finite_spoils_nothing_else():
    p = torch.nn.Parameter(torch.ones(4096))
    p.grad = torch.ones(4096)
    p.grad[7], p.grad[300] = torch.nan, torch.inf
    optimizer = optim.Adam8bit([p], lr=0.5)
    optimizer.step()
    assert p[7] == p[300] == 1.0 and p.isfinite().all() and (p != 1.0).sum() == 4094


def test_parameters_that_are_not_contiguous_are_trained():
    p = torch.nn.Parameter(torch.randn(100, 60).t())
    q = torch.nn.Parameter(p.detach().clone().contiguous())
    for optimizer, x in ((optim.Adam8bit([p]), p), (optim.Adam8bit([q]), q)):
        x.grad = torch.arange(6000.0).view(60, 100) * 1e-4
        optimizer.step()
    assert torch.equal(p, q)


def test_each_process_updates_its_part_of_a_sharded_parameter(processes, tmp_path):
    program = f"""
import lowbit, torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
dist.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
plain = torch.nn.Parameter(torch.linspace(-1, 1, 8192).view(64, 128))
sharded = torch.nn.Parameter(distribute_tensor(plain.detach().clone(), mesh, [Shard(0)]))
a, b = (lowbit.optim.AdamW8bit([p]) for p in (plain, sharded))
for step in range(3):
    plain.grad = torch.randn(64, 128)
    sharded.grad = distribute_tensor(plain.grad.clone(), mesh, [Shard(0)])
    a.step(); b.step()
assert torch.equal(sharded.to_local(), plain)
b.load_state_dict(a.state_dict())
assert torch.equal(b.state[sharded]["state1"], a.state[plain]["state1"])
try:
    lowbit.optim.LAMB([sharded]).step()
except ValueError as error:
    assert "max_unorm" in str(error)
else:
    raise AssertionError("LAMB took the norm of a part")
dist.destroy_process_group()
"""
    ended = processes.run(program)
    assert ended.ok, ended.printed


def test_autograd_notices_a_step():
    p = parameter(8)
    kept = (p * p).sum()
    optim.SGD([p], lr=0.1, momentum=0.9).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


def test_what_cannot_be_done_is_refused():
    p = parameter(64, 64)
    for options in (
        {"lr": -1.0},
        {"betas": (0.9, 1.0)},
        {"eps": -1e-8},
        {"optim_bits": 16},
        {"percentile_clipping": 5},
        {"block_wise": False},
        {"amsgrad": True},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            optim.Adam([p], **options)
    with pytest.raises(ValueError, match="optim_bits"):
        optim.Adam32bit([p], optim_bits=8)
    with pytest.raises(ValueError, match="max_unorm"):
        optim.LAMB8bit([p], max_unorm=0.5)
    for options in ({"alpha": 0.0}, {"centered": True}, {"momentum": 0.9}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}.*bitsandbytes.*torch.optim"):
            optim.RMSprop([p], **options)
    for options in ({"lr_decay": 0.1}, {"initial_accumulator_value": 0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}.*bitsandbytes.*torch.optim"):
            optim.Adagrad([p], **options)
    with pytest.raises(ValueError, match="bias_correction"):
        optim.LAMB([p], bias_correction=False)
    wide = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    wide.grad = torch.ones(3, dtype=torch.float64)
    with pytest.raises(TypeError, match="float64"):
        optim.Adam([wide]).step()
    embedding = torch.nn.Embedding(4, 4, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        optim.Adam(embedding.parameters()).step()


def test_state_dicts_that_do_not_fit_are_refused_and_change_nothing():
    p = parameter(64, 64)
    optimizer = optim.Adam8bit([p])
    train(optimizer, [p])
    good, before = optimizer.state_dict(), states(optimizer)

    def damaged(**changes):
        state = copy.deepcopy(good)
        state["state"][0][QUANT_STATE].update(changes)
        return state

    ones = torch.ones(64, 64)
    for bad in (
        damaged(state1=torch.zeros(64, 63, dtype=torch.uint8)),
        damaged(state1=torch.zeros(64, 64, dtype=torch.float16)),
        damaged(absmax1=torch.zeros(15)),
        damaged(absmax1=None),
        damaged(qmap2=torch.linspace(0, 1, 256)),
        optim.Lion8bit([parameter(64, 64)]).state_dict() | {"param_groups": []},
    ):
        with pytest.raises(ValueError):
            optimizer.load_state_dict(bad)
        same(states(optimizer), before)
    lion = optim.Lion8bit([parameter(64, 64)])
    with pytest.raises(ValueError, match="state2"):
        lion.load_state_dict(good)
    # A width other than the class's own is taken as it is: training goes on.
    optimizer.load_state_dict(damaged(state1=ones, state2=ones))
    train(optimizer, [p])
    assert optimizer.state[p]["state1"].dtype is torch.float32


def test_the_closure_is_called_with_gradients():
    p = torch.nn.Parameter(torch.ones(8))
    optimizer = optim.SGD([p], lr=0.1, momentum=0.9, nesterov=True)
    reference = torch.nn.Parameter(torch.ones(8))
    torchs = torch.optim.SGD([reference], lr=0.1, momentum=0.9, nesterov=True)

    def closure(p, optimizer):
        optimizer.zero_grad()
        loss = (p * torch.arange(8.0)).square().sum()
        loss.backward()
        return loss

    for _ in range(5):
        loss = optimizer.step(lambda: closure(p, optimizer))
        expected = torchs.step(lambda: closure(reference, torchs))
        torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(p, reference)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "Adagrad", "SGD"])
def test_32_bit_states_take_torchs_steps(name):
    decay = {} if name == "AdamW" else {"weight_decay": 0.01 if name != "Adam" else 0.0}
    ours = [parameter(50, 3)]
    theirs = copy.deepcopy(ours)
    a = make(f"{name}32bit", ours, lr=1e-2, **{k: v for k, v in decay.items() if v})
    options = needed(name) | {"lr": 1e-2} | decay
    b = getattr(torch.optim, name)(theirs, **options)
    train(a, ours, 20)
    train(b, theirs, 20)
    # The decay of AdamW comes after the update, as in bitsandbytes' kernels: lr^2 of difference.
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=2e-5)


def adapters_on_tinybard():
    """tinybard in NF4 with double quantization, with LoRA; its trained parameters."""
    base = transformers.AutoModelForCausalLM.from_pretrained(TINYBARD, dtype=torch.float32)
    config = lowbit.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True)
    base = lowbit.quantize_model(base, config)
    torch.manual_seed(1)
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    )
    return model, [p for p in model.parameters() if p.requires_grad]


def test_qlora_with_8_bits_ends_where_adamw_in_32_bits_does():
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINYBARD)
    text = (TINYBARD / "validation.txt").read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt").input_ids[0, : 64 * 32].view(64, 32)
    ends = {}
    for name in ("AdamW", "AdamW8bit"):
        model, params = adapters_on_tinybard()
        if name == "AdamW":
            optimizer = torch.optim.AdamW(params, lr=1e-3)
        else:
            # As adapters of larger models: no state has 32 bits.
            optimizer = optim.AdamW8bit(params, lr=1e-3, min_8bit_size=0)
        generator = torch.Generator().manual_seed(2)
        for _ in range(200):
            batch = ids[torch.randint(64, (2,), generator=generator)]
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if name == "AdamW8bit":
            assert all(s["state1"].dtype is torch.uint8 for s in optimizer.state.values())
        with torch.no_grad():
            ends[name] = model(input_ids=ids, labels=ids).loss.item()
    exact, rounded = ends.values()
    assert exact < 3.0, "nothing was learned"
    assert abs(rounded - exact) < 0.01 * exact, ends


def test_states_of_8_bits_take_the_bytes_that_the_readme_states():
    optimizer = optim.Adam8bit([parameter(256, 256)])
    optimizer.step()
    (state,) = optimizer.state.values()
    numbers = sum(t.nbytes for k, t in state.items() if k.startswith(("state", "absmax")))
    assert numbers == 2 * (256 * 256 + 4 * 256)
    assert lowbit.optim is optim
