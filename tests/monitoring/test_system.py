"""System metrics: MLflow's names, at most every ten seconds."""

from monitoring import system
from monitoring.system import SystemMetrics


def test_samples_have_the_names_of_mlflows_own(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(system.time, "monotonic", lambda: now[0])
    metrics = SystemMetrics()
    first = metrics.sample()
    expected = {"cpu_utilization_percentage", "system_memory_usage_megabytes", "disk_usage_percentage"}
    assert {f"system/{name}" for name in expected} | {"system/network_receive_megabytes"} <= set(first)
    assert 0 < first["system/system_memory_usage_percentage"] <= 100
    now[0] += system.SECONDS_BETWEEN - 1
    assert metrics.sample() == {}
    now[0] += 1
    assert set(metrics.sample()) == set(first)
