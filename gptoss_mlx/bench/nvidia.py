"""What NVIDIA's driver tells of the GPU that MLX computes on, without root: NVML, through ctypes.

The functions and constants are those of NVIDIA's NVML API reference. Where there is no such GPU, no driver, or a
function that it does not have, nothing is told.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_uint, c_ulonglong, c_void_p

from ..device import gpu, is_cuda

LIBRARY = "libnvidia-ml.so.1"

# nvmlClocksThrottleReason: HwSlowdown, SwThermalSlowdown, HwThermalSlowdown, HwPowerBrakeSlowdown. That the power
# reaches its cap is not among them: under load it always does.
SLOWDOWNS = 0x08 | 0x20 | 0x40 | 0x80

VERSION_BYTES = 80


class NvidiaGpu:
    def __init__(self, library: ctypes.CDLL, uuid: str):
        """Raises LookupError where the driver does not know the GPU `uuid`."""
        self._library = library
        self._handle = c_void_p()
        known = self._call("nvmlInit_v2") and self._call(
            "nvmlDeviceGetHandleByUUID", (c_char_p, uuid.encode()), (POINTER(c_void_p), ctypes.byref(self._handle))
        )
        if not known:
            raise LookupError(uuid)

    @property
    def millijoules(self) -> int | None:
        """That the board took since the driver was loaded."""
        return self._number("nvmlDeviceGetTotalEnergyConsumption")

    @property
    def slowed(self) -> bool | None:
        """Whether heat, or a power supply that asks for it, slows the GPU now."""
        reasons = self._number("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if reasons is None else bool(reasons & SLOWDOWNS)

    @property
    def driver(self) -> str | None:
        """The version."""
        text = ctypes.create_string_buffer(VERSION_BYTES)
        got = self._call("nvmlSystemGetDriverVersion", (c_char_p, text), (c_uint, VERSION_BYTES))
        return text.value.decode(errors="replace") if got else None

    def _number(self, name: str) -> int | None:
        number = c_ulonglong()
        got = self._call(name, (c_void_p, self._handle), (POINTER(c_ulonglong), ctypes.byref(number)))
        return number.value if got else None

    def _call(self, name: str, *arguments: tuple[type, object]) -> bool:
        """Whether there is such a function, and it succeeded."""
        function = getattr(self._library, name, None)
        if function is None:
            return False
        function.argtypes = [kind for kind, _ in arguments]
        function.restype = ctypes.c_int
        return function(*(value for _, value in arguments)) == 0


def nvidia_gpu() -> NvidiaGpu | None:
    """The one that MLX computes on, if it does."""
    if not is_cuda():
        return None
    try:
        return NvidiaGpu(ctypes.CDLL(LIBRARY), gpu().uuid)
    except (OSError, LookupError):
        return None
