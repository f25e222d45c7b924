"""Classifier guidance with known distributions: a mixture of Gaussians, its exact score and its exact classifier."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from benchmarks.options import Options
from benchmarks.report import Result, table
from hf_ddpm import HFDDPMScheduler
from hf_ddpm.pipelines.guidance import Guidance
from hf_ddpm.pipelines.walk import Guided, Predict, walk_down

TITLE = "Classifier guidance of a mixture of Gaussians"
ABOUT = """Half of x is drawn from N(-1, 0.5^2), half from N(1, 0.5^2), and y is the component. With the exact score of
p(x_t) and the exact p(y | x_t), `classifier_scale` 0 must result in p(x) and 1 in p(x | y = 1). For s = 4 one might
expect p(x) p(y | x)^4, the target of the table, but no sampler reaches it: its noised score is not grad log p(x_t) + 4
grad log p(y | x_t), because adding noise and raising to a power do not commute. The ODE that DDIM discretises is
integrated independently (scipy, DOP853, tolerance 1e-9, from 20,000 quantiles of the normal distribution) and agrees
with DDIM. Algorithm 2 ends elsewhere, because its noise pulls x_t back to the unguided marginals in every step. Linear
schedule, T = 1,000, no clipping, leading steps, seed 0."""
MEANS, STD, ASKED = (-1.0, 1.0), 0.5, 1
SCALES, STEPS, SAMPLES = (0.0, 1.0, 4.0), (250, 1000), 100_000


def measure(options: Options) -> Result:
    samples, steps = (1000, (10,)) if options.quick else (SAMPLES, STEPS)
    scheduler = HFDDPMScheduler(clip_sample=False)
    rows = []
    for scale in SCALES:
        rows += [{"scale": scale, "how": "target", **target(scale)}]
        rows += [
            {"scale": scale, "how": "ODE, scipy", **moments(flow(scheduler, scale, 200 if options.quick else 20_000))}
        ]
        for count in steps:
            for how, eta in (("DDIM", 0.0), ("Algorithm 2", None)):
                found = moments(sample(scheduler, scale, count, eta, samples))
                rows.append({"scale": scale, "how": f"{how}, {count} steps", **found})
    return {"samples": samples, "rows": rows}


def render(result: Result) -> str:
    keys = ("mean", "standard deviation", "share above 0")
    body = [[f"{row['scale']:g}", row["how"], *(f"{row[key]:.3f}" for key in keys)] for row in result["rows"]]
    return f"{result['samples']:,} samples.\n\n" + table(["scale", "how", *keys], body)


def log_joint(x: Any, abar: Any, log: Callable[..., Any]) -> list[Any]:
    """Return log p(x_t, y) of both classes up to a constant, for arrays or tensors."""
    variance = abar * STD**2 + 1 - abar
    return [-((x - math.sqrt(abar) * mean) ** 2) / (2 * variance) - log(variance) / 2 for mean in MEANS]


def network(scheduler: HFDDPMScheduler) -> Callable[..., Any]:
    """Return a network that predicts the exact eps of p(x_t)."""

    def predict(x_t: Tensor, t: int | Tensor) -> Any:
        abar = float(scheduler.alphas_cumprod[int(t)])
        joint = torch.stack(log_joint(x_t, abar, math.log))
        away = torch.stack([math.sqrt(abar) * mean - x_t for mean in MEANS])
        score = (joint.softmax(0) * away).sum(0) / (abar * STD**2 + 1 - abar)
        return type("Output", (), {"sample": -math.sqrt(1 - abar) * score})

    return predict


def sample(scheduler: HFDDPMScheduler, scale: float, steps: int, eta: float | None, count: int) -> np.ndarray:
    """Draw samples like a pipeline, (count,)."""
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn((count, 1, 1, 1), generator=generator, dtype=torch.float64)

    def log_probability(x_t: Tensor, t: int | Tensor) -> Tensor:
        abar = float(scheduler.alphas_cumprod[int(t)])
        joint = torch.stack(log_joint(x_t, abar, math.log))
        return joint.log_softmax(0)[ASKED].flatten()

    scheduler.set_timesteps(steps)
    predict = Predict(network(scheduler), guidance=Guidance(classifier_scale=scale))
    ask = Guided(predict, scheduler, log_probability)
    *_, (_, _, seen) = walk_down(ask, x_T, {"eta": eta, "generator": generator}, langevin={}, on_call=int)
    return seen["latents"].flatten().numpy()


def flow(scheduler: HFDDPMScheduler, scale: float, count: int) -> np.ndarray:
    """Move quantiles of the normal distribution along the guided probability flow, with an independent solver.

    In y = x / sqrt(alpha_bar) and sigma = sqrt(1 / alpha_bar - 1), it is dy/dsigma = eps (Song et al. 2021, eq. 14).
    """
    abars = scheduler.alphas_cumprod.numpy()
    sigmas = np.sqrt(1 / abars - 1)
    quantiles = (np.arange(count) + 0.5) / count
    y = torch.special.ndtri(torch.from_numpy(quantiles)).numpy() / math.sqrt(abars[-1])

    def eps(log_sigma: float, y: np.ndarray) -> np.ndarray:
        sigma = math.exp(log_sigma)
        abar = 1 / (1 + sigma**2)
        x, variance = y * math.sqrt(abar), abar * STD**2 + 1 - abar
        joint = log_joint(x, abar, math.log)
        share = 1 / (1 + np.exp(joint[1 - ASKED] - joint[ASKED]))  # p(y | x_t)
        away = [math.sqrt(abar) * mean - x for mean in MEANS]
        score = (share * away[ASKED] + (1 - share) * away[1 - ASKED]) / variance
        gradient = (1 - share) * (away[ASKED] - away[1 - ASKED]) / variance
        return -math.sqrt(1 - abar) * (score + scale * gradient) * sigma  # dy / dlog(sigma)

    ends = (math.log(sigmas[-1]), math.log(sigmas[0] * 1e-2))
    found = solve_ivp(eps, ends, y, method="DOP853", rtol=1e-9, atol=1e-9)
    return np.asarray(found.y[:, -1])


def target(scale: float) -> dict[str, float]:
    """Compute the moments of p(x) p(y | x)^s on a fine grid."""
    x = np.linspace(-8, 8, 400_001)
    joint = log_joint(x, 1.0, math.log)
    log_p = np.logaddexp(*joint)
    weights = np.exp(log_p + scale * (joint[ASKED] - log_p))
    weights /= weights.sum()
    mean = float((weights * x).sum())
    return {
        "mean": mean,
        "standard deviation": math.sqrt(float((weights * (x - mean) ** 2).sum())),
        "share above 0": float(weights[x > 0].sum()),
    }


def moments(x: np.ndarray) -> dict[str, float]:
    """Return the moments of samples that are compared."""
    return {"mean": float(x.mean()), "standard deviation": float(x.std()), "share above 0": float((x > 0).mean())}
