"""SwitchBack (arXiv 2304.13013): training with int8 products, but for the weight's gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowbit import functional as F
from lowbit import ops
from lowbit.functional.checks import check_input, check_layer


class _Int8Training(torch.autograd.Function):
    """`y = x wᵀ + b` of rounded rows; `dx` of the rounded weight, `dw` of nothing rounded."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        q: Tensor,
        scales: Tensor,
        threshold: float,
    ) -> Tensor:
        ctx.save_for_backward(x, q, scales)
        return F.int8_linear(x, q, scales, bias, threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy, (x, q, scales) = grads[0], ctx.saved_tensors
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            state = F.QuantState(scales, q.shape, "int8", q.shape[1], dy.dtype)
            dx = ops.linear_transposed(dy, *state.weight(q))
        flat = dy.reshape(-1, dy.shape[-1])
        if ctx.needs_input_grad[1]:
            dw = flat.t() @ x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[2]:
            db = flat.sum(0)
        return dx, dw, db, None, None, None


def int8_training_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    q: Tensor,
    scales: Tensor,
    threshold: float = 0.0,
) -> Tensor:
    """`y = x wᵀ + bias` by products of integers, with gradients to all three.

    Args:
        x: `[.., K]`.
        weight: `[N, K]`, of the dtype of `x`: it gets the gradient, and is not read.
        bias: `[N]`, of the dtype of `x`.
        q: the weight in int8.
        scales: absmax of its rows, f32 `[N]`.
        threshold: magnitude from which activations are outliers; 0 for none.
    """
    return _Int8Training.apply(x, weight, bias, q, scales, threshold)


class SwitchBackLinear(nn.Linear):
    """A linear layer that trains its weight and multiplies by a copy of it in int8.

    It is the products that it makes cheaper, not the memory: the copy comes on top of the weight,
    half as much again as a layer of 16 bits has. What keeps no other weight than the one in int8
    is `Linear8bitLt(has_fp16_weights=False)`, which trains its bias and adapters only.

    Call `sync_weights` after each step of the optimizer, or use `SwitchBackLinearCallback`.

    >>> layer = SwitchBackLinear(64, 8, compute_dtype=torch.float32)
    >>> layer(torch.randn(2, 64)).sum().backward()
    >>> layer.weight.grad.shape
    torch.Size([8, 64])
    """

    weight_int8: Tensor
    weight_scales: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        compute_dtype: torch.dtype = torch.float16,
        device: torch.device | str | None = None,
    ) -> None:
        check_layer(compute_dtype, in_features=in_features, out_features=out_features)
        super().__init__(in_features, out_features, bias, device)
        self.compute_dtype = compute_dtype
        # Not in checkpoints: the weight is.
        self.register_buffer("weight_int8", None, persistent=False)
        self.register_buffer("weight_scales", None, persistent=False)
        self.sync_weights()

    @classmethod
    def from_linear(cls, linear: nn.Linear, device: Any = None) -> SwitchBackLinear:
        """The same layer with products in int8; weight and bias are shared."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear: expected torch.nn.Linear, got {type(linear).__name__}")
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, bias=False)
        layer.compute_dtype = linear.weight.dtype
        layer.weight, layer.bias = linear.weight, linear.bias
        if device is not None:
            layer.to(device)
        layer.sync_weights()
        return layer

    @torch.no_grad()
    def sync_weights(self) -> None:
        """Round the weight anew."""
        if not self.weight.is_meta:
            self.weight_int8, self.weight_scales = F.quantize_rowwise(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`x: [.., K]` to `[.., N]`, of the dtype of `x`."""
        check_input("x", x)
        inner = x.to(self.compute_dtype)
        weight = self.weight.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        scales = self.weight_scales.float()
        y = int8_training_linear(inner, weight, bias, self.weight_int8, scales)
        return y.to(x.dtype)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.sync_weights()


class SwitchBackLinearCallback:
    """Rounds the weights of all `SwitchBackLinear` of a model: call `sync` after each step.

    >>> model = torch.nn.Sequential(SwitchBackLinear(64, 8))
    >>> SwitchBackLinearCallback(model).sync()
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def sync(self) -> None:
        """Round them anew."""
        for module in self.model.modules():
            if isinstance(module, SwitchBackLinear):
                module.sync_weights()
