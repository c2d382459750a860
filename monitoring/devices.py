"""What accelerators can do at most, from their makers' data sheets: the denominators of utilisation and of plans.

Rates are dense (no structured sparsity), memory is what the device has, links are per direction and device.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Peak rates of one accelerator."""

    name: str
    """As `torch.cuda.get_device_name` has it in part; see `find`."""
    tflops: dict[str, float]
    """Matrix products by compute dtype (`bf16`, `fp32`: with TF32 where the device has it), in 10^12 per second."""
    memory_gib: float
    bandwidth: float
    """Of its memory, GB/s."""
    link: float
    """To the other devices of its node, GB/s."""
    network: float
    """To other nodes, GB/s per device, as such nodes are usually built."""


DEVICES: dict[str, Device] = {
    "v100": Device("V100", {"bf16": 15.7, "fp32": 15.7}, 32, 900, 150, 12.5),  # has no bf16 units: fp32's rate
    "a100-40": Device("A100-SXM4-40GB", {"bf16": 312, "fp32": 156}, 40, 1555, 300, 25),
    "a100": Device("A100-SXM4-80GB", {"bf16": 312, "fp32": 156}, 80, 2039, 300, 25),
    "a100-pcie": Device("A100 80GB PCIe", {"bf16": 312, "fp32": 156}, 80, 1935, 32, 12.5),
    "h100": Device("H100 80GB HBM3", {"bf16": 989.4, "fp32": 494.7}, 80, 3352, 450, 50),
    "h100-pcie": Device("H100 PCIe", {"bf16": 756, "fp32": 378}, 80, 2039, 64, 25),
    "h100-nvl": Device("H100 NVL", {"bf16": 835, "fp32": 417.5}, 94, 3938, 300, 25),
    "h200": Device("H200", {"bf16": 989.4, "fp32": 494.7}, 141, 4800, 450, 50),
    "b200": Device("B200", {"bf16": 2250, "fp32": 1125}, 180, 8000, 900, 50),
    "l4": Device("L4", {"bf16": 121, "fp32": 60}, 24, 300, 32, 12.5),
    "l40s": Device("L40S", {"bf16": 362, "fp32": 183}, 48, 864, 32, 25),
    "a10g": Device("A10G", {"bf16": 70, "fp32": 35}, 24, 600, 32, 12.5),
    "rtx4090": Device("RTX 4090", {"bf16": 165.2, "fp32": 82.6}, 24, 1008, 32, 12.5),
    "mi250x": Device("MI250X", {"bf16": 191.5, "fp32": 47.9}, 64, 1638, 50, 25),  # one of its two dies
    "mi300x": Device("MI300X", {"bf16": 1307.4, "fp32": 653.7}, 192, 5300, 448, 50),
}
"""By the name that `--device` takes."""


def find(reported: str) -> Device | None:
    """The device that calls itself `reported`; None if it is not in the table."""
    named = [device for device in DEVICES.values() if device.name.lower() in reported.lower()]
    return max(named, key=lambda device: len(device.name), default=None)
