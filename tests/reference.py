"""The judge: a dense decoder on one process, written without any of the project's layers.

sigmaReparam is here as the paper writes it, in the forward pass: sigma = vᵀ W u with u and v constants of the step,
differentiated by autograd through the division. Nothing is shared with the code under test but the initial weights
(by name) and the configuration.

Shapes: B batch, T sequence, D hidden, H query heads, G key/value heads, K head size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.schema import Config


class InForwardSigma:
    """W_hat = gamma W / (vᵀ W u) with power-iterated u and v, one iteration after each optimizer step.

    An iteration may start from either side's vector; `transposed` starts from the out-features' (row-parallel layers,
    whose ranks hold that side whole).
    """

    def __init__(self, weight: Tensor, *, transposed: bool) -> None:
        self.transposed = transposed
        _, _, right = torch.linalg.svd(self._turn(weight).detach().double(), full_matrices=False)
        self.u = right[0].to(weight.dtype)
        self.iterate(weight)

    def iterate(self, weight: Tensor) -> None:
        weight = self._turn(weight).detach()
        v = weight @ self.u
        self.v = v / v.norm()
        u = weight.T @ self.v
        self.u = u / u.norm()

    def sigma(self, weight: Tensor) -> Tensor:
        return self.v @ self._turn(weight) @ self.u

    def _turn(self, weight: Tensor) -> Tensor:
        return weight.T if self.transposed else weight


@dataclass
class Matrix:
    """Rows of a named weight that share one gamma."""

    weight: str
    rows: slice
    gamma: str
    index: int
    state: InForwardSigma


@dataclass
class DenseDecoder:
    """Parameters by their names in the project's model; `logits` is the forward pass."""

    config: Config
    vocab_size: int
    parameters: dict[str, nn.Parameter]
    matrices: list[Matrix] = field(default_factory=list)
    scores: dict[str, Tensor] = field(default_factory=dict)
    """Masked logits of the last forward pass, by attention layer."""

    def __post_init__(self) -> None:
        for name in sorted(n for n in self.parameters if n.endswith(".gamma")):
            weight_name = name.removesuffix("gamma") + "weight"
            first = 0
            for index, rows in enumerate(self._rows(weight_name)):
                block = slice(first, first + rows)
                row_parallel = weight_name.endswith(("output.weight", "down.weight"))
                state = InForwardSigma(self.parameters[weight_name][block], transposed=row_parallel)
                self.matrices.append(Matrix(weight_name, block, name, index, state))
                first += rows

    def _rows(self, name: str) -> list[int]:
        """Sizes of the matrices packed in a weight."""
        model, total = self.config.model, self.parameters[name].shape[0]
        q, kv = model.heads * model.head_size, model.key_value_heads * model.head_size
        if model.low_rank.targets and name.endswith(("qkv.weight", "low_rank.weight")):
            return list(self.projection_rows(low_rank=name.endswith("low_rank.weight")).values())
        if name.endswith("qkv.weight"):
            return {"separate": [q, kv, kv], "qk+v": [q + kv, kv], "qkv": [q + 2 * kv]}[model.reparam.qkv]
        if name.endswith("gate_up.weight") and model.reparam.gate_up == "separate":
            return [total // 2, total // 2]
        return [total]

    def projection_rows(self, *, low_rank: bool) -> dict[str, int]:
        """Rows of each projection in the weight `qkv`, or in `low_rank`, which has the second factors only."""
        model = self.config.model
        heads = {"q": model.heads, "k": model.key_value_heads, "v": model.key_value_heads}
        targets, inner = model.low_rank.targets, model.low_rank_size
        if low_rank:
            return {name: count * model.head_size for name, count in heads.items() if name in targets}
        each = {name: inner * count if model.low_rank.per_head else inner for name, count in heads.items()}
        return {name: each[name] if name in targets else count * model.head_size for name, count in heads.items()}

    def low_rank(self, x_BTD: Tensor, name: str) -> list[Tensor]:
        """Queries, keys and values; a low-rank one by its whole matrix B A, which is made first."""
        model, sizes = self.config.model, self.projection_rows(low_rank=True)
        first = self.weight(f"{name}.qkv.weight").split(list(self.projection_rows(low_rank=False).values()))
        second = self.weight(f"{name}.low_rank.weight").split(list(sizes.values()))
        matrices = dict(zip("qkv", first, strict=True))
        for target, outer in zip(sizes, second, strict=True):
            inner = matrices[target]
            if model.low_rank.per_head:
                heads = zip(outer.split(model.head_size), inner.split(model.low_rank_size), strict=True)
                matrices[target] = torch.cat([b @ a for b, a in heads])
            else:
                matrices[target] = outer @ inner
        return [F.linear(x_BTD, matrix) for matrix in matrices.values()]

    def weight(self, name: str) -> Tensor:
        """The weight the layer multiplies by: W, or W_hat differentiable in W and gamma."""
        mine = [m for m in self.matrices if m.weight == name]
        if not mine:
            return self.parameters[name]
        blocks = []
        for m in mine:
            w = self.parameters[name][m.rows]
            blocks.append(self.parameters[m.gamma][m.index] / m.state.sigma(w) * w)
        return torch.cat(blocks)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weight(f"{name}.weight"), self.parameters.get(f"{name}.bias"))

    def norm(self, x: Tensor, name: str, kind: str | None = None) -> Tensor:
        weight = self.parameters.get(f"{name}.weight")
        if weight is None:
            return x
        eps = self.config.model.norm_eps
        if (kind or self.config.model.norm) == "rmsnorm":
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        normed = (x - mean) * torch.rsqrt(variance + eps) * weight
        bias = self.parameters.get(f"{name}.bias")
        return normed if bias is None else normed + bias

    def attention(self, x_BTD: Tensor, name: str) -> Tensor:
        model = self.config.model
        K, H, G = model.head_size, model.heads, model.key_value_heads
        if model.low_rank.targets:
            q, k, v = self.low_rank(x_BTD, name)
        else:
            q, k, v = self.linear(x_BTD, f"{name}.qkv").split([H * K, G * K, G * K], dim=-1)
        B, T, _ = x_BTD.shape
        q, k, v = (part.view(B, T, -1, K).transpose(1, 2) for part in (q, k, v))
        q, k = self.norm(q, f"{name}.q_norm"), self.norm(k, f"{name}.k_norm")
        if model.positions == "rope":
            q, k = self.rotate(q), self.rotate(k)
        k, v = k.repeat_interleave(H // G, dim=1), v.repeat_interleave(H // G, dim=1)
        scores = self.cap(q @ k.transpose(-1, -2) / K**0.5, model.attention_softcap)
        scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), float("-inf"))
        self.scores[name] = scores.detach()
        return self.linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, H * K), f"{name}.output")

    def cap(self, x: Tensor, cap: float | None) -> Tensor:
        return x if cap is None else cap * torch.tanh(x / cap)

    def rotate(self, x: Tensor) -> Tensor:
        """Pairs (i, i + K/2) as complex numbers, turned by position x frequency."""
        K, T = x.shape[-1], x.shape[-2]
        frequency = self.config.model.rope_theta ** (-torch.arange(0, K, 2).double() / K)
        turn = torch.polar(torch.ones(T, K // 2).double(), torch.outer(torch.arange(T).double(), frequency))
        z = torch.complex(x[..., : K // 2].double(), x[..., K // 2 :].double()) * turn
        return torch.cat([z.real, z.imag], dim=-1).to(x.dtype)

    def feedforward(self, x: Tensor, name: str) -> Tensor:
        if self.config.model.activation == "swiglu":
            gate, up = self.linear(x, f"{name}.gate_up").chunk(2, dim=-1)
            return self.linear(gate * torch.sigmoid(gate) * up, f"{name}.down")
        h = self.linear(x, f"{name}.up")
        return self.linear(0.5 * h * (1 + torch.erf(h / 2**0.5)), f"{name}.down")

    def join(self, x: Tensor, branch: Tensor, name: str) -> Tensor:
        """The residual stream after a branch: x + branch, or what `model.residual` makes of it."""
        kind, depth = self.config.model.residual.kind, self.config.model.layers
        if kind in ("layerscale", "rezero"):
            return x + branch * self.parameters[f"{name}_residual.scale"]
        if kind == "depth":
            return x + branch / depth**0.5
        return (2 * depth) ** (1 / 4) * x + branch if kind == "deepnorm" else x + branch

    def sublayer(self, x: Tensor, name: str, f: Callable[[Tensor, str], Tensor]) -> Tensor:
        """Attention or feed-forward, with its norms where `model.norm_placement` says."""
        before, after = f"{name}_norm", f"{name}_output_norm"
        match self.config.model.norm_placement:
            case "pre":
                return self.join(x, f(self.norm(x, before), name), name)
            case "post":
                return self.norm(self.join(x, f(x, name), name), before)
            case "peri":
                return self.join(x, self.norm(f(self.norm(x, before), name), after), name)
            case "reordered":
                return self.join(x, self.norm(f(x, name), after), name)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        model = self.config.model
        x = self.parameters["embedding.weight"][tokens_BT]
        if model.embedding_scale == "sqrt_width":
            x = x * model.hidden_size**0.5
        if "positions.weight" in self.parameters:
            x = x + self.parameters["positions.weight"][: tokens_BT.shape[1]]
        return self.norm(x, "embedding_norm")

    def layer(self, x: Tensor, name: str) -> Tensor:
        x = self.sublayer(x, f"{name}.attention", self.attention)
        return self.sublayer(x, f"{name}.feedforward", self.feedforward)

    def logits(self, tokens_BT: Tensor) -> Tensor:
        x = self.embed(tokens_BT)
        for i in range(self.config.model.layers):
            x = self.layer(x, f"layers.{i}")
        x = self.norm(x, "final_norm")
        head = "embedding" if self.config.model.tie_embeddings else "head"
        logits = F.linear(x, self.weight(f"{head}.weight"))[..., : self.vocab_size]
        return self.cap(logits, self.config.model.logit_softcap)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        training = self.config.training
        logits = self.logits(tokens_BT).flatten(0, 1)
        loss = F.cross_entropy(logits, targets_BT.flatten(), label_smoothing=training.label_smoothing)
        return loss + training.z_loss * logits.exp().sum(-1).log().square().mean()


@dataclass
class Trace:
    """What a training run leaves to compare: per step, and the gradients of the first and last step by name."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    more: list[dict[str, float]] = field(default_factory=list)
    """`sharpness` and `qk_clipped` of each step, where the configuration has them."""
