"""Two plots of the bound: its terms by t, and rate against distortion."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_bound(found: dict[str, Any], path: Path) -> None:
    """Write a PNG plot of a report that contains a bound.

    Args:
        found: The report, from `diffusion_report`.
        path: The file, which ends with .png.
    """
    with drawing(path, width=11) as figure:
        left, right = figure.subplots(1, 2)
        _terms(left, found["bound"])
        _rate_distortion(right, found["bound"])
        total = found["bound"]["bits_per_dim"]
        figure.suptitle(f"{total['mean']:.3f} ± {total['standard_error']:.3f} bits/dim of {found['n']} images")


@contextmanager
def drawing(path: Path, *, width: float) -> "Iterator[Figure]":
    """Yield an empty figure, `width` by 4 inches, which is written as a PNG when the block ends."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display, and does not use pyplot's state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _terms(axes: "Axes", bound: dict[str, Any]) -> None:
    axes.plot(bound["per_t"]["t"], bound["per_t"]["bits_per_dim"], linewidth=1)
    axes.plot([0], [bound["decoder"]["mean"]], "o", markersize=4, label="$L_0$, the decoder")
    axes.set_yscale("log")
    axes.set_xlabel("t (0 is one step of noise)")
    axes.set_ylabel("$L_t$ in bits/dim")
    axes.set_title("Terms of the variational bound")
    axes.grid(alpha=0.3)
    axes.legend()


def _rate_distortion(axes: "Axes", bound: dict[str, Any]) -> None:
    curve, split = bound["rate_distortion"], bound["codelength"]
    axes.plot(curve["rate"], curve["rmse"], linewidth=1)
    axes.plot([split["rate"]], [split["rmse"]], "o", markersize=4, label="all but $L_0$ received")
    axes.set_xlabel("rate in bits/dim")
    axes.set_ylabel("RMSE of the $x_0$ prediction, of 255")
    axes.set_ylim(bottom=0)
    axes.set_title("Rate and distortion (DDPM, Fig. 5)")
    axes.grid(alpha=0.3)
    axes.legend()
