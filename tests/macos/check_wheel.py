"""What a wheel for macOS must be, read from its files: python check_wheel.py WHEEL LIBMLX.

For Apple silicon and macOS 14; its module links with MLX's library alone, in the place where MLX installs it, and asks
for no symbol that this library does not export.
"""

import struct
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

MODULE = "gptoss_mlx/kernels/_native."
LIBRARY = "mlx/lib/libmlx.dylib"
SYSTEM = "/usr/lib/"
MAGIC, ARM64 = 0xFEEDFACF, 0x0100000C
SYMTAB, LOAD_DYLIB, ID_DYLIB, RPATH, BUILD_VERSION = 0x2, 0xC, 0xD, 0x8000001C, 0x32
MLX_PREFIXES = ("__ZN3mlx", "__ZNK3mlx", "__ZTIN3mlx", "__ZTVN3mlx")


@dataclass
class MachO:
    """The load commands and symbols of a 64-bit file for one architecture, as far as they are checked."""

    architecture: int
    libraries: list[str] = field(default_factory=list)
    rpaths: list[str] = field(default_factory=list)
    name: str = ""
    system: tuple[int, int, int] = (0, 0, 0)
    """The platform, 1 for macOS, and its oldest version: major, minor."""
    wanted: set[str] = field(default_factory=set)
    exported: set[str] = field(default_factory=set)


def read(data: bytes) -> MachO:
    magic, architecture, _, _, commands = struct.unpack_from("<5I", data)
    assert magic == MAGIC
    made, at = MachO(architecture), 32
    for _ in range(commands):
        command, size = struct.unpack_from("<2I", data, at)
        words = struct.unpack_from("<4I", data, at + 8)
        if command in (LOAD_DYLIB, RPATH):
            (made.rpaths if command == RPATH else made.libraries).append(text(data, at + words[0]))
        elif command == ID_DYLIB:
            made.name = text(data, at + words[0])
        elif command == BUILD_VERSION:
            made.system = (words[0], words[1] >> 16, words[1] >> 8 & 255)
        elif command == SYMTAB:
            read_symbols(made, data, *words[:3])
        at += size
    return made


def read_symbols(made: MachO, data: bytes, symbols: int, count: int, strings: int) -> None:
    for at in range(symbols, symbols + 16 * count, 16):
        offset, kind = struct.unpack_from("<IB", data, at)
        if kind & 0xE0 or not kind & 1:  # of the debugger, or local
            continue
        if kind & 0x0E == 0:
            made.wanted.add(text(data, strings + offset))
        elif not kind & 0x10:  # not hidden
            made.exported.add(text(data, strings + offset))


def text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def faults(wheel: Path, library: MachO) -> list[str]:
    with zipfile.ZipFile(wheel) as files:
        (path,) = (name for name in files.namelist() if name.startswith(MODULE))
        module = read(files.read(path))
    wanted = {name for name in module.wanted if name.startswith(MLX_PREFIXES)}
    own = {name for name in module.wanted if "gptoss" in name}
    to_library = PurePosixPath("@loader_path", *[".."] * path.count("/"), LIBRARY).parent
    others = {name for name in module.libraries if not name.startswith(SYSTEM)}
    checks = {
        f"the tag is not of macOS 14 on arm64: {wheel.name}": wheel.stem.endswith("-macosx_14_0_arm64"),
        f"the module is not for Python on a Mac: {path}": path.endswith("-darwin.so"),
        f"the module is not for arm64: {module.architecture:#x}": module.architecture == ARM64,
        f"the module is not for macOS 14.0: {module.system}": module.system == (1, 14, 0),
        f"rpaths: {module.rpaths}, not {to_library}": module.rpaths == [str(to_library)],
        f"libraries: {others}, not {library.name}": others == {library.name},
        f"MLX does not export: {sorted(wanted - library.exported)}": bool(wanted) and wanted <= library.exported,
        f"the build left out: {sorted(own)}": not own,
    }
    print(f"{wheel.name}: {len(wanted)} symbols of MLX")
    return [fault for fault, is_right in checks.items() if not is_right]


if __name__ == "__main__":
    wheel, library = map(Path, sys.argv[1:])
    sys.exit("\n".join(faults(wheel, read(library.read_bytes()))) or None)
