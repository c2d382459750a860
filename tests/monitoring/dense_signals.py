"""Every signal from the dense decoder in float64: whole matrices, autograd, torch's AdamW, nothing of the monitor's.

Shapes: B batch, T sequence, D hidden, H query heads, G key/value heads, K head size, L layers, M matrices.
"""

import math

import torch
from torch import Tensor, nn

from configs.schema import Config, ParallelConfig
from parallel.seeds import seed_for
from tests.layouts import VOCAB, dense_batches, dense_decoder
from tests.reference import DenseDecoder


class SeenDecoder(DenseDecoder):
    """The dense decoder, keeping queries and keys as attention uses them, and every layer's output."""

    def forget(self) -> None:
        self.queries_keys: dict[str, Tensor] = {}
        self.outputs: list[Tensor] = []

    def norm(self, x: Tensor, name: str, kind: str | None = None) -> Tensor:
        y = super().norm(x, name, kind)
        if name.endswith(("q_norm", "k_norm")):
            self.queries_keys[name] = y
        return y

    def layer(self, x: Tensor, name: str) -> Tensor:
        x = super().layer(x, name)
        x.retain_grad()
        self.outputs.append(x)
        return x

    def rotate(self, x: Tensor) -> Tensor:
        turned = super().rotate(x)
        (name,) = [name for name, seen in self.queries_keys.items() if seen is x]
        self.queries_keys[name] = turned
        return turned


def dense_signals(cfg: Config, steps: int) -> list[dict[str, Tensor]]:
    """The arrays of each of the first `steps` steps, all measured, by the names of `Measurement.arrays`."""
    tp = cfg.parallel.tp
    cfg = cfg.model_copy(update={"parallel": ParallelConfig()})
    start = dense_decoder(cfg)
    model = SeenDecoder(cfg, VOCAB, {name: nn.Parameter(p.detach().double()) for name, p in start.parameters.items()})
    optimizer = adamw(model)
    plain = {name: PlainSigma(cfg, name, *place) for name, place in matrices(model).items()}
    signals = []
    for tokens, targets in dense_batches(cfg, steps):
        model.forget()
        optimizer.zero_grad()
        model.loss(tokens, targets).backward()
        before = {name: p.detach().clone() for name, p in model.parameters.items()}
        gradients = {name: p.grad.clone() for name, p in model.parameters.items()}  # type: ignore[union-attr]
        with torch.no_grad():
            seen = heads(model) | outputs(model) | log_z(model, tokens) | per_head_gradients(model, gradients)
            nn.utils.clip_grad_norm_(model.parameters.values(), cfg.optimizer.clip)
            optimizer.step()
            for matrix in model.matrices:
                matrix.state.iterate(model.parameters[matrix.weight][matrix.rows])
            seen |= per_matrix(model, plain, gradients, before, tp)
            seen["tev"] = model.parameters["embedding.weight"][:VOCAB].std(1, correction=0).mean()
        signals.append(seen)
    return signals


