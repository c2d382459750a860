"""Token embedding with the rows of its table shared by tensor-parallel ranks.

Shapes: B batch, T sequence, t this rank's share of it, D features, V padded vocabulary, V_r this rank's share.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from parallel.linear import LinearSpec, replicate_parameter, shard_parameter
from parallel.regions import leave
from parallel.sharding import Sharding


class VocabParallelEmbedding(nn.Module):
    """x = E[token]: tokens (B, T) -> (B, T, D), or (B, T / tp, D) under sequence parallelism.

    Never reparametrised. Rows from `live_rows` on pad the vocabulary and stay zero.
    Source: Shoeybi et al. 2019, section 3.
    """

    def __init__(self, name: str, rows: int, features: int, spec: LinearSpec, *, std: float, live_rows: int) -> None:
        super().__init__()
        self.tp = spec.tp
        self.compute_dtype = spec.compute_dtype
        full_VD = spec.initial(name, (rows, features), std)
        full_VD[live_rows:] = 0
        share = spec.tp.share(rows)
        self.first_row = share.start
        self.weight = shard_parameter(nn.Parameter(full_VD[share].clone()), Sharding(0))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        if self.tp.size == 1:
            return F.embedding(tokens_BT, self.weight).to(self.compute_dtype)
        local_BT = tokens_BT - self.first_row
        elsewhere_BT = (local_BT < 0) | (local_BT >= self.weight.shape[0])
        x_BTD = F.embedding(local_BT.masked_fill(elsewhere_BT, 0), self.weight)
        x_BTD = x_BTD.masked_fill(elsewhere_BT[..., None], 0)
        return leave(x_BTD.to(self.compute_dtype), self.tp)


class LearnedPositions(nn.Module):
    """x + P[position]: (B, t, D) -> (B, t, D); under sequence parallelism each rank adds the positions it holds."""

    def __init__(self, name: str, length: int, features: int, spec: LinearSpec, *, std: float) -> None:
        super().__init__()
        self.tp = spec.tp
        table_TD = spec.initial(name, (length, features), std)
        self.weight = replicate_parameter(nn.Parameter(table_TD), spec.tp, partial=spec.tp.sequence_parallel)

    def forward(self, x_BtD: Tensor, first: int = 0) -> Tensor:
        """`first`: the position of the first token of the sequence."""
        if self.tp.sequence_parallel:
            first += self.tp.rank * x_BtD.shape[1]
        return x_BtD + self.weight[first : first + x_BtD.shape[1]].to(x_BtD.dtype)


def count_rows(vocab_size: int, multiple: int) -> int:
    """Rows of a table for `vocab_size` tokens, padded to a multiple so that it splits over any usual tp."""
    return -(-vocab_size // multiple) * multiple
