"""Which module of ours imports which, read from the syntax: circles, and the files that door 3 needs."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("src/hf_ddpm", "pipelines", "training")
Function = ast.FunctionDef | ast.AsyncFunctionDef
Graph = dict[str, set[str]]  # the modules that a module imports
DOOR_3 = ("hf_ddpm.pipelines.pipeline_hf_ddpm", "hf_ddpm.schedulers.scheduling_hf_ddpm")  # of a pixel DDPM


def parsed(*folders: str) -> dict[Path, ast.Module]:
    """Every Python file once: src/hf_ddpm/pipelines and src/hf_ddpm/training are links to the folders beside src."""
    files = sorted({path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py")})
    return {path: ast.parse(path.read_text()) for path in files}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "src" else parts if parts[0] == "benchmarks" else ("hf_ddpm", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(trees: dict[Path, ast.Module], everywhere: bool) -> Graph:
    """Which module of ours imports which, those for type checkers alone left out.

    Args:
        everywhere: count the imports inside functions too, not only those that run when the module is imported.
    """
    ours = {module_name(path) for path in trees}
    graph: Graph = {}
    for path, tree in trees.items():
        found = graph.setdefault(module_name(path), set())
        for node in statements(tree, everywhere):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names} & ours
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= (inner & ours) | ({node.module} & ours if inner - ours else set())
    return graph


def named_imports(trees: dict[Path, ast.Module]) -> Graph:
    """Which module of ours is imported by `import_module` with its name."""
    graph: Graph = {}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id="import_module"), args=[ast.Constant(value=str(name)), *_]):
                    graph.setdefault(module_name(path), set()).add(name)
    return graph


def statements(node: ast.AST, everywhere: bool) -> Iterator[ast.AST]:
    """The statements below a node, without those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if everywhere or not isinstance(child, Function):
            yield child
            yield from statements(child, everywhere)


def reached(graph: Graph, starts: Iterable[str]) -> set[str]:
    """The modules that some modules import, directly or through others, the first ones included."""
    found, waiting = set(), [*starts]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += graph.get(module, ())
    return found


def circles(graph: Graph) -> list[str]:
    """Groups of two or more modules each of which imports all others of its group, directly or through others."""
    ends = {module: reached(graph, graph[module]) for module in graph}
    groups = {frozenset(m for m in ends[module] if module in ends[m]) for module in graph}
    return sorted(" <-> ".join(sorted(group)) for group in groups if len(group) > 1)


def files_of_door_3() -> list[str]:
    """The modules whose code a pixel DDPM's checkpoint needs: its pipeline, its scheduler and what they import."""
    return sorted(reached(imports(parsed(*FOLDERS), everywhere=True), DOOR_3))


def circles_of_imports() -> dict[str, list[str]]:
    """Circles of modules when they are imported, circles at any time, and circles of rooms (packages, and modules
    beside them), `benchmarks/` included.
    """
    trees = parsed(*FOLDERS, "benchmarks")
    late, named = imports(trees, everywhere=True), named_imports(trees)
    late = {module: found | named.get(module, set()) for module, found in late.items()}
    rooms: Graph = {}
    for module, found in late.items():
        rooms.setdefault(room_of(module), set()).update({*map(room_of, found)} - {room_of(module)})
    return {
        "import circles": circles(imports(trees, everywhere=False)),
        "import circles, functions too": circles(late),
        "import circles of rooms": circles(rooms),
    }


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])
