"""The training loop: one page, every step of the protocol visible."""

import math
import time

from configs.schema import Config
from data.samples import Samples
from monitoring.attention import AttentionMonitor
from monitoring.measure import measure
from parallel import topology as topologies
from parallel.gradients import sum_partial_gradients
from parallel.topology import Topology
from training.batches import Batches
from training.build import build_trainer
from training.checkpoint.saver import Checkpoints
from training.checkpoint.weights import initial_weights
from training.evaluate import Evaluator
from training.journal import Journal, Status, Summary
from training.reductions import count_parameters, mean_loss_and_stop
from training.schedule import learning_rate
from training.stop import Stop


def train(config: Config, stop: Stop | None = None) -> Summary:
    """Train, as one rank of the launcher's process group, what `config` (resolved for its size) says.

    When any rank's `stop` is requested, all leave after the same step, with a checkpoint of it.

    Raises:
        ConfigError, DataError: before anything is trained or written.
    """
    topology = topologies.start(config.parallel, config.training.device)
    try:
        summary = run(config, topology, stop or Stop())
    except BaseException:
        topologies.abandon()
        raise
    if summary.status == "stopped":
        topologies.abandon()  # a save that was given up may still be talking; the process is about to end
    else:
        topologies.stop()
    return summary


def run(config: Config, topology: Topology, stop: Stop) -> Summary:
    """The loop. Step counts from 0 here; records count updates done, from 1."""
    training, steps = config.training, config.training.steps
    samples = Samples(config.data.sources, "train", training.sequence_length, training.seed)
    batches = Batches(samples, training.global_batch_size, topology)
    weights = initial_weights(config, topology, samples)  # of another run; None: random, or this run's checkpoint
    trainer = build_trainer(config, topology, samples.vocab_size, weights)
    attention = AttentionMonitor(trainer.attention_layers(), topology)
    evaluator = Evaluator(config, topology, trainer.pipeline)
    checkpoints = Checkpoints(config, topology, trainer, samples.fingerprint)
    parameters = count_parameters(trainer.parameters(), topology)
    resumed = checkpoints.resume()
    status: Status = "finished"
    val_loss = resumed.val_loss if resumed else math.nan

    with Journal(config, parameters, resumed, enabled=topology.is_logging_rank) as journal, checkpoints:
        if weights is not None:
            journal.report(0, "init_from", weights.message(config))
        for step in range(resumed.step if resumed else 0, steps):
            started, stop.step = time.perf_counter(), step + 1
            measuring = _is_due(step, steps, config.monitoring.interval, first=True)
            lr = learning_rate(step, config.optimizer.lr, steps, config.schedule)
            tokens_BT, targets_BT = batches.step(step)  # a function of (seed, step): no other state

            with trainer.engine.accumulate(), attention.measuring(measuring):  # gradients of W_hat pile up locally
                loss_here = trainer.pipeline.train(tokens_BT, targets_BT)
                sum_partial_gradients(trainer.parameters(), topology.tensor)
                trainer.spectral.pull_back()  # dL/dW_hat -> dL/dW, dL/dgamma: one all-reduce over tp
            grad_norm = trainer.engine.step(lr)  # clip, ZeRO, AdamW on the fp32 weights
            trainer.spectral.refresh()  # one power iteration for all layers; writes W_hat
            loss, stopping = mean_loss_and_stop(  # the same on every rank
                loss_here, trainer.pipeline, topology, stop_requested=stop.requested
            )
            seconds = time.perf_counter() - started

            measured = measure(attention, trainer.spectral, topology, training.sequence_length) if measuring else None
            alive = math.isfinite(loss) and math.isfinite(grad_norm)
            evaluating = _is_due(step, steps, training.eval_interval) or not alive
            if evaluating:
                val_loss = evaluator.loss()
            journal.step(
                step + 1,
                loss=loss,
                grad_norm=grad_norm,
                lr=lr,
                seconds=seconds,
                measured=measured,
                val_loss=val_loss if evaluating else None,
            )
            if not alive:
                status = "diverged"
                journal.diverged(step + 1, loss, grad_norm)
                break
            stopping = stopping and step + 1 < steps
            if stopping or checkpoints.due(step + 1):
                val_loss_now = val_loss if evaluating else math.nan  # an older one is not this checkpoint's
                limit = stop.seconds_left() if stopping else None  # only a stop that all ranks agreed on
                # Waits for a copy, not for a disk.
                checkpoints.save(step + 1, val_loss_now, journal.state(), journal.report, limit)
            if stopping:
                status = "stopped"
                journal.stopping(step + 1, stop.reason)
                break
        if resumed and resumed.step == steps and math.isnan(val_loss):
            val_loss = evaluator.loss()  # training.steps now ends where a run saved without evaluating
        if not checkpoints.wait(stop.seconds_left() if status == "stopped" else None):
            journal.report(stop.step, "checkpoint_failed", "not written within the grace time: given up")
        return journal.finish(status, val_loss)


def _is_due(step: int, steps: int, interval: int, *, first: bool = False) -> bool:
    """Every `interval` updates and after the last one; 0 means only the last for evaluation, never for measuring."""
    if first and interval == 0:
        return False
    last = step == steps - 1
    return last or (first and step == 0) or (interval > 0 and (step + 1) % interval == 0)