def adamw(model: DenseDecoder) -> torch.optim.AdamW:
    config, parameters = model.config.optimizer, model.parameters.values()
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def heads(model: SeenDecoder) -> dict[str, Tensor]:
    """Entropy, its ratio and bound, and the largest logit, (L, H), from the whole attention matrices."""
    config = model.config.model
    entropy, bound, largest = [], [], []
    for layer in range(config.layers):
        q, k = (model.queries_keys[f"layers.{layer}.attention.{one}_norm"] for one in "qk")
        k = k.repeat_interleave(config.heads // config.key_value_heads, 1)
        rows = [(q[:, :, i, None] * k[:, :, : i + 1]).sum(-1) / config.head_size**0.5 for i in range(q.shape[2])]
        rows = [model.cap(row, config.attention_softcap) for row in rows]
        entropy.append(torch.stack([entropy_of(row) for row in rows]).mean((0, 1)))
        bound.append(torch.stack([least_entropy(row) for row in rows]).mean((0, 1)))
        largest.append(torch.stack([row.amax((0, 2)) for row in rows]).amax(0))
    T = model.config.training.sequence_length
    most = sum(math.log(n) for n in range(1, T + 1)) / T
    entropy_LH = torch.stack(entropy)
    return {
        "entropy": entropy_LH,
        "entropy_ratio": entropy_LH / most,
        "entropy_bound": torch.stack(bound),
        "max_logit": torch.stack(largest),
    }


def entropy_of(logits: Tensor) -> Tensor:
    p = logits.softmax(-1)
    return torch.special.entr(p).sum(-1)


def least_entropy(logits: Tensor) -> Tensor:
    """Entropy of the row of as many logits and the same spread in which one key stands out: the extremal row."""
    n = logits.shape[-1]
    spread = (logits - logits.mean(-1, keepdim=True)).norm(dim=-1)
    extremal = torch.zeros_like(logits)
    extremal[..., 0] = spread * (n / (n - 1)) ** 0.5 if n > 1 else 0
    return entropy_of(extremal)


def outputs(model: SeenDecoder) -> dict[str, Tensor]:
    """(L,) each: cosines of all pairs of tokens, distance from the mean token, sizes of outputs and gradients."""
    cosine, residual = [], []
    for x_BTD in model.outputs:
        T = x_BTD.shape[1]
        direction = x_BTD / x_BTD.norm(dim=-1, keepdim=True)
        pairs = direction @ direction.transpose(1, 2)
        cosine.append(pairs[:, ~torch.eye(T, dtype=torch.bool)].mean())
        residual.append(torch.stack([(x - x.mean(0)).norm() / x.norm() for x in x_BTD]).mean())
    assert len(cosine) == model.config.model.layers
    return {
        "token_cosine": torch.stack(cosine),
        "relative_residual": torch.stack(residual),
        "activation_rms": torch.stack([x.square().mean().sqrt() for x in model.outputs]),
        "activation_grad_rms": torch.stack([x.grad.square().mean().sqrt() for x in model.outputs]),  # type: ignore[union-attr]
    }


def log_z(model: SeenDecoder, tokens: Tensor) -> dict[str, Tensor]:
    seen = (model.queries_keys, model.outputs)
    model.forget()
    with torch.enable_grad():
        z = model.logits(tokens).detach().exp().sum(-1).log()
    model.queries_keys, model.outputs = seen
    return {"log_z": z.mean(), "log_z_max": z.max()}


def per_head_gradients(model: SeenDecoder, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    config = model.config.model
    head_grad, ratio = [], []
    for layer in range(config.layers):
        q, v = (next_to_heads(model, gradients, f"layers.{layer}.attention", part) for part in "qv")
        head_grad.append(q.unflatten(0, (config.heads, -1)).norm(dim=(1, 2)))
        ratio.append(q.norm() / v.norm())
    return {"head_grad": torch.stack(head_grad), "qk_grad_ratio": torch.stack(ratio)}


def next_to_heads(model: SeenDecoder, gradients: dict[str, Tensor], attention: str, part: str) -> Tensor:
    """The gradient of the matrix whose rows are the heads of q or v: of a low-rank projection, the second factor."""
    low_rank = part in model.config.model.low_rank.targets
    name, sizes = "low_rank" if low_rank else "qkv", model.projection_rows(low_rank=low_rank)
    blocks = gradients[f"{attention}.{name}.weight"].split(list(sizes.values()))
    return dict(zip(sizes, blocks, strict=True))[part]


def matrices(model: SeenDecoder) -> dict[str, tuple[str, slice]]:
    """Name -> (parameter, rows), in the order of the record."""
    config = model.config.model
    q, kv = config.heads * config.head_size, config.key_value_heads * config.head_size
    projections = {"separate": "q k v", "qk+v": "qk v", "qkv": "qkv"}[config.reparam.qkv].split()
    sizes = {"q": q, "k": kv, "v": kv, "gate": config.inner_size, "up": config.inner_size}
    fused = config.reparam.gate_up == "fused"
    found = {}
    for layer in range(config.layers):
        name = f"layers.{layer}"
        packed = {f"{name}.attention.qkv": projections}
        if config.low_rank.targets:
            packed[f"{name}.attention.low_rank"] = list(model.projection_rows(low_rank=True))
        if config.activation == "swiglu" and not fused:
            packed[f"{name}.feedforward.gate_up"] = ["gate", "up"]
        for linear, blocks in packed.items():
            first = 0
            if config.low_rank.targets and "attention" in linear:
                sizes |= model.projection_rows(low_rank=linear.endswith("low_rank"))
            for block in blocks:
                rows = sizes[block] if block in sizes else sum(sizes[part] for part in block)
                key = linear if len(blocks) == 1 else f"{linear}.{block}"
                found[key] = (f"{linear}.weight", slice(first, first + rows))
                first += rows
        up = "up" if config.activation == "gelu" else "gate_up"
        for linear in ["attention.output", "feedforward.down", *([f"feedforward.{up}"] if up == "up" or fused else [])]:
            found[f"{name}.{linear}"] = (f"{name}.{linear}.weight", slice(None))
    found = dict(sorted(found.items(), key=lambda item: (int(item[0].split(".")[1]), item[0])))
    if not config.tie_embeddings:
        found["head"] = ("head.weight", slice(None))
    return found


class PlainSigma:
    """The spectral norm of a plain matrix: 20 power iterations at the first measurement, then one at each."""

    def __init__(self, cfg: Config, name: str, weight: str, rows: slice) -> None:
        self.seed, self.transposed = (
            seed_for(cfg.training.seed, "power-iteration", name),
            name.endswith(("output", "down")),
        )
        self.r: Tensor | None = None

    def measure(self, weight: Tensor) -> Tensor:
        weight = weight.T if self.transposed else weight
        first = self.r is None
        if self.r is None:
            self.r = torch.randn(
                weight.shape[1], generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64
            )
            self.r = self.r / self.r.norm()
        for _ in range(20 if first else 1):
            left = weight @ self.r
            back = weight.T @ left
            sigma, self.r = back.norm() / left.norm(), back / back.norm()
        return sigma


def per_matrix(
    model: SeenDecoder,
    plain: dict[str, PlainSigma],
    gradients: dict[str, Tensor],
    before: dict[str, Tensor],
    tp: int,
) -> dict[str, Tensor]:
    """(M,) each, and the root mean square of every tensor-parallel rank's share of every matrix, (M, tp)."""
    columns: dict[str, list[Tensor]] = {}
    reparametrised = {(m.weight, m.rows.start or 0): m for m in model.matrices}
    for name, (parameter, rows) in matrices(model).items():
        weight, old, grad = (
            t[rows].detach() for t in (model.parameters[parameter], before[parameter], gradients[parameter])
        )
        matrix = reparametrised.get((parameter, rows.start or 0))
        gamma = torch.tensor(math.nan, dtype=torch.float64)
        if matrix is None:
            sigma = effective = plain[name].measure(weight)
        else:
            sigma, gamma = matrix.state.sigma(weight), model.parameters[matrix.gamma][matrix.index].detach()
            effective = gamma.abs()
        top = torch.linalg.matrix_norm(weight, 2)
        assert 0.9 * top < sigma < top * (1 + 1e-9), f"{name}: {sigma} of {top}"
        row = {
            "sigma": sigma,
            "gamma": gamma,
            "effective_norm": effective,
            "weight_rms": weight.square().mean().sqrt(),
            "grad_norm": grad.norm(),
            "update_ratio": (weight - old).norm() / weight.norm(),
            "shard_rms": torch.stack(
                [part.square().mean().sqrt() for part in shares(weight, name, parameter, model, tp)]
            ),
        }
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    return {key: torch.stack(values) for key, values in columns.items()}


def shares(weight: Tensor, name: str, parameter: str, model: SeenDecoder, tp: int) -> list[Tensor]:
    """Each rank's share: columns of row-parallel matrices, else rows of every projection that is packed in."""
    if name.endswith(("output", "down")):
        return list(weight.chunk(tp, dim=1))
    config = model.config.model
    sizes = [weight.shape[0]]
    if parameter.endswith("qkv.weight") and config.reparam.qkv != "separate":
        q, kv = config.heads * config.head_size, config.key_value_heads * config.head_size
        sizes = {q + kv: [q, kv], q + 2 * kv: [q, kv, kv]}.get(weight.shape[0], sizes)
    if name.endswith("gate_up"):
        sizes = [weight.shape[0] // 2] * 2
    blocks = [block.chunk(tp) for block in weight.split(sizes)]
    return [torch.cat(parts) for parts in zip(*blocks, strict=True)]
