"""Curves: the figures that need matplotlib, which the extra `measure` brings."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI, _HEIGHT = 100, 3.0  # inches


def require_matplotlib() -> None:
    """Say before the work, not after it, that matplotlib is missing.

    Raises:
        UserError: it is.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("this figure is a plot, and matplotlib is missing: pip install 'hf_ddpm[measure]'") from error


def plot(panels: "Sequence[Callable[[Axes], None]]", *, width: float = 4.2, columns: int | None = None) -> Image.Image:
    """Panels, each drawn by a function of its axes, as an RGB image.

    Args:
        panels: from left to right, then in the next row.
        width: of one, in inches.
        columns: panels in a row; None: all.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    sheet = Figure(figsize=(width * columns, _HEIGHT * rows), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(sheet)
    places = list(sheet.subplots(rows, columns, squeeze=False).flat)
    for axes, draw in zip(places, panels, strict=False):
        axes.grid(alpha=0.3)
        draw(axes)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")


def curve(
    x: Sequence[float],
    y: Sequence[float],
    *,
    title: str,
    x_label: str,
    y_label: str,
    also: Sequence[tuple[str, Sequence[float], Sequence[float]]] = (),
    label: str = "",
    log: str = "",
    **style: Any,
) -> "Callable[[Axes], None]":
    """A panel of one curve, or of several with a legend.

    Args:
        also: (label, x, y) of further curves.
        log: which axes are logarithmic, among "x", "y" and "xy".
        style: of matplotlib's `plot`.
    """

    def draw(axes: "Axes") -> None:
        for name, x_values, y_values in ((label, x, y), *also):
            axes.plot(x_values, y_values, label=name, **style)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        if "x" in log:
            axes.set_xscale("log")
        if "y" in log:
            axes.set_yscale("log")
        if also:
            axes.legend(fontsize=8)

    return draw
