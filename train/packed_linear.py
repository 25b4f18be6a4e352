"""Linear layers for a model that only computes, in float32 on a CPU: weights laid out for oneDNN beforehand.

torch multiplies float32 matrices by MKL. On an AMD EPYC with AVX-512 that reached 59 to 97 GFLOP/s a core, oneDNN with packed
weights 190 to 225 (products of 208 to 1,024 rows; bfloat16 goes to oneDNN by itself). The operator is the one that torch's own
compiler puts in for frozen weights (torch/_inductor/fx_passes/mkldnn_fusion.py); results differ in the last bits.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SMALLEST = 1 << 16
"""Weights of fewer elements, such as a reward model's head, stay as they are."""


def available() -> bool:
    """Whether this torch has oneDNN and its operator."""
    import torch

    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def packed(weight: "torch.Tensor") -> "torch.Tensor":
    """A weight [out, in] in oneDNN's layout."""
    import torch

    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def product(x: "torch.Tensor", weight: "torch.Tensor", bias: "torch.Tensor | None" = None) -> "torch.Tensor":
    """x [..., in] times a packed weight: [..., out]."""
    import torch

    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def pack_linear_layers(model: Any) -> int:
    """Replace the linear layers of `model` by packed ones, in place; returns how many. No gradient passes them.

    None where it would not help or cannot be done: another device or dtype, no oneDNN, weights that another module shares.
    """
    import torch

    if not available() or model.device.type != "cpu":
        return 0
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[parameter.data_ptr()] = owners.get(parameter.data_ptr(), 0) + 1

    class Packed(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear):
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.packed = packed(linear.weight.detach())
            self.bias = None if linear.bias is None else linear.bias.detach()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return product(x, self.packed, self.bias)

    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            fits = type(child) is torch.nn.Linear and child.weight.dtype == torch.float32
            if fits and child.weight.numel() >= _SMALLEST and owners[child.weight.data_ptr()] == 1:
                setattr(parent, name, Packed(child))
                replaced += 1
    return replaced
