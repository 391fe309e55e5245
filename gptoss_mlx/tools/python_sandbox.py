"""The process that runs a model's Python, and the sandbox around it.

`python` starts it: `python -I python_sandbox.py SETTINGS`, which are JSON.

Three processes, all from this file; the standard library alone:

- The keeper starts the others and outlives them. Its standard input is the parent's life: a byte there is an order,
  the end of it (a close, or the parent's death) ends everything. Whatever the model's code does, it cannot reach the
  keeper.
- `init` (on Linux) builds the sandbox around itself and is the first process of a PID namespace: when it ends, the
  kernel kills all that is left in there.
- The worker runs code, one request after another, in one namespace of variables. Between two calls it is stopped, with
  all threads and processes that the code has started: they go on with the next call.

On Linux the sandbox has a file system of its own: the system's programs, this interpreter and its packages, read-only,
and three folders in memory that vanish with it; nothing else can be written, /proc included. No other file of the
machine is in it, whoever may read it. It has no network, no privileges and no way to gain any, and a seccomp filter
for what namespaces do not cover. It takes Linux 5.14 and a system that lets its users have namespaces. Memory is
limited for each process and each of the three folders, not for all of them together: where it ends, the kernel kills
these processes before any other.

On macOS the sandbox is a Seatbelt profile. That part follows public descriptions of the profile language and has not
been run yet. macOS enforces no limit of memory.

A request is a number and a length, both four bytes, and that many bytes of UTF-8; the answer to it is the number. An
order is the number of a signal: SIGINT interrupts the code, SIGUSR1 stops everything, which is answered, too, and
SIGUSR2 continues it. All that a person at a notebook would see goes to file descriptor 1, whose other end is the
parent.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import errno
import json
import linecache
import os
import pathlib
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TextIO

REQUEST = struct.Struct("<II")
REPLY = struct.Struct("<I")
READY = 0  # the number that a worker sends when its sandbox has been checked
STOPPED = 2**32 - 1  # the number that says that everything has been stopped

DRIVE = "/mnt/data"  # where the model was told that its files are
NOBODY = 65534
FOLDERS_IN_MEMORY = (DRIVE, "/tmp", "/dev/shm")
FOLDER_BYTES, FOLDER_FILES = 512 * 2**20, 20_000  # of each
LIMITS = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_FSIZE: FOLDER_BYTES,
    resource.RLIMIT_NOFILE: 256,
}
PROCESSES = 64  # threads count, too

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/nix/store", "/gnu/store")
SYSTEM += ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/mime.types")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
PARTS_OF_PREFIX = ("bin", "lib", "lib64", "pyvenv.cfg", "Python", "Resources")  # all of it could be a home folder


class Settings(NamedTuple):
    """What the parent asks for, as JSON on the command line."""

    isolation: str
    """"namespaces", "seatbelt", "none", or "inside" for a worker that is started inside of a sandbox."""
    memory: int
    """Bytes, of each process."""
    home: str
    requests: int
    """The pipes' ends, as file descriptors."""
    replies: int


# The keeper


