"""The tensors of a model of ours that other systems have too: their names and shapes, from the configuration alone."""

from collections.abc import Iterator

from configs.schema import ModelConfig

Shape = tuple[int, ...]
TABLES = ("embedding.weight", "head.weight/head")
"""What has a row for each token, and in a run rows after them as padding."""


def parameter_shapes(model: ModelConfig, vocab_size: int, length: int) -> dict[str, Shape]:
    """Names and whole shapes of what `exchange.plain.PlainWeights` names, tables of tokens without padding rows.

    Of models that some architecture expresses: no low-rank projections, no norm of embeddings, plain residuals.
    """
    width = model.hidden_size
    shapes: dict[str, Shape] = {"embedding.weight": (vocab_size, width)}
    if model.positions == "learned":
        shapes["positions.weight"] = (length, width)
    for layer in range(model.layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in _layer(model)}
    shapes |= dict(_norm(model, "final_norm"))
    if not model.tie_embeddings:
        shapes["head.weight/head"] = (vocab_size, width)
    return shapes


def _layer(model: ModelConfig) -> Iterator[tuple[str, Shape]]:
    width, inner = model.hidden_size, model.inner_size
    sizes = {"q": width, "k": model.key_value_heads * model.head_size, "v": model.key_value_heads * model.head_size}
    up = {"gate_up": {"gate": inner, "up": inner}} if model.activation == "swiglu" else {"up": {"up": inner}}
    for layer, blocks in [("attention.qkv", sizes), *((f"feedforward.{name}", blocks) for name, blocks in up.items())]:
        for block, rows in blocks.items():
            yield from _linear(model, f"{layer}.weight/{block}", f"{layer}.bias/{block}", rows, width)
    yield from _linear(model, "attention.output.weight", "attention.output.bias", width, width)
    yield from _linear(model, "feedforward.down.weight", "feedforward.down.bias", width, inner)
    if model.qk_norm:
        yield "attention.q_norm.weight", (model.head_size,)
        yield "attention.k_norm.weight", (model.head_size,)
    for sublayer in ("attention", "feedforward"):
        if model.norm_placement != "reordered":
            yield from _norm(model, f"{sublayer}_norm")
        if model.norm_placement in ("peri", "reordered"):
            yield from _norm(model, f"{sublayer}_output_norm")


def _linear(model: ModelConfig, weight: str, bias: str, rows: int, columns: int) -> Iterator[tuple[str, Shape]]:
    yield weight, (rows, columns)
    if model.bias:
        yield bias, (rows,)


def _norm(model: ModelConfig, name: str) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (model.hidden_size,)
    if model.bias and model.norm == "layernorm":
        yield f"{name}.bias", (model.hidden_size,)
