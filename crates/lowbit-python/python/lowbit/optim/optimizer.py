"""What all optimizers share: states, steps, state dicts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowbit import formats, ops, rules
from lowbit.backends import dense, steps
from lowbit.functional.checks import FLOATS
from lowbit.optim.manager import GlobalOptimManager
from lowbit.optim.paging import MIN_NUMEL, WINDOW, Pages
from lowbit.rules import Settings

QUANT_STATE = "__bnb_optimizer_quant_state__"
"""Where a state dict keeps tensors that are no shape of a parameter: bitsandbytes' key."""
_TENSORS = ("state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2", "unorm_vec")

Moments = list[tuple[Tensor, Tensor | None]]


class BlockwiseOptimizer(torch.optim.Optimizer):
    """An optimizer with states in 8 or 32 bits; see its subclasses.

    States of 8 bits are codes of the dynamic map with an absmax for each 256. A gradient that is
    not finite leaves its number of the parameter as it is there, and its states zero. Of sharded
    parameters (FSDP) each process updates its part, and its states and state dict are of that part.

    Args:
        params: parameters or groups of them; float32, float16 or bfloat16.
        defaults: settings of a group.
        optim_bits: bits of a state, 8 or 32; None for the class's.
        args: an object whose attributes `optim_bits`, `min_8bit_size`, `max_unorm` and `skip_zeros`
            count instead of the arguments.
        min_8bit_size: parameters of fewer numbers have states of 32 bits.
        is_paged: keep states on the CPU in memory-mapped files; elsewhere they stay on the device.
        max_unorm: largest norm of an update with states of 32 bits, in norms of the parameter; a
            parameter that is all zero has no limit. 0 for none.
        skip_zeros: leave numbers and their states alone where the gradient is zero; as with
            bitsandbytes' CUDA kernels with states of 32 bits only, and not with AdEMAMix.
        page_dir: where files of paged states are; None for the system's temporary files.
        percentile_clipping: for older code: only 100, which means none.
        block_wise: for older code: only True.
    """

    rule: ClassVar[str]
    """Its name in `lowbit.rules.ALL`."""
    bits: ClassVar[int | None] = None
    """Bits of a state, where the class says it."""
    decays: ClassVar[int] = 2
    """How many betas there are."""
    paged: ClassVar[bool] = False
    """Whether states are paged, whatever the arguments."""

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        optim_bits: int | None = None,
        args: Any = None,
        min_8bit_size: int = 4096,
        is_paged: bool | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        page_dir: str | None = None,
        percentile_clipping: int = 100,
        block_wise: bool = True,
    ) -> None:
        if percentile_clipping != 100:
            raise ValueError(
                f"percentile_clipping: expected 100 (none), got {percentile_clipping}, which "
                "bitsandbytes has given up; clip gradients with torch.nn.utils.clip_grad_norm_"
            )
        if not block_wise:
            raise ValueError(
                "block_wise: expected True, got False; bitsandbytes has given up states with one "
                "absmax for a whole tensor; leave it out"
            )
        bits = getattr(args, "optim_bits", optim_bits)
        if bits is None or (self.bits is not None and bits == 32):
            bits = self.bits or 32  # bitsandbytes' `Adam8bit` takes 32 for "the usual".
        if bits not in (8, 32) or self.bits not in (None, bits):
            raise ValueError(f"optim_bits: expected {self.bits or '8 or 32'}, got {bits}")
        if isinstance(params, Tensor) or not isinstance(params, Iterable):
            raise TypeError(
                "params: expected parameters, or groups of them, in a list, got "
                f"{type(params).__name__}"
            )
        if page_dir is not None and not os.path.isdir(page_dir):
            raise ValueError(f"page_dir: expected a directory, got {page_dir!r}; make it first")
        defaults = defaults | {"betas": _read_betas(defaults["betas"], self.decays)}
        _check(defaults)
        super().__init__(params, defaults)
        self.optim_bits = bits
        self.min_8bit_size = getattr(args, "min_8bit_size", min_8bit_size)
        self.max_unorm = getattr(args, "max_unorm", max_unorm)
        self.skip_zeros = bool(getattr(args, "skip_zeros", skip_zeros))
        self.is_paged = self.paged or bool(is_paged)
        self.page_dir = page_dir
        self.manager = GlobalOptimManager.get_instance()
        self._pages = Pages(page_dir)
        self._begun = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take a step along every parameter that has a gradient.

        Args:
            closure: computes the loss anew, gradients included.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._begun:
            self._begun = True
            for module, name, config in self.manager.module_weight_config_triple:
                self.manager.override_config(getattr(module, name), key_value_dict=config)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(group, p)
        return loss

    def config(self, group: dict[str, Any], p: Tensor) -> dict[str, Any]:
        """The settings of a parameter: its group's, and its own."""
        mine = {
            "optim_bits": self.optim_bits,
            "min_8bit_size": self.min_8bit_size,
            "max_unorm": self.max_unorm,
            "skip_zeros": self.skip_zeros,
        }
        own = self.manager.pid2config.get(id(p), {})
        return {key: v for key, v in group.items() if key != "params"} | mine | own

    def settings(self, config: dict[str, Any], step: int) -> Settings:
        """The numbers of a step."""
        betas = (*config["betas"], 0.0, 0.0)
        return Settings(
            lr=float(config["lr"]),
            beta1=betas[0],
            beta2=betas[1],
            eps=config["eps"],
            weight_decay=config["weight_decay"],
        )

    def _step(self, group: dict[str, Any], p: Tensor) -> None:
        assert p.grad is not None
        g = _local(p.grad)
        whole_p, p = p, _local(p)
        if g.is_sparse:
            raise ValueError("step: expected a dense gradient, got a sparse one")
        if p.dtype not in FLOATS:
            raise TypeError(
                f"step: expected parameters of float32, float16 or bfloat16, got {p.dtype}"
            )
        if not p.is_contiguous():
            p.data = p.data.contiguous()
        config = self.config(group, whole_p)
        _check(config)
        if p is not whole_p and config["max_unorm"] > 0.0:
            raise ValueError("max_unorm: expected 0 for sharded parameters, whose norm no part has")
        state = self.state[whole_p]
        if not state:
            self._begin(config, p, state)
        shape = list(state["state1"].shape)
        if shape[len(shape) - p.dim() :] != list(p.shape):
            raise ValueError(
                f"step: expected a parameter of the shape that it had, as its state of {shape}, "
                f"got {list(p.shape)}; make another optimizer for it"
            )
        state["step"] += 1
        moments = list(self._moments(state, p))
        settings = self.settings(config, state["step"])
        if config["max_unorm"] > 0.0 and moments[0][1] is None:
            settings = settings._replace(max_update_norm=config["max_unorm"])
        flat = p.data.view(-1), g.to(p.dtype).contiguous().view(-1)
        backend = kernels(p.device.type)
        run = backend.optimizer_update
        if config["skip_zeros"]:
            run = steps.skipping_zeros(run)
        if settings.max_update_norm > 0.0 and "unorm_vec" in state:
            update_norm = getattr(backend, "update_norm", steps.update_norm)
            norm = update_norm(self.rule, settings, state["step"], *flat, moments)
            state["unorm_vec"].fill_(norm)
        step, is_paged = state["step"], self._pages.owns(state["state1"])
        # A norm is one of the whole parameter.
        window = WINDOW if is_paged and settings.max_update_norm == 0.0 else p.numel()
        if window < p.numel():
            self._step_by_windows(run, settings, step, flat, moments, state)
        else:
            run(self.rule, settings, step, *flat, moments)
            if is_paged:
                for key in state.keys() & {"state1", "state2"}:
                    self._pages.release(state[key], 0, state[key].numel())
        # Written past autograd, which is to notice all the same.
        torch.autograd.graph.increment_version(whole_p)

    def _step_by_windows(
        self,
        run: Callable[..., None],
        settings: Settings,
        step: int,
        flat: tuple[Tensor, Tensor],
        moments: Moments,
        state: dict[str, Any],
    ) -> None:
        """A step in parts, whose paged states are let go one after the other."""
        numel = flat[0].numel()
        for start in range(0, numel, WINDOW):
            n = min(WINDOW, numel - start)
            p, g = (t.narrow(0, start, n) for t in flat)
            parts = _narrow(moments, start, n, rules.ALL[self.rule].block_size)
            run(self.rule, settings, step, p, g, parts)
            for key in state.keys() & {"state1", "state2"}:
                for i in range(state[key].numel() // numel):
                    self._pages.release(state[key], i * numel + start, n)

    def _begin(self, config: dict[str, Any], p: Tensor, state: dict[str, Any]) -> None:
        """The state before the first step, by bitsandbytes' names."""
        rule = rules.ALL[self.rule]
        is_8bit = config["optim_bits"] == 8 and p.numel() >= config["min_8bit_size"]
        state["step"] = 0
        for i, (first, last) in enumerate(rules.places(rule), 1):
            shape = (last - first, *p.shape) if last - first > 1 else tuple(p.shape)
            state[f"state{i}"] = self._zeros(p, shape, torch.uint8 if is_8bit else torch.float32)
            if is_8bit:
                blocks: tuple[int, ...] = (rule.blocks(p.numel()),)
                blocks = (last - first, *blocks) if last - first > 1 else blocks
                state[f"qmap{i}"] = _map(rule.moments[first], p.device)
                state[f"absmax{i}"] = torch.zeros(blocks, dtype=torch.float32, device=p.device)
        if config["max_unorm"] > 0.0:
            state["unorm_vec"] = torch.zeros(1, device=p.device)

    def _zeros(self, p: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.is_paged and p.is_cpu and p.numel() >= MIN_NUMEL:
            return self._pages.zeros(shape, dtype)
        return torch.zeros(shape, dtype=dtype, device=p.device)

    def _moments(self, state: dict[str, Any], p: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The moments of the rule, flat, each with its absmax in 8 bits."""
        for i, (first, last) in enumerate(rules.places(rules.ALL[self.rule]), 1):
            parts = state[f"state{i}"].view(last - first, p.numel())
            absmax = state.get(f"absmax{i}")
            for j in range(last - first):
                yield parts[j], None if absmax is None else absmax.view(last - first, -1)[j]

    def state_dict(self) -> dict[str, Any]:
        """The state, as bitsandbytes writes it.

        What is no shape of a parameter is in a dict of its own, so that FSDP lets it be.
        """
        saved = super().state_dict()
        saved["state"] = {key: _wrapped(state) for key, state in saved["state"].items()}
        return saved

    @torch.no_grad()
    def load_state_dict(  # type: ignore[override]
        self, state_dict: dict[str, Any], move_to_device: bool = True
    ) -> None:
        """Go on from a state, of this optimizer's or of bitsandbytes', to the bit.

        Args:
            state_dict: what `state_dict` returned.
            move_to_device: bring states to the devices of their parameters.

        Raises:
            ValueError: if it is the state of other parameters or of another optimizer. Nothing is
                changed then.
        """
        if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
            raise ValueError(
                "state_dict: expected what an optimizer's state_dict() returned, got "
                f"{list(state_dict) if isinstance(state_dict, dict) else type(state_dict).__name__}"
            )
        given = [k for saved in state_dict["param_groups"] for k in saved["params"]]
        here = [p for group in self.param_groups for p in group["params"]]
        states = {}
        if len(given) == len(here):
            for key, p in zip(given, here, strict=True):
                if key in state_dict["state"]:
                    states[p] = self._read(state_dict["state"][key], _local(p), move_to_device)
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        self.state.clear()
        self.state.update(states)
        self._pages.keep(t for state in states.values() for t in state.values())

    def _read(self, saved: dict[str, Any], p: Tensor, move: bool) -> dict[str, Any]:
        """A state from a state dict, checked against its parameter."""
        flat = {key: v for key, v in saved.items() if key != QUANT_STATE}
        flat |= saved.get(QUANT_STATE, {})
        rule = rules.ALL[self.rule]
        state: dict[str, Any] = {"step": int(flat["step"])}
        for i, (first, last) in enumerate(rules.places(rule), 1):
            count = last - first
            moment, absmax = flat.get(f"state{i}"), flat.get(f"absmax{i}")
            shape = [count, *p.shape] if count > 1 else list(p.shape)
            if moment is None or list(moment.shape) != shape:
                got = "none" if moment is None else list(moment.shape)
                raise ValueError(f"state{i}: expected the shape {shape}, got {got}")
            if moment.dtype not in (torch.uint8, torch.float32):
                raise ValueError(f"state{i}: expected uint8 or float32, got {moment.dtype}")
            device = p.device if move else moment.device
            state[f"state{i}"] = self._zeros(p, tuple(shape), moment.dtype).copy_(moment)
            if moment.dtype is torch.uint8:
                if absmax is None or absmax.numel() != count * rule.blocks(p.numel()):
                    raise ValueError(
                        f"absmax{i}: expected {count * rule.blocks(p.numel())} numbers"
                    )
                qmap = _map(rule.moments[first], device)
                if not torch.equal(flat.get(f"qmap{i}", qmap).to(device), qmap):
                    raise ValueError(f"qmap{i}: expected the dynamic map, got another one")
                state[f"qmap{i}"] = qmap
                state[f"absmax{i}"] = absmax.to(device, torch.float32, copy=True)
        if f"state{len(rules.places(rule)) + 1}" in flat:
            raise ValueError(f"state2: expected one state for {self.rule}, got two")
        others = {key: v for key, v in flat.items() if key not in state and key not in _TENSORS}
        if "unorm_vec" in flat:
            others["unorm_vec"] = flat["unorm_vec"].to(p.device, copy=True)
        return state | deepcopy(others)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **_without(self.__dict__, "_pages", "manager")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_pages" not in self.__dict__:
            self._pages = Pages(self.page_dir)
            self.manager = GlobalOptimManager.get_instance()


def _local(t: Tensor) -> Tensor:
    """The part of a sharded tensor (FSDP) that this process has; any other tensor itself."""
    to_local = getattr(t, "to_local", None)
    return t if to_local is None else to_local()


@cache
def kernels(device: str) -> Any:
    """The backend that takes steps on a device: its own, or torch alone."""
    own = import_module(f"lowbit.backends.{device}") if device in ops.NATIVE else dense
    return own if hasattr(own, "optimizer_update") else dense


def _narrow(moments: Moments, start: int, n: int, block_size: int) -> Moments:
    """The moments of a part of a parameter that begins with a block."""
    first, last = start // block_size, -(-(start + n) // block_size)
    return [
        (m.narrow(0, start, n), None if absmax is None else absmax[first:last])
        for m, absmax in moments
    ]


def _wrapped(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    tensors = {key: v for key, v in state.items() if key in _TENSORS}
    rest = {key: v for key, v in state.items() if key not in _TENSORS}
    return rest | ({QUANT_STATE: tensors} if tensors else {})


def _without(attributes: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: v for key, v in attributes.items() if key not in names}


def _map(name: str, device: torch.device) -> Tensor:
    """The values of a format's codes."""
    key = name, str(device)
    if key not in _maps:
        codebook = formats.by_name(name).codebook
        _maps[key] = torch.tensor(codebook, dtype=torch.float32, device=device)
    return _maps[key]


_maps: dict[tuple[str, str], Tensor] = {}


def _read_betas(betas: Any, count: int) -> Any:
    """Betas as a string, "(0.9, 0.999)", become numbers: bitsandbytes takes them so, too."""
    try:
        if isinstance(betas, str):
            betas = tuple(map(float, betas.strip("()[] ").split(",")))
        found = [float(beta) for beta in betas]
    except (TypeError, ValueError):
        raise TypeError(f"betas: expected numbers, got {betas!r}") from None
    if len(found) != count:
        raise ValueError(f"betas: expected {count} numbers, got {betas}")
    return betas


def _check(settings: dict[str, Any]) -> None:
    """Refuse settings that no optimizer can use."""
    for key in ("lr", "eps", "weight_decay"):
        try:
            valid = float(settings[key]) >= 0.0
        except (TypeError, ValueError):
            raise TypeError(f"{key}: expected a number, got {settings[key]!r}") from None
        if not valid:
            raise ValueError(f"{key}: expected a number from 0, got {settings[key]}")
    for i, beta in enumerate(settings["betas"]):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"betas[{i}]: expected a number from 0 to less than 1, got {beta}")
