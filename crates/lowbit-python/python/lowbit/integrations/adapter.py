"""Everything that touches a private name of bitsandbytes, transformers or peft, in one place.

Tested with the versions of `TESTED`. Whatever is replaced is looked at first: an operation by the
names of its arguments, a function by its signature. Where a version is unknown or a signature is
another one, nothing is touched, and a warning says so, once.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

TESTED = {"bitsandbytes": ["0.50"], "torch": ["2.15"], "transformers": ["5.23"], "peft": ["0.21"]}
"""The minor versions that the tests have run with."""
KNOWN = {
    "bitsandbytes": ((0, 49), (0, 51)),
    "torch": ((2, 7), (3, 0)),
    "transformers": ((5, 0), (6, 0)),
    "peft": ((0, 18), (1, 0)),
}
"""From which version on, and before which, a library is touched at all."""

_ARGUMENTS = {
    "quantize_4bit": "A blocksize quant_type quant_storage",
    "dequantize_4bit": "A absmax blocksize quant_type shape dtype",
    "dequantize_4bit.out": "A absmax blocksize quant_type shape dtype out",
    "gemv_4bit": "A B shapeB absmax code blocksize",
    "gemv_4bit.out": "A B shapeB absmax code blocksize out",
    "gemm_4bit": "A B shapeB absmax blocksize quant_type bias "
    "absmax_8bit absmax_code absmax_offset",
    "quantize_blockwise": "A code blocksize",
    "dequantize_blockwise": "A absmax code blocksize dtype",
    "dequantize_blockwise.out": "A absmax code blocksize dtype out",
    "int8_vectorwise_quant": "A threshold",
    "int8_vectorwise_dequant": "A stats",
    "int8_double_quant": "A threshold",
    "int8_linear_matmul": "A B",
    "int8_linear_matmul.out": "A B out",
    "int8_mm_dequant": "A row_stats col_stats dtype bias",
    "int8_scaled_mm": "A B row_stats col_stats bias dtype",
    "optimizer_update_32bit": "optimizer_name g p state1 state2 unorm_vec max_unorm param_norm "
    "beta1 beta2 beta3 alpha eps weight_decay step lr gnorm_scale skip_zeros",
    "optimizer_update_8bit_blockwise": "optimizer_name g p state1 state2 beta1 beta2 beta3 alpha "
    "eps step lr qmap1 qmap2 absmax1 absmax2 weight_decay gnorm_scale skip_zeros",
}
"""What our kernels expect of bitsandbytes' operations: the names of their arguments."""

_libraries: list[torch.library.Library] = []  # Kernels are registered as long as these live.
_said: set[str] = set()


class Unsupported(Exception):
    """A library is not as this adapter knows it."""


def say_once(text: str) -> None:
    """Warn, the first time; never raise, not even where warnings are errors."""
    if text not in _said:
        _said.add(text)
        with contextlib.suppress(Exception):
            warnings.warn(text, RuntimeWarning, stacklevel=3)


@contextlib.contextmanager
def told_once(consequence: str) -> Iterator[None]:
    """Turn any exception into a warning that says what follows from it."""
    try:
        yield
    except Exception as error:
        say_once(f"{consequence}: {error}")


def check_versions(*libraries: str, unless: bool = False) -> None:
    """Refuse versions that are not in `KNOWN`, unless the user insists.

    Raises:
        Unsupported: for an unknown version.
    """
    for library in libraries:
        version = importlib.metadata.version(library)
        oldest, next_unknown = KNOWN[library]
        if not (oldest <= _minor(version) < next_unknown or unless):
            raise Unsupported(
                f"{library} {version} is unknown to this lowbit (tested: "
                f"{', '.join(TESTED[library])}); update lowbit, or set LOWBIT_BNB_BACKEND=all to "
                "use it all the same"
            )


def _minor(version: str) -> tuple[int, int]:
    major, minor, *_ = [*version.split("+")[0].split("."), "0"]
    return int(major), int(minor)


def register_kernels(device: str, kernels: dict[str, Callable[..., Any]]) -> list[str]:
    """Put kernels under bitsandbytes' operations on a device; answer the names of those taken.

    torch 2.7 cannot replace a kernel, so there only operations without one are taken; later ones
    can, from 2.13 on without being asked.
    """
    key = device.upper()
    library = torch.library.Library("bitsandbytes", "IMPL")
    _libraries.append(library)
    replaces = "allow_override" in inspect.signature(library.impl).parameters
    how = {"allow_override": True} if replaces else {}
    taken = []
    for name, kernel in kernels.items():
        operation, _, overload = name.partition(".")
        try:
            found = getattr(getattr(torch.ops.bitsandbytes, operation), overload or "default")
        except AttributeError:
            continue  # An older bitsandbytes has fewer.
        arguments = " ".join(argument.name for argument in found._schema.arguments)
        if arguments != _ARGUMENTS[name]:
            say_once(f"bitsandbytes::{name} takes {arguments!r}, so lowbit leaves it alone")
            continue
        if name.startswith("int8_linear_matmul") and device == "cpu" and _has_fast_int_mm():
            continue
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(found.name(), key)
        if has_kernel and not replaces:
            continue
        library.impl(name, kernel, key, **how)
        taken.append(name)
    return taken


