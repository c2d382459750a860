"""One measurement of the model's inside: what a monitored step adds to the record."""

from dataclasses import dataclass

import numpy as np

from monitoring.attention import AttentionMonitor
from monitoring.entropy import causal_maximum
from monitoring.spectra import collect_spectra
from parallel.spectral import SpectralReparam
from parallel.topology import Topology


@dataclass(frozen=True)
class Measurement:
    """Arrays per layer and head or per matrix; layers L, heads A, matrices M.

    `entropy_LA` in nats, mean over the rows of every sequence of the step; `maximum` the most it can be.
    """

    entropy_LA: np.ndarray
    max_logit_LA: np.ndarray
    maximum: float
    matrices: list[str]
    sigma_M: np.ndarray
    gamma_M: np.ndarray

    def aggregates(self) -> dict[str, float]:
        """The numbers of a metrics line."""
        values = {
            "entropy_mean": float(self.entropy_LA.mean()),
            "entropy_min": float(self.entropy_LA.min()),
            "entropy_ratio": float(self.entropy_LA.mean() / self.maximum),
            "max_logit": float(self.max_logit_LA.max()),
        }
        if self.matrices:
            values |= {"sigma_max": float(self.sigma_M.max()), "gamma_max": float(np.abs(self.gamma_M).max())}
        return values

    def arrays(self) -> dict[str, np.ndarray]:
        """What is kept of the step besides the aggregates."""
        arrays = {
            "entropy": self.entropy_LA,
            "entropy_ratio": self.entropy_LA / self.maximum,
            "max_logit": self.max_logit_LA,
        }
        if self.matrices:
            arrays |= {"matrix": np.array(self.matrices), "sigma": self.sigma_M, "gamma": self.gamma_M}
        return arrays


def measure(
    attention: AttentionMonitor, spectral: SpectralReparam, topology: Topology, sequence_length: int
) -> Measurement | None:
    """What the step just taken showed, on the logging rank; None elsewhere. Collective."""
    heads = attention.collect()
    spectra = collect_spectra(spectral, topology)
    if heads is None:
        return None
    return Measurement(
        entropy_LA=heads["entropy"].numpy(),
        max_logit_LA=heads["max_logit"].numpy(),
        maximum=causal_maximum(sequence_length),
        matrices=spectra.names if spectra else [],
        sigma_M=np.array(spectra.sigma if spectra else [], dtype=np.float32),
        gamma_M=np.array(spectra.gamma if spectra else [], dtype=np.float32),
    )
