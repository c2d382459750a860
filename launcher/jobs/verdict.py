"""How an attempt ended, and which rank is to blame, from the records its ranks left."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.jobs.attempt import PREFLIGHT, RankRecord, read_json, read_ranks

TOLD_TO_STOP = tuple(128 + number for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR1))
"""Exit codes of an attempt that was asked to stop before Python could listen."""

CASCADE = (
    "Connection reset by peer", "Connection closed by", "Broken pipe", "Connection refused", "Socket closed",
    "gloo", "NCCL", "ProcessGroup", "Timed out waiting", "failed to recv", "DistNetworkError", "DistStoreError",
)  # fmt: skip
"""What a rank says whose partner is gone."""


@dataclass(frozen=True)
class Verdict:
    """`kind`: finished, diverged, stopped, refused, unfit, crashed, vanished or lost."""

    kind: str
    reason: str
    rank: int | None = None
    node: str | None = None
    step: int | None = None
    error: str = ""
    """What makes two failures the same, with `step`."""
    unfit_nodes: list[str] = field(default_factory=list)

    def same_failure(self, other: "Verdict") -> bool:
        """Whether both crashed at the same step with the same error: another attempt would tell nothing new."""
        return self.kind == other.kind == "crashed" and (self.step, self.error) == (other.step, other.error)


def judge(folder: Path, exit_code: int) -> Verdict:
    """The verdict on the attempt in `folder`, whose ranks have all ended; `exit_code` is srun's."""
    ranks = read_ranks(folder)
    unfit = read_json(folder / PREFLIGHT)
    if unfit is not None and unfit["unfit"]:
        return Verdict("unfit", unfit["reason"], unfit_nodes=unfit["unfit"])
    by_how: dict[str | None, list[RankRecord]] = {}
    for record in ranks:
        by_how.setdefault(record.how, []).append(record)
    for how in ("finished", "diverged"):
        if any(record.rank == 0 for record in by_how.get(how, [])):
            return Verdict(how, how)
    if "refused" in by_how:
        first = min(by_how["refused"], key=_ended)
        return Verdict("refused", first.message, first.rank, first.node, first.step)
    failures = sorted(by_how.get("failed", []), key=_ended)
    culprits = [record for record in failures if not _is_cascade(record)]
    if culprits:
        return _failed(culprits[0], len(ranks))
    silent = by_how.get(None, [])
    killed = [record for record in silent if record.told is None] or (silent if failures else [])
    if killed and not _was_stopped(ranks, failures, exit_code):
        return _killed(killed[0], exit_code)
    if failures:
        return _failed(failures[0], len(ranks))
    if "stopped" in by_how or silent or exit_code in TOLD_TO_STOP:
        told = next((record.told for record in ranks if record.told), None)
        return Verdict("stopped", f"asked to stop by {told}" if told else "asked to stop before training began")
    if not ranks:
        return Verdict("vanished", f"no process of the job began (exit code {exit_code}); see its log")
    return Verdict("vanished", f"ended with exit code {exit_code} and left no reason")


def lost(folder: Path) -> Verdict:
    """The verdict on an attempt that nobody judged: Slurm ended it as a whole, or its first node is gone."""
    ranks = read_ranks(folder)
    told = next((record.told for record in ranks if record.told), None)
    how = f"after {told}" if told else "without warning, as by the loss of a node"
    stopped = next((record for record in ranks if record.how == "stopped"), None)
    return Verdict("lost", f"ended from outside {how}" + (f"; stopped after step {stopped.step}" if stopped else ""))


def _failed(record: RankRecord, world_size: int) -> Verdict:
    others = f"; {world_size - 1} other ranks were ended" if world_size > 1 else ""
    reason = f"rank {record.rank} on {record.node} failed {_when(record.step)}: {record.message}{others}"
    return Verdict("crashed", reason, record.rank, record.node, record.step, error=record.message)


def _killed(record: RankRecord, exit_code: int) -> Verdict:
    number = exit_code - 128
    name = signal.Signals(number).name if number in {*signal.Signals} else "SIGKILL"
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    reason = f"rank {record.rank} on {record.node} was killed by {name}{hint}; the other ranks were ended"
    return Verdict("crashed", reason, record.rank, record.node, error=f"rank {record.rank} killed by {name}")


def _was_stopped(ranks: Sequence[RankRecord], failures: Sequence[RankRecord], exit_code: int) -> bool:
    """Whether the silent ranks died of a request to stop that came before they listened."""
    return exit_code in TOLD_TO_STOP and not failures and all(record.step == 0 for record in ranks)


def _is_cascade(record: RankRecord) -> bool:
    return any(sign in record.message for sign in CASCADE)


def _when(step: int) -> str:
    return f"at step {step}" if step else "before the first step"


def _ended(record: RankRecord) -> float:
    return record.ended or record.began
