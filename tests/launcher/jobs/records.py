"""Attempts as their ranks would have left them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.jobs.attempt import PREFLIGHT, RankRecord

CONNECTION = "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4711"


def attempt(folder: Path, *ranks: dict[str, Any], unfit: list[str] | None = None) -> Path:
    """Write a record for each rank; what is not given is of a rank that began and was killed."""
    folder.mkdir(parents=True)
    for rank, values in enumerate(ranks):
        record = RankRecord(rank, f"n{rank // 2}", 100 + rank, len(ranks), began=10.0 + rank / 10)
        (folder / f"rank-{rank}.json").write_text(json.dumps(asdict(record) | values))
    if unfit is not None:
        (folder / PREFLIGHT).write_text(json.dumps({"unfit": unfit, "reason": "n1: health check failed: unfit"}))
    return folder


def failed(message: str, *, at: float, step: int = 12) -> dict[str, Any]:
    return {"how": "failed", "message": message, "ended": at, "step": step}


def ended(how: str) -> dict[str, Any]:
    return {"how": how, "ended": 20.0, "step": 30}


def told(signal: str) -> dict[str, Any]:
    return {"told": signal, "told_at": 15.0}
