"""Rules between fields, and the values that depend on the number of processes.

`check` looks at everything that does not need the world size; `resolve` fills `parallel.dp`, batch sizes and the
model's derived sizes for a given one. A rule yields a `Problem`, whose message says what would be allowed.
"""

from collections.abc import Iterable, Iterator
from math import isqrt

from configs.describe import either
from configs.errors import ConfigError
from configs.problems import Problem
from configs.recipe_rules import recipe_problems
from configs.schema import SINGLE_STAGE, ZERO_BUBBLE, Config

STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks")
"""What MLflow keeps runs in, by the scheme of its address."""


class Impossible(ConfigError):
    """A combination of values that cannot be used."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(problem.line() for problem in self.problems))


def check(config: Config) -> list[Problem]:
    """Every rule that does not depend on the world size."""
    return [
        *_heads(config),
        *_tensor_parallel(config),
        *_tied_embeddings(config),
        *_pipeline(config),
        *_batch(config, config.parallel.dp),
        *_optimizer(config),
        *_compile(config),
        *_learning_rate(config),
        *_init_from(config),
        *_rollback(config),
        *_judged(config),
        *_addresses(config),
        *_profile(config),
        *recipe_problems(config),
    ]


def resolve(config: Config, world_size: int) -> Config:
    """Fill `parallel.dp`, `parallel.stages_per_rank`, `training.micro_batch_size`, `model.kv_heads` and `ffn_size`.

    Raises Impossible (a ConfigError) if the world size is not tp x pp x dp, or the batch does not split.
    """
    problems = check(config) or list(_world_size(config, world_size))
    if problems:
        raise Impossible(problems)
    model, parallel, training = config.model, config.parallel, config.training
    dp = world_size // (parallel.tp * parallel.pp)
    if problems := list(_batch(config, dp)):
        raise Impossible(problems)
    micro_batch_size = training.micro_batch_size or training.global_batch_size // (
        dp * micro_batches_by_default(config)
    )
    return config.model_copy(
        update={
            "model": model.model_copy(update={"kv_heads": model.key_value_heads, "ffn_size": model.inner_size}),
            "parallel": parallel.model_copy(update={"dp": dp, "stages_per_rank": parallel.chunks}),
            "training": training.model_copy(update={"micro_batch_size": micro_batch_size}),
        }
    )


def micro_batches_by_default(config: Config) -> int:
    """Micro-batches per rank and step when `micro_batch_size` is not set: one for each pipeline stage."""
    return config.parallel.pp * config.parallel.chunks


def _heads(config: Config) -> Iterator[Problem]:
    model = config.model
    if model.hidden_size % model.heads:
        yield Problem(
            "model.heads",
            f"must divide model.hidden_size = {model.hidden_size} ({either(_divisors(model.hidden_size))})",
            model.heads,
            ("model.hidden_size",),
        )
    elif model.positions == "rope" and model.head_size % 2:
        yield Problem(
            "model.heads",
            f"gives heads of size {model.head_size} (model.hidden_size / model.heads); "
            "model.positions = rope needs an even size",
            model.heads,
            ("model.hidden_size", "model.positions"),
        )
    if model.heads % model.key_value_heads:
        yield Problem(
            "model.kv_heads",
            f"must divide model.heads = {model.heads} ({either(_divisors(model.heads))})",
            model.kv_heads,
            ("model.heads",),
        )


def _tensor_parallel(config: Config) -> Iterator[Problem]:
    model, tp = config.model, config.parallel.tp
    sizes = {
        "model.heads": model.heads,
        "model.kv_heads": model.key_value_heads,
        "model.ffn_size": model.inner_size,
        "model.vocab_multiple": model.vocab_multiple,
    }
    undivided = [(key, size) for key, size in sizes.items() if size % tp]
    for key, size in undivided[:1]:  # another tp cures them all
        yield Problem("parallel.tp", f"must divide {key} = {size} ({either(_divisors(size))})", tp, (key,))
    if config.parallel.sequence_parallel and tp == 1:
        yield Problem("parallel.sequence_parallel", "needs parallel.tp > 1", True, ("parallel.tp",))
    elif config.parallel.sequence_parallel and config.training.sequence_length % tp:
        yield Problem(
            "training.sequence_length",
            f"must be a multiple of parallel.tp = {tp} with parallel.sequence_parallel ({_multiples(tp)})",
            config.training.sequence_length,
            ("parallel.tp", "parallel.sequence_parallel"),
        )


def _tied_embeddings(config: Config) -> Iterator[Problem]:
    if not config.model.tie_embeddings:
        return
    if config.parallel.pp > 1:
        yield Problem(
            "model.tie_embeddings",
            f"must be false with parallel.pp = {config.parallel.pp}: embedding and head are on different stages",
            True,
            ("parallel.pp",),
        )
    reparam = config.model.reparam
    if reparam.kind == "sigma" and reparam.head:
        yield Problem(
            "model.reparam.head",
            "must be false with model.tie_embeddings = true: a tied head stays an embedding",
            True,
            ("model.tie_embeddings", "model.reparam.kind"),
        )


def _pipeline(config: Config) -> Iterator[Problem]:
    parallel, schedule = config.parallel, config.parallel.schedule
    given = parallel.stages_per_rank
    if parallel.pp == 1:
        if given not in (None, 1):
            yield Problem("parallel.stages_per_rank", "must be 1 with parallel.pp = 1", given, ("parallel.pp",))
        return
    stages_allowed = _stages_allowed(schedule)
    if given is not None and given not in stages_allowed:
        rule = "at least 2" if len(stages_allowed) > 1 else stages_allowed[0]
        yield Problem(
            "parallel.stages_per_rank",
            f"must be {rule} with parallel.schedule = {schedule}",
            given,
            ("parallel.schedule",),
        )
        return
    stages = parallel.pp * parallel.chunks
    if config.model.layers % stages:
        yield Problem(
            "model.layers",
            f"must be a multiple of the pipeline's stages, parallel.pp x stages_per_rank = "
            f"{parallel.pp} x {parallel.chunks} = {stages} ({_multiples(stages)})",
            config.model.layers,
            ("parallel.pp", "parallel.stages_per_rank", "parallel.schedule"),
        )
    if schedule in ZERO_BUBBLE and config.training.recompute != "none":
        yield Problem(
            "training.recompute",
            f"must be none with parallel.schedule = {schedule}, whose split backward would recompute each layer "
            "several times; gpipe, 1f1b and interleaved_1f1b can recompute",
            config.training.recompute,
            ("parallel.schedule",),
        )
    if schedule in ZERO_BUBBLE and config.training.compile:
        yield Problem(
            "training.compile",
            f"must be false with parallel.schedule = {schedule}, whose split backward would run that of a "
            "compiled layer, which is one piece, twice; gpipe, 1f1b and interleaved_1f1b can compile",
            True,
            ("parallel.schedule",),
        )


def _stages_allowed(schedule: str) -> range:
    if schedule in SINGLE_STAGE:
        return range(1, 2)
    return range(2, 3) if schedule == "zbv" else range(2, 1_000_000)


def _profile(config: Config) -> Iterator[Problem]:
    wanted, steps = config.profile, config.training.steps
    if wanted.enabled and wanted.first is not None and wanted.first + wanted.steps - 1 > steps:
        latest = steps - wanted.steps + 1
        allowed = f"at most {latest}" if latest > 0 else "left out, with fewer profile.steps"
        yield Problem(
            "profile.first",
            f"must be {allowed}: profile.steps = {wanted.steps} are traced of training.steps = {steps}",
            wanted.first,
            ("profile.steps", "training.steps"),
        )


def _world_size(config: Config, world_size: int) -> Iterator[Problem]:
    tp, pp, dp = config.parallel.tp, config.parallel.pp, config.parallel.dp
    if dp is not None and world_size != tp * pp * dp:
        yield Problem(
            "parallel.dp",
            f"parallel.tp x pp x dp = {tp} x {pp} x {dp} = {tp * pp * dp} must equal the number of processes, "
            f"{world_size}; leave parallel.dp unset to use them all",
            dp,
            ("parallel.tp", "parallel.pp"),
        )
    elif world_size % (tp * pp):
        key, value = ("parallel.tp", tp) if tp > 1 else ("parallel.pp", pp)
        yield Problem(
            key,
            f"parallel.tp x pp = {tp} x {pp} = {tp * pp} must divide the number of processes, {world_size} "
            f"({_multiples(tp * pp)} processes would do)",
            value,
            ("parallel.tp", "parallel.pp"),
        )


def _batch(config: Config, dp: int | None) -> Iterator[Problem]:
    """Does the global batch split over data-parallel ranks and micro-batches? `dp` is None when not known yet."""
    training, parallel = config.training, config.parallel
    related = ("training.global_batch_size", "parallel.dp", "parallel.pp", "parallel.schedule")
    if dp is None:
        if training.micro_batch_size and training.global_batch_size % training.micro_batch_size:
            yield _micro_batch(config, training.global_batch_size, "training.global_batch_size")
        return
    if training.global_batch_size % dp:
        yield Problem(
            "training.global_batch_size",
            f"must be a multiple of parallel.dp = {dp} ({_multiples(dp)})",
            training.global_batch_size,
            ("parallel.dp",),
        )
        return
    per_rank = training.global_batch_size // dp
    sizes = [size for size in _divisors(per_rank) if fits_schedule(config, per_rank // size)]
    if not sizes:
        yield Problem(
            "training.global_batch_size",
            f"gives {per_rank} sequences per data-parallel rank; parallel.schedule = {parallel.schedule} with "
            f"parallel.pp = {parallel.pp} needs {parallel.pp}: at least {dp * parallel.pp} in all",
            training.global_batch_size,
            related[1:],
        )
    elif training.micro_batch_size is None:
        stages = micro_batches_by_default(config)
        if per_rank % stages:
            yield Problem(
                "training.micro_batch_size",
                f"must be set ({either(sizes)}): training.global_batch_size / dp = {per_rank} sequences do not split "
                f"into one micro-batch for each of {stages} pipeline stages",
                related=related,
            )
    elif per_rank % training.micro_batch_size:
        yield _micro_batch(config, per_rank, "training.global_batch_size / parallel.dp")
    elif training.micro_batch_size not in sizes:
        count = per_rank // training.micro_batch_size
        yield Problem(
            "training.micro_batch_size",
            f"makes {count} micro-batch{'' if count == 1 else 'es'}; parallel.schedule = {parallel.schedule} with "
            f"parallel.pp = {parallel.pp} needs {_micro_batch_rule(config)} "
            f"(training.micro_batch_size {either(sizes)})",
            training.micro_batch_size,
            related,
        )


def _micro_batch(config: Config, sequences: int, name: str) -> Problem:
    return Problem(
        "training.micro_batch_size",
        f"must divide {name} = {sequences} ({either(_divisors(sequences))})",
        config.training.micro_batch_size,
        ("training.global_batch_size", "parallel.dp"),
    )


def fits_schedule(config: Config, micro_batches: int) -> bool:
    """Whether torch.distributed.pipelining's schedule accepts this number of micro-batches.

    1F1B needs one per stage; the interleaved schedules run rounds of about `pp` and need rounds of equal length; GPipe
    and ZBV take any number (ZBV drops what its diagram has too many of).
    """
    pp = config.parallel.pp
    if pp == 1 or config.parallel.schedule in ("gpipe", "zbv"):
        return True
    if config.parallel.schedule == "1f1b":
        return micro_batches >= pp
    return micro_batches % max(1, micro_batches // pp) == 0


def _micro_batch_rule(config: Config) -> str:
    pp = config.parallel.pp
    return f"at least {pp}" if config.parallel.schedule == "1f1b" else f"equal rounds of about {pp} ({_multiples(pp)})"


def _optimizer(config: Config) -> Iterator[Problem]:
    if not all(0 <= beta < 1 for beta in config.optimizer.betas):
        yield Problem("optimizer.betas", "must be two numbers >= 0 and < 1", list(config.optimizer.betas))


def _compile(config: Config) -> Iterator[Problem]:
    if config.training.compile and config.optimizer.qk_clip:
        yield Problem(
            "training.compile",
            f"must be false with optimizer.qk_clip = {config.optimizer.qk_clip:g}, which looks at the logits of every "
            "step: layers that are looked into run uncompiled",
            True,
            ("optimizer.qk_clip",),
        )


def _learning_rate(config: Config) -> Iterator[Problem]:
    schedule, steps = config.schedule, config.training.steps
    if schedule.kind != "wsd" and schedule.decay_steps:
        yield Problem(
            "schedule.decay_steps",
            f"must be 0 with schedule.kind = {schedule.kind}; only wsd decays at the end",
            schedule.decay_steps,
            ("schedule.kind",),
        )
    if schedule.kind == "wsd" and not schedule.decay_steps:
        yield Problem(
            "schedule.decay_steps",
            f"must be at least 1 with schedule.kind = wsd (at most training.steps - warmup_steps = "
            f"{steps - schedule.warmup_steps})",
            0,
            ("schedule.kind",),
        )
    if schedule.kind == "wsd" and schedule.warmup_steps + schedule.decay_steps > steps:
        yield Problem(
            "schedule.decay_steps",
            f"schedule.warmup_steps + decay_steps = {schedule.warmup_steps + schedule.decay_steps} must be at most "
            f"training.steps = {steps}",
            schedule.decay_steps,
            ("schedule.warmup_steps", "training.steps"),
        )
    last = steps - 1 if schedule.kind == "cosine" else steps
    if schedule.kind != "wsd" and schedule.warmup_steps > last:
        yield Problem(
            "schedule.warmup_steps",
            f"must be at most {last} with schedule.kind = {schedule.kind} and training.steps = {steps}",
            schedule.warmup_steps,
            ("training.steps", "schedule.kind"),
        )


def _rollback(config: Config) -> Iterator[Problem]:
    policy = config.stability.policy.model_dump()
    asking = next((name for name, action in policy.items() if action == "rollback"), None)
    if asking is not None and config.checkpoint.interval == 0:
        yield Problem(
            f"stability.policy.{asking}",
            "needs checkpoints to go back to: checkpoint.interval must be over 0",
            "rollback",
            ("checkpoint.interval",),
        )
    reach = (config.checkpoint.keep - 1) * config.checkpoint.interval
    if asking is not None and config.checkpoint.interval > 0 and reach < policy["rollback_before"]:
        yield Problem(
            "stability.policy.rollback_before",
            f"must be at most {reach}, as far back as the {config.checkpoint.keep} checkpoints kept are sure to reach; "
            "raise checkpoint.keep or checkpoint.interval",
            policy["rollback_before"],
            ("checkpoint.keep", "checkpoint.interval"),
        )


def _judged(config: Config) -> Iterator[Problem]:
    """Limits that nothing could ever reach: the rule would be off without a word."""
    skip, detectors = config.stability.skip, config.stability.detectors
    for key, rule in (("skip", skip), ("detectors.spike", detectors.spike)):
        if rule.minimum > rule.window:
            yield Problem(
                f"stability.{key}.minimum",
                f"must be at most stability.{key}.window = {rule.window}: no step would ever be judged",
                rule.minimum,
                (f"stability.{key}.window",),
            )
    if detectors.logit.warning > detectors.logit.fatal:
        yield Problem(
            "stability.detectors.logit.warning",
            f"must be at most stability.detectors.logit.fatal = {detectors.logit.fatal:g}",
            detectors.logit.warning,
            ("stability.detectors.logit.fatal",),
        )


def _addresses(config: Config) -> Iterator[Problem]:
    webhook, uri = config.alerts.webhook, config.tracking.uri
    if webhook is not None and not webhook.startswith(("http://", "https://")):
        yield Problem("alerts.webhook", "must be an address that begins with http:// or https://", webhook)
    scheme = uri.split("://")[0].split("+")[0] if uri is not None and "://" in uri else None
    if scheme is not None and scheme not in STORES:
        yield Problem("tracking.uri", f"must begin with {either(STORES)}, then ://", uri)


def _init_from(config: Config) -> Iterator[Problem]:
    """A run that begins from itself is one that is continued; and --overwrite would delete what it begins from."""
    source, folder = config.init_from, config.run_dir
    if source is not None and (config.hub_folder or source).resolve().is_relative_to(folder.resolve()):
        yield Problem(
            "init_from",
            f"must be another run: this one's folder is {folder}; choose another run.name, or unset init_from to "
            "continue it",
            source,
            ("run.name", "run.dir"),
        )


def _divisors(number: int) -> list[int]:
    """In ascending order, in the square root of `number` steps; of numbers beyond 10^12 only the small ones."""
    small = [candidate for candidate in range(1, min(isqrt(number), 1_000_000) + 1) if number % candidate == 0]
    return sorted({*small, *(number // candidate for candidate in small)})


def _multiples(number: int) -> str:
    return f"{number}, {2 * number}, {3 * number}, ..."
