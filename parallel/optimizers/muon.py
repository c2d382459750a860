"""Muon: orthogonalised momentum for hidden matrices, AdamW for everything else.

    m = mu m + (1 - mu) g        u = mu m + (1 - mu) g        w = w - lr (weight_decay w + 0.2 sqrt(max(N, M)) O(u))

for a matrix (N, M), O the Newton-Schulz orthogonalisation of Nesterov's u. The factor gives an update the size that
AdamW's usually has (its root mean square is about 0.2), so both kinds share one learning rate.
Sources: Jordan et al. 2024 (momentum and orthogonalisation); Liu et al. 2025 ("Muon is scalable for LLM training"),
section 2.2 (the factor, weight decay). O does not depend on the scale of u, so m may be a mean where theirs is a sum.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from parallel.optimizers import adam
from parallel.optimizers.exchange import MatrixExchange
from parallel.optimizers.fragments import FragmentOptimizer, Group, Held, stretches
from parallel.optimizers.newton_schulz import orthogonalise
from parallel.topology import Topology

RMS = 0.2
"""Root mean square of AdamW's usual update, at a learning rate of 1."""


class Muon(FragmentOptimizer):
    """Each projection of a packed weight is a matrix of its own.

    The momentum is sharded as the weights are; a matrix is whole on one rank only, while that orthogonalises it in
    fp32. Per step two all-to-alls over the ranks that share the parameters, each of their share of the matrices.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        matrices: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float,
    ) -> None:
        """`matrices`: the parameters to orthogonalise; `betas` and `eps` are AdamW's, of the others."""
        super().__init__(groups, lr=lr, betas=betas, eps=eps)
        self._momentum = momentum
        self._matrices = set(matrices)
        self._exchanges: dict[Tensor, MatrixExchange] = {}

    def moment_keys(self, parameter: nn.Parameter) -> tuple[str, ...]:
        return ("momentum",) if parameter in self._matrices else adam.MOMENTS

    def hold(self, flat: Tensor, fragments: list[Held], topology: Topology) -> None:
        super().hold(flat, fragments, topology)
        hidden, _ = self._divide(fragments)
        if hidden:
            self._exchanges[flat] = MatrixExchange(stretches(hidden), topology, flat.device)

    def update(self, group: Group, flat: Tensor, fragments: Sequence[Held]) -> None:
        hidden, rest = self._divide(fragments)
        if rest:
            adam.adamw(rest, flat, group)
        if not hidden:
            return
        gradients, momenta = [held.gradient(flat) for held in hidden], [held.moments["momentum"] for held in hidden]
        torch._foreach_lerp_(momenta, gradients, 1 - self._momentum)
        ahead = torch._foreach_lerp(gradients, momenta, self._momentum)
        tensors = stretches(hidden)
        updates = self._exchanges[flat].apply(_scaled, [tensor.of(ahead[tensor.place]) for tensor in tensors])
        torch._foreach_mul_([held.weight for held in hidden], 1 - group["lr"] * group["weight_decay"])
        for tensor, update in zip(tensors, updates, strict=True):
            tensor.of(tensor.held.weight).sub_(update, alpha=group["lr"])

    def _divide(self, fragments: Sequence[Held]) -> tuple[list[Held], list[Held]]:
        """Those of matrices to orthogonalise, and the others."""
        hidden = [held for held in fragments if held.parameter in self._matrices]
        return hidden, [held for held in fragments if held.parameter not in self._matrices]


def _scaled(matrix_NM: Tensor) -> Tensor:
    return orthogonalise(matrix_NM) * (RMS * max(matrix_NM.shape) ** 0.5)
