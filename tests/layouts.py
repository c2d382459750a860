"""Training a few steps in any layout and bringing every gradient back whole, for comparison with the dense run."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.schema import Config
from parallel import topology as topologies
from parallel.gradients import sum_partial_gradients
from parallel.linear import ColumnParallelLinear, RowParallelLinear
from parallel.topology import Topology
from stability.guard import Guard, Judgement
from tests.reference import DenseDecoder, Trace
from training.batches import Batches
from training.build import Trainer, build_chunks, build_trainer
from training.qk_clip import QkClip
from training.reductions import loss_and_requests
from training.sam import Ascent

VOCAB = 61


class RandomSamples:
    """Sample k is drawn from seed k: what `data.samples` promises, without a dataset."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __getitem__(self, k: int):  # type: ignore[no-untyped-def]
        return torch.randint(VOCAB, (self.length + 1,), generator=torch.Generator().manual_seed(k)).numpy()


def config(world_size: int = 1, **sections: dict) -> Config:
    """A small decoder, resolved for `world_size`; sections override fields.

    Learning rate and epsilon are such that rounding is not amplified: at 1e-2 the loss surface is rough enough for two
    correct fp32 runs to part after five steps.
    """
    from configs.checks import resolve

    base: dict = {
        "data": {"sources": [{"path": "unused"}]},
        "model": {"layers": 4, "hidden_size": 32, "heads": 4, "vocab_multiple": 32, "positions": "learned"},
        "training": {"steps": 10, "global_batch_size": 8, "sequence_length": 16},
        "optimizer": {"lr": 1e-3, "eps": 1e-3, "clip": 0.5, "weight_decay": 0.1},
    }
    for name, fields in sections.items():
        base[name] = base.get(name, {}) | fields
    return resolve(Config.model_validate(base), world_size)


def train_layout(cfg: Config, steps: int) -> Trace | None:
    """Train on this rank; rank 0 returns losses, norms, every gradient and the final parameters, whole."""
    topology = topologies.start(cfg.parallel, "cpu")
    trainer = build_trainer(cfg, topology, VOCAB)
    samples = RandomSamples(cfg.training.sequence_length)
    batches = Batches(samples, cfg.training.global_batch_size, topology, prefetch=cfg.data.prefetch)
    ascent = Ascent(cfg.optimizer.sam_rho, trainer, topology)
    qk_clip = QkClip(cfg.optimizer.qk_clip, trainer, topology)
    trace = Trace()
    for step in range(steps):
        tokens_BT, targets_BT = batches.step(step)
        with trainer.engine.accumulate():
            with qk_clip.watching():
                loss = trainer.pipeline.train(tokens_BT, targets_BT)
            sum_partial_gradients(trainer.parameters(), topology.tensor)
            trainer.spectral.pull_back()
            more = ascent.take_gradients(tokens_BT, targets_BT, loss)
            gradients = {name: _mean_over_dp(p.grad, topology) for name, p in trainer.named_parameters()}
        trace.gradients.append(gather_whole(trainer, gradients, topology))
        more |= qk_clip.measure()
        totals_N = loss_and_requests(loss, trainer.pipeline, topology, stop_requested=False, more=more.values())
        judged = judged_update(trainer, cfg, totals_N)
        qk_clip.clip()
        trainer.spectral.refresh()
        trace.grad_norms.append(judged.grad_norm)
        trace.losses.append(judged.loss)
        trace.more.append(dict(zip(more, judged.more, strict=True)))
    trace.parameters = gather_whole(trainer, {n: p.detach() for n, p in trainer.named_parameters()}, topology)
    return trace if topology.rank == 0 else None


def update(trainer: Trainer, cfg: Config) -> float:
    """An optimizer step with `optimizer.lr` and `optimizer.clip`; the gradient norm before clipping."""
    return judged_update(trainer, cfg, torch.zeros(2, dtype=torch.float64)).grad_norm