def keep(settings: Settings) -> None:
    """Start the sandbox that `settings` ask for, and wait until it ends or standard input does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if settings.isolation == "namespaces":
        unshare(CLONE_NEWPID | (CLONE_NEWUSER if os.geteuid() else 0))
        child = Child(fork(lambda: init(settings)))
        for end in (settings.requests, settings.replies):
            os.close(end)
        sys.exit(shell_status(outcome(child)))
    folder = tempfile.mkdtemp(prefix="gptoss-mlx-python-")
    if sys.platform == "linux":
        system("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    process = fork(lambda: start_in(folder, settings))
    os.close(settings.requests)
    signal_all = signal_below if sys.platform == "linux" else lambda number: os.killpg(process, number)
    status = outcome(Worker(process, settings.replies, signal_all))
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal_all(signal.SIGKILL)
    os.spawnlp(os.P_WAIT, "rm", "rm", "-rf", "--", folder)  # shutil's calls itself for each level of folders
    sys.exit(shell_status(status))


class Child:
    """A process, for the one that waits for it."""

    def __init__(self, number: int):
        self.number, self._rests = number, False

    def obey(self, order: int) -> None:
        os.kill(self.number, order)

    def status(self) -> int | None:
        """The wait status once it has ended. Others are orphans, whose place this frees.

        Where the child has stopped itself, it goes on: nobody else would continue it.
        """
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG | os.WUNTRACED))[0]:
                if ended[0] == self.number and not os.WIFSTOPPED(ended[1]):
                    return ended[1]
                if ended[0] == self.number and not self._rests:
                    os.kill(self.number, signal.SIGCONT)
        return None


class Worker(Child):
    """The worker, with all that it has started; `signal_all` reaches all of them."""

    def __init__(self, number: int, replies: int, signal_all: Callable[[int], None]):
        super().__init__(number)
        self._replies, self._signal_all = replies, signal_all

    def obey(self, order: int) -> None:
        if order == signal.SIGINT:
            super().obey(order)
            return
        self._rests = order == signal.SIGUSR1
        with contextlib.suppress(OSError):  # there is none left, or nobody listens
            self._signal_all(signal.SIGSTOP if self._rests else signal.SIGCONT)
            if self._rests:
                os.write(self._replies, REPLY.pack(STOPPED))


def signal_below(number: int) -> None:
    """Signal all processes below this one, also those that are started meanwhile."""
    signalled: set[int] = set()
    while new := below(os.getpid()) - signalled:
        for process in new:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, number)
        signalled |= new


def below(process: int) -> set[int]:
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process}


def outcome(child: Child) -> int:
    """The wait status of a child, which the end of standard input kills; a byte there is an order to it."""
    # Not a thread that waits: after `unshare` of the PID namespace there can be none.
    ended, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while (status := child.status()) is None:
        ready, _, _ = select.select([0, ended], [], [])
        if ended in ready:
            os.read(ended, 1)
        if 0 in ready:
            if order := os.read(0, 1):
                child.obey(order[0])
            else:
                os.kill(child.number, signal.SIGKILL)
                return os.waitpid(child.number, 0)[1]
    return status


def fork(become: Callable[[], None]) -> int:
    """The number of a new process that does what `become` does, and ends."""
    if child := os.fork():
        return child
    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # Whoever can open the keeper's pipe to the parent can keep it open, and the keeper waiting.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        become()
        status = 0
    except OSError as error:
        print(reason(error), flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def reason(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)


def shell_status(status: int) -> int:
    """What a shell makes of a wait status: the exit status, or 128 and the signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def start_in(folder: str, settings: Settings) -> None:
    """Become a worker whose files are on the disk: on macOS inside a profile, or with nothing around it."""
    os.setsid()
    os.chdir(folder)
    os.environ["TMPDIR"] = folder
    limit(settings.memory)
    if settings.isolation == "seatbelt":
        for end in (settings.requests, settings.replies):
            os.set_inheritable(end, True)
        os.stat(SANDBOX_EXEC)  # this error has the name of what is missing; that of `execv` does not
        program = [sys.executable, "-I", __file__, json.dumps(settings._replace(isolation="inside")._asdict())]
        profile = seatbelt(os.path.realpath(folder), settings.home)
        os.execv(SANDBOX_EXEC, [SANDBOX_EXEC, "-p", profile, *program])
    work(settings)


def limit(memory: int) -> None:
    """Memory in bytes, of each process. A system may refuse a limit: macOS has none of memory."""
    for kind, most in (LIMITS | {resource.RLIMIT_AS: memory}).items():
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):
            if sys.platform == "linux":
                raise


def interpreter() -> Iterable[str]:
    """The files and folders of this interpreter and its packages."""
    for prefix in (sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix):
        yield from (os.path.join(prefix, part) for part in PARTS_OF_PREFIX)


# Linux

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
# Numbers on x86-64 and on aarch64, or None. What is denied and not what is allowed, so that whatever packages call goes
# on to work: looked for among all calls up to NEWEST_CALL; what is newer does not exist in the sandbox. A call that
# takes a capability fails in any case.
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


def init(settings: Settings) -> None:
    """Become the first process of the sandbox, and start its worker."""
    os.setsid()
    unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
    write("/proc/self/oom_score_adj", "1000")  # where memory ends, this goes first, and not the model
    system("sethostname", b"sandbox", 7)
    writable_proc = change_root(settings.home)
    os.chdir(DRIVE)
    drop_privileges(f"/proc/self/fd/{writable_proc}")
    os.close(writable_proc)
    limit(settings.memory)
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))  # counted in this user namespace
    filter_system_calls()
    watched = {signal.SIGCHLD, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)  # where they are blocked, they wait: also for the first process
    worker = Worker(fork(lambda: work(settings)), settings.replies, lambda number: os.kill(-1, number))
    os.close(settings.requests)
    while (status := worker.status()) is None:
        if (received := signal.sigwait(watched)) != signal.SIGCHLD:
            worker.obey(received)
    os._exit(shell_status(status))


