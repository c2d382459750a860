"""Stabilisers that make no sense together, or not in this model, each with the reason."""

from collections.abc import Iterator

from configs.problems import Problem
from configs.schema import Config


def recipe_problems(config: Config) -> Iterator[Problem]:
    """What a recipe asks for and cannot have."""
    yield from _norms(config)
    yield from _deepnorm(config)
    yield from _layerscale(config)
    yield from _qk_clip(config)
    yield from _low_rank(config)


def _norms(config: Config) -> Iterator[Problem]:
    model = config.model
    if model.norm != "none":
        return
    if model.norm_placement != "pre":
        yield Problem(
            "model.norm_placement",
            "places norms that model.norm = none does not have; leave it at pre, or choose layernorm or rmsnorm",
            model.norm_placement,
            ("model.norm",),
        )
    if model.embedding_norm:
        yield Problem(
            "model.embedding_norm",
            "must be false with model.norm = none; choose layernorm or rmsnorm",
            True,
            ("model.norm",),
        )


def _deepnorm(config: Config) -> Iterator[Problem]:
    model = config.model
    if model.residual.kind != "deepnorm":
        return
    if model.norm_placement != "post":
        yield Problem(
            "model.residual.kind",
            "deepnorm is N(alpha x + f(x)): it needs model.norm_placement = post",
            "deepnorm",
            ("model.norm_placement",),
        )
    if model.reparam.kind == "sigma" and model.reparam.gamma_init == "one":
        yield Problem(
            "model.residual.kind",
            "deepnorm scales the initial weights, which model.reparam with gamma_init = one does not see: "
            "W / sigma(W) is the same; set model.reparam.gamma_init = sigma",
            "deepnorm",
            ("model.reparam.kind", "model.reparam.gamma_init"),
        )
    if model.depth_scaled_init:
        yield Problem(
            "model.depth_scaled_init",
            "must be false with model.residual.kind = deepnorm, which scales the same weights its own way",
            True,
            ("model.residual.kind",),
        )


def _layerscale(config: Config) -> Iterator[Problem]:
    residual = config.model.residual
    if residual.layerscale_init is not None and residual.kind != "layerscale":
        yield Problem(
            "model.residual.layerscale_init",
            f"is for model.residual.kind = layerscale; with {residual.kind} it would do nothing",
            residual.layerscale_init,
            ("model.residual.kind",),
        )


def _qk_clip(config: Config) -> Iterator[Problem]:
    model, threshold = config.model, config.optimizer.qk_clip
    if not threshold:
        return
    if model.qk_norm:
        yield Problem(
            "optimizer.qk_clip",
            "must be 0 with model.qk_norm = true: queries and keys are normalised, so the scale of their weights "
            "does not reach the logits",
            threshold,
            ("model.qk_norm",),
        )
    if model.attention_softcap is not None:
        yield Problem(
            "optimizer.qk_clip",
            "must be 0 with model.attention_softcap: both bound the same logits; take one",
            threshold,
            ("model.attention_softcap",),
        )
    if model.bias:
        yield Problem(
            "optimizer.qk_clip",
            "must be 0 with model.bias = true: biases of queries and keys do not shrink with their weights",
            threshold,
            ("model.bias",),
        )
    if model.reparam.kind == "sigma" and model.reparam.qkv == "qkv":
        yield Problem(
            "optimizer.qk_clip",
            "must be 0 with model.reparam.qkv = qkv: its one gamma scales the values too; take separate or qk+v",
            threshold,
            ("model.reparam.kind", "model.reparam.qkv"),
        )


def _low_rank(config: Config) -> Iterator[Problem]:
    model, low_rank = config.model, config.model.low_rank
    if not low_rank.targets:
        for key in ("rank", "per_head"):
            if getattr(low_rank, key):
                yield Problem(
                    f"model.low_rank.{key}",
                    "is for the projections in model.low_rank.targets, and there are none (q, k, v)",
                    getattr(low_rank, key),
                    ("model.low_rank.targets",),
                )
        return
    if len(set(low_rank.targets)) < len(low_rank.targets):
        yield Problem("model.low_rank.targets", "each projection may occur once", list(low_rank.targets))
    limit = model.head_size if low_rank.per_head else model.hidden_size
    if model.low_rank_size > limit:
        yield Problem(
            "model.low_rank.rank",
            f"must be at most {limit}: a product of larger factors has no lower rank",
            low_rank.rank,
            ("model.low_rank.per_head", "model.hidden_size", "model.heads"),
        )
    if not low_rank.per_head and model.low_rank_size % config.parallel.tp:
        yield Problem(
            "model.low_rank.rank",
            f"the inner width, {model.low_rank_size}, must be a multiple of parallel.tp = {config.parallel.tp}, whose "
            "ranks share it",
            low_rank.rank,
            ("parallel.tp",),
        )
    if model.reparam.kind == "sigma" and model.reparam.qkv != "separate":
        yield Problem(
            "model.reparam.qkv",
            "must be separate with model.low_rank.targets: factors are matrices of their own",
            model.reparam.qkv,
            ("model.low_rank.targets",),
        )
    if model.bias:
        yield Problem(
            "model.low_rank.targets",
            "must be empty with model.bias = true: which factor a bias belongs to is not defined",
            list(low_rank.targets),
            ("model.bias",),
        )
