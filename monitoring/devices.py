"""What accelerators can do at most, from their makers' data sheets: the denominators of utilisation and of plans.

Rates are dense: where a data sheet gives those with structured sparsity, half of them. Memory is what the driver
reports, which is less than what is sold where parts of it are reserved (B200, H200) or hold ECC (L4,
A10G, L40S). Links are per direction and device: half of what data sheets call the bandwidth of NVLink or PCIe.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Peak rates of one accelerator."""

    name: str
    """As `torch.cuda.get_device_name` has it in part; see `find`."""
    tflops: dict[str, float]
    """Matrix products by compute dtype, in 10^12 per second: `bf16`, `fp32`, and `tf32` (fp32 tensors, products in
    TF32), which torch takes only where it is told to."""
    memory_gib: float
    bandwidth: float
    """Of its memory, GB/s."""
    link: float
    """To the other devices of its node, GB/s."""
    network: float
    """To other nodes, GB/s per device, as such nodes are usually built: not on the data sheet."""


def _rates(bf16: float, tf32: float, fp32: float) -> dict[str, float]:
    return {"bf16": bf16, "tf32": tf32, "fp32": fp32}


DEVICES: dict[str, Device] = {
    # Volta has neither bf16 nor TF32: what runs instead, at fp32's rate. SXM2.
    "v100": Device("V100-SXM2-32GB", _rates(15.7, 15.7, 15.7), 32, 900, 150, 12.5),
    # A100 data sheet: TF32 156, bf16 312, fp32 19.5; NVLink 600 GB/s both ways, PCIe 4 64 GB/s.
    "a100-40": Device("A100-SXM4-40GB", _rates(312, 156, 19.5), 40, 1555, 300, 25),
    "a100": Device("A100-SXM4-80GB", _rates(312, 156, 19.5), 80, 2039, 300, 25),
    "a100-pcie": Device("A100 80GB PCIe", _rates(312, 156, 19.5), 80, 1935, 32, 12.5),
    # H100 white paper (SXM5: 989.4 bf16, 66.9 fp32) and data sheet (PCIe: 1,513 sparse; NVL: 1,671 sparse); NVLink
    # 900 (NVL 600) GB/s both ways, PCIe 5 128 GB/s.
    "h100": Device("H100 80GB HBM3", _rates(989.4, 494.7, 66.9), 79.6, 3352, 450, 50),
    "h100-pcie": Device("H100 PCIe", _rates(756, 378, 51.2), 79.6, 2039, 64, 25),
    "h100-nvl": Device("H100 NVL", _rates(835.5, 417.8, 60), 93.6, 3938, 300, 25),
    # H200 data sheet: SXM computes as the H100 does; NVL 1,671 sparse; both 4.8 TB/s, NVLink 900 GB/s.
    "h200": Device("H200", _rates(989.4, 494.7, 66.9), 140.4, 4800, 450, 50),
    "h200-nvl": Device("H200 NVL", _rates(835.5, 417.8, 60), 140.4, 4800, 450, 25),
    # HGX B200 at 1,000 W: 4,500 sparse bf16, 2,200 sparse TF32, NVLink 5 1,800 GB/s.
    "b200": Device("B200", _rates(2250, 1100, 75), 179, 7700, 900, 50),
    # Ada: L4 242 and 120 sparse; L40S 362 and 183 dense as given; PCIe 4 64 GB/s.
    "l4": Device("L4", _rates(121, 60, 30.3), 22.5, 300, 32, 12.5),
    "l40s": Device("L40S", _rates(362, 183, 91.6), 45, 864, 32, 25),
    "a10g": Device("A10G", _rates(70, 35, 35), 22.5, 600, 32, 12.5),
    # Ada white paper: tensor cores with fp32 accumulation.
    "rtx4090": Device("RTX 4090", _rates(165.2, 82.6, 82.6), 24, 1008, 32, 12.5),
    # AMD data sheets, matrix rates. Of the MI250X one of its two dies, which is what torch sees as a device.
    "mi250x": Device("MI250X", _rates(191.5, 47.9, 47.9), 64, 1638, 50, 25),
    "mi300x": Device("MI300X", _rates(1307.4, 653.7, 163.4), 192, 5300, 448, 50),
}
"""By the name that `--device` takes."""


def find(reported: str) -> Device | None:
    """The device that calls itself `reported`; None if it is not in the table.

    What follows the name makes it another: a part of a device (MIG), a laptop's, a variant for one market.
    """
    suffix = r"( VF| OAM| ?/ ?MI250)?"  # of AMD's: the same device
    return next((d for d in DEVICES.values() if re.search(rf"\b{d.name}{suffix}$", reported, re.IGNORECASE)), None)
