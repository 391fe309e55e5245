"""What NVIDIA's driver reports of the GPU that MLX computes on, without root, through NVIDIA's own `nvidia-ml-py`.

Without such a GPU, the package, a driver, or a function that the driver does not have, nothing is reported.
"""

from __future__ import annotations

from typing import Any

from ..device import gpu, is_cuda

# Of the reasons for a lower clock, those that are heat or a power supply that asks for it. That the power reaches its
# limit is not among them: under load it always does.
SLOWDOWNS = ("HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")


class NvidiaGpu:
    def __init__(self, nvml: Any, uuid: str):
        """`nvml` is the module `pynvml`. Raises its NVMLError where there is no driver, or no such GPU."""
        self._nvml = nvml
        nvml.nvmlInit()
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)

    @property
    def millijoules(self) -> int | None:
        """Energy that the board has used since the driver was loaded."""
        return self._ask("nvmlDeviceGetTotalEnergyConsumption", self._handle)

    @property
    def slowed(self) -> bool | None:
        """Whether heat, or a power supply that asks for it, slows the GPU now."""
        reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", self._handle)
        slowdowns = [getattr(self._nvml, f"nvmlClocksThrottleReason{name}") for name in SLOWDOWNS]
        return None if reasons is None else any(reasons & slowdown for slowdown in slowdowns)

    @property
    def driver(self) -> str | None:
        """The driver's version."""
        return self._ask("nvmlSystemGetDriverVersion")

    def _ask(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError:
            return None


def nvidia_gpu() -> NvidiaGpu | None:
    """The one that MLX computes on, if it does."""
    here = gpu()
    if here is None or not is_cuda():
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        return NvidiaGpu(pynvml, here.uuid)
    except pynvml.NVMLError:
        return None
