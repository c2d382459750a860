"""Shapes of models, as `configs.schema.ModelConfig` resolves them, for machines that have no pydantic.

.venv/bin/python -m benchmarks.gpu.shapes    # writes shapes.json anew from configs/models/
"""

import json
from pathlib import Path
from types import SimpleNamespace

FILE = Path(__file__).with_name("shapes.json")
MODELS = ("125m", "1b", "8b")
DERIVED = ("head_size", "key_value_heads", "low_rank_size", "inner_size")
"""Properties of ModelConfig that the model reads."""
VOCABULARY = {"125m": 50_257, "1b": 128_256, "8b": 128_256}
TINY = "tiny"
"""A shape for trying the program out on a CPU."""


def load(name: str, *, reparam: str = "none", layers: int | None = None) -> SimpleNamespace:
    """The model `name`, with or without sigmaReparam, with another number of layers if asked for.

    `length` and `vocab_size` are those it is measured with.
    """
    shape = json.loads(FILE.read_text("utf-8"), object_hook=lambda found: SimpleNamespace(**found)).__dict__[name]
    shape.reparam.kind, shape.reparam.start = reparam, "power"
    shape.layers = layers or shape.layers
    return shape


def resolved() -> dict[str, dict[str, object]]:
    """Every shape from the configuration files: what shapes.json has to be."""
    import yaml

    from configs.schema import ModelConfig

    folder = Path(__file__).parents[2] / "configs" / "models"
    shapes = {}
    for name in MODELS:
        file = yaml.safe_load((folder / f"{name}.yaml").read_text("utf-8"))
        length = file["training"]["sequence_length"]
        shapes[name] = _flat(ModelConfig.model_validate(file["model"]), VOCABULARY[name], length)
    tiny = ModelConfig(layers=2, hidden_size=64, heads=4, kv_heads=2, activation="swiglu", norm="rmsnorm")
    return shapes | {TINY: _flat(tiny, 512, 64)}


def _flat(model: object, vocab_size: int, length: int) -> dict[str, object]:
    derived = {name: getattr(model, name) for name in DERIVED}
    return model.model_dump(mode="json") | derived | {"vocab_size": vocab_size, "length": length}  # type: ignore[attr-defined]


if __name__ == "__main__":
    FILE.write_text(json.dumps(resolved(), indent=1) + "\n", "utf-8")
