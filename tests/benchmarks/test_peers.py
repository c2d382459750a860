"""The contenders of the training-step benchmark compute the same thing: equal weights, equal losses."""

import math

import pytest
import torch
from torch import Tensor

from benchmarks.peers.contest import hold, join
from benchmarks.peers.llama import LlamaLoop
from benchmarks.peers.megatron import MegatronLoop
from benchmarks.peers.ours import Ours
from benchmarks.peers.plain_gpt import PlainLoop
from benchmarks.peers.task import Task, TokenArray
from tests.distributed import spawn

SAME = 1e-4
STEPS = 3


def tiny(family: str, **more: object) -> Task:
    return Task(family, 32, layers=2, vocabulary=64, length=16, batch=4, head_size=8, **more)  # type: ignore[arg-type]


def named(ours: Ours) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in ours.trainer.named_parameters()}


def into_plain(ours: Ours, theirs: PlainLoop) -> None:
    weights = named(ours)
    renamed = {
        name.replace("blocks.", "layers.").replace(".qkv", ".attention.qkv").replace(".output", ".attention.output"): p
        for name, p in theirs.model.named_parameters()
    }
    renamed = {
        name.replace(".up", ".feedforward.up").replace(".down", ".feedforward.down"): p for name, p in renamed.items()
    }
    assert renamed.keys() == weights.keys()
    for name, parameter in renamed.items():
        parameter.data.copy_(weights[name])


def into_llama(ours: Ours, theirs: LlamaLoop, task: Task) -> None:
    weights, model = named(ours), theirs.model.model
    model.embed_tokens.weight.data.copy_(weights["embedding.weight"])
    model.norm.weight.data.copy_(weights["final_norm.weight"])
    theirs.model.lm_head.weight.data.copy_(weights["head.weight"])
    sizes = [count * task.head_size for count in (task.heads, task.kv_heads, task.kv_heads)]
    for index, layer in enumerate(model.layers):
        name = f"layers.{index}"
        attention, feedforward = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        for projection, part in zip(projections, weights[f"{name}.attention.qkv.weight"].split(sizes), strict=True):
            projection.weight.data.copy_(part)
        halves = weights[f"{name}.feedforward.gate_up.weight"].chunk(2)
        for projection, part in zip((feedforward.gate_proj, feedforward.up_proj), halves, strict=True):
            projection.weight.data.copy_(part)
        attention.o_proj.weight.data.copy_(weights[f"{name}.attention.output.weight"])
        feedforward.down_proj.weight.data.copy_(weights[f"{name}.feedforward.down.weight"])


def into_megatron(ours: Ours, theirs: MegatronLoop, task: Task) -> None:
    """megatron-core packs q, k and v head by head."""
    weights, model = named(ours), theirs.model
    model.embedding.word_embeddings.weight.data.copy_(weights["embedding.weight"])
    model.embedding.position_embeddings.weight.data.copy_(weights["positions.weight"])
    model.output_layer.weight.data.copy_(weights["head.weight"])
    for index, layer in enumerate(model.decoder.layers):
        name = f"layers.{index}"
        qkv = weights[f"{name}.attention.qkv.weight"].view(3, task.heads, task.head_size, task.width)
        layer.self_attention.linear_qkv.weight.data.copy_(qkv.transpose(0, 1).reshape(-1, task.width))
        layer.self_attention.linear_proj.weight.data.copy_(weights[f"{name}.attention.output.weight"])
        layer.mlp.linear_fc1.weight.data.copy_(weights[f"{name}.feedforward.up.weight"])
        layer.mlp.linear_fc2.weight.data.copy_(weights[f"{name}.feedforward.down.weight"])


def losses_of_gpts() -> dict[str, list[float]]:
    task = tiny("gpt")
    topology = join(task)
    ours, plain, megatron = Ours(task, topology), PlainLoop(task), MegatronLoop(task, topology)
    into_plain(ours, plain)
    into_megatron(ours, megatron, task)
    contenders = {"ours": ours, "plain-gpt": plain, "megatron-core": megatron}
    return {name: [contender.step() for _ in range(STEPS)] for name, contender in contenders.items()}


def losses_of_llamas() -> dict[str, list[float]]:
    task = tiny("llama")
    ours, theirs = Ours(task, join(task)), LlamaLoop(task)
    into_llama(ours, theirs, task)
    return {name: [one.step() for _ in range(STEPS)] for name, one in (("ours", ours), ("hf-llama", theirs))}


@pytest.mark.parametrize("losses_of", [losses_of_gpts, losses_of_llamas])
def test_losses_agree_step_by_step(losses_of):
    """The second and third loss need the same gradients, clipping and update."""
    (losses,) = spawn(1, losses_of)
    ours = losses.pop("ours")
    assert len(set(ours)) == STEPS
    for name, theirs in losses.items():
        assert theirs == pytest.approx(ours, abs=SAME), name


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_two_processes_train(tp, pp):
    ranks = spawn(2, hold, tiny("gpt", tp=tp, pp=pp), 1)
    for timings, parameters, _ in ranks:
        assert {name: len(timing.wall) for name, timing in timings.items()} == dict.fromkeys(parameters, 1)
    assert ranks[0][1] == ranks[1][1], "the whole model's parameters, on every rank"
    for name in ("ours", "megatron-core"):
        # A random model; under pp the loss is known on the last rank only to megatron-core.
        assert ranks[1][2][name] == pytest.approx(math.log(64), abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_bf16_trains(family):
    ((_, _, losses),) = spawn(1, hold, tiny(family, precision="bf16"), 1)
    for loss in losses.values():
        assert loss == pytest.approx(math.log(64), abs=0.2)


def test_tokens_are_what_the_loader_gives():
    task = tiny("gpt")
    tokens_BT, targets_BT = TokenArray(task).batch(3)
    array = TokenArray(task)
    assert torch.equal(tokens_BT, torch.stack([torch.from_numpy(array[12 + k][:-1]) for k in range(4)]))
    assert torch.equal(tokens_BT[:, 1:], targets_BT[:, :-1])
    assert tokens_BT.max() < task.vocabulary
