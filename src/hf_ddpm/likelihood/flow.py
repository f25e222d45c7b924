"""Bits/dim by the probability-flow ODE: the model as a continuous normalising flow from images to noise.

DDIM's ODE (Song, Meng & Ermon 2021, eq. 14) is the probability flow of Song et al. (2021, arXiv 2011.13456, sec. 4.3).
In the angle phi of `NoiseAngle` it reads dx/dphi = v(x, t) with v = cos(phi) eps - sin(phi) x_0, the velocity of
Salimans & Ho (2022, appendix D). It stays finite where alpha_bar is 0, although a network that predicts epsilon does
not determine it there: its v is (eps - sin(phi) x) / cos(phi). The density follows from the divergence of v:

    log p_0(x) = log N(x_T; 0, I) + integral of div v dphi     (arXiv 2011.13456, eq. 39, appendix D.2)

p_0 is the density at the level t = 0, the last one that the network was trained on, where alpha_bar_0 < 1. The density
of images is taken to be that of x / sqrt(alpha_bar_0) there: an image x is evaluated at sqrt(alpha_bar_0) x, and
D log sqrt(alpha_bar_0) is added for the change of scale.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hf_ddpm.errors import UserError
from hf_ddpm.likelihood.bound import Progress
from hf_ddpm.likelihood.images import GridImages, Stream
from hf_ddpm.likelihood.network import Network
from hf_ddpm.likelihood.noise_angle import NoiseAngle
from hf_ddpm.schedulers.transition import velocity

CALLS_A_STEP = 4  # network calls in one step of the fourth-order Runge-Kutta method


class FlowTerms(NamedTuple):
    """The ODE's estimate for some images. rows: int64 (n,). bits: bits/dim of the dequantised images, float64 (n,)."""

    rows: Tensor
    bits: Tensor

    @classmethod
    def merged(cls, parts: "Sequence[FlowTerms]") -> "FlowTerms":
        """Merge the estimates of several processes, in the order of the images."""
        order = torch.cat([part.rows for part in parts]).argsort()
        return cls(*(torch.cat([part[i] for part in parts])[order] for i in range(2)))


def flow_terms(
    network: Network,
    images: GridImages,
    rows: Tensor,
    *,
    seed: int,
    steps: int,
    num_probes: int = 1,
    batch_size: int = 64,
    progress: Progress = lambda calls: None,
) -> FlowTerms:
    """Compute -log2 p(x_0 + u) / D - log2(bin width) of the images in `rows`, u uniform in the bin of each grey level.

    By Jensen's inequality, its mean over u is at least -log2 of the mass that the flow assigns to the bins: bits/dim of
    images, as defined in arXiv 2011.13456. u and the probes depend only on (seed, image index).

    Args:
        rows: The rows of the images, int64 (n,).
        steps: The number of steps, of equal length in the u of t = (T - 1) (1 - cos(pi u)) / 2, with `CALLS_A_STEP`
            network calls each.
        num_probes: The number of probes of Hutchinson's trace estimator, each with one backward pass per network call.
        batch_size: The number of images per batch.
        progress: A function that is called after each network call with its number of images.

    Raises:
        UserError: If the network accepts only integer t, or if there is not at least one step and one probe.
    """
    dimensions, found = images.levels[0].numel(), [torch.empty(0, dtype=torch.float64)]
    for part in rows.split(batch_size) if len(rows) else ():
        x, probes = dequantised(images, part, seed), _probes(images, part, seed, num_probes)
        x, probes = x.to(network.formulas), probes.to(network.formulas)
        nats = flow_log_density(network, x, images.labels_of(part), probes, steps=steps, progress=progress)
        found.append(-nats.cpu() / (dimensions * math.log(2)) - math.log2(images.bin_width))
    return FlowTerms(rows, torch.cat(found))


