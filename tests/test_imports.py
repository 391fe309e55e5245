"""The house: a module imports from its own floor or one below it, and no two modules import each other."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {"gptoss_mlx": ROOT / "gptoss_mlx", "gptoss_convert": ROOT / "convert" / "gptoss_convert"}

# From the ground up. A name is a folder, or a module of the root. What stands in one line does not import each other,
# but for the modules of the ground floor.
FLOORS = (
    ("errors", "files", "untrusted", "supervisor", "process", "progress", "provenance", "tables"),
    ("kernels",),
    ("device",),
    ("model",),
    ("memory",),
    ("engine",),
    ("harmony", "bench", "gptoss_convert"),
    ("tools",),
    ("demo",),
    ("chat",),
    ("terminal", "server", "evaluation"),
    ("cli",),
    ("__main__",),
)


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def nodes_of(module: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(MODULES[module].read_text())))


@cache
def imports_of(module: str) -> set[str]:
    """The project's modules that it imports, anywhere in it, also for types alone."""
    path, found = MODULES[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in nodes_of(module):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            found |= {full if (full := f"{source}.{name.name}") in MODULES else source for name in node.names}
    return {name for name in found if name in MODULES} - {module}


def room(module: str) -> str:
    package, *rest = module.split(".")
    return rest[0] if package == "gptoss_mlx" and rest else package


def floor(name: str) -> int:
    (number,) = (number for number, rooms in enumerate(FLOORS) if name in rooms)
    return number


def test_imports_lead_downward():
    def downward(own: str, other: str) -> bool:
        return floor(other) < floor(own) or other == own or own in FLOORS[0]

    imports = {(module, other) for module in MODULES for other in imports_of(module)}
    imports = {(module, other) for module, other in imports if "gptoss_mlx" not in (module, other)}
    assert [f"{module} imports {other}" for module, other in imports if not downward(room(module), room(other))] == []


def test_no_circles():
    TopologicalSorter({module: imports_of(module) for module in MODULES}).prepare()


def test_only_the_device_asks_mlx_what_computes():
    asking = ("default_device", "set_default_device", "device_info", "is_available", "DeviceType")
    asks = {
        module
        for module in MODULES
        for node in nodes_of(module)
        if isinstance(node, ast.Attribute) and node.attr in asking
    }
    assert asks == {"gptoss_mlx.device"}


def test_the_root_is_small():
    tracked = [path for path in (ROOT / "gptoss_mlx").iterdir() if path.is_file() and path.name != ".DS_Store"]
    assert len(tracked) <= 12
