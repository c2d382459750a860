"""Cross-entropy, z-loss and label smoothing by their definition in float64: on one rank, and of a shared vocabulary."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import parallel.loss
from parallel import topology as topologies
from parallel.loss import VocabParallelLoss
from parallel.topology import TensorParallel
from tests.distributed import spawn
from tests.layouts import config

B, T, LIVE, ROWS = 2, 5, 13, 32
"""Of 32 rows 19 pad: with two ranks, the second has padding only."""
THREE_ROWS = 100
"""A chunk of three rows of 32: the last chunk has one."""
TERMS: dict[str, dict[str, float]] = {
    "plain": {},
    "z-loss": {"z_loss": 0.1},
    "smoothed": {"label_smoothing": 0.2},
    "both": {"z_loss": 0.1, "label_smoothing": 0.2},
}


def logits_targets(dtype: torch.dtype, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(B, T, ROWS, generator=generator) + offset
    return logits.to(dtype), torch.randint(LIVE, (B, T), generator=generator)


def definition(logits: Tensor, targets: Tensor, z_loss: float = 0.0, label_smoothing: float = 0.0) -> list[Tensor]:
    """The mean over tokens of - sum of q log softmax + z_loss * log² Z; and the gradient of the logits.

    q is label_smoothing / LIVE of every live token, and 1 - label_smoothing more of the target.
    """
    logits = logits.double().requires_grad_()
    live = logits[..., :LIVE]
    log_z_BT = live.logsumexp(-1)
    q_BTV = torch.full_like(live, label_smoothing / LIVE)
    q_BTV.scatter_add_(-1, targets[..., None], torch.full((B, T, 1), 1 - label_smoothing, dtype=torch.float64))
    loss = (-(q_BTV * (live - log_z_BT[..., None])).sum(-1) + z_loss * log_z_BT.square()).mean()
    loss.backward()
    assert logits.grad is not None
    return [loss.detach(), logits.grad]


def ours(logits: Tensor, targets: Tensor, tp: TensorParallel, **terms: float) -> list[Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = VocabParallelLoss(LIVE, tp, **terms)(leaf * 1, targets)
    loss.backward()
    assert leaf.grad is not None and leaf.grad.dtype == logits.dtype
    return [loss.detach(), leaf.grad]


def on_rank(tp: int, offset: float) -> dict[str, list[Tensor]]:
    parallel.loss.CHUNK = THREE_ROWS // tp
    topology = topologies.start(config(tp, parallel={"tp": tp}).parallel, "cpu")
    logits, targets = logits_targets(torch.float32, offset)
    mine = logits[..., topology.tensor.share(ROWS)]
    results = {name: ours(mine, targets, topology.tensor, **terms) for name, terms in TERMS.items()}
    if offset == 0.0:
        results["megatron"] = megatron(mine, targets, topology.tensor)
    return {name: [loss, whole(grad, topology.tensor)] for name, (loss, grad) in results.items()}


def megatron(logits: Tensor, targets: Tensor, tp: TensorParallel) -> list[Tensor]:
    """megatron-core's own loss, which knows no padding."""
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    leaf = logits.clone().requires_grad_()
    padded_V = torch.arange(ROWS)[tp.share(ROWS)] >= LIVE
    loss = vocab_parallel_cross_entropy(leaf.masked_fill(padded_V, float("-inf")), targets).mean()
    loss.backward()
    assert leaf.grad is not None
    return [loss.detach(), leaf.grad]


def whole(share: Tensor, tp: TensorParallel) -> Tensor:
    shares = [torch.empty_like(share) for _ in range(tp.size)]
    dist.all_gather(shares, share.contiguous(), group=tp.group)
    return torch.cat(shares, -1)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("chunk", [THREE_ROWS, 2**18])
def test_one_rank_in_float64(terms: dict[str, float], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.loss, "CHUNK", chunk)
    logits, targets = logits_targets(torch.float64)
    for value, expected in zip(
        ours(logits, targets, TensorParallel(), **terms), definition(logits, targets, **terms), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("tp", "offset"), [(2, 0.0), (4, 0.0), (2, -1e4)])
def test_a_shared_vocabulary(tp: int, offset: float) -> None:
    """Also far from zero, where exp of a logit is 0 in fp32 and a rank without live entries must not be its maximum."""
    logits, targets = logits_targets(torch.float32, offset)
    for results in spawn(tp, on_rank, tp, offset):
        for name, (loss, grad) in results.items():
            terms = TERMS.get(name, {})
            expected, gradient = definition(logits, targets, **terms)
            torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
            # At -1e4 the z-loss has a gradient of up to 200, in fp32 known to 1e-5.
            atol = 1e-4 if offset and "z_loss" in terms else 1e-7
            torch.testing.assert_close(grad.double(), gradient, rtol=0, atol=atol)
            assert name == "megatron" or not grad[..., LIVE:].any()


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_bf16_logits_lose_one_rounding_of_the_gradient(terms: dict[str, float]) -> None:
    logits, targets = logits_targets(torch.bfloat16)
    loss, grad = ours(logits, targets, TensorParallel(), **terms)
    expected, gradient = definition(logits, targets, **terms)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), gradient, rtol=2**-8, atol=1e-8)


def test_one_rank_equals_torch() -> None:
    """Up to the order of sums: torch's kernel adds the exponentials of a row in another one."""
    logits, targets = logits_targets(torch.float32)
    loss = VocabParallelLoss(LIVE, TensorParallel())(logits, targets)
    torch.testing.assert_close(
        loss, F.cross_entropy(logits[..., :LIVE].flatten(0, 1), targets.flatten()), rtol=1e-6, atol=0
    )


def test_no_more_wide_logits_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.loss, "CHUNK", THREE_ROWS)
    logits, targets = logits_targets(torch.bfloat16)
    logits.requires_grad_()
    with _Widest() as widest:
        VocabParallelLoss(LIVE, TensorParallel(), z_loss=0.1, label_smoothing=0.1)(logits, targets).backward()
    assert 3 * LIVE <= widest.numbers <= THREE_ROWS


def test_a_second_backward_pass_is_refused() -> None:
    """The first has left the gradient in place of the logits: going on from there would be wrong in silence."""
    logits, targets = logits_targets(torch.float32)
    loss = VocabParallelLoss(LIVE, TensorParallel())(logits.requires_grad_() * 1, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_is_not_finite_is_not_hidden() -> None:
    for value in (float("nan"), float("inf")):
        logits, targets = logits_targets(torch.float32)
        logits[0, 0, 1] = value
        assert VocabParallelLoss(LIVE, TensorParallel())(logits, targets).isnan()


class _Widest(TorchDispatchMode):
    """The size of the largest fp32 tensor that any operation gave."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            self.numbers = max(self.numbers, result.numel())
        return result