def change_root(home: str) -> int:
    """Leave the machine's file system for one that has only what Python needs.

    In it, /proc is read-only, or memory's last resort could be undone there. Returns a descriptor of one that is not.
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
    for path in interpreter():  # last, because it may be at home, or in a folder that is in memory now
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
    write(
        f"{writable_proc}/sys/user/max_user_namespaces", "0"
    )  # inside another one, this process would have capabilities again
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


def number_of(call: tuple[int, int | None]) -> int | None:
    """The number that a system call has here."""
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


# macOS

SANDBOX_EXEC = "/usr/bin/sandbox-exec"
# Later rules win over earlier ones. Without process-fork, one process is all that there will be.
PROFILE = """\
(version 1)
(deny default)
(import "system.sb")
(deny network*)
(deny file-write*)
(deny file-read* (subpath {home}))
(allow sysctl-read)
(allow process-info* signal (target self))
(allow process-exec* {interpreter})
(allow file-read* file-map-executable (literal "/") {system} {interpreter})
(allow file-read-metadata {above})
(allow file-read* file-write* (subpath {folder}))
(allow file-write-data (literal "/dev/null"))
"""
MAC_SYSTEM = ("/usr/lib", "/usr/share", "/System", "/opt/homebrew/Cellar", "/opt/homebrew/opt", "/opt/homebrew/lib")


def seatbelt(folder: str, home: str) -> str:
    """The profile for a worker whose folder this is. Seatbelt compares real paths."""
    shown = dict.fromkeys(os.path.realpath(path) for path in (*interpreter(), __file__) if os.path.exists(path))
    above = {str(parent) for path in (folder, *shown) for parent in pathlib.PurePath(path).parents}
    return PROFILE.format(
        home=quoted(os.path.realpath(home)),
        folder=quoted(folder),
        interpreter=" ".join(f"(subpath {quoted(path)})" for path in shown),
        system=" ".join(f"(subpath {quoted(path)})" for path in MAC_SYSTEM),
        above=" ".join(f"(literal {quoted(path)})" for path in sorted(above)),
    )


def quoted(path: str) -> str:
    return json.dumps(path, ensure_ascii=False)


# The worker


def work(settings: Settings) -> None:
    """Answer requests until there are no more."""
    if settings.isolation != "none" and (hole := find_hole()):
        print(hole, flush=True)
        os._exit(1)
    folder = os.environ["HOME"] = os.getcwd()
    sys.path.insert(0, folder)
    sys.argv[:] = [""]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    # A copy, so that code which closes or redirects its standard output is still told its results.
    notebook = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    own = os.getpid()
    os.write(settings.replies, REPLY.pack(READY))
    with open(settings.requests, "rb") as requests:
        while header := requests.read(REQUEST.size):
            number, size = REQUEST.unpack(header)
            source = requests.read(size).decode(errors="surrogatepass")
            run(source, f"<call {number}>", main.__dict__, notebook)
            if os.getpid() != own:
                os._exit(0)  # code that forks, and forgets that its child comes here
            os.write(settings.replies, REPLY.pack(number))


def run(source: str, name: str, namespace: dict[str, Any], notebook: TextIO) -> None:
    """Execute `source` and show what a notebook shows. SIGINT counts only meanwhile."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # for tracebacks
    shown = ""
    try:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            shown = value_of(source, name, namespace)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except BaseException as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # again: the interrupt may have come just before
        shown = failure(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    notebook.write(shown)
    notebook.flush()


def value_of(source: str, name: str, namespace: dict[str, Any]) -> str:
    """Execute `source`; the repr of its last expression, or nothing if that is None, or no expression."""
    tree = compile(source, name, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec", dont_inherit=True), namespace)
    if last is None:
        return ""
    value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), namespace)
    return "" if value is None else f"{value!r}\n"


def failure(error: BaseException) -> str:
    """The traceback, without the frames of this file."""
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, frames))
    except Exception:  # the exception's class is the model's, too
        return f"{type(error).__name__}\n"


def find_hole() -> str | None:
    """What a sandbox must not allow and this one does, or None. Tried, not deduced."""
    for folder in ("/", os.path.dirname(__file__)):
        probe = os.path.join(folder, f".gptoss-mlx-{os.getpid()}")
        with contextlib.suppress(OSError):
            open(probe, "x").close()
            os.unlink(probe)
            return f"files in {folder} can be written"
    if sys.platform == "linux":
        others = [name for _, name in socket.if_nameindex() if name != "lo"]
        return f"the network interface {others[0]} is there" if others else None
    with socket.socket() as probing:
        try:
            probing.connect(("127.0.0.1", 9))
        except PermissionError:
            return None
        except OSError:
            pass
    return "the network can be reached"


if __name__ == "__main__":
    settings = Settings(**json.loads(sys.argv[1]))
    try:
        (work if settings.isolation == "inside" else keep)(settings)
    except OSError as error:
        sys.exit(reason(error))
