"""The training loop: one page, every step of the protocol visible."""

import math
import time
from dataclasses import replace

from configs.schema import Config
from data.samples import Samples
from monitoring.signals import Monitor
from parallel import topology as topologies
from parallel.gradients import sum_partial_gradients
from parallel.topology import Topology
from stability.flight import FlightRecorder
from stability.watch import Watch
from training.batches import Batches
from training.build import build_trainer
from training.checkpoint.saver import Checkpoints
from training.checkpoint.weights import initial_weights
from training.compiler import require_compiler
from training.evaluate import Evaluator
from training.journal import Journal, Status, Summary
from training.meter import Meter
from training.profile import Profiler
from training.qk_clip import QkClip
from training.reductions import count_parameters, loss_and_requests, peak_memory
from training.rollback import begin, complete, roll_back
from training.sam import Ascent
from training.schedule import learning_rate
from training.stop import Stop


def train(config: Config, stop: Stop | None = None) -> Summary:
    """Train, as one rank of the launcher's process group, what `config` (resolved for its size) says.

    When any rank's `stop` is requested, all leave after the same step, with a checkpoint of it.

    Raises:
        ConfigError, DataError: before anything is trained or written.
    """
    topology = topologies.start(config.parallel, config.training.device, timed=config.monitoring.time_split)
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
    training, steps, clock = config.training, config.training.steps, topology.clock
    samples = Samples(config.data.sources, "train", training.sequence_length, training.seed)
    if training.compile:
        require_compiler(topology.device)
    batches = Batches(samples, training.global_batch_size, topology, prefetch=config.data.prefetch)
    weights = initial_weights(config, topology, samples)  # of another run; None: random, or this run's checkpoint
    trainer = build_trainer(config, topology, samples.vocab_size, weights)
    monitor = Monitor(trainer, topology, config)
    ascent = Ascent(config.optimizer.sam_rho, trainer, topology)
    qk_clip = QkClip(config.optimizer.qk_clip, trainer, topology)
    evaluator = Evaluator(config, topology, trainer.pipeline)
    checkpoints = Checkpoints(config, topology, trainer, samples.fingerprint)
    parameters = count_parameters(trainer.parameters(), topology)
    meter = Meter(config, topology, samples.vocab_size)
    rewinds, resumed = begin(config, topology, checkpoints)
    status: Status = "finished"
    step, val_loss = (resumed.step, resumed.val_loss) if resumed else (0, math.nan)

    with (
        Profiler(config, topology, step) as profiler,
        Journal(config, parameters, meter, resumed, enabled=topology.is_logging_rank) as journal,
        checkpoints,
        batches,
    ):
        flight = FlightRecorder(config, trainer, topology, samples)
        watch = Watch(config, topology.device, flight, journal.event)
        watch.load(resumed.stability if resumed else {})
        if weights is not None:
            journal.report(0, "init_from", weights.message(config))
        if resumed is not None and (undone := rewinds.unfinished) is not None:
            journal.rolled_back(undone.spike + 1, resumed, undone.reason)
            rewinds = complete(rewinds, config, topology)
        clock.restart()  # what was before the first step is no step's time
        while step < steps:
            profiler.before(step + 1)
            started, stop.step = time.perf_counter(), step + 1
            measuring = _is_due(step, steps, config.monitoring.interval, first=True) or watch.zooms(step)
            lr = watch.lr(step, learning_rate(step, config.optimizer.lr, steps, config.schedule))
            batch = rewinds.batch(step)
            with clock.part("data"):
                tokens_BT, targets_BT = batches.step(batch)  # a function of (seed, batch): no other state

            with trainer.engine.accumulate():  # gradients of W_hat pile up locally
                with monitor.forward(measuring), qk_clip.watching():
                    loss_here = trainer.pipeline.train(tokens_BT, targets_BT)
                with clock.part("monitoring"):
                    flight.note_gradients(step + 1)  # this rank's own, before any sum spreads a fault to others
                sum_partial_gradients(trainer.parameters(), topology.tensor)
                with clock.part("refresh"):
                    trainer.spectral.pull_back()  # dL/dW_hat -> dL/dW, dL/dgamma: one all-reduce over tp
                more = ascent.take_gradients(tokens_BT, targets_BT, loss_here)  # at w + e in place of those at w
            if measuring:
                with clock.part("monitoring"):
                    monitor.before_update()
            more |= qk_clip.measure()
            totals_N = loss_and_requests(
                loss_here, trainer.pipeline, topology, stop_requested=stop.requested, more=more.values()
            )
            judged = trainer.engine.step(lr, watch.judge(totals_N))  # skip or clip, ZeRO, AdamW on the fp32 weights
            if judged.keep:
                qk_clip.clip()  # heads whose logits passed the threshold
                with clock.part("refresh"):
                    trainer.spectral.refresh()  # one power iteration for all layers; writes W_hat
            with clock.part("monitoring"):
                flight.note_spectra(step + 1)
                seconds = time.perf_counter() - started

                measured = monitor.collect() if measuring else None  # the same on every rank, like all below
                flight.note_step(
                    step + 1,
                    loss=judged.loss,
                    grad_norm=judged.grad_norm,
                    lr=lr,
                    seconds=seconds,
                    kept=judged.keep,
                    batch=batch,
                )
                if measured is not None:
                    flight.note_measurement(step + 1, measured)
                decision = watch.observe(step + 1, judged, measured.arrays() if measured else {}, rewinds)
            evaluating = _is_due(step, steps, training.eval_interval) or decision.action == "stop"
            if evaluating:
                with clock.part("evaluation"):
                    val_loss = evaluator.loss()
            split = clock.lap()
            with clock.part("monitoring"):
                journal.step(
                    step + 1,
                    loss=judged.loss,
                    grad_norm=judged.grad_norm,
                    lr=lr,
                    seconds=seconds,
                    measured=measured,
                    val_loss=val_loss if evaluating else None,
                    split=split,
                    more=dict(zip(more, judged.more, strict=True)),
                )
            if decision.action == "rollback":
                rewinds, back = roll_back(decision, step, rewinds, config, topology, checkpoints)
                if back is not None:
                    watch.rolled_back(back.stability, back.step)
                    journal.rolled_back(step + 1, back, decision.reason)
                    rewinds = complete(rewinds, config, topology)
                    step, val_loss = back.step, back.val_loss
                    clock.restart()
                    continue
                reason = f"{decision.reason}; no good checkpoint from before it"
                decision = replace(decision, action="stop", reason=reason)
            if decision.action == "stop":
                status = "diverged"
                journal.diverged(step + 1, decision.reason, judged.loss, judged.grad_norm)
                break
            step += 1
            stopping = judged.stopping and step < steps
            if stopping or checkpoints.due(step):
                with clock.part("checkpoint"):
                    checkpoints.save(
                        step,
                        val_loss if evaluating else math.nan,  # an older one is not this checkpoint's
                        journal=journal.state(),
                        stability=watch.state(),
                        skipped=watch.skips,
                        report=journal.report,
                        seconds=stop.seconds_left() if stopping else None,  # only a stop that all ranks agreed on
                    )  # waits for a copy, not for a disk
            if stopping:
                status = "stopped"
                journal.stopping(step, stop.reason)
                break
        watch.finish()
        if resumed and resumed.step == steps and math.isnan(val_loss):
            val_loss = evaluator.loss()  # training.steps now ends where a run saved without evaluating
        if not checkpoints.wait(stop.seconds_left() if status == "stopped" else None):
            journal.report(stop.step, "checkpoint_failed", "not written within the grace time: given up")
        return journal.finish(status, val_loss, peak_memory(topology) if status != "stopped" else None)


def _is_due(step: int, steps: int, interval: int, *, first: bool = False) -> bool:
    """Every `interval` updates and after the last one; 0 means only the last for evaluation, never for measuring."""
    if first and interval == 0:
        return False
    last = step == steps - 1
    return last or (first and step == 0) or (interval > 0 and (step + 1) % interval == 0)