def judged_update(trainer: Trainer, cfg: Config, totals_N: Tensor) -> Judgement:
    """The same, given what was reduced with the loss."""
    guard = Guard(cfg.stability.skip, cfg.stability.zclip, cfg.optimizer.clip, torch.device("cpu"))
    return trainer.engine.step(cfg.optimizer.lr, lambda norm: guard.judge(totals_N, norm))


def dense_batches(cfg: Config, steps: int) -> list[tuple[Tensor, Tensor]]:
    topology = single_topology()
    batches = Batches(RandomSamples(cfg.training.sequence_length), cfg.training.global_batch_size, topology)
    return [batches.step(step) for step in range(steps)]


def dense_decoder(cfg: Config) -> DenseDecoder:
    """The reference with the project's initial weights, as one process holds them."""
    chunks = build_chunks(cfg, single_topology(), VOCAB)
    parameters = {name: nn.Parameter(p.detach().clone()) for name, p in chunks[0].named_parameters()}
    return DenseDecoder(cfg, VOCAB, parameters)


def single_topology() -> Topology:
    """One rank without any process group."""
    return Topology(0, 1, torch.device("cpu"), topologies.TensorParallel(), 0, 1, None, 0, 1, None, None)  # type: ignore[arg-type]


def gather_whole(trainer: Trainer, tensors: dict[str, Tensor], topology: Topology) -> dict[str, Tensor]:
    """Tensors shaped like this rank's parameters -> whole tensors by name (complete on ranks of dp rank 0)."""
    blocks = _column_blocks(trainer)
    mine = {name: (topology.tensor.rank, _split_dim(trainer, name), t.clone()) for name, t in tensors.items()}
    parts: list = [None] * topology.model_group.size()
    dist.all_gather_object(parts, (mine, blocks), group=topology.model_group)
    shards: dict[str, dict[int, tuple[int | None, Tensor]]] = {}
    layouts: dict[str, list[int]] = {}
    for tensors_of_rank, blocks_of_rank in parts:
        layouts |= blocks_of_rank
        for name, (tp_rank, dim, tensor) in tensors_of_rank.items():
            shards.setdefault(name, {})[tp_rank] = (dim, tensor)
    return {name: _join(by_rank, layouts.get(name)) for name, by_rank in shards.items()}


def _join(by_rank: dict[int, tuple[int | None, Tensor]], blocks: list[int] | None) -> Tensor:
    dim = by_rank[0][0]
    ordered = [by_rank[rank][1] for rank in sorted(by_rank)]
    if dim is None:
        for other in ordered[1:]:
            assert torch.equal(other, ordered[0]), "a replicated parameter differs between tensor-parallel ranks"
        return ordered[0]
    if blocks is None:
        return torch.cat(ordered, dim)
    pieces = [shard.split(blocks) for shard in ordered]
    return torch.cat([torch.cat(block) for block in zip(*pieces, strict=True)])


def _column_blocks(trainer: Trainer) -> dict[str, list[int]]:
    blocks = {}
    for chunk in trainer.chunks:
        for name, module in chunk.named_modules():
            if isinstance(module, ColumnParallelLinear):
                blocks[f"{name}.weight"] = blocks[f"{name}.bias"] = list(module.blocks.values())
    return blocks


def _split_dim(trainer: Trainer, name: str) -> int | None:
    owner, _, leaf = name.rpartition(".")
    for chunk in trainer.chunks:
        modules = dict(chunk.named_modules())
        if owner in modules and hasattr(modules[owner], leaf):
            module = modules[owner]
            if isinstance(module, ColumnParallelLinear):
                return None if leaf == "gamma" else 0
            if isinstance(module, RowParallelLinear):
                return 1 if leaf == "weight" else None
            return 0 if owner == "embedding" else None
    raise KeyError(name)


def _mean_over_dp(grad: Tensor | None, topology: Topology) -> Tensor:
    assert grad is not None
    grad = grad.clone()
    dist.all_reduce(grad, group=topology.dp_group)
    return grad / topology.dp_size
