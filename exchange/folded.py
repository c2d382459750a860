"""A checkpoint's weights as another system can hold them: scaled branches and embeddings folded in, padding cut off.

    x + s f(x)    s, a constant (depth), a scalar (ReZero) or a vector (LayerScale), goes into the rows of f's last
                  linear and its bias, or into the scale of the norm that ends the branch
    c E[token]    c = sqrt(width) goes into the embedding, or out of it, if the head has a table of its own

Exact up to the rounding of one product. Shapes: D hidden.
"""

from collections.abc import Iterator

from torch import Tensor

from configs.errors import ConfigError
from configs.schema import ModelConfig, ResidualConfig
from exchange.plain import PlainWeights
from formats.architectures.architecture import Architecture
from formats.architectures.choice import architecture_for, why_none

FOLDABLE = ("depth", "rezero", "layerscale")
TABLES = ("embedding.weight", "head.weight/head")


class FoldedWeights:
    """As `PlainWeights`, of a model with plain residuals, for a vocabulary without padding."""

    def __init__(self, plain: PlainWeights, model: ModelConfig, vocab_size: int) -> None:
        """`model`: the checkpoint's, or one that `architecture_and_model` says computes the same."""
        self.model, self.vocab_size = model, vocab_size
        self._plain, self._then = plain, plain.config.model
        self._scales = dict(_branch_scales(self._then)) if model.residual != self._then.residual else {}
        width = model.hidden_size**0.5
        factors = {"none": 1.0, "sqrt_width": width}
        self._embedding_factor = factors[self._then.embedding_scale] / factors[model.embedding_scale]

    @property
    def names(self) -> list[str]:
        """Every parameter that is left."""
        folded = {scale for scale in self._scales.values() if isinstance(scale, str)}
        return [name for name in self._plain.names if name not in folded]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor, without padding."""
        rows, *rest = self._plain.shape(name)
        return (self.vocab_size if name in TABLES else rows, *rest)

    def read(self, name: str) -> Tensor:
        """The whole tensor in fp32."""
        tensor = self._plain.read(name)
        if name in TABLES:
            tensor = tensor[: self.vocab_size]
        if name == "embedding.weight" and self._embedding_factor != 1:
            tensor *= self._embedding_factor
        scale = self._scales.get(name)
        if scale is None:
            return tensor
        factor_D = self._plain.read(scale) if isinstance(scale, str) else tensor.new_full((1,), scale)
        return tensor * (factor_D[:, None] if tensor.dim() == 2 else factor_D)


def architecture_and_model(model: ModelConfig) -> tuple[Architecture, ModelConfig]:
    """The stock architecture that computes a model, and the model as it computes it.

    Raises: ConfigError, one line: the keys that none has, what the nearest one needs, and what there is instead.
    """
    if model.residual.kind in FOLDABLE and model.norm_placement != "post":
        model = model.model_copy(update={"residual": ResidualConfig()})
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
