"""Why the reverse step is Gaussian, and when it is not: the exact q(x_{t-1} | x_t) of a mixture of two Gaussians.

As beta approaches 0, the reverse of a Gaussian step becomes Gaussian too (Feller 1949; Sohl-Dickstein et al. 2015),
which is why DDPM uses 1,000 small steps. For large steps it has several modes, which is the reason for denoising
diffusion GANs (Xiao et al. 2022, arXiv 2112.07804, Fig. 2). Everything here is float64.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hf_ddpm.figures.figure import Figure
from hf_ddpm.figures.plots import plot, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BETAS = (0.01, 0.1, 0.5, 0.9)
KL_BETAS = tuple(10 ** (-4 + i / 12) for i in range(48))  # 0.0001 to 0.83
DDPM_BETAS = (1e-4, 0.02)
X_T = 0.2
_POINTS = 20_001


class Mixture(NamedTuple):
    """sum_k weights_k N(means_k, variances_k) on the line; each (K,) float64."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """Return log q at `x` (N,), in nats."""
        return torch.logsumexp(self.weights.log() + _log_normal(x[:, None], self.means, self.variances), dim=1)

    @property
    def mean(self) -> float:
        return float((self.weights * self.means).sum())

    @property
    def variance(self) -> float:
        return float((self.weights * (self.variances + self.means.square())).sum()) - self.mean**2

    @property
    def support(self) -> Tensor:
        """Evenly spaced points (N,) over an interval with all but 1e-15 of the mass."""
        reach = 8 * self.variances.sqrt()
        low, high = float((self.means - reach).min()), float((self.means + reach).max())
        return torch.linspace(low, high, _POINTS, dtype=torch.float64)


def two_modes() -> Mixture:
    """Return the data distribution of the figure: N(-1, 0.4^2) and N(1, 0.4^2) with equal weights."""
    half, one = torch.full((2,), 0.5, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    return Mixture(half, torch.cat([-one, one]), torch.full((2,), 0.16, dtype=torch.float64))


def forward_step(q: Mixture, beta: float) -> Mixture:
    """Return q(x_t) after x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) eps, x_{t-1} ~ q (DDPM, eq. 2)."""
    return Mixture(q.weights, math.sqrt(1 - beta) * q.means, (1 - beta) * q.variances + beta)


def reverse_step(q: Mixture, x_t: float, beta: float) -> Mixture:
    """Return q(x_{t-1} | x_t) by Bayes' rule: the posteriors of the parts, weighted by their likelihood of x_t."""
    after = forward_step(q, beta)
    log_weights = q.weights.log() + _log_normal(torch.tensor(x_t, dtype=torch.float64), after.means, after.variances)
    variances = 1 / (1 / q.variances + (1 - beta) / beta)
    means = variances * (q.means / q.variances + math.sqrt(1 - beta) * x_t / beta)
    return Mixture(log_weights.softmax(dim=0), means, variances)


def number_of_modes(q: Mixture) -> int:
    """Return the number of local maxima of the density."""
    slope = q.log_density(q.support).diff()
    return int(((slope[:-1] > 0) & (slope[1:] <= 0)).sum())


def kl_to_gaussian(q: Mixture) -> float:
    """Compute KL(q || N(mean, variance of q)) in nats, the loss of the best Gaussian, by the trapezoidal rule.

    Of all Gaussians p, the one with the moments of q has the smallest KL(q || p).
    """
    x = q.support
    log_q = q.log_density(x)
    log_p = _log_normal(x, torch.tensor(q.mean), torch.tensor(q.variance, dtype=torch.float64))
    return float(torch.trapezoid(log_q.exp() * (log_q - log_p), x))


def reverse_gaussian() -> Figure:
    """Plot q(x_{t-1} | x_t = 0.2) for four values of beta with the best Gaussian, and its KL against beta.

    Returns:
        Figure: The numbers `modes`, and `kl` in nats, for each value of `beta`.
    """
    require_matplotlib()
    q = two_modes()
    steps = [reverse_step(q, X_T, beta) for beta in BETAS]
    modes, kls = [number_of_modes(step) for step in steps], [kl_to_gaussian(step) for step in steps]
    numbers = {"beta": list(BETAS), "modes": modes, "kl": kls}
    losses = [kl_to_gaussian(reverse_step(q, X_T, beta)) for beta in KL_BETAS]
    panels = [_densities(q, step, beta) for step, beta in zip(steps, BETAS, strict=True)]
    picture = plot([*panels, lambda axes: _losses(axes, losses)], width=2.9)
    described = zip(BETAS, modes, kls, strict=True)
    sentence = "; ".join(f"beta {beta:g}: {count} mode(s), KL {kl:.2g} nats" for beta, count, kl in described)
    return Figure(picture, {"kl": torch.tensor(losses), "beta": torch.tensor(KL_BETAS)}, numbers, sentence)


def _densities(q: Mixture, step: Mixture, beta: float) -> "Callable[[Axes], None]":
    x = torch.linspace(-2.5, 2.5, 1001, dtype=torch.float64)
    gaussian = _log_normal(x, torch.tensor(step.mean), torch.tensor(step.variance, dtype=torch.float64)).exp()

    def draw(axes: "Axes") -> None:
        axes.fill_between(x, q.log_density(x).exp(), color="0.85", label="$q(x_{t-1})$")
        axes.plot(x, step.log_density(x).exp(), label="$q(x_{t-1}|x_t)$")
        axes.plot(x, gaussian, "--", label="best Gaussian")
        axes.axvline(X_T, color="0.5", linewidth=0.8, linestyle=":")
        axes.set(title=rf"$\beta$ = {beta:g}", xlabel="$x_{t-1}$", ylim=(0, None))
        if beta == BETAS[0]:
            axes.legend(fontsize=7, loc="upper left")

    return draw


def _losses(axes: "Axes", losses: list[float]) -> None:
    axes.loglog(KL_BETAS, losses)
    axes.axvspan(*DDPM_BETAS, color="0.9", label="betas of DDPM")
    axes.set(title="KL to the best Gaussian", xlabel=r"$\beta$", ylabel="nats")
    axes.legend(fontsize=7)


def _log_normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((x - mean).square() / variance + torch.log(2 * math.pi * variance))
