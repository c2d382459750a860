"""Cross-entropy over a vocabulary that tensor-parallel ranks share.

Shapes: B batch, T sequence, V_r this rank's share of the padded vocabulary.
"""

from torch import Tensor
from torch.nn import functional as F

from parallel.embedding import mask_padding
from parallel.topology import TensorParallel


class VocabParallelLoss:
    """Mean next-token cross-entropy in nats, computed in fp32 (float64 logits stay in float64 at tp = 1)."""

    def __init__(self, vocab_size: int, tp: TensorParallel, label_smoothing: float = 0.0) -> None:
        # megatron-core's smoothing sums over one rank's share of the vocabulary only (configs.checks refuses it).
        assert tp.size == 1 or label_smoothing == 0.0
        self.vocab_size = vocab_size
        self.tp = tp
        self.label_smoothing = label_smoothing

    def __call__(self, logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
        if self.tp.size == 1:
            logits = logits_BTV[..., : self.vocab_size].flatten(0, 1)
            logits = logits if logits.dtype.itemsize >= 4 else logits.float()
            return F.cross_entropy(logits, targets_BT.flatten(), label_smoothing=self.label_smoothing)
        from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

        logits = mask_padding(logits_BTV.float(), self.vocab_size, self.tp.rank)
        return vocab_parallel_cross_entropy(logits, targets_BT).mean()
