"""Muon: hidden matrices move along the orthogonal matrix nearest to their momentum, all else by AdamW.

    m <- mu m + (1 - mu) g
    W <- (1 - lr decay) W - 0.2 lr sqrt(max(rows, columns)) orthogonal((1 - mu) g + mu m)

orthogonal(U S V^T) = U V^T, to within what five Newton-Schulz steps leave of it: every direction of the momentum moves
alike, however small its singular value, where AdamW's steps are ruled by the few large ones. The factor makes an entry
of the update 0.2 lr in root mean square, about that of AdamW: learning rate and decay mean the same for both.

A convolution is the matrix of its filters, (out, in k k). What comes in and what goes out (the first and the last
layer, the table of classes) and vectors are AdamW's: no hidden matrices; the layers that a time goes through count as
hidden. torch.optim.Muon knows no convolutions, takes matrices one by one, and cannot be held back on the device.
Sources: Jordan et al. 2024, kellerjordan.github.io/posts/muon (momentum, iteration, its coefficients); Liu et al. 2025,
arXiv:2502.16982 (factor, decay).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flowimg.training.optimisers.adamw import AdamW

A, B, C = 3.4445, -4.7750, 2.0315
"""sigma <- A sigma + B sigma^3 + C sigma^5: steep at 0, and what is near 1 it keeps between 0.68 and 1.14."""
STEPS = 5
"""Of that: singular values from 1/100 of the Frobenius norm on end there."""
RMS = 0.2


def hidden_matrices(field: nn.Module) -> set[str]:
    """The names of a field's weights that map hidden units to hidden units; `field.edges` names the other modules."""
    edges = tuple(f"{name}." for name in getattr(field, "edges", ()))
    return {name for name, p in field.named_parameters() if p.ndim >= 2 and not name.startswith(edges)}


def on_one_process(rows: Tensor, count: int, work: Callable[[Tensor], Tensor]) -> Tensor:
    """Work on matrices that are whole."""
    return work(rows)


@torch.no_grad()
def orthogonal(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest orthogonal matrices, nearly: singular values to between 0.68 and 1.14; 0 stays 0.

    Args:
        matrices: Shape (N, rows, columns).
        dtype: Precision of the iteration.
    Returns:
        The same shape and dtype as `matrices`.
    """
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=B, alpha=C), x, beta=A)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(AdamW):
    """Muon for `matrices`, fused AdamW for the other parameters; one group, with AdamW's state for the latter.

    As AdamW's, a step moves nothing where `found_inf` is 1, and does not wait to know.

    Args:
        params: All parameters.
        matrices: Those of them that are moved as matrices, each with the number of rows of the whole matrix, of which
            it may be a part.
        momentum: mu.
        dtype: Of the Newton-Schulz iteration.
        matrices_of: How whole matrices are worked on; see `Strategy.matrices`.
        more: lr, betas and weight_decay, as those of AdamW.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        matrices: Mapping[Tensor, int],
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
        matrices_of: Callable[..., Tensor] = on_one_process,
        **more: Any,
    ) -> None:
        super().__init__(params, **more)
        self.momentum, self.dtype, self.matrices_of = momentum, dtype, matrices_of
        # those of one shape go through the iteration together
        self.stacks: dict[tuple[int, int], list[Tensor]] = {}
        for p, rows in matrices.items():
            self.stacks.setdefault((rows, p.shape[1:].numel()), []).append(p)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the parameters that have gradients."""
        if self.is_held():
            return
        grads: dict[Tensor, Tensor] = {p: p.grad for stack in self.stacks.values() for p in stack if p.grad is not None}
        for p in grads:
            p.grad = None  # which AdamW passes over
        super().step(closure)
        group = self.param_groups[0]
        for (rows, columns), stack in self.stacks.items():
            if moving := [p for p in stack if p in grads]:
                these = _stacked([grads[p] for p in moving], columns)
                self._move(moving, these, rows, group["lr"], group["weight_decay"])
        for p, grad in grads.items():
            p.grad = grad

    step.hooked = True  # type: ignore[attr-defined]  # as AdamW's

    def _move(self, matrices: list[Tensor], grads: Tensor, rows: int, lr: float, decay: float) -> None:
        """Move matrices of one shape, or as many rows of each as are here."""
        hold, goes = self.found_inf, 1 - self.found_inf
        if isinstance(hold, Tensor):
            grads = torch.where(hold > 0, 0, grads)  # they may be anything: 0 times infinity is not 0
        averages = [self._average(p) for p in matrices]
        momentum = _stacked(averages, grads.shape[2])
        momentum = momentum + (1 - self.momentum) * goes * (grads - momentum)
        nearest = partial(orthogonal, dtype=self.dtype)
        update = self.matrices_of(grads.lerp(momentum, self.momentum), rows, nearest)
        size = RMS * lr * max(rows, update.shape[2]) ** 0.5
        torch._foreach_copy_(averages, [m.view_as(p) for m, p in zip(momentum, matrices, strict=True)])
        if decay:
            torch._foreach_mul_(matrices, 1 - lr * decay * goes)
        moves = (update * (-size * goes)).unbind()
        torch._foreach_add_(matrices, [move.view_as(p) for move, p in zip(moves, matrices, strict=True)])

    def _average(self, p: Tensor) -> Tensor:
        slots = self.state[p]
        if not slots:  # `step`, because AdamW expects one in what it loads
            slots.update(step=torch.zeros((), device=p.device), exp_avg=torch.zeros_like(p))
        average: Tensor = slots["exp_avg"]
        return average


def _stacked(tensors: Sequence[Tensor], columns: int) -> Tensor:
    return torch.stack([tensor.reshape(len(tensor), columns) for tensor in tensors])
