"""Counts of the habits in CONTRIBUTING.md, over the code that ships: `make style`. It measures and judges nothing.

`python tests/style.py --places` lists what some of the counts are made of: the places that ask for the family, the
files of door 3 and the import circles. Every count reads the syntax alone, so no package has to be installed.
"""

import ast
import io
import re
import statistics
import sys
import tokenize
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from import_graph import FOLDERS, ROOT, Function, circles_of_imports, files_of_door_3, parsed

MATHEMATICS = ("schedulers", "models", "objectives", "likelihood", "metrics", "variational_bound")
CHECKS = ("check", "checked", "forbid", "refuse", "reject", "require", "validate")  # first words of functions
FAMILY_WORDS = {"vae", "unet", "ddpm"}  # blocks of recipes, parts of pipelines and tags, each of one family
FAMILY_NAME = re.compile(r"HF\w+Pipeline|family|family_of|is_vae")
FAMILY_TABLE = {"family": "FAMILIES", "recipe": "FAMILIES", "kinds": "KINDS"}  # by the module it is in


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


def code_of(path: Path, tree: ast.Module) -> set[int]:
    """The numbers of the lines that hold code: no blank line, no comment, no docstring."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    lines = {n for token in tokens if token.type not in silent for n in range(token.start[0], token.end[0] + 1)}
    documented = [n for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, Function)) and n.body]
    return lines - {i for n in documented if ast.get_docstring(n, clean=False) is not None for i in span(n.body[0])}


def span(node: ast.AST) -> range:
    return range(node.lineno, node.end_lineno + 1)


def checking_of(path: Path, tree: ast.Module) -> set[int]:
    """The numbers of the lines that are there to refuse something.

    Whole: a file of `gate/` or with "checks" or one of `CHECKS` as a word of its name, a function whose first word is
    one of `CHECKS` (underscores aside) and a statement that only calls one, a `raise`, a `try` whose every handler ends
    in `raise`. Of an `if` whose body ends in `raise`, the condition and that body; of other `try` statements, a handler
    that ends in `raise`.
    """
    if {*CHECKS, "checks"} & {*path.stem.split("_")} or "gate" in path.parts:
        return set(range(1, len(path.read_text().splitlines()) + 1))
    lines: set[int] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Raise() | ast.ExceptHandler(body=[*_, ast.Raise()]):
                lines |= {*span(node)}
            case ast.If(body=[*_, ast.Raise() as last]):
                lines |= {*range(node.lineno, last.end_lineno + 1)}
            case ast.Try(handlers=[_, *_]) if all(isinstance(h.body[-1], ast.Raise) for h in node.handlers):
                lines |= {*range(node.lineno, node.handlers[-1].end_lineno + 1)}
            case (
                ast.FunctionDef(name=name) | ast.Expr(value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)))
            ) if name.strip("_").split("_")[0] in CHECKS:
                lines |= {*span(node)}
    return lines


def lines_by_purpose(trees: dict[Path, ast.Module]) -> dict[str, int]:
    """Lines of code that check, that hold the mathematics (of files of `MATHEMATICS`), and the rest."""
    counts = {"checking": 0, "mathematics": 0, "the rest": 0}
    for path, tree in trees.items():
        code = code_of(path, tree)
        others = code - checking_of(path, tree)
        counts["checking"] += len(code) - len(others)
        room = path.relative_to(ROOT).with_suffix("").parts[2:3]
        counts["mathematics" if room and room[0] in MATHEMATICS else "the rest"] += len(others)
    return counts


def asks_for_family(node: ast.AST, tables: Collection[str] = ()) -> bool:
    """Whether an expression asks which family something is of.

    An `isinstance` or a `case` with a pipeline class of ours; a comparison (`==`, `in`, `case`) with the name of one,
    with one of `FAMILY_WORDS` or with what is called a family; a look into one of `tables` by a key that is not a
    literal. Whether something is None is no such question.
    """
    match node:
        case ast.Compare(comparators=[ast.Constant(value=None)]):
            return False
        case ast.Call(func=ast.Name(id="isinstance"), args=[_, kinds]):
            return names_family(kinds)
        case ast.MatchClass(cls=kind):
            return names_family(kind)
        case ast.Compare(left=left, comparators=others):
            return any(
                (isinstance(side, ast.Constant) and side.value in FAMILY_WORDS) or names_family(side)
                for side in (left, *others)
            )
        case ast.MatchValue(value=ast.Constant(value=word)):
            return word in FAMILY_WORDS or bool(FAMILY_NAME.fullmatch(str(word)))
        case ast.Subscript(value=ast.Name(id=table), slice=key):
            return table in tables and not isinstance(key, ast.Constant)
    return False


def tables_of(path: Path, tree: ast.Module) -> set[str]:
    """The tables of families that a file holds or imports; the table of kinds of figures is none."""
    sources = [n.module.split(".")[-1] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    return {FAMILY_TABLE[name] for name in (path.stem, *sources) if name in FAMILY_TABLE}


def names_family(node: ast.AST) -> bool:
    """Whether an expression holds a pipeline class of ours, its name, or something called a family."""
    words = [getattr(n, key) for n in ast.walk(node) for key in ("id", "attr", "value") if key in n._fields]
    return any(isinstance(word, str) and FAMILY_NAME.fullmatch(word) for word in words)


def family_places(trees: dict[Path, ast.Module]) -> list[str]:
    """The functions (or modules, outside of functions) that ask for the family, each once, with the lines that ask.

    The module that holds the table of kinds is one place: its look-ups are the table.
    """
    places: dict[str, list[int]] = {}
    for path, tree in trees.items():
        tables = tables_of(path, tree)
        owners = {id(n): f.name for f in functions(tree) for n in ast.walk(f)}  # the innermost, which comes last
        for node in ast.walk(tree):
            if asks_for_family(node, tables):
                owner = "the table" if path.stem == "kinds" else owners.get(id(node), "module")
                place = f"{path.relative_to(ROOT)}:{owner}"
                places.setdefault(place, []).append(node.lineno if "lineno" in node._attributes else 0)
    return [f"{place} (lines {', '.join(map(str, sorted({*lines})))})" for place, lines in sorted(places.items())]


def share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / max(1, whole):.0f}%)"


def table() -> list[tuple[str, str, str]]:
    """Rows of (habit, count, wanted)."""
    trees = parsed(*FOLDERS)
    files = list(trees)
    lengths = {
        f"{path.relative_to(ROOT)}:{f.name}": code_lines(f) for path, tree in trees.items() for f in functions(tree)
    }
    longest = sorted(lengths, key=lengths.__getitem__, reverse=True)[:3]
    file_lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    longest_files = sorted(file_lines, key=file_lines.__getitem__, reverse=True)[:3]
    api = [node for tree in trees.values() for node in public(tree)]
    arguments = [a for tree in trees.values() for a in public_arguments(tree)]
    inherited = heirs(trees.values())
    purposes = lines_by_purpose(trees)

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
        *(
            (f"lines of code: {purpose}", share(count, sum(purposes.values())), wanted)
            for (purpose, count), wanted in zip(purposes.items(), ("aim: at most 10%", "", ""), strict=True)
        ),
        ("places that ask for the family", str(len(family_places(trees))), "aim: 1"),
        ("files of door 3, pixel DDPM", str(len(files_of_door_3())), "26 before; what the checkpoint needs"),
        *((name, str(len(found)), "0") for name, found in circles_of_imports().items()),
        ("modules called utils", str(sum(path.stem in ("utils", "helpers", "common") for path in files)), "0"),
    ]


def details() -> Iterator[str]:
    """What the counts of places, files and circles are made of."""
    trees = parsed(*FOLDERS)
    yield from ("Places that ask for the family:", *family_places(trees))
    yield from ("", "Files of door 3 of a pixel DDPM:", *files_of_door_3())
    for name, found in circles_of_imports().items():
        yield from ("", f"{name.capitalize()}:", *(found or ["none"]))


def main() -> None:
    if sys.argv[1:] == ["--places"]:
        print("\n".join(details()))
        return
    rows = table()
    width = max(len(row[0]) for row in rows)
    for habit, count, wanted in rows:
        print(f"{habit:<{width}}  {count}" + (f"   [{wanted}]" if wanted else ""))


if __name__ == "__main__":
    main()
