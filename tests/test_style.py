"""What `make style` counts: the habits that are yes or no are kept."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import import_graph
import pytest
import style

COUNTER = Path(__file__).parent / "style.py"


@cache
def run(*words: str) -> str:
    command = [sys.executable, str(COUNTER), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_habits_that_are_yes_or_no_are_kept():
    rows = dict(line.split("  ", 1) for line in run().splitlines())
    assert rows.keys() >= {"functions", "files, lines", "longest files"}
    zero = [habit for habit, row in rows.items() if row.rstrip().endswith("[0]")]
    assert len(zero) == 8
    assert {habit: rows[habit].split("[")[0].strip() for habit in zero} == dict.fromkeys(zero, "0")
    assert rows["places that ask for the family"].split("[")[0].strip() == "1"


def test_what_is_counted_can_be_listed():
    rows = dict(line.split("  ", 1) for line in run().splitlines())
    listed = {title.rstrip(":"): entries for title, *entries in map(str.splitlines, run("--places").split("\n\n"))}
    for title, row in (
        ("Places that ask for the family", "places that ask for the family"),
        ("Files of door 3 of a pixel DDPM", "files of door 3, pixel DDPM"),
        ("Import circles", "import circles"),
        ("Import circles, functions too", "import circles, functions too"),
        ("Import circles of rooms", "import circles of rooms"),
    ):
        entries = [] if listed[title] == ["none"] else listed[title]
        assert str(len(entries)) == rows[row].split("[")[0].strip()
    assert "hf_ddpm.pipelines.pipeline_hf_ddpm" in listed["Files of door 3 of a pixel DDPM"]


def test_every_line_of_code_has_one_purpose():
    trees = style.parsed(*style.FOLDERS)
    counts = style.lines_by_purpose(trees)
    assert sum(counts.values()) == sum(len(style.code_of(path, tree)) for path, tree in trees.items())
    assert min(counts.values()) > 0


SOURCE = '''"""A file."""


def area(width, height):
    """Of a rectangle."""
    _require_size(width)
    if height < 0:
        raise ValueError(
            f"height={height} must not be negative"
        )
    else:
        height += 0
    try:
        found = width * height
    except TypeError as error:
        raise ValueError("numbers") from error
    try:
        found = found.item()
    except AttributeError:
        pass  # a number already
    return found


def _require_size(width):
    assert width
'''


def test_lines_that_refuse_are_told_from_lines_that_do(tmp_path):
    file = tmp_path / "area.py"
    file.write_text(SOURCE)
    tree = ast.parse(SOURCE)
    lines, code = SOURCE.splitlines(), style.code_of(file, tree)
    assert [i for i in code if not lines[i - 1].strip() or '"""' in lines[i - 1]] == []
    checking = {lines[i - 1].strip() for i in style.checking_of(file, tree) & code}
    working = {lines[i - 1].strip() for i in code - style.checking_of(file, tree)}
    assert checking >= {"_require_size(width)", "if height < 0:", "except TypeError as error:", "assert width"}
    assert checking.isdisjoint({"height += 0", "return found", "found = found.item()", "def area(width, height):"})
    assert working >= {"height += 0", "found = found.item()", "return found"}
    gate = tmp_path / "checked_area.py"
    gate.write_text(SOURCE)
    assert style.code_of(gate, tree) <= style.checking_of(gate, tree)
    checkpoint = tmp_path / "checkpoint.py"  # which has another word in its name
    checkpoint.write_text(SOURCE)
    assert style.checking_of(checkpoint, tree) == style.checking_of(file, tree)


@pytest.mark.parametrize(
    ("source", "asks"),
    [
        ("isinstance(pipeline, HFVAEPipeline)", True),
        ("isinstance(pipeline, (str, HFDDPMPipeline))", True),
        ("isinstance(pipeline, DiffusionPipeline)", False),
        ("'vae' in recipe", True),
        ("'unet' not in pipeline.components", True),
        ("index['_class_name'] == 'HFVAEPipeline'", True),
        ("index.get('_class_name') == HFVAEPipeline.__name__", True),
        ("recipe['family'] == 'gan'", True),
        ("pipeline.vae is None", False),
        ("run.family.sampling is not None", False),
        ("FAMILIES[name]", True),
        ("FAMILIES['vae']", False),
        ("KINDS[options.name]", False),
        ("match kind:\n    case HFVAEPipeline():\n        pass", True),
        ("match name:\n    case 'vae':\n        pass", True),
    ],
)
def test_questions_for_the_family_are_seen(source, asks):
    assert any(style.asks_for_family(node, {"FAMILIES"}) for node in ast.walk(ast.parse(source))) == asks


def test_circles_are_groups_of_modules_that_reach_each_other():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set(), "f": {"g"}, "g": {"f"}}
    assert import_graph.circles(graph) == ["a <-> b <-> c", "f <-> g"]
    assert import_graph.reached(graph, ["d"]) == {"d", "e"}
