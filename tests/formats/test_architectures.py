"""Every stock architecture computes what the dense reference computes of the same parameters, and gives them back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from configs.errors import CheckpointError, ConfigError
from configs.load import load
from configs.schema import ModelConfig
from exchange.folded import FoldedWeights, architecture_and_model
from formats.architectures.architecture import Architecture
from formats.architectures.choice import architecture_of
from formats.architectures.gpt2 import GPT2
from formats.architectures.llama import LLAMA
from formats.architectures.ours import parameter_shapes
from tests.exchange.models import LENGTH, random_tokens, random_weights
from tests.layouts import VOCAB

ROOT = Path(__file__).parents[2]
BOUND = 1e-4
SWIGLU = {"norm": "rmsnorm", "positions": "rope", "activation": "swiglu"}
GELU = {"norm": "layernorm", "positions": "rope", "activation": "gelu"}
PERI: dict[str, Any] = {**SWIGLU, "norm_placement": "peri"}
REORDERED = {**SWIGLU, "norm_placement": "reordered", "qk_norm": True}
LEARNED = {**GELU, "positions": "learned"}
CAPPED = {"attention_softcap": 2.0, "logit_softcap": 3.0, "embedding_scale": "sqrt_width", "tie_embeddings": True}
MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {**SWIGLU, "kv_heads": 2, "rope_theta": 500.0, "norm_eps": 1e-3},
    "LlamaForCausalLM biases tied": {**SWIGLU, "bias": True, "tie_embeddings": True},
    "LlamaForCausalLM depth, scaled embedding": {
        **SWIGLU,
        "residual": {"kind": "depth"},
        "embedding_scale": "sqrt_width",
    },
    "LlamaForCausalLM LayerScale biases": {**SWIGLU, "bias": True, "residual": {"kind": "layerscale"}},
    "LlamaForCausalLM ReZero": {**SWIGLU, "residual": {"kind": "rezero"}},
    "LlamaForCausalLM low rank": {**SWIGLU, "low_rank": {"targets": ("q", "k", "v"), "rank": 6}, "kv_heads": 2},
    "LlamaForCausalLM low rank per head": {
        **SWIGLU,
        "low_rank": {"targets": ("k", "q"), "per_head": True, "rank": 3},
        "kv_heads": 2,
    },
    "LlamaForCausalLM embedding norm": {**SWIGLU, "embedding_norm": True, "embedding_scale": "sqrt_width"},
    "Starcoder2ForCausalLM embedding norm, biases": {**GELU, "embedding_norm": True, "bias": True},
    "Gemma2ForCausalLM embedding norm": {**PERI, "embedding_norm": True},
    "Qwen3ForCausalLM": {**SWIGLU, "qk_norm": True, "kv_heads": 2},
    "Starcoder2ForCausalLM": {**GELU, "kv_heads": 2},
    "Starcoder2ForCausalLM biases tied": {**GELU, "bias": True, "ffn_size": 48, "tie_embeddings": True},
    "StableLmForCausalLM": {**GELU, "activation": "swiglu", "kv_heads": 2},
    "StableLmForCausalLM QK-norm": {**GELU, "activation": "swiglu", "kv_heads": 2, "qk_norm": True},
    "GPT2LMHeadModel": {**LEARNED},
    "GPT2LMHeadModel biases tied": {**LEARNED, "bias": True, "tie_embeddings": True},
    "ArceeForCausalLM": {**SWIGLU, "activation": "gelu", "kv_heads": 2},
    "ArceeForCausalLM biases": {**SWIGLU, "activation": "gelu", "bias": True},
    "Exaone4ForCausalLM": {**REORDERED, "kv_heads": 2},
    "Exaone4ForCausalLM depth": {**REORDERED, "residual": {"kind": "depth"}},
    "Gemma2ForCausalLM": {**PERI, "kv_heads": 2},
    "Gemma2ForCausalLM caps tied": {**PERI, **CAPPED},
    "VaultGemmaForCausalLM caps": {**SWIGLU, "attention_softcap": 2.0, "kv_heads": 2},
    "VaultGemmaForCausalLM caps tied": {**SWIGLU, **CAPPED},
    "PersimmonForCausalLM": {**GELU, "qk_norm": True},
    "PersimmonForCausalLM biases": {**GELU, "qk_norm": True, "bias": True},
}


def theirs(model: dict[str, Any]) -> tuple[Architecture, FoldedWeights, dict[str, Tensor], dict[str, Any]]:
    """A random model as its architecture has it: tensors and config.json."""
    weights = random_weights(**model)
    architecture, same = architecture_and_model(weights.config.model)
    folded = FoldedWeights(weights, same, VOCAB)  # type: ignore[arg-type]
    shapes = parameter_shapes(same, VOCAB, LENGTH)
    tensors = {
        entry.theirs: entry.form.pack([folded.read(name) for name in entry.ours])
        if set(entry.ours) <= set(folded.names)
        else torch.zeros(entry.shape(shapes))
        for entry in architecture.entries(same, VOCAB, LENGTH)
    }
    return architecture, folded, tensors, json.loads(json.dumps(architecture.config(same, VOCAB, LENGTH)))


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_dense_reference(name: str) -> None:
    architecture, folded, tensors, config = theirs(MODELS[name])
    assert architecture.class_name == name.split()[0]
    special = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config, **special)).eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if folded.model.tie_embeddings else set())
    with torch.no_grad():
        logits_BTV = model(random_tokens()).logits
    expected_BTV = random_weights(**MODELS[name]).logits(random_tokens())
    assert expected_BTV.std() > 0.5
    assert (logits_BTV - expected_BTV).abs().max() < BOUND


@pytest.mark.parametrize("name", MODELS)
def test_tensors_and_model_come_back(name: str) -> None:
    """Norms that Gemma keeps as weight - 1 to rounding, all else to the bit."""
    architecture, folded, tensors, config = theirs(MODELS[name])
    assert architecture_of(config) is architecture
    base = ModelConfig(bias=folded.model.bias, vocab_multiple=folded.model.vocab_multiple)
    assert architecture.model(config, base) == folded.model
    shapes = parameter_shapes(folded.model, VOCAB, LENGTH)
    returned = set()
    for entry in architecture.entries(folded.model, VOCAB, LENGTH):
        parts = entry.form.unpack(tensors[entry.theirs], entry.shapes(shapes))
        for ours, part in zip(entry.ours, parts, strict=True):
            if ours in shapes:
                assert torch.allclose(part, folded.read(ours), rtol=0, atol=2e-7 if "Gemma" in name else 0), ours
                returned.add(ours)
            else:
                assert not part.any() and part.shape == entry.shapes(shapes)[entry.ours.index(ours)]
    assert returned == set(folded.names)


POST_LN = {"deepnorm", "post-ln", "post-ln-depth-scaled", "post-ln-sigma-reparam"}
WITHOUT_NORMS = {"no-norm", "no-norm-sigma-reparam", "rezero"}


def test_every_recipe_on_llama_s_shape_but_post_ln_and_those_without_norms(tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    refused = set()
    for recipe in sorted((ROOT / "configs" / "recipes").glob("*.yaml")):
        shape = "norm: rmsnorm, positions: rope, activation: swiglu"
        run.with_name("shape.yaml").write_text(f"model: {{{shape}}}\n")
        run.write_text(f"extends: [shape.yaml, {recipe}]\ndata: {{sources: [{{path: x}}]}}\n")
        try:
            architecture_and_model(load(run).model)
        except ConfigError:
            refused.add(recipe.stem)
    assert refused == POST_LN | WITHOUT_NORMS


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {**SWIGLU, "norm_placement": "post"},
            "model.norm_placement = post: no architecture of transformers computes this model (the nearest: "
            "LlamaForCausalLM needs model.norm_placement = pre); --to plain writes its weights under our names",
        ),
        (
            {**GELU, "norm": "none"},
            "model.norm = none: no architecture of transformers computes this model (the nearest: "
            "Starcoder2ForCausalLM needs model.norm = layernorm); --to plain writes its weights under our names",
        ),
        (
            {**SWIGLU, "qk_norm": True, "bias": True},
            "model.qk_norm = true: no architecture of transformers computes this model (the nearest: "
            "LlamaForCausalLM needs model.qk_norm = false); --to plain writes its weights under our names",
        ),
        (
            {**LEARNED, "kv_heads": 2},
            "model.positions = learned: no architecture of transformers computes this model (the nearest: "
            "Starcoder2ForCausalLM needs model.positions = rope); --to plain writes its weights under our names",
        ),
        (
            {**LEARNED, "embedding_norm": True},
            "model.embedding_norm = true: no architecture of transformers computes this model (the nearest: "
            "GPT2LMHeadModel needs model.embedding_norm = false); --to plain writes its weights under our names",
        ),
        (
            {**SWIGLU, "norm_placement": "post", "residual": {"kind": "deepnorm"}},
            "model.residual.kind = deepnorm and model.norm_placement = post: no architecture of transformers computes "
            "this model (the nearest: LlamaForCausalLM needs model.residual.kind = plain and model.norm_placement = "
            "pre); --to plain writes its weights under our names",
        ),
    ],
    ids=[
        "post-LN",
        "no norm",
        "QK-norm with biases",
        "learned positions with groups",
        "norm after learned positions",
        "deepnorm",
    ],
)
def test_a_model_without_architecture_is_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        architecture_and_model(ModelConfig.model_validate(model))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act = gelu: only silu can be expressed here"),
        (LLAMA, {"head_dim": 64}, "head_dim = 64: only 8 can be expressed here"),
        (LLAMA, {"mlp_bias": True}, "mlp_bias = true: must be attention_bias = false: model.bias stands for both"),
        (
            LLAMA,
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            "rope_parameters.rope_type = llama3: only default can be expressed here",
        ),
        # Beside rope_parameters that say default: transformers lets rope_scaling win.
        (
            LLAMA,
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_scaling.rope_type = linear: only default can be expressed here",
        ),
        (
            LLAMA,
            {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 5e5}},
            "rope_parameters.rope_theta = 500000.0: rope_scaling beside it means 10000.0",
        ),
        (
            LLAMA,
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}},
            "rope_parameters.full_attention: positions of their own for some layers cannot be expressed here",
        ),
        (LLAMA, {"rope_parameters": "x"}, "rope_parameters = x: must be an object"),
        (
            LLAMA,
            {"rope_theta": "1e4", "rope_parameters": None},
            "model.rope_theta = '1e4': Input should be a valid number",
        ),
        (LLAMA, {"num_hidden_layers": "4"}, "model.layers = '4': Input should be a valid integer"),
        (LLAMA, {"num_hidden_layers": 4.0}, "model.layers = 4.0: Input should be a valid integer"),
        (LLAMA, {"tie_word_embeddings": "yes"}, "model.tie_embeddings = 'yes': Input should be a valid boolean"),
        (
            LLAMA,
            {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]},
            "layer_types = [sliding_attention]: only [full_attention] can be expressed here",
        ),
        (LLAMA, {"num_attention_heads": 10**9}, "model.heads = 1000000000: must divide model.hidden_size = 32"),
        (LLAMA, {"num_key_value_heads": 3}, "model.kv_heads = 3: must divide model.heads = 4"),
        (GPT2, {"add_cross_attention": True}, "add_cross_attention = true: only false can be expressed here"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5: only 1 can be expressed here"),
        (LLAMA, {"hidden_size": None}, "hidden_size: is missing"),
        (GPT2, {"activation_function": "gelu_new"}, "activation_function = gelu_new: only gelu can be expressed here"),
        (GPT2, {"n_layer": 0}, "model.layers = 0: Input should be greater than or equal to 1"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_a_config_that_is_not_ours_is_refused(
    architecture: Architecture, changes: dict[str, Any], message: str
) -> None:
    config = architecture.config(ModelConfig(hidden_size=32, heads=4), VOCAB, LENGTH)
    with pytest.raises(CheckpointError) as error:
        architecture.model(config | changes, ModelConfig())
    assert str(error.value) == message


def test_swish_is_another_name_of_silu() -> None:
    config = LLAMA.config(ModelConfig(hidden_size=32, heads=4), VOCAB, LENGTH)
    assert LLAMA.model(config | {"hidden_act": "swish"}, ModelConfig()) == LLAMA.model(config, ModelConfig())


def test_two_names_of_one_key_must_agree() -> None:
    config = GPT2.config(ModelConfig(hidden_size=32, heads=4), VOCAB, LENGTH)
    assert GPT2.without_aliases(config | {"num_hidden_layers": 4}) == config | {"num_hidden_layers": 4}
    renamed = {key: value for key, value in config.items() if key != "n_head"} | {"num_attention_heads": 8}
    assert GPT2.without_aliases(renamed)["n_head"] == 8
    with pytest.raises(CheckpointError, match=r"^num_hidden_layers = 3: another name of n_layer, which is 4$"):
        GPT2.without_aliases(config | {"num_hidden_layers": 3})


def test_architectures_and_model_type_must_agree() -> None:
    assert architecture_of({"model_type": "gpt2"}) is GPT2
    with pytest.raises(CheckpointError) as error:
        architecture_of({"architectures": ["LlamaForCausalLM"], "model_type": "qwen3"})
    assert str(error.value) == "model_type = qwen3: LlamaForCausalLM, which architectures names, is llama"


def test_another_architecture_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"^architectures = \[MambaForCausalLM\]: must be LlamaForCausalLM, "):
        architecture_of({"architectures": ["MambaForCausalLM"]})
