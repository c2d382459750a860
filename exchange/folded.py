"""A checkpoint's weights as another system can hold them: what it has no place for is folded in, padding is cut off.

    x + s f(x)        s, a constant (depth), a scalar (ReZero) or a vector (LayerScale), goes into the rows of f's last
                      linear and its bias, or into the scale of the norm that ends the branch
    B (A x)           a low-rank projection becomes B A
    N(c E[token])     c = sqrt(width) and the norm go into the embedding (c of an architecture with such a scale, out of
                      it), if the head has a table of its own, and the norm if no learned positions are added before it

Exact up to the rounding of a product or a norm. Shapes: D hidden, I in-features, O out-features, R inner width; G heads
that have factors of their own, or 1.
"""

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

from configs.errors import ConfigError
from configs.schema import LowRankConfig, ModelConfig, ResidualConfig
from exchange.plain import PlainWeights
from formats.architectures.architecture import Architecture
from formats.architectures.choice import architecture_for, why_none
from formats.architectures.ours import TABLES

FOLDABLE = ("depth", "rezero", "layerscale")
EMBEDDING = "embedding.weight"


class FoldedWeights:
    """As `PlainWeights`, of a model that computes the same, for a vocabulary without padding."""

    def __init__(self, plain: PlainWeights, model: ModelConfig, vocab_size: int) -> None:
        """`model`: the checkpoint's, or what `architecture_and_model` makes of it."""
        self.model, self.vocab_size = model, vocab_size
        self._plain, self._then = plain, plain.config.model
        self._scales = dict(_branch_scales(self._then)) if model.residual != self._then.residual else {}
        factors = {"none": 1.0, "sqrt_width": model.hidden_size**0.5}
        self._before_norm, self._left = factors[self._then.embedding_scale], factors[model.embedding_scale]
        self._products = () if model.low_rank == self._then.low_rank else self._then.low_rank.targets
        self._norm_embedding = self._then.embedding_norm and not model.embedding_norm

    @property
    def names(self) -> list[str]:
        """Every parameter that is left."""
        folded = {scale for scale in self._scales.values() if isinstance(scale, str)}
        ends = (".low_rank.",) if self._products else ()
        starts = ("embedding_norm.",) if self._norm_embedding else ()
        return [
            name
            for name in self._plain.names
            if name not in folded and not name.startswith(starts) and not any(end in name for end in ends)
        ]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor, without padding."""
        rows, *rest = self._plain.shape(name)
        if self._is_product(name):
            rows = self._plain.shape(_outer(name))[0]
        return (self.vocab_size if name in TABLES else rows, *rest)

    def read(self, name: str) -> Tensor:
        """The whole tensor in fp32."""
        tensor = self._product(name) if self._is_product(name) else self._plain.read(name)
        if name in TABLES:
            tensor = tensor[: self.vocab_size]
        if name == EMBEDDING:
            return self._embedding(tensor)
        scale = self._scales.get(name)
        if scale is None:
            return tensor
        factor_D = self._plain.read(scale) if isinstance(scale, str) else tensor.new_full((1,), scale)
        return tensor * (factor_D[:, None] if tensor.dim() == 2 else factor_D)

    def _embedding(self, table_VD: Tensor) -> Tensor:
        """N(c E), divided by what `model` multiplies by itself."""
        if not self._norm_embedding:
            factor = self._before_norm / self._left
            return table_VD if factor == 1 else table_VD.mul_(factor)
        return self._normed(table_VD.mul_(self._before_norm)).div_(self._left)

    def _normed(self, table_VD: Tensor) -> Tensor:
        shape, eps, weight_D = table_VD.shape[1:], self._then.norm_eps, self._plain.read("embedding_norm.weight")
        if self._then.norm == "rmsnorm":
            return F.rms_norm(table_VD, shape, weight_D, eps)
        bias = "embedding_norm.bias"
        bias_D = self._plain.read(bias) if bias in self._plain.names else None
        return F.layer_norm(table_VD, shape, weight_D, bias_D, eps)

    def _is_product(self, name: str) -> bool:
        return ".attention.qkv.weight" in name and name.rpartition("/")[2] in self._products

    def _product(self, name: str) -> Tensor:
        """B A; models with low-rank projections have no biases."""
        inner, outer_OR = self._plain.read(name), self._plain.read(_outer(name))
        groups = len(outer_OR) // self.model.head_size if self._then.low_rank.per_head else 1
        outer_GOR, inner_GRI = outer_OR.unflatten(0, (groups, -1)), inner.unflatten(0, (groups, -1))
        return (outer_GOR @ inner_GRI).flatten(0, 1)


def architecture_and_model(model: ModelConfig) -> tuple[Architecture, ModelConfig]:
    """The stock architecture that computes a model, and the model as it computes it.

    Raises: ConfigError, one line: the keys that none has, what the nearest one needs, and what there is instead.
    """
    if model.residual.kind in FOLDABLE and model.norm_placement != "post":
        model = model.model_copy(update={"residual": ResidualConfig()})
    if model.low_rank.targets:
        model = model.model_copy(update={"low_rank": LowRankConfig()})
    if model.embedding_norm and model.positions == "rope" and not model.tie_embeddings:
        model = model.model_copy(update={"embedding_norm": False})
    scales = [model.embedding_scale] if model.tie_embeddings else ["none", "sqrt_width"]
    variants = [model.model_copy(update={"embedding_scale": scale}) for scale in scales]
    for same in variants:
        architecture = architecture_for(same)
        if architecture is not None:
            return architecture, same
    raise ConfigError(f"{why_none(variants)}; --to plain writes its weights under our names")


def _branch_scales(model: ModelConfig) -> Iterator[tuple[str, float | str]]:
    """(name of a tensor that ends a residual branch, what its rows are multiplied by, a number or a tensor's name)."""
    normed = model.norm_placement in ("peri", "reordered")
    for layer in range(model.layers):
        for sublayer, linear in (("attention", "attention.output"), ("feedforward", "feedforward.down")):
            end = f"layers.{layer}.{sublayer}_output_norm" if normed else f"layers.{layer}.{linear}"
            scale = (
                model.layers**-0.5 if model.residual.kind == "depth" else f"layers.{layer}.{sublayer}_residual.scale"
            )
            yield f"{end}.weight", scale
            yield f"{end}.bias", scale


def _outer(name: str) -> str:
    """The factor B of a projection whose factor A has this name."""
    return name.replace(".qkv.", ".low_rank.")
