"""torch's fused AdamW that does not load the compiler.

The methods of torch's optimisers are kept out of torch.compile by wrappers that import torch._dynamo when they are
first called, which takes about as long as importing torch. We compile fields, never a step of the optimiser, so these
are the methods without their wrappers.
"""

from collections.abc import Iterable
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor


class AdamW(torch.optim.AdamW):
    """Fused AdamW; see torch.optim.AdamW.

    Args:
        params: The parameters.
        more: lr, betas and weight_decay.
    """

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))

    def __init__(self, params: Iterable[Tensor], **more: Any) -> None:
        super().__init__(params, fused=True, **more)
