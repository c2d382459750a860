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
from training.evaluate import Evaluator
from training.journal import Journal, Status, Summary
from training.reductions import count_parameters, mean_loss
from training.schedule import learning_rate


def train(config: Config) -> Summary:
    """Train, as one rank of the launcher's process group, what `config` (resolved for its size) says.

    Raises:
        ConfigError, DataError: before anything is trained or written.
    """
    topology = topologies.start(config.parallel, config.training.device)
    try:
        summary = run(config, topology)
    except BaseException:
        topologies.abandon()
        raise
    topologies.stop()
    return summary


def run(config: Config, topology: Topology) -> Summary:
    """The loop. Step counts from 0 here; records count updates done, from 1."""
    training, steps = config.training, config.training.steps
    samples = Samples(config.data.sources, "train", training.sequence_length, training.seed)
    batches = Batches(samples, training.global_batch_size, topology)
    trainer = build_trainer(config, topology, samples.vocab_size)
    attention = AttentionMonitor(trainer.attention_layers(), topology)
    evaluator = Evaluator(config, topology, trainer.pipeline)
    checkpoints = Checkpoints(config, topology, trainer, samples.fingerprint)
    parameters = count_parameters(trainer.parameters(), topology)
    resumed = checkpoints.resume()
    status: Status = "finished"
    val_loss = resumed.val_loss if resumed else math.nan

    with Journal(config, parameters, resumed, enabled=topology.is_logging_rank) as journal:
        for step in range(resumed.step if resumed else 0, steps):
            started = time.perf_counter()
            measuring = _is_due(step, steps, config.monitoring.interval, first=True)
            lr = learning_rate(step, config.optimizer.lr, steps, config.schedule)
            tokens_BT, targets_BT = batches.step(step)  # a function of (seed, step): no other state

            with trainer.engine.accumulate(), attention.measuring(measuring):  # gradients of W_hat pile up locally
                loss_here = trainer.pipeline.train(tokens_BT, targets_BT)
                sum_partial_gradients(trainer.parameters(), topology.tensor)
                trainer.spectral.pull_back()  # dL/dW_hat -> dL/dW, dL/dgamma: one all-reduce over tp
            grad_norm = trainer.engine.step(lr)  # clip, ZeRO, AdamW on the fp32 weights
            trainer.spectral.refresh()  # one power iteration for all layers; writes W_hat
            loss = mean_loss(loss_here, trainer.pipeline, topology)  # the same number on every rank
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
            if checkpoints.due(step + 1):
                checkpoints.save(
                    step + 1, val_loss, journal.state(), journal.report
                )  # waits for a copy, not for a disk
        checkpoints.wait()
        return journal.finish(status, val_loss)


def _is_due(step: int, steps: int, interval: int, *, first: bool = False) -> bool:
    """Every `interval` updates and after the last one; 0 means only the last for evaluation, never for measuring."""
    if first and interval == 0:
        return False
    last = step == steps - 1
    return last or (first and step == 0) or (interval > 0 and (step + 1) % interval == 0)
