"""What a step achieves: operations per second of each device and, where its peak is known, the share of it (MFU)."""

import torch

from configs.schema import Config
from model.flops import training_flops
from monitoring.devices import find
from parallel.embedding import count_rows
from parallel.topology import Topology


class Meter:
    """Model FLOP/s utilisation as PaLM's authors define it (Chowdhery et al. 2022, appendix B).

    SAM's second pass counts: the model asks for it. Recomputation does not. A CPU has no MFU: its peak depends on the
    clock that it holds under load and on how many of its cores other processes leave.
    """

    def __init__(self, config: Config, topology: Topology, vocab_size: int) -> None:
        rows = count_rows(vocab_size, config.model.vocab_multiple)
        passes = 2 if config.optimizer.sam_rho else 1
        flops = training_flops(config.model, rows, config.training.sequence_length).total * passes
        self._tflop_per_token = flops / topology.world_size / 1e12
        self._peak = _peak_tflops(topology.device, config.training.precision)

    def rates(self, tokens_per_s: float) -> dict[str, float]:
        """`tflops_per_device`, and `mfu` (1: the peak) on devices of the table."""
        achieved = tokens_per_s * self._tflop_per_token
        found = {"tflops_per_device": achieved}
        return found if self._peak is None else found | {"mfu": achieved / self._peak}


def _peak_tflops(device: torch.device, precision: str) -> float | None:
    """10^12 operations per second of matrix products as they are computed here; None of a device not in the table."""
    if device.type != "cuda":
        return None
    known = find(torch.cuda.get_device_name(device))
    if known is None:
        return None
    with_tf32 = precision == "fp32" and torch.backends.cuda.matmul.allow_tf32
    return known.tflops["tf32" if with_tf32 else precision]
