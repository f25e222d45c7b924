"""Counts of the habits in CONTRIBUTING.md, over the code that ships: `make style`. It measures and judges nothing."""

import ast
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("src/hf_ddpm", "pipelines", "training")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def source_files() -> list[Path]:
    """Every Python file once: src/hf_ddpm/pipelines and src/hf_ddpm/training are links to the folders beside src."""
    files = {path.resolve() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    return sorted(files)


def code_lines(node: Function) -> int:
    """Lines of a function from `def` on, without its docstring."""
    first = node.body[0]
    documentation = first.end_lineno - first.lineno + 1 if ast.get_docstring(node, clean=False) is not None else 0
    return node.end_lineno - node.lineno + 1 - documentation


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def public(tree: ast.Module) -> Iterator[ast.AST]:
    """Functions, classes and methods that a user may call: no name on the way begins with an underscore."""
    for node in tree.body:
        if isinstance(node, (Function, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (m for m in node.body if isinstance(m, Function) and not m.name.startswith("_"))


def public_arguments(tree: ast.Module) -> list[ast.arg]:
    """Arguments of public functions, methods and constructors, without self and cls."""
    wanted = [node for node in public(tree) if isinstance(node, Function)]
    classes = [node for node in public(tree) if isinstance(node, ast.ClassDef)]
    wanted += [m for c in classes for m in c.body if isinstance(m, Function) and m.name in ("__init__", "__call__")]
    arguments = [a for f in wanted for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs)]
    return [a for a in arguments if a.arg not in ("self", "cls")]


def calls(tree: ast.AST, name: str) -> int:
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    return sum(node.func.id == name for node in found)


def broad_excepts(tree: ast.AST) -> int:
    """`except:`, `except Exception` and `except BaseException` that do not raise again."""
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    broad = [h for h in handlers if h.type is None or getattr(h.type, "id", "") in ("Exception", "BaseException")]
    return sum(not any(isinstance(node, ast.Raise) for node in ast.walk(h)) for h in broad)


def heirs(trees: Iterable[ast.Module]) -> list[str]:
    """Our classes that inherit from our classes, as Child(Parent), unless the parent is abstract."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    ours = {c.name for c in classes if not any(isinstance(b, ast.Name) and b.id == "ABC" for b in c.bases)}
    return [f"{c.name}({b.id})" for c in classes for b in c.bases if isinstance(b, ast.Name) and b.id in ours]


def uses_of_args(tree: ast.Module) -> int:
    """Functions but `main` that take a parameter called args (not *args): a command line passed on."""
    return sum(a.arg == "args" for f in functions(tree) if f.name != "main" for a in (*f.args.args, *f.args.kwonlyargs))


def share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / max(1, whole):.0f}%)"


def table() -> list[tuple[str, str, str]]:
    """Rows of (habit, count, wanted)."""
    files = source_files()
    trees = {path: ast.parse(path.read_text()) for path in files}
    lengths = {
        f"{path.relative_to(ROOT)}:{f.name}": code_lines(f) for path, tree in trees.items() for f in functions(tree)
    }
    longest = sorted(lengths, key=lengths.__getitem__, reverse=True)[:3]
    file_lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    longest_files = sorted(file_lines, key=file_lines.__getitem__, reverse=True)[:3]
    api = [node for tree in trees.values() for node in public(tree)]
    arguments = [a for tree in trees.values() for a in public_arguments(tree)]
    inherited = heirs(trees.values())

    def total(count) -> str:
        return str(sum(count(tree) for tree in trees.values()))

    return [
        ("files, lines", f"{len(files)}, {sum(file_lines.values())}", ""),
        ("longest files", "; ".join(f"{name} {file_lines[name]}" for name in longest_files), "about 300"),
        ("functions", str(len(lengths)), ""),
        ("median function, lines", f"{statistics.median(lengths.values()):g}", "5 to 11"),
        ("longest functions, lines", "; ".join(f"{name} {lengths[name]}" for name in longest), "about 25"),
        ("functions over 25 lines", share(sum(n > 25 for n in lengths.values()), len(lengths)), "few"),
        ("typed arguments, public", share(sum(a.annotation is not None for a in arguments), len(arguments)), "all"),
        ("docstrings, public", share(sum(ast.get_docstring(node) is not None for node in api), len(api)), "all"),
        ("hasattr", total(lambda tree: calls(tree, "hasattr")), "0"),
        ("broad except, swallowed", total(broad_excepts), "0"),
        ("heirs of concrete classes of ours", ", ".join(inherited) or "0", "0"),
        ("`args` below main", total(uses_of_args), "0"),
        ("modules called utils", str(sum(path.stem in ("utils", "helpers", "common") for path in files)), "0"),
    ]


def main() -> None:
    rows = table()
    width = max(len(row[0]) for row in rows)
    for habit, count, wanted in rows:
        print(f"{habit:<{width}}  {count}" + (f"   [{wanted}]" if wanted else ""))


if __name__ == "__main__":
    main()
