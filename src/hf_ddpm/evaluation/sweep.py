"""The table and the plot of a grid of evaluations."""

from collections.abc import Mapping
from typing import Any

from PIL.Image import Image

from hf_ddpm.evaluation.report import NUMBERS, described, shown
from hf_ddpm.figures.plots import curve, plot

_WIDE = 4  # an axis is logarithmic if the largest figure is more than so many times the smallest
_MOST_PANELS = 6
# Only in the table: figures of single classes or of real images, and those that nearly repeat precision and recall.
_NOT_DRAWN = ("class_frechet_distance", "class_accuracy_real", "memorised_real", "density", "coverage")


def sweep_table(found: Mapping[str, Any]) -> str:
    """Return a table with a row for each cell: its grid values, figures, network calls per image and drawing time."""
    axes, cells = list(found["axes"]), found["cells"]
    names = list(dict.fromkeys(number["name"] for cell in cells for number in cell[NUMBERS]))
    rows = [[*axes, *names, "network calls", "seconds"]]
    rows.append(["---"] * len(rows[0]))
    for cell in cells:
        numbers = {number["name"]: shown(number) for number in cell[NUMBERS]}
        calls = cell.get("network_calls")
        last = ["" if calls is None else f"{calls:g}", f"{cell['seconds']['images']:.1f}"]
        rows.append([*(cell["cell"][axis] for axis in axes), *(numbers.get(name, "") for name in names), *last])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", f"The first cell: {described(cells[0])}"])


def draw_sweep(found: Mapping[str, Any]) -> Image:
    """Plot each figure, at most six, against the numeric axis, with a curve for each combination of the other axes."""
    axes, cells = found["axes"], found["cells"]
    along = next((axis for axis, values in axes.items() if all(map(_is_number, values))), next(iter(axes)))
    drawn = [number["name"] for cell in cells for number in cell[NUMBERS] if number["type"] not in _NOT_DRAWN]
    names = list(dict.fromkeys(drawn))[:_MOST_PANELS]
    columns = 2 if len(names) == 4 else min(len(names), 3)
    return plot([_panel(cells, axes, along, name) for name in names], columns=columns)


def _panel(cells: list[Any], axes: Mapping[str, list[str]], along: str, name: str) -> Any:
    curves: dict[str, list[tuple[float, float]]] = {}
    axes_values = axes[along]
    numbers = all(map(_is_number, axes_values))
    for cell in cells:
        others = ", ".join(f"{axis} {value}" for axis, value in cell["cell"].items() if axis != along)
        place = cell["cell"][along]
        x = float(place) if numbers else float(axes[along].index(place))
        y = next((number["value"] for number in cell[NUMBERS] if number["name"] == name), None)
        if y is not None:
            curves.setdefault(others, []).append((x, y))
    (label, first), *more = ((label, sorted(points)) for label, points in curves.items())
    also = [(other, [x for x, _ in points], [y for _, y in points]) for other, points in more]
    heights = [y for points in curves.values() for _, y in points]
    wide = min(heights) > 0 and max(heights) > max(1, _WIDE * min(heights))  # shares, which are at most 1, stay linear
    x_label = along if numbers else f"{along}: {', '.join(axes[along])}"
    log = ("x" if numbers and all(float(value) > 0 for value in axes[along]) else "") + ("y" if wide else "")
    xs, ys = [x for x, _ in first], [y for _, y in first]
    lines = curve(xs, ys, title=name, x_label=x_label, y_label="", also=also, label=label, log=log, marker="o")

    def draw(axes: Any) -> None:
        lines(axes)
        if numbers:  # ticks at the requested values, not at powers of ten
            axes.set_xticks([float(value) for value in axes_values], labels=axes_values)
            axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)

    return draw


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
