"""torch's fused AdamW kernel, called directly.

For a small network, a step of torch's class spends more time around its kernel than in it: it sorts the parameters by
device and dtype, and its wrappers import torch._dynamo at the first call, which takes about as long as importing torch.
We compile fields, never a step of the optimiser, and have one group on one device: so these are the methods without
their wrappers, and a step is the kernel that torch's class ends in.
"""

from collections.abc import Iterable
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor


class AdamW(torch.optim.AdamW):
    """Fused AdamW, see torch.optim.AdamW; one group, on one device, and the state that torch's keeps.

    `found_inf` says whether a step must be skipped: 1 or 0 where the host knows, else a tensor of shape () on the
    device, for which nobody waits.

    Args:
        params: The parameters.
        more: lr, betas and weight_decay.
    """

    found_inf: Tensor | float = 0.0

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)

    def __init__(self, params: Iterable[Tensor], **more: Any) -> None:
        super().__init__(params, fused=True, **more)

    def is_held(self) -> bool:
        """Whether the host knows that the step must be skipped."""
        return not isinstance(self.found_inf, Tensor) and self.found_inf == 1

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the parameters that have gradients."""
        group = self.param_groups[0]
        moving = [p for p in group["params"] if p.grad is not None]
        if not moving or self.is_held():
            return
        hold = self.found_inf if isinstance(self.found_inf, Tensor) else None
        slots = [self.state[p] or self._begin(p) for p in moving]
        steps = [slot["step"] for slot in slots]
        # a skipped step does not count
        torch._foreach_add_(steps, 1 if hold is None else [1 - hold] * len(steps))
        tensors = [p.grad for p in moving], [s["exp_avg"] for s in slots], [s["exp_avg_sq"] for s in slots]
        beta1, beta2 = group["betas"]
        decay, eps = group["weight_decay"], group["eps"]
        how = {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "weight_decay": decay, "eps": eps, "found_inf": hold}
        torch._fused_adamw_(moving, *tensors, [], steps, **how, amsgrad=False, maximize=False)

    step.hooked = True  # type: ignore[attr-defined]  # torch would wrap it for its profiler

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        for p in self.param_groups[0]["params"]:
            p.grad = None

    def _begin(self, p: Tensor) -> dict[str, Tensor]:
        averages = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
        self.state[p] = {"step": torch.zeros((), device=p.device), **averages}
        return self.state[p]
