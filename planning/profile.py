"""What the stages of a model hold and do, measured on its real modules without memory for their tensors.

A stage is its layers, and what the embedding or the head adds to them; all of it grows with the sequences of a
micro-batch. So few probes are measured (one and two layers, the first and the last layer, one and two sequences), and
`Profile` extends them to any stage.
"""

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from configs.schema import Config
from model.decoder import Decoder
from parallel.linear import LinearSpec, ShardedLinear
from parallel.loss import VocabParallelLoss
from parallel.topology import TensorParallel
from planning.alive import tensor_bytes
from planning.work import Amounts, CountWork, Work
from training.build import DTYPES

PROBED_LAYERS = 4
"""Layers of the model that probes are cut from: first, two inner ones, last."""
FIRST, INNER, TWO_INNER, LAST = (0,), (1,), (1, 2), (3,)


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
    forward: Work = Work()
    backward: Work = Work()


Sizes = tuple[Pass, Pass]
"""With one sequence, and with two."""


@dataclass(frozen=True)
class Profile:
    """Stages of one tensor-parallel size, recompute and compute dtype."""

    layer_held: Held
    embedding_held: Held
    head_held: Held
    one: Sizes
    """One layer, which is neither the model's first nor its last."""
    layer: Sizes
    """What a further layer adds."""
    embedding: Sizes
    """What the embedding adds; `above`: of all of such a stage with one layer, from its beginning."""
    head: Sizes
    """What final norm, head and loss add; `above`: of all of such a stage."""
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
        one, embedding, head = (_extend(part, sequences) for part in (self.one, self.embedding, self.head))
        stage = one + _extend(self.layer, sequences) * (layers - 1)
        if first:
            stage += embedding
        if last:
            stage += head
        # The most is reached where the backward pass begins: what is alive there beyond the kept does not grow with
        # depth. Where logits have gone, the last layer may still need more; and the embedding's dense gradient comes
        # when all else of the micro-batch has gone.
        above = max(head.above, one.above - head.kept) if last else one.above
        return replace(stage, above=max(above, embedding.above - stage.kept) if first else above)


class Profiler:
    """Makes profiles of one model; to be used inside `fake_ranks` of at least the largest tensor-parallel size."""

    def __init__(self, config: Config, vocab_size: int, groups: dict[int, dist.ProcessGroup] | None = None) -> None:
        """`groups`: tensor-parallel groups by size, where there are any already."""
        self._config = config.model_copy(update={"model": config.model.model_copy(update={"layers": PROBED_LAYERS})})
        self._vocab_size = vocab_size
        self._groups = dict(groups or {})
        self._profiles: dict[tuple[int, bool, str], Profile] = {}

    def profile(self, tp: int, sequence_parallel: bool, recompute: str) -> Profile:
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
            inner, two, first, last = (self._chunk(kind, tp, "none") for kind in (INNER, TWO_INNER, FIRST, LAST))
            one, layer = self._layers(inner, two, tp)
            begin = self._pass(first, tp, 1), self._pass(first, tp, 2)
            end = self._pass(last, tp, 1), self._pass(last, tp, 2)
        held = _held(two) - _held(inner)
        return Profile(
            layer_held=held,
            embedding_held=_held(first) - held,
            head_held=_held(last) - held,
            one=one,
            layer=layer,
            embedding=_added(begin, one, kept_too=True),
            head=_added(end, one),
            largest=max(p.numel() for chunk in (first, last) for p in chunk.parameters()),
        )

    def _recomputed(self, tp: TensorParallel, recompute: str) -> Profile:
        """Recompute is of layers: embedding and head are as without."""
        whole = self.profile(tp.size, tp.sequence_parallel, "none")
        with FakeTensorMode():
            one, layer = self._layers(self._chunk(INNER, tp, recompute), self._chunk(TWO_INNER, tp, recompute), tp)
        return replace(whole, one=one, layer=layer)

    def _layers(self, inner: Decoder, two: Decoder, tp: TensorParallel) -> tuple[Sizes, Sizes]:
        one = self._pass(inner, tp, 1), self._pass(inner, tp, 2)
        layer = self._pass(two, tp, 1) - one[0]
        return one, (layer, layer + (one[1] - one[0]))

    def _chunk(self, layers: tuple[int, ...], tp: TensorParallel, recompute: str) -> Decoder:
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
            layers=layers,
            recompute=recompute,
        )

    def _pass(self, chunk: Decoder, tp: TensorParallel, sequences: int) -> Pass:
        training = self._config.training
        length, dtype = training.sequence_length, DTYPES[training.precision]
        for parameter in chunk.parameters():
            parameter.grad = torch.zeros_like(parameter)
        here = length // tp.size if tp.sequence_parallel else length
        tokens_BT = torch.zeros(sequences, length, dtype=torch.long)
        hidden_BtD = torch.zeros(sequences, here, self._config.model.hidden_size, dtype=dtype)
        loss = VocabParallelLoss(
            self._vocab_size, tp, label_smoothing=training.label_smoothing, z_loss=training.z_loss
        )
        x = tokens_BT if chunk.embedding is not None else hidden_BtD.clone().requires_grad_()
        gradients = [parameter.grad for parameter in chunk.parameters() if parameter.grad is not None]
        with CountWork([*chunk.parameters(), *chunk.buffers(), *gradients, tokens_BT, hidden_BtD, x]) as count:
            y = chunk(x)
            y = loss(y, tokens_BT) if chunk.is_last else y
            kept, forward = count.now, count.take()
            y.backward(None if chunk.is_last else hidden_BtD)
            return Pass(kept, count.peak - kept, forward, count.take())


def _extend(part: Sizes, sequences: int) -> Pass:
    one, two = part
    many = one + (two - one) * (sequences - 1)
    # The most of several things: gradients of weights, as large for any micro-batch, and what grows with it.
    return replace(many, above=max(one.above, two.above, many.above))


def _added(stages: Sizes, layer: Sizes, *, kept_too: bool = False) -> Sizes:
    """What stages of one layer hold and do beyond the layer; `above` stays that of the stage, or with its kept."""

    def added(stage: Pass, layer: Pass) -> Pass:
        return replace(stage - layer, above=stage.above + (stage.kept if kept_too else 0.0))

    return added(stages[0], layer[0]), added(stages[1], layer[1])


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