def flow_log_density(
    network: Network,
    x: Tensor,
    labels: Tensor | None,
    probes: Tensor,
    *,
    steps: int,
    progress: Progress = lambda calls: None,
) -> Tensor:
    """Compute log p(x) of each image under the flow, in nats, (B,) float64.

    The steps are fixed, so that the result of an image does not depend on the rest of its batch, as it would with
    adaptive steps.

    Args:
        x: Continuous images, float64 (B, C, H, W).
        labels: The classes, (B,), for a class-conditional network.
        probes: Probes e with E[e e^T] = I, such as random signs, float64 (K, B, C, H, W): the divergence is the mean of
            e^T (dv/dx) e.
        steps: The number of steps, of equal length in the u of t = (T - 1) (1 - cos(pi u)) / 2, short at both ends.
        progress: A function that is called after each network call with its number of images, B.

    Raises:
        UserError: If the network accepts only integer t, if there is not at least one step and one probe, or if
            torchdiffeq is not installed.
    """
    odeint = _odeint()
    if steps < 1 or len(probes) < 1:
        raise UserError(f"steps={steps} and num_probes={len(probes)} must both be at least 1 for the ODE")
    flow = _Flow(network, labels, probes)

    def grid(_function: object, _state: object, ends: Tensor) -> Tensor:
        return torch.linspace(0, 1, steps + 1, dtype=ends.dtype, device=ends.device)

    def derivative(u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        slopes = flow.slopes(float(u), state[0])
        progress(len(x))
        return slopes

    root = network.scheduler.alphas_cumprod[0].item() ** 0.5  # sqrt(alpha_bar_0)
    start = (root * x, torch.zeros(len(x), dtype=x.dtype, device=x.device))
    ends = torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
    with torch.no_grad():
        path = odeint(derivative, start, ends, method="rk4", options={"grid_constructor": grid})
    x_T, divergence = path[0][-1], path[1][-1]
    log_normal = -0.5 * (x_T.square() + math.log(2 * math.pi)).flatten(1).sum(dim=1)
    return log_normal + divergence + x[0].numel() * math.log(root)


class _Flow:
    """dx/du and the divergence along t = (T - 1) (1 - cos(pi u)) / 2, u in [0, 1], which is slow at both ends.

    At the clean end, this is because phi begins like a square root of t. At the noisy end, it is because the output of
    a network that predicts epsilon is divided by alpha, which multiplies its error by 20,000 on the cosine schedule:
    where one step of t matters so much, one step of the solver must not span many.
    """

    def __init__(self, network: Network, labels: Tensor | None, probes: Tensor) -> None:
        if network.config.get("time_embedding_type") == "learned":
            raise UserError(
                "the network has a learned embedding for each integer t, but the ODE also needs the values in between: "
                "use the bound (--method bound)"
            )
        self.network, self.labels, self.probes = network, labels, probes
        self.angle = NoiseAngle(network.scheduler)

    def slopes(self, u: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return dx/du, with the shape of `x`, and the divergence per unit of u, (B,)."""
        t = self.angle.last * (1 - math.cos(math.pi * u)) / 2
        dphi_du = self.angle.slope(t) * self.angle.last * math.pi / 2 * math.sin(math.pi * u)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = self._velocity(x, t)
            divergence = torch.zeros(len(x), dtype=x.dtype, device=x.device)
            for number, probe in enumerate(self.probes, start=1):
                (row,) = torch.autograd.grad((v * probe).sum(), x, retain_graph=number < len(self.probes))
                divergence += (row * probe).flatten(1).sum(dim=1) / len(self.probes)
        return v.detach() * dphi_du, divergence * dphi_du

    def _velocity(self, x: Tensor, t: float) -> Tensor:
        """Return v at (x, t) as the network predicts it; like t, t - 1 may lie between integers."""
        scheduler = self.network.scheduler
        time = torch.full((len(x),), t, dtype=torch.float64)
        prediction, _ = scheduler.split_output(self.network(x, time, self.labels), x)
        return velocity(scheduler.config["prediction_type"], prediction, x, self.angle(t), self.angle(t - 1))


def dequantised(images: GridImages, rows: Tensor, seed: int) -> Tensor:
    """Return x_0 + u, with u uniform in [-w/2, w/2) for bins of width w, float64 (B, C, H, W)."""
    x_0, where = images.x_0(rows), rows.tolist()
    draws = [
        torch.rand(x_0.shape[1:], generator=images.generator(seed, row, Stream.DEQUANTISATION)).double()
        for row in where
    ]
    return x_0 + (torch.stack(draws) - 0.5) * images.bin_width


def _probes(images: GridImages, rows: Tensor, seed: int, num_probes: int) -> Tensor:
    """Draw Rademacher signs, float64 (num_probes, B, C, H, W)."""
    shape = images.levels.shape[1:]

    def signs(row: int, number: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=images.generator(seed, row, Stream.PROBE, number)) * 2.0 - 1

    return torch.stack([torch.stack([signs(row, k) for row in rows.tolist()]) for k in range(num_probes)]).double()


def _odeint() -> Callable[..., tuple[Tensor, Tensor]]:
    """Return torchdiffeq's integrator."""
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise UserError("the ODE estimate needs torchdiffeq: pip install 'hf_ddpm[measure]'") from error
    solver: Callable[..., tuple[Tensor, Tensor]] = odeint
    return solver
