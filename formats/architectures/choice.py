"""Which stock architecture computes a model of ours, and which one a `config.json` is of."""

from collections.abc import Mapping, Sequence
from typing import Any

from configs.describe import either, shown
from configs.errors import CheckpointError
from configs.schema import ModelConfig
from formats.architectures.arcee import ARCEE
from formats.architectures.architecture import Architecture, value_of
from formats.architectures.exaone4 import EXAONE4
from formats.architectures.gemma2 import GEMMA2
from formats.architectures.gpt2 import GPT2
from formats.architectures.llama import LLAMA
from formats.architectures.persimmon import PERSIMMON
from formats.architectures.qwen3 import QWEN3
from formats.architectures.stablelm import STABLELM
from formats.architectures.starcoder2 import STARCODER2
from formats.architectures.vaultgemma import VAULTGEMMA

ARCHITECTURES = (LLAMA, QWEN3, STARCODER2, STABLELM, GPT2, ARCEE, EXAONE4, GEMMA2, VAULTGEMMA, PERSIMMON)
"""The first that computes a model is taken."""


def architecture_for(model: ModelConfig) -> Architecture | None:
    """The architecture that computes a model, if there is one."""
    return next((architecture for architecture in ARCHITECTURES if not architecture.mismatches(model)), None)


def why_none(variants: Sequence[ModelConfig]) -> str:
    """Why no architecture computes any of these models, which are equal, in one line: the keys of the one that comes
    nearest, and what is needed in their place.
    """
    pairs = [(model, architecture) for architecture in ARCHITECTURES for model in variants]
    model, nearest = min(pairs, key=lambda pair: len(pair[1].mismatches(pair[0])))
    has = " and ".join(f"model.{key} = {shown(value_of(model, key))}" for key in nearest.mismatches(model))
    return f"{has}: no architecture of transformers computes this model (the nearest: {nearest.why_not(model)})"


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a `config.json` names, in either way or in both: transformers goes by model_type.

    Raises: CheckpointError, without the place, if we have none, or the two disagree.
    """
    names, kind = config.get("architectures") or [], config.get("model_type")
    if not isinstance(names, list):
        raise CheckpointError(f"architectures = {shown(names)}: must be a list")
    named = [architecture for architecture in ARCHITECTURES if architecture.class_name in names]
    typed = [architecture for architecture in ARCHITECTURES if architecture.model_type == kind]
    found = typed if kind is not None and not names else named
    if len(found) != 1:
        wrong = f"architectures = {shown(names)}" if names else f"model_type = {shown(kind)}"
        known = either(architecture.class_name for architecture in ARCHITECTURES)
        raise CheckpointError(f"{wrong}: must be {known}")
    if kind not in (None, found[0].model_type):
        raise CheckpointError(
            f"model_type = {shown(kind)}: {found[0].class_name}, which architectures names, is {found[0].model_type}"
        )
    return found[0]
