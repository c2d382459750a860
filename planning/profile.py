"""What the stages of a model hold and do, measured on its real modules without memory for their tensors.

A stage is its layers, all alike, and what the embedding or the head adds to them; all of it grows with the sequences
of a micro-batch. So few probes are measured (an inner layer, the first and the last one, with one, two and four
sequences), and `Profile` extends them to any stage. One sequence is apart: moves that copy several leave a single one
where it is.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from configs.schema import Config
from model.decoder import Decoder
from parallel.linear import LinearSpec, ShardedLinear
from parallel.loss import Chunks, VocabParallelLoss, chunks_of
from parallel.topology import TensorParallel
from planning.alive import tensor_bytes
from planning.work import Amounts, CountWork, Work
from training.build import DTYPES

Recompute = Literal["none", "selective", "full"]
NO_WORK = Work()
FIRST, INNER, LAST = range(3)
"""Layers of a model of three, each a stage of its own."""


@dataclass(frozen=True)
class Held(Amounts):
    """What one rank holds of a stage whatever its micro-batches."""

    matrices: float = 0.0
    """Numbers in parameters of two dimensions and more."""
    vectors: float = 0.0
    """Numbers in the other parameters."""
    hidden: float = 0.0
    """Numbers in the matrices of decoder layers, which Muon orthogonalises."""
    reparametrised: float = 0.0
    """Numbers in matrices with sigmaReparam."""
    effective: float = 0.0
    """Bytes of weights in the compute dtype (W_hat)."""
    spectral: float = 0.0
    """Bytes of u, v and sigma."""
    tables: float = 0.0
    """Bytes of the other buffers."""

    @property
    def numbers(self) -> float:
        """In all parameters."""
        return self.matrices + self.vectors


@dataclass(frozen=True)
class Pass(Amounts):
    """One micro-batch through a stage, forward and backward, gradients of others being there to add to."""

    kept: float = 0.0
    """Bytes alive after the forward pass and before the backward pass, the output included and the input not."""
    above: float = 0.0
    """The most bytes alive in either pass, less those."""
    forward: Work = NO_WORK
    backward: Work = NO_WORK


PROBED_SEQUENCES = (1, 2, 4)
Sizes = tuple[Pass, Pass, Pass]
"""With so many sequences."""


@dataclass(frozen=True)
class Profile:
    """Stages of one tensor-parallel size, recompute and compute dtype."""

    layer_held: Held
    embedding_held: Held
    head_held: Held
    layer: Sizes
    """A stage of one layer, which is neither the model's first nor its last."""
    embedding: Sizes
    """What the embedding adds; `above`: the most that such a stage with one layer has alive."""
    head: Sizes
    """What final norm, head and loss add; `above`: of such a stage with one layer."""
    largest: float
    """Numbers in the largest parameter with embedding or head."""

    def hold(self, layers: int, *, first: bool, last: bool) -> Held:
        """What a stage of so many layers holds."""
        held = self.layer_held * layers
        if first:
            held += self.embedding_held
        return held + self.head_held if last else held

    def run(self, layers: int, sequences: int, *, first: bool, last: bool) -> Pass:
        """A micro-batch of so many sequences through such a stage."""
        layer, embedding, head = (_extend(part, sequences) for part in (self.layer, self.embedding, self.head))
        stage = layer * layers
        if first:
            stage += embedding
        if last:
            stage += head
        # The most is reached where the backward pass begins: what is alive there beyond the kept does not grow with
        # depth. Where logits have gone, the last layer may still need more; and the embedding's dense gradient comes
        # when all else of the micro-batch has gone.
        above = max(head.above, layer.above - head.kept) if last else layer.above
        return replace(stage, above=max(above, embedding.above - stage.kept) if first else above)


