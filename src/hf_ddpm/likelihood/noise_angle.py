"""The noise level at every real t, interpolated between the T steps that a model was trained on."""

import math

import torch
from torch import Tensor

from hf_ddpm.schedulers import HFDDPMScheduler


class NoiseAngle:
    """phi(t) with alpha = sqrt(alpha_bar_t) = cos(phi) and sigma = sqrt(1 - alpha_bar_t) = sin(phi), t in [-1, T-1].

    Between integer t, phi^2 is interpolated by monotone cubics (Fritsch & Carlson 1980). log-SNR = -2 log tan(phi)
    would be the usual choice, but it is infinite at t = -1, the image itself, and where alpha_bar_T = 0, and bends
    sharply near both; phi^2 is close to a parabola there, because 1 - alpha_bar begins as a sum of the betas.

    Args:
        scheduler: The scheduler, whose `alphas_cumprod` are matched exactly.
    """

    def __init__(self, scheduler: HFDDPMScheduler) -> None:
        abar = scheduler.alphas_cumprod.double()
        square = torch.atan2((1 - abar).sqrt(), abar.sqrt()).square()
        self._square = torch.cat([torch.zeros(1, dtype=torch.float64), square])  # (T + 1,), at t = -1 .. T-1
        self._slope = _monotone_slopes(self._square)
        self.last = len(abar) - 1

    def __call__(self, t: float) -> float:
        """Return phi(t), in radians."""
        return math.sqrt(self._square_and_slope(t)[0])

    def slope(self, t: float) -> float:
        """Return d phi / dt, for t > -1."""
        square, slope = self._square_and_slope(t)
        return slope / (2 * math.sqrt(square))

    def _square_and_slope(self, t: float) -> tuple[float, float]:
        """Return phi^2 and its derivative: the cubic with values y and slopes m at both ends of an interval."""
        if not -1 <= t <= self.last:
            raise ValueError(f"t={t} must be from -1 to {self.last}")
        k = min(math.floor(t) + 1, self.last)
        s = t + 1 - k
        (y0, y1), (m0, m1) = self._square[k : k + 2].tolist(), self._slope[k : k + 2].tolist()
        rise = y1 - y0
        a, b = m0 + m1 - 2 * rise, 3 * rise - 2 * m0 - m1
        return y0 + s * (m0 + s * (b + s * a)), m0 + s * (2 * b + s * 3 * a)


def _monotone_slopes(values: Tensor) -> Tensor:
    """Return the slopes of parabolas through neighbours, at most three times an adjacent rise (for monotone cubics)."""
    rises = values.diff()
    if len(rises) == 1:
        return rises.repeat(2)
    within = (rises[:-1] + rises[1:]) / 2
    slopes = torch.cat([2 * rises[:1] - within[:1], within, 2 * rises[-1:] - within[-1:]])
    lower = torch.cat([rises[:1], rises]).minimum(torch.cat([rises, rises[-1:]]))
    return slopes.clamp(min=0).minimum(3 * lower)
