"""Matrix products of bfloat16 layers on the CPU by oneDNN, with what follows them, weights as it wants them."""

import torch
from torch import Tensor, nn

# weights that are kept a second time, laid out for the products, at most: 1 GiB
PACKED = 1 << 29


class Weights:
    """The weights of a model's plain layers, as the products want them."""

    def __init__(self, model: nn.Module) -> None:
        self._plain = {module for module in model.modules() if isinstance(module, nn.Linear) and _is_plain(module)}
        # laid out once: else each call does so anew
        self.laid_out = sum(module.weight.numel() for module in self._plain) <= PACKED

    def __contains__(self, module: nn.Module | None) -> bool:
        return module in self._plain

    def of(self, *modules: nn.Linear) -> Tensor:
        """Those of layers of one input, below one another."""
        weights = [module.weight.detach() for module in modules]
        whole = weights[0] if len(weights) == 1 else torch.cat(weights)
        found: Tensor = torch.ops.mkldnn._reorder_linear_weight(whole) if self.laid_out else whole
        return found


def _is_plain(module: nn.Linear) -> bool:
    if type(module) is not nn.Linear or module.weight.dtype != torch.bfloat16:
        return False
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b"""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def silu_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """silu(x W^T + b)"""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "swish", [1.0], "")
    return found


def times_product(gates: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """gates * (x W^T + b)"""
    found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, gates, weight, bias, "mul")
    return found
