"""The sandbox on Linux: what the kernel keeps the calling process, and all that it will start, from.

A file system of its own: the system's programs, this interpreter and its packages, read-only, and three folders in
memory that vanish with it; nothing else can be written, /proc included. No other file of the machine is in it, not even
those that everybody may read. No network, no privileges and no way to gain any, and a seccomp filter for what
namespaces do not cover. It takes Linux 5.14 and a system that lets its users have namespaces.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Iterable
from typing import Any, TypeVar

Number = TypeVar("Number", bound="int | None")

DRIVE = "/mnt/data"  # where the system message says that the model's files are
NOBODY = 65534
FOLDERS_IN_MEMORY = (DRIVE, "/tmp", "/dev/shm")
FOLDER_BYTES, FOLDER_FILES = 512 * 2**20, 20_000  # of each

SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib64", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/mime.types"),
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
SECCOMP_MODE_FILTER = 2
SECCOMP_ALLOW, SECCOMP_ERRNO = 0x7FFF0000, 0x00050000
CAPABILITY_VERSION_3 = 0x20080522
MAX_CAPABILITIES = 64

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # in audit and seccomp
# System calls that fail, and their numbers on x86-64 and on aarch64, or None. A list of what is denied and not of what
# is allowed, so that packages go on to work. It was made from all calls up to NEWEST_CALL; newer ones do not exist in
# the sandbox, and calls that need a capability fail in any case.
DENIED: dict[str, tuple[int, int | None]] = {
    # Memory that no limit counts.
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "vmsplice": (278, 75), "io_setup": (206, 0),
    "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    # Other processes, and what they hold.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "move_pages": (279, 239), "migrate_pages": (256, 238),
    # A timer could continue a process that was stopped between two calls; those of `setitimer` cannot.
    "timer_create": (222, 107),
    # Keyrings and the kernel's log belong to no namespace.
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "syslog": (103, 116),
    # Of no use here, and kernels were broken through it.
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "fanotify_init": (300, 262),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "personality": (135, 92), "modify_ldt": (154, None),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "open_tree_attr": (467, 467),
}  # fmt: skip
NEWEST_CALL = 469  # file_setattr, of Linux 6.17
SOCKET = (41, 198)
# Others reach past a network namespace: AF_VSOCK goes from a virtual machine to its host.
SOCKET_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK


def enter_pid_namespace() -> None:
    """The next child is the first process of a new PID namespace."""
    unshare(CLONE_NEWPID | (CLONE_NEWUSER if os.geteuid() else 0))


def adopt_orphans() -> None:
    """Become the parent of all processes below this one that lose theirs."""
    system("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def isolate(home: str, interpreter: Iterable[str]) -> None:
    """Enter all namespaces, a file system without the user's files, and give up every privilege for good."""
    unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
    write("/proc/self/oom_score_adj", "1000")  # where memory ends, this goes first, and not the model
    system("sethostname", b"sandbox", 7)
    writable_proc = change_root(home, interpreter)
    os.chdir(DRIVE)
    drop_privileges(f"/proc/self/fd/{writable_proc}")
    os.close(writable_proc)


def change_root(home: str, interpreter: Iterable[str]) -> int:
    """Leave the machine's file system for one that has only what Python needs.

    In it /proc is read-only: there the OOM score could be changed back. Returns a descriptor of one that is not.
    """
    root = "/proc"  # any folder that is there, and holds nothing that will be shown
    no_devices = MS_NOSUID | MS_NODEV
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", no_devices, "mode=755,size=1m")
    for path in (*FOLDERS_IN_MEMORY, "/proc"):
        os.makedirs(root + path)
    for path in DEVICES:
        open(root + path, "x").close()
        mount(path, root + path, None, MS_BIND)
        read_only(root + path, but=MOUNT_ATTR_NODEV)
    for path in FOLDERS_IN_MEMORY:
        mount("tmpfs", root + path, "tmpfs", no_devices, f"mode=1777,size={FOLDER_BYTES},nr_inodes={FOLDER_FILES}")
    mount("proc", root + "/proc", "proc", no_devices | MS_NOEXEC)
    writable_proc = os.open(root + "/proc", os.O_RDONLY)
    mount(root + "/proc", root + "/proc", None, MS_BIND)
    read_only(root + "/proc")
    for path in SYSTEM:
        show(path, root)
    if home != "/" and os.path.isdir(root + home):
        mount("tmpfs", root + home, "tmpfs", no_devices, "mode=755,size=1m")
    for path in interpreter:  # last, because it may be at home, or in a folder that is in memory now
        show(path, root)
    read_only(root)
    os.chdir(root)
    system("syscall", number_of(DENIED["pivot_root"]), b".", b".")  # the new root, and the old one on top of it
    system("umount2", b".", MNT_DETACH)
    os.chdir("/")
    return writable_proc


