"""The load of this machine, by MLflow's own collectors and under the names by which its UI shows them."""

import contextlib
import time

SECONDS_BETWEEN = 10.0  # MLflow's own interval


class SystemMetrics:
    """Samples processors, memory, disk, network, and GPUs where their management library (pynvml) is installed."""

    def __init__(self) -> None:
        """To be called beside training: it imports MLflow."""
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
        from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

        self._monitors = []
        for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor, ROCMMonitor):
            # What a machine does not have: the collectors have no other way to say so.
            with contextlib.suppress(ImportError, RuntimeError, AttributeError, OSError):
                self._monitors.append(kind())
        self._collect()  # the processors' load is since the last look
        self._next = time.monotonic()

    def sample(self) -> dict[str, float]:
        """Names `system/...` and values, every ten seconds; empty in between."""
        if time.monotonic() < self._next:
            return {}
        self._next = time.monotonic() + SECONDS_BETWEEN
        return {f"system/{name}": float(value) for name, value in self._collect().items()}

    def _collect(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return found
