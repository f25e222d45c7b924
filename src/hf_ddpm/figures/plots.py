"""Plots of curves, which need matplotlib from the extra `measure`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI, _HEIGHT = 100, 3.0  # inches


def require_matplotlib() -> None:
    """Check that matplotlib is installed, before the work instead of after it.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("this figure needs matplotlib, which is missing: pip install 'hf_ddpm[measure]'") from error


def plot(panels: "Sequence[Callable[[Axes], None]]", *, width: float = 4.2, columns: int | None = None) -> Image.Image:
    """Draw panels, each by a function of its axes, as an RGB image.

    Args:
        panels: The panels, from left to right, then in the next row.
        width: The width of one panel, in inches.
        columns: The number of panels in a row; None puts all panels in one row.
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
    """Return a panel with one curve, or with several curves and a legend.

    Args:
        also: Further curves, as (label, x, y).
        log: The logarithmic axes: "x", "y" or "xy"; by default none.
        style: Keyword arguments of matplotlib's `plot`.
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
