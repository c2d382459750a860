"""What a stock architecture is to us: which models it computes, its `config.json`, and its tensors.

A `config.json` is a table of keys, which are written from a model and read back into one:

    Ours     a field of our model section
    Only     the one value (or one per model) with which it computes what ours computes
    Written  a value that matters to others only
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from configs.describe import either, shown
from configs.errors import CheckpointError
from configs.schema import ModelConfig
from formats.architectures.ours import parameter_shapes
from formats.architectures.tensors import Entry

MISSING = object()
"""A key without a default: a config.json must have it."""


@dataclass(frozen=True)
class Ours:
    """A key that says what `field` of our model section says; `default`: what transformers takes where it is missing.

    A `field` with a None of its own (soft caps) may be null.
    """

    key: str
    field: str
    default: Any = MISSING
    may_be_null: bool = False


@dataclass(frozen=True)
class Only:
    """A key with the one value that we can express, or the one of a model; `default` as for `Ours`."""

    key: str
    value: Any
    default: Any = MISSING
    null_is_right: bool = False
    """Null stands for that value."""
    also: Any = MISSING
    """Another name of that value."""

    def of(self, model: ModelConfig) -> Any:
        """The value for a model."""
        return self.value(model) if callable(self.value) else self.value

    def accepts(self, found: Any, model: ModelConfig) -> bool:
        """Whether a value means that."""
        return (found is None and self.null_is_right) or found in (self.of(model), self.also)


@dataclass(frozen=True)
class Written:
    """A key that is written and not read."""

    key: str
    value: Any


Key = Ours | Only | Written
Tensors = Callable[[ModelConfig], Iterator[Entry]]

ALWAYS = (
    Only("layer_types", lambda model: ["full_attention"] * model.layers, None, null_is_right=True),
    Only("add_cross_attention", False, False),
    Only("use_bidirectional_attention", False, False, null_is_right=True),
)
"""What a config.json of any architecture may say, and must not say otherwise."""

ANY: tuple[Any, ...] = ()
"""For `takes`: any value."""

COMMON: dict[str, tuple[Any, ...]] = {
    "embedding_norm": (False,),
    "low_rank.targets": ((),),
    "attention_softcap": (None,),
    "logit_softcap": (None,),
    "embedding_scale": ("none",),
    "residual.kind": ("plain",),
}
"""What every architecture takes, unless it says otherwise. What `exchange.folded` folds away is plain by then."""


@dataclass(frozen=True)
class Architecture:
    """A class of transformers and the models of ours that it computes."""

    class_name: str
    model_type: str
    takes: dict[str, tuple[Any, ...]]
    """Values of our model section that it can have, by key; of other keys any."""
    keys: tuple[Key, ...]
    tensors: Tensors
    length_key: str = "max_position_embeddings"
    """Key of the longest sequence."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of keys, which transformers reads, too."""
    rope: bool = True
    partial_rotary: float = 1.0
    """Share of a head that is rotated where a config.json does not say: ours are rotated whole."""
    biases_forced: bool = False
    """It has biases whether ours has them or not: a checkpoint is ours without any if they are all zero."""
    grouped: bool = True
    """Whether there may be fewer key/value heads than query heads."""
    tied_by_default: bool = False
    """Whether the head is the embedding where a config.json does not say."""
    ignored: tuple[str, ...] = ()
    """Endings of tensors that some checkpoints hold and that mean nothing."""

    def mismatches(self, model: ModelConfig) -> dict[str, str]:
        """For each key whose value it cannot have: what it could be."""
        wrong = {
            key: either([shown(value) for value in allowed])
            for key, allowed in (COMMON | self.takes).items()
            if allowed != ANY and value_of(model, key) not in allowed
        }
        if not self.grouped and model.key_value_heads != model.heads:
            wrong["kv_heads"] = str(model.heads)
        return wrong

    def why_not(self, model: ModelConfig) -> str | None:
        """Why it cannot compute a model, in one line."""
        wrong = self.mismatches(model)
        needs = (f"model.{key} = {allowed}" for key, allowed in wrong.items())
        return f"{self.class_name} needs {' and '.join(needs)}" if wrong else None

    def config(self, model: ModelConfig, vocab_size: int, length: int) -> dict[str, Any]:
        """What its `config.json` says of a model for sequences up to `length`."""
        values: dict[str, Any] = {
            "architectures": [self.class_name],
            "model_type": self.model_type,
            "vocab_size": vocab_size,
            self.length_key: length,
            "tie_word_embeddings": model.tie_embeddings,
        }
        for key in self.keys:
            if isinstance(key, Ours):
                values[key.key] = value_of(model, key.field)
            else:
                values[key.key] = key.of(model) if isinstance(key, Only) else key.value
        if self.rope:
            values |= _rope_values(model, partial=self.partial_rotary != 1)
        return values

    def entries(self, model: ModelConfig, vocab_size: int, length: int) -> list[Entry]:
        """Its tensors, those left out that neither has."""
        shapes = parameter_shapes(model, vocab_size, length)
        return [entry for entry in self.tensors(model) if entry.zeros or all(name in shapes for name in entry.ours)]

    def without_aliases(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A `config.json` under the names of `keys`. Raises: CheckpointError, without the place, if two disagree."""
        values = dict(config)
        for alias, key in self.aliases.items():
            if alias in config and values.setdefault(key, config[alias]) != config[alias]:
                raise CheckpointError(
                    f"{alias} = {shown(config[alias])}: another name of {key}, which is {shown(values[key])}"
                )
        return values

    def layers_key(self) -> str:
        """The key of the number of layers."""
        return next(key.key for key in self.keys if isinstance(key, Ours) and key.field == "layers")

    def model(self, config: Mapping[str, Any], base: ModelConfig) -> ModelConfig:
        """The model of a `config.json`; what it does not say (initial values, reparametrisation, ...) is `base`'s.
        Sizes that follow from others are filled in.

        Raises: CheckpointError, without the place, if we cannot express it.
        """
        fields = {key: values[0] for key, values in (COMMON | self.takes).items() if len(values) == 1}
        fields |= self._read(config)
        if self.rope:
            fields["rope_theta"] = _rope_theta(config, self.partial_rotary)
        if not self.grouped:
            fields["kv_heads"] = None
        model = _with(base, fields)
        model = model.model_copy(update={"kv_heads": model.key_value_heads, "ffn_size": model.inner_size})
        _check_heads(model)
        for key in (*self.keys, *ALWAYS):
            if isinstance(key, Only) and not key.accepts(found := _value(config, key.key, key.default), model):
                raise CheckpointError(f"{key.key} = {shown(found)}: only {shown(key.of(model))} can be expressed here")
        return model

    def _read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of our model section that a `config.json` says."""
        fields: dict[str, Any] = {}
        said_by: dict[str, str] = {}
        for key in (*self.keys, Ours("tie_word_embeddings", "tie_embeddings", self.tied_by_default)):
            if not isinstance(key, Ours):
                continue
            value = _value(config, key.key, key.default)
            if value is None and not key.may_be_null:
                value = _value({}, key.key, key.default)
            if fields.setdefault(key.field, value) != value:
                other = said_by[key.field]
                raise CheckpointError(
                    f"{key.key} = {shown(value)}: must be {other} = {shown(fields[key.field])}: "
                    f"model.{key.field} stands for both"
                )
            said_by[key.field] = key.key
        return fields


def value_of(model: ModelConfig, key: str) -> Any:
    """A field of the model section by its dotted key; derived sizes are resolved."""
    if key in ("kv_heads", "ffn_size"):
        return model.key_value_heads if key == "kv_heads" else model.inner_size
    value: Any = model
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _with(base: ModelConfig, fields: Mapping[str, Any]) -> ModelConfig:
    values = base.model_dump()
    for key, value in fields.items():
        section, _, name = key.rpartition(".")
        (values[section] if section else values)[name] = value
    try:
        return ModelConfig.model_validate(values, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"model.{where} = {shown(first['input'])}: {first['msg']}") from None


def _check_heads(model: ModelConfig) -> None:
    if model.hidden_size % model.heads:
        raise CheckpointError(f"model.heads = {model.heads}: must divide model.hidden_size = {model.hidden_size}")
    if model.heads % model.key_value_heads:
        raise CheckpointError(f"model.kv_heads = {model.key_value_heads}: must divide model.heads = {model.heads}")


def _value(config: Mapping[str, Any], key: str, default: Any) -> Any:
    value = config.get(key, default)
    if value is MISSING:
        raise CheckpointError(f"{key}: is missing")
    return value


def _rope_values(model: ModelConfig, *, partial: bool) -> dict[str, Any]:
    """Of transformers 5, and, beside them, what version 4 reads."""
    share = {"partial_rotary_factor": 1.0} if partial else {}
    parameters = {"rope_type": "default", "rope_theta": model.rope_theta, **share}
    return {"rope_parameters": parameters, "rope_theta": model.rope_theta, **share}


def _rope_theta(config: Mapping[str, Any], partial_rotary: float) -> Any:
    """Of the block that transformers reads: rope_scaling, version 4's, goes before rope_parameters.

    Raises: CheckpointError if positions are scaled, only a part of each head is rotated, or two blocks disagree.
    """
    thetas = {
        name: _theta_of(name, block, config, partial_rotary)
        for name in ("rope_scaling", "rope_parameters")
        if (block := config.get(name)) not in (None, {})
    }
    if not thetas:
        return _theta_of("rope_parameters", {}, config, partial_rotary)
    (first, theta), *others = thetas.items()
    for name, other in others:
        if other != theta:
            raise CheckpointError(f"{name}.rope_theta = {shown(other)}: {first} beside it means {shown(theta)}")
    return theta


def _theta_of(name: str, block: Any, config: Mapping[str, Any], partial_rotary: float) -> Any:
    """What a block of rotary parameters, with the keys beside it, says of theta."""
    if not isinstance(block, dict):
        raise CheckpointError(f"{name} = {shown(block)}: must be an object")
    for key, value in block.items():
        if isinstance(value, dict):
            raise CheckpointError(f"{name}.{key}: positions of their own for some layers cannot be expressed here")
    for key in ("rope_type", "type"):
        if (kind := block.get(key, "default")) != "default":
            raise CheckpointError(f"{name}.{key} = {shown(kind)}: only default can be expressed here")
    share = block.get("partial_rotary_factor", config.get("partial_rotary_factor", partial_rotary))
    if share != 1:
        raise CheckpointError(f"partial_rotary_factor = {shown(share)}: only 1 can be expressed here")
    return block.get("rope_theta", config.get("rope_theta", 10_000.0))