class Profiler:
    """Makes profiles of one model; to be used inside `fake_ranks` of at least the largest tensor-parallel size."""

    def __init__(self, config: Config, vocab_size: int, groups: dict[int, dist.ProcessGroup] | None = None) -> None:
        """`groups`: tensor-parallel groups by size, where there are any already."""
        self._config = config.model_copy(update={"model": config.model.model_copy(update={"layers": 3})})
        self._vocab_size = vocab_size
        self._groups = dict(groups or {})
        self._profiles: dict[tuple[int, bool, Recompute], Profile] = {}

    def profile(self, tp: int, sequence_parallel: bool, recompute: Recompute) -> Profile:
        """Of stages with these settings, measured the first time."""
        key = (tp, sequence_parallel, recompute)
        if key not in self._profiles:
            spread = TensorParallel(self._group(tp), 0, tp, sequence_parallel)
            self._profiles[key] = self._whole(spread) if recompute == "none" else self._recomputed(spread, recompute)
        return self._profiles[key]

    def _group(self, size: int) -> dist.ProcessGroup:
        if size not in self._groups:
            self._groups[size] = dist.new_group(list(range(size)))
        return self._groups[size]

    def _whole(self, tp: TensorParallel) -> Profile:
        with FakeTensorMode():
            inner, first, last = (self._chunk(kind, tp, "none") for kind in (INNER, FIRST, LAST))
            layer, begin, end = (self._passes(chunk, tp) for chunk in (inner, first, last))
        return Profile(
            layer_held=_held(inner),
            embedding_held=_held(first) - _held(inner),
            head_held=_held(last) - _held(inner),
            layer=layer,
            embedding=_added(begin, layer, from_start=True),
            head=_added(end, layer),
            largest=max(p.numel() for chunk in (first, last) for p in chunk.parameters()),
        )

    def _recomputed(self, tp: TensorParallel, recompute: Recompute) -> Profile:
        """Recompute is of layers: embedding and head are as without."""
        whole = self.profile(tp.size, tp.sequence_parallel, "none")
        with FakeTensorMode():
            return replace(whole, layer=self._passes(self._chunk(INNER, tp, recompute), tp))

    def _chunk(self, layer: int, tp: TensorParallel, recompute: Recompute) -> Decoder:
        config = self._config
        spec = LinearSpec(
            tp=tp,
            seed=0,
            compute_dtype=DTYPES[config.training.precision],
            reparametrised=config.model.reparam.kind == "sigma",
            bias=config.model.bias,
            overlap=True,
        )
        return Decoder(
            config.model,
            spec,
            vocab_size=self._vocab_size,
            length=config.training.sequence_length,
            layers=(layer,),
            recompute=recompute,
        )

    def _passes(self, chunk: Decoder, tp: TensorParallel) -> Sizes:
        one, two, four = (self._pass(chunk, tp, sequences) for sequences in PROBED_SEQUENCES)
        return one, two, four

    def _pass(self, chunk: Decoder, tp: TensorParallel, sequences: int) -> Pass:
        training = self._config.training
        length, dtype = training.sequence_length, DTYPES[training.precision]
        for parameter in chunk.parameters():
            parameter.grad = torch.zeros_like(parameter)
        here = length // tp.size if tp.sequence_parallel else length
        tokens_BT = torch.zeros(sequences, length, dtype=torch.long)
        hidden_BtD = torch.zeros(sequences, here, self._config.model.hidden_size, dtype=dtype)
        x = tokens_BT if chunk.embedding is not None else hidden_BtD.clone().requires_grad_()
        gradients = [parameter.grad for parameter in chunk.parameters() if parameter.grad is not None]
        with CountWork([*chunk.parameters(), *chunk.buffers(), *gradients, tokens_BT, hidden_BtD, x]) as count:
            loss = self._loss(tp, count)
            y = chunk(x)
            y = loss(y, tokens_BT) if chunk.is_last else y
            kept, forward = count.now, count.take()
            y.backward(None if chunk.is_last else hidden_BtD)
            return Pass(kept, count.peak - kept, forward, count.take())

    def _loss(self, tp: TensorParallel, count: CountWork) -> VocabParallelLoss:
        """One chunk of a micro-batch's logits is counted for all: a long one has thousands."""

        def chunks(logits_NV: Tensor, live: int, wide: torch.dtype) -> Chunks:
            return count.once(list(chunks_of(logits_NV, live, wide)))

        training = self._config.training
        return VocabParallelLoss(self._vocab_size, tp, training.label_smoothing, training.z_loss, chunks)


def _extend(part: Sizes, sequences: int) -> Pass:
    one, two, four = part
    if sequences == 1:
        return one
    more = (four - two) * 0.5
    many = two + more * (sequences - 2)
    # The most of several things: gradients of weights, as large for any micro-batch, and what grows with it.
    return replace(many, above=max(two.above, many.above))


def _added(stages: Sizes, layers: Sizes, *, from_start: bool = False) -> Sizes:
    """What stages of one layer do beyond the layer. `above` is the whole stage's, or all that it ever has alive."""
    one, two, four = (
        replace(stage - layer, above=stage.above + (stage.kept if from_start else 0.0))
        for stage, layer in zip(stages, layers, strict=True)
    )
    return one, two, four


def _held(chunk: Decoder) -> Held:
    parameters = list(chunk.named_parameters())
    linears = [part for part in chunk.modules() if isinstance(part, ShardedLinear)]
    effective = tensor_bytes(linear.effective for linear in linears)
    spectral = tensor_bytes(t for linear in linears for t in (linear.replicated, linear.split, linear.sigma))
    return Held(
        matrices=sum(p.numel() for _, p in parameters if p.ndim >= 2),
        vectors=sum(p.numel() for _, p in parameters if p.ndim < 2),
        hidden=sum(p.numel() for name, p in parameters if p.ndim == 2 and name.startswith("layers.")),
        reparametrised=sum(linear.weight.numel() for linear in linears if linear.reparametrised),
        effective=effective,
        spectral=spectral,
        tables=tensor_bytes(chunk.buffers()) - effective - spectral,
    )
