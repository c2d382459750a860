"""The table of devices: each found by what its driver calls it, and no other by mistake."""

import pytest

from monitoring.devices import DEVICES, find


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("AMD Instinct MI250X", "mi250x"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_a_device_is_known_by_the_name_that_its_driver_reports(reported: str, name: str) -> None:
    assert find(reported) is DEVICES[name]


@pytest.mark.parametrize(
    "reported",
    [
        "NVIDIA GH200 480GB",
        "NVIDIA L40",
        "NVIDIA GB200",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-PCIE-40GB",
    ],
)
def test_a_device_that_only_sounds_alike_is_not_taken_for_it(reported: str) -> None:
    assert find(reported) is None


def test_rates_rise_as_precision_falls() -> None:
    for device in DEVICES.values():
        assert device.tflops["bf16"] >= device.tflops["tf32"] >= device.tflops["fp32"] > 0, device.name
        assert device.link < device.bandwidth