def _has_fast_int_mm() -> bool:
    """Whether bitsandbytes multiplies integers with `torch._int_mm`, fast where there is VNNI."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def keep_weights_as_stored() -> None:
    """Have bitsandbytes' `Linear4bit` leave its weights alone on processors with AVX512-BF16.

    There it repacks them in place for a kernel of its own, in the first forward of evaluation: what
    is saved, dequantized or trained after that is wrong, and an N that 32 does not divide fails.
    Our kernel reads weights as they are stored.
    """
    from bitsandbytes import functional
    from bitsandbytes.nn import modules

    if not hasattr(functional, "has_avx512bf16"):
        return  # Older versions do not repack.
    _expect(functional.has_avx512bf16, "()")
    _expect(functional._convert_weight_packed_for_cpu, "(qweight, quant_state, block_n)")
    _expect(
        functional._convert_weight_packed_for_cpu_inverse, "(packed_weight, quant_state, block_n)"
    )
    _expect(modules.fix_4bit_weight_quant_state_from_module, "(module)")
    inverse = functional._convert_weight_packed_for_cpu_inverse
    find_state = modules.fix_4bit_weight_quant_state_from_module

    def unpacked(packed_weight: Any, quant_state: Any, block_n: int = 32) -> tuple[Any, Any]:
        # It forgets to turn the scales back, or rounds them to 8 bits for a second time.
        absmax = quant_state.absmax.t().reshape(-1).float()
        quant_state.original_nested = False
        codes, state = inverse(packed_weight, quant_state, block_n)
        state.absmax = absmax
        return codes, state

    def find_stored(module: Any) -> None:
        find_state(module)
        weight = module.weight
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            # Made and pickled where our backend was not.
            weight.data, weight.quant_state = unpacked(weight.data, weight.quant_state)
            module.quant_state = weight.quant_state

    _replace(modules, "fix_4bit_weight_quant_state_from_module", find_stored)
    for module in (functional, modules):
        _replace(module, "_convert_weight_packed_for_cpu_inverse", unpacked)
        _replace(module, "has_avx512bf16", _never)
    # Layers made elsewhere, by unpickling, say, bring an attribute of their own.
    attribute = property(lambda self: False, lambda self, value: None)
    _replace(modules.Linear4bit, "support_avx512bf16_for_cpu", attribute)


def _never() -> bool:
    return False


def train_without_dense_weights() -> None:
    """Replace what bitsandbytes does in training: it dequantizes weights for each product."""
    from bitsandbytes.autograd import _functions

    from lowbit.integrations import bnb_autograd

    _expect(_functions.MatMul4Bit.forward, "(ctx, A, B, out, bias, quant_state)")
    _expect(_functions.MatMul4Bit.backward, "(ctx, grad_output)")
    ours = bnb_autograd.matmul_4bit_class(_functions.MatMul4Bit)
    _replace(_functions, "MatMul4Bit", ours)
    if hasattr(_functions, "MatMul8bitFp"):  # Older versions multiply integers in training, too.
        _expect(_functions.MatMul8bitFp.forward, "(ctx, A, B, out, bias, state)")
        _expect(_functions.MatMul8bitFp.backward, "(ctx, grad_output)")
        ours = bnb_autograd.matmul_8bit_class(_functions.MatMul8bitFp)
        _replace(_functions, "MatMul8bitFp", ours)


def keep_states_on_mps() -> None:
    """Have bitsandbytes' paged optimizers keep ordinary tensors on "mps", where they fail.

    Pages are memory of CUDA that the processor shares. On Apple Silicon the memory is one, and
    paging it is the system's business.
    """
    from bitsandbytes.optim.optimizer import Optimizer8bit

    theirs = Optimizer8bit.get_state_buffer
    _expect(theirs, "(self, p, dtype)")

    def get_state_buffer(
        self: Any, p: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        if p.device.type == "mps":
            return torch.zeros_like(p, dtype=dtype)
        return theirs(self, p, dtype)

    _replace(Optimizer8bit, "get_state_buffer", get_state_buffer)


def use_lora_on_quantized_layers() -> None:
    """Have peft put LoRA on our layers by a class that knows how to merge into them."""
    with told_once("peft cannot merge adapters into lowbit's layers"):
        check_versions("peft")
        from peft.tuners.lora import layer, model

        from lowbit.integrations import peft

        theirs = model.dispatch_default
        _expect(theirs, "(target, adapter_name, config, parameter_name, kwargs)")
        _expect(layer.Linear.merge, "(self, safe_merge, adapter_names)")
        _expect(layer.Linear.unmerge, "(self)")

        def dispatch_default(*args: Any, **kwargs: Any) -> Any:
            return peft.dispatch(*args, **kwargs) or theirs(*args, **kwargs)

        _replace(model, "dispatch_default", dispatch_default)


def is_untouched(module: torch.nn.Module) -> bool:
    """Whether a call of the module does what its class says and nothing else."""
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    )


def _replace(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)


def _expect(function: Any, parameters: str) -> None:
    names = f"({', '.join(inspect.signature(function).parameters)})"
    if names != parameters:
        raise Unsupported(
            f"{function.__module__}.{function.__qualname__} takes {names}, not {parameters}"
        )


def when_imported(name: str, then: Callable[[], None]) -> None:
    """Call `then` once the module of that name is there: now, or when someone imports it.

    So `import lowbit` neither waits for a large library nor is too early for it.
    """
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _AfterImport(name, then))


def register_quantizer() -> None:
    """Make `quant_method: lowbit` known to transformers, once that is imported."""
    when_imported("transformers.quantizers.auto", _register_quantizer)


def _register_quantizer() -> None:
    with told_once("transformers does not know quant_method: lowbit"):
        check_versions("transformers")
        importlib.import_module("lowbit.integrations.transformers")


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds one module like the finders after it do, and adds a step to its loading."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name, self.then = name, then

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def then_ours(module: ModuleType) -> None:
                execute(module)
                self.then()

            _replace(spec.loader, "exec_module", then_ours)
        return spec