def show(path: str, root: str) -> None:
    """Let `path` be seen below `root`, and where it really is, too, for the links that lead there."""
    real = os.path.realpath(path)
    if not os.path.exists(real):
        return
    for target in dict.fromkeys((root + path, root + real)):
        if os.path.exists(target) and os.path.samefile(target, real):
            continue
        if os.path.isdir(real):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            open(target, "x").close()
        mount(real, target, None, MS_BIND | MS_REC)
        read_only(target, AT_RECURSIVE)


def drop_privileges(writable_proc: str) -> None:
    """Another user, if this one is root, in a user namespace that owns none of the namespaces around it, without
    capabilities, and with no way to any."""
    if not os.geteuid():
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        system("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)  # or /proc/self belongs to root
    unshare(CLONE_NEWUSER, writable_proc)
    # Inside another one, this process would have capabilities again.
    write(f"{writable_proc}/sys/user/max_user_namespaces", "0")
    system("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(MAX_CAPABILITIES):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails for those that this kernel does not know
    none = struct.pack("<6I", *[0] * 6)
    system("capset", struct.pack("<Ii", CAPABILITY_VERSION_3, 0), none)
    system("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # last, because a change of user clears it


def filter_system_calls() -> None:
    """A seccomp filter: some calls fail with EPERM, as do sockets of some families and all calls of other machines'
    ABIs; calls that were unknown when this was written do not exist."""
    load, equal, at_least, back = 0x20, 0x15, 0x35, 0x06  # opcodes of classic BPF
    number, machine, first_argument = 0, 4, 16  # offsets in struct seccomp_data
    refuse = (back, 0, 0, SECCOMP_ERRNO | errno.EPERM)
    allow = (back, 0, 0, SECCOMP_ALLOW)
    program = [(load, 0, 0, machine), (equal, 1, 0, ARCHITECTURES[os.uname().machine]), refuse, (load, 0, 0, number)]
    program += [(at_least, 0, 1, NEWEST_CALL + 1), (back, 0, 0, SECCOMP_ERRNO | errno.ENOSYS)]  # also x32, on x86-64
    for denied in map(number_of, DENIED.values()):
        program += [(equal, 0, 1, denied), refuse] if denied is not None else []
    program += [(equal, 1, 0, number_of(SOCKET)), allow, (load, 0, 0, first_argument)]
    for family in SOCKET_FAMILIES:
        program += [(equal, 0, 1, family), allow]
    program += [refuse]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *instruction) for instruction in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    system("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)


LIBC = ctypes.CDLL(None, use_errno=True)


def system(function: str, *arguments: Any) -> None:
    """Call a function of the C library. Raises OSError with its name."""
    words = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in arguments]
    if getattr(LIBC, function)(*words) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def number_of(call: tuple[int, Number]) -> int | Number:
    """The number that a system call has here; None where there is no such call."""
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"the numbers of the system calls of {machine} are not known here")
    return call[list(ARCHITECTURES).index(machine)]


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    system("mount", os.fsencode(source), os.fsencode(target), kind and kind.encode(), flags, options.encode())


def read_only(path: str, below: int = 0, *, but: int = 0) -> None:
    """Make a mount read-only; with AT_RECURSIVE, all mounts below it, too."""
    attributes = (MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV) & ~but
    data = struct.pack("<4Q", attributes, 0, 0, 0)
    system("syscall", number_of(DENIED["mount_setattr"]), AT_FDCWD, os.fsencode(path), below, data, len(data))


def unshare(namespaces: int, proc: str = "/proc") -> None:
    """Enter new namespaces; in one of users, this user keeps its number."""
    user, group = os.geteuid(), os.getegid()
    system("unshare", namespaces)
    if namespaces & CLONE_NEWUSER:
        write(f"{proc}/self/setgroups", "deny")
        write(f"{proc}/self/uid_map", f"{user} {user} 1")
        write(f"{proc}/self/gid_map", f"{group} {group} 1")


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
