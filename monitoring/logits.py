"""The largest attention logit of each head, block by block: what QK-Clip needs in every training step.

Shapes: B batch, H query heads, G key/value heads, R = H / G query heads of a key head, T sequence, K head size,
N = B G; q a block of rows.
"""

import torch
from torch import Tensor

from monitoring.entropy import KEY_BLOCK, QUERY_BLOCK, SCORES


@torch.no_grad()
def largest_logits(q_BHTK: Tensor, k_BGTK: Tensor, scale: float) -> Tensor:
    """(H,) the largest scaled logit of causal attention over all rows and sequences, in fp32 (fp64 for fp64 input).

    Memory is one block of scores, never T x T; keys are not repeated for the query heads that share them.
    """
    dtype = torch.float64 if q_BHTK.dtype == torch.float64 else torch.float32
    (batch, _, length, _), groups = q_BHTK.shape, k_BGTK.shape[1]
    q_NRTK = (q_BHTK.to(dtype) * scale).unflatten(1, (groups, -1)).flatten(0, 1)
    k_NTK = k_BGTK.to(dtype).flatten(0, 1)
    top_NR = q_NRTK.new_full(q_NRTK.shape[:2], -torch.inf)
    rows = QUERY_BLOCK[q_NRTK.device.type]
    heads = max(1, SCORES[q_NRTK.device.type] // (rows * q_NRTK.shape[1] * min(length, KEY_BLOCK)))
    for first_head in range(0, q_NRTK.shape[0], heads):
        here = slice(first_head, first_head + heads)
        for first in range(0, length, rows):
            top_nR = _largest_of_rows(q_NRTK[here, :, first : first + rows], k_NTK[here], first)
            top_NR[here] = torch.maximum(top_NR[here], top_nR)
    return top_NR.unflatten(0, (batch, groups)).amax(0).flatten()


def _largest_of_rows(q_NRqK: Tensor, k_NTK: Tensor, first_row: int) -> Tensor:
    """(N, R) the largest score of the rows first_row, first_row + 1, ... over the keys that they see."""
    end = first_row + q_NRqK.shape[2]
    rows_q = torch.arange(first_row, end, device=q_NRqK.device)
    top_NR = q_NRqK.new_full(q_NRqK.shape[:2], -torch.inf)
    for first_key in range(0, end, KEY_BLOCK):
        last_key = min(first_key + KEY_BLOCK, end)
        s_NRqk = torch.bmm(q_NRqK.flatten(1, 2), k_NTK[:, first_key:last_key].transpose(1, 2))
        s_NRqk = s_NRqk.unflatten(1, q_NRqK.shape[1:3])
        first_future = min(max(first_key, first_row), last_key)
        future_qk = torch.arange(first_future, last_key, device=rows_q.device) > rows_q[:, None]
        s_NRqk[..., first_future - first_key :].masked_fill_(future_qk, -torch.inf)
        top_NR = torch.maximum(top_NR, s_NRqk.amax((2, 3)))
    return top_NR
