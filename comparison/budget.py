"""From a budget in tokens or floating-point operations to the steps of a trial.

    steps = tokens / (B T)                    B training.global_batch_size, T training.sequence_length
    steps = flops / (6 N B T passes)          N matrix parameters, passes 2 under SAM and else 1

rounded down, at least 1. 6 N per token is forward and backward of every matrix product with weights (Kaplan et al.
2020, section 2.1): embeddings excluded, head included. Not counted: attention's products without weights, recompute
(the same training at another cost), and what a recipe adds at the boundary of a step.
"""

from comparison.study_file import Budget
from configs.schema import Config, ModelConfig


def steps_within(budget: Budget, config: Config) -> int:
    """Steps that a trial of this configuration may take.

    Raises: DataError where a budget in FLOPs needs the vocabulary of data that are not there.
    """
    training = config.training
    tokens_per_step = training.global_batch_size * training.sequence_length
    if budget.tokens is not None:
        return max(1, int(budget.tokens // tokens_per_step))
    assert budget.flops is not None, "a budget has one of the two"
    from data.samples import Samples  # brings numpy and the datasets: a study without such a budget needs neither

    samples = Samples(config.data.sources, "train", training.sequence_length, training.seed)
    passes = 2 if config.optimizer.sam_rho else 1
    per_step = 6 * matrix_parameters(config.model, samples.vocab_size) * tokens_per_step * passes
    return max(1, int(budget.flops // per_step))


def matrix_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Parameters of the matrices that multiply a token's activations: the layers' and the head's.

    The head counts with its padded rows, tied or not. Tables that are looked up (embedding, positions) and vectors
    (norms, biases, gamma) do not count. `vocab_size`: live tokens, before padding.
    """
    width, query_heads, key_heads = model.hidden_size, model.heads, model.key_value_heads
    heads = {"q": query_heads, "k": key_heads, "v": key_heads}
    attention = sum(_projection(model, name, count) for name, count in heads.items())
    attention += query_heads * model.head_size * width
    feedforward = (3 if model.activation == "swiglu" else 2) * width * model.inner_size
    rows = -(-vocab_size // model.vocab_multiple) * model.vocab_multiple
    return model.layers * (attention + feedforward) + rows * width


def _projection(model: ModelConfig, name: str, heads: int) -> int:
    """Queries, keys or values: one matrix, or two low-rank factors."""
    width, features, rank = model.hidden_size, heads * model.head_size, model.low_rank_size
    if name not in model.low_rank.targets:
        return features * width
    inner = heads * rank if model.low_rank.per_head else rank
    return inner * width + features * rank
