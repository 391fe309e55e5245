"""The resource usage that macOS reports to a process without root: its memory, and its energy on the CPU.

`proc_pid_rusage` of libproc, through ctypes; the structure is that of xnu's bsd/sys/resource.h. Checked against that
header, not run on a Mac. Other systems have no such function.
"""

from __future__ import annotations

import ctypes
import os

# RUSAGE_INFO_V6, and the version of older kernels, which fills the first part of the same structure.
FLAVORS = (6, 4)

_V4 = """
    user_time system_time pkg_idle_wkups interrupt_wkups pageins wired_size resident_size phys_footprint
    proc_start_abstime proc_exit_abstime
    child_user_time child_system_time child_pkg_idle_wkups child_interrupt_wkups child_pageins child_elapsed_abstime
    diskio_bytesread diskio_byteswritten
    cpu_time_qos_default cpu_time_qos_maintenance cpu_time_qos_background cpu_time_qos_utility cpu_time_qos_legacy
    cpu_time_qos_user_initiated cpu_time_qos_user_interactive billed_system_time serviced_system_time
    logical_writes lifetime_max_phys_footprint instructions cycles billed_energy serviced_energy
    interval_max_phys_footprint runnable_time
"""
_V6 = "flags user_ptime system_ptime pinstructions pcycles energy_nj penergy_nj"


class ResourceUsage(ctypes.Structure):
    """`struct rusage_info_v6`: energy in nanojoules, memory in bytes. A field that the kernel does not fill is 0."""

    _fields_ = (
        ("ri_uuid", ctypes.c_uint8 * 16),
        *((f"ri_{name}", ctypes.c_uint64) for name in (_V4 + _V6).split()),
        ("ri_reserved", ctypes.c_uint64 * 14),
    )


def resource_usage(library: ctypes.CDLL | None = None) -> ResourceUsage | None:
    """The usage of this process, from `library` or the libraries linked to Python; None without such a function."""
    try:
        function = (library or ctypes.CDLL(None)).proc_pid_rusage
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
    function.restype = ctypes.c_int
    usage = ResourceUsage()
    for flavor in FLAVORS:
        if function(os.getpid(), flavor, ctypes.byref(usage)) == 0:
            return usage
    return None
