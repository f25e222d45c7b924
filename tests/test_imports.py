"""Who imports whom: no file needs, by any way, what needs it, and the rooms lie above each other."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = {
    "hf_ddpm": ROOT / "src/hf_ddpm",
    "hf_ddpm.pipelines": ROOT / "pipelines",
    "hf_ddpm.training": ROOT / "training",
}


def modules():
    """The file of each module."""
    found = {}
    for package, folder in PLACES.items():
        for file in folder.rglob("*.py"):
            name = ".".join([package, *file.relative_to(folder).with_suffix("").parts])
            found.setdefault(name.removesuffix(".__init__"), file)
    return found


def imports_of(tree, known):
    """The modules that a file imports at its top or in its functions; of a package's name, the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in inner)


@pytest.fixture(scope="module")
def graph():
    known = modules()
    return {name: set(imports_of(ast.parse(file.read_text()), known)) for name, file in known.items()}


def room(module):
    """The package below hf_ddpm, or the file there."""
    return ".".join(module.split(".")[:2])


def test_the_graph_is_seen(graph):
    assert len(graph) > 100
    assert "hf_ddpm.hub" in graph["hf_ddpm"]  # imported in a function
    assert "hf_ddpm.schedulers.transition" in graph["hf_ddpm.schedulers.scheduling_hf_ddpm"]
    assert "hf_ddpm.gate.checked_files" in graph["hf_ddpm.opening"]


def test_no_file_imports_what_imports_it(graph):
    assert list(TopologicalSorter(graph).static_order())  # a circle is a CycleError that names it


def test_no_import_is_hidden_in_a_string():
    for file in modules().values():
        words = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
        assert not words & {"import_module", "__import__"}, file


@pytest.mark.parametrize(
    ("of", "allowed"),
    [
        ("schedulers", set()),
        ("gate", {"schedulers", "errors"}),
        ("models", {"schedulers", "errors"}),
        ("pipelines", {"models", "schedulers"}),
    ],
)
def test_what_a_room_imports(of, allowed, graph):
    wanted = {f"hf_ddpm.{name}" for name in {of, *allowed}}
    files = [name for name in graph if room(name) == f"hf_ddpm.{of}"]
    assert {room(name) for file in files for name in graph[file]} <= wanted
    small = ("hf_ddpm.schedulers.annotations", "hf_ddpm.schedulers.config_files")
    if of in ("gate", "models"):  # of schedulers, what every constructor reads
        assert {name for file in files for name in graph[file] if room(name) == "hf_ddpm.schedulers"} <= {*small}
