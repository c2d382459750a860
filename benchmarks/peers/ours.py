"""Our trainer, by the protocol of `training.run` without monitor, journal and checkpoints."""

from benchmarks.peers.task import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Task, TokenArray
from configs.checks import resolve
from configs.schema import Config
from parallel.gradients import sum_partial_gradients
from parallel.topology import Topology
from stability.guard import Guard
from training.batches import Batches
from training.build import build_trainer
from training.qk_clip import QkClip
from training.reductions import count_parameters, loss_and_requests
from training.sam import Ascent
from training.schedule import learning_rate

STEPS = 1_000_000
"""Far more than are taken: the schedule never ends."""


class Ours:
    """Pre-LN, plain or with sigmaReparam (`reparam` = sigma); `topology` must be that of the task's layout."""

    def __init__(self, task: Task, topology: Topology, reparam: str = "none") -> None:
        config = config_of(task, reparam)
        self._config, self._topology = config, topology
        self._batches = Batches(TokenArray(task), task.batch, topology)
        self.trainer = build_trainer(config, topology, task.vocabulary)
        self._ascent = Ascent(config.optimizer.sam_rho, self.trainer, topology)
        self._qk_clip = QkClip(config.optimizer.qk_clip, self.trainer, topology)
        self._guard = Guard(config.stability.skip, config.stability.zclip, config.optimizer.clip, topology.device)
        self._step = 0

    def step(self) -> float:
        """One step of training; see `Contender`."""
        trainer, config, topology = self.trainer, self._config, self._topology
        lr = learning_rate(self._step, config.optimizer.lr, config.training.steps, config.schedule)
        tokens_BT, targets_BT = self._batches.step(self._step)
        with trainer.engine.accumulate():
            with self._qk_clip.watching():
                loss_here = trainer.pipeline.train(tokens_BT, targets_BT)
            sum_partial_gradients(trainer.parameters(), topology.tensor)
            trainer.spectral.pull_back()
            more = self._ascent.take_gradients(tokens_BT, targets_BT, loss_here)
        more |= self._qk_clip.measure()
        totals_N = loss_and_requests(loss_here, trainer.pipeline, topology, stop_requested=False, more=more.values())
        judged = trainer.engine.step(lr, lambda norm: self._guard.judge(totals_N, norm))
        if judged.keep:
            self._qk_clip.clip()
            trainer.spectral.refresh()
        self._step += 1
        return judged.loss

    def parameters(self) -> int:
        """Parameters of the whole model."""
        return count_parameters(self.trainer.parameters(), self._topology)


def config_of(task: Task, reparam: str) -> Config:
    """The task as a user would write it, resolved."""
    llama = task.family == "llama"
    values = {
        "data": {"sources": [{"path": "unused"}]},
        "model": {
            "layers": task.layers,
            "hidden_size": task.width,
            "heads": task.heads,
            "kv_heads": task.kv_heads,
            "ffn_size": task.inner,
            "norm": "rmsnorm" if llama else "layernorm",
            "positions": "rope" if llama else "learned",
            "activation": "swiglu" if llama else "gelu",
            "reparam": {"kind": reparam},
        },
        "parallel": {"tp": task.tp, "pp": task.pp},
        "training": {
            "steps": STEPS,
            "global_batch_size": task.batch,
            "micro_batch_size": task.micro_batch,
            "sequence_length": task.length,
            "precision": task.precision,
            "seed": task.seed,
        },
        "optimizer": {
            "lr": LEARNING_RATE,
            "betas": BETAS,
            "eps": EPSILON,
            "weight_decay": WEIGHT_DECAY,
            "clip": CLIP,
        },
    }
    return resolve(Config.model_validate(values), task.tp * task.pp)
