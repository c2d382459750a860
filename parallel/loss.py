"""Cross-entropy, and z-loss, over a vocabulary that tensor-parallel ranks share.

Shapes: B batch, T sequence, V_r this rank's share of the padded vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from parallel.embedding import mask_padding
from parallel.topology import TensorParallel


class VocabParallelLoss:
    """Mean next-token cross-entropy in nats, computed in fp32 (float64 logits stay in float64 at tp = 1).

    `z_loss` adds that many times the mean of log² Z, Z the softmax's denominator (Chowdhery et al. 2022, section 5).
    """

    def __init__(
        self, vocab_size: int, tp: TensorParallel, *, label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> None:
        # megatron-core's smoothing sums over one rank's share of the vocabulary only (configs.checks refuses it).
        assert tp.size == 1 or label_smoothing == 0.0
        self.vocab_size = vocab_size
        self.tp = tp
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss

    def __call__(self, logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
        if self.tp.size == 1:
            logits = logits_BTV[..., : self.vocab_size].flatten(0, 1)
            logits = logits if logits.dtype.itemsize >= 4 else logits.float()
            loss = F.cross_entropy(logits, targets_BT.flatten(), label_smoothing=self.label_smoothing)
            return loss + self._of_normaliser(logits.logsumexp(-1)) if self.z_loss else loss
        from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

        logits_BTV = mask_padding(logits_BTV.float(), self.vocab_size, self.tp.rank)
        # The loss overwrites the logits it is given, so what else is read of them is read before.
        target_logit_BT = self._target_logit(logits_BTV, targets_BT) if self.z_loss else None
        loss_BT = vocab_parallel_cross_entropy(logits_BTV, targets_BT)
        if target_logit_BT is None:
            return loss_BT.mean()
        return loss_BT.mean() + self._of_normaliser(loss_BT + target_logit_BT)

    def _of_normaliser(self, log_z: Tensor) -> Tensor:
        return self.z_loss * log_z.square().mean()

    def _target_logit(self, logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
        """Each target's logit, from the rank that holds it: with the loss it gives log Z at no further memory."""
        from megatron.core.tensor_parallel import mappings

        rows = logits_BTV.shape[-1]
        local_BT = targets_BT - self.tp.rank * rows
        elsewhere_BT = (local_BT < 0) | (local_BT >= rows)
        at = torch.arange(targets_BT.numel(), device=targets_BT.device)
        logit_BT = logits_BTV.flatten(0, 1)[at, local_BT.masked_fill(elsewhere_BT, 0).flatten()].view_as(local_BT)
        logit_BT = logit_BT.masked_fill(elsewhere_BT, 0)
        return mappings.reduce_from_tensor_model_parallel_region(logit_BT, group=self.tp.group)
