"""Reports of a likelihood: a dictionary for JSON, and a table for the terminal."""

import platform
from typing import Any

import torch
from torch import Tensor, nn

from hf_ddpm.likelihood.bound import BoundTerms
from hf_ddpm.likelihood.evaluate import DiffusionLikelihood
from hf_ddpm.likelihood.flow import CALLS_A_STEP
from hf_ddpm.schedulers import HFDDPMScheduler
from hf_ddpm.weights import weights_sha256

GREY_STEP = 127.5  # 8-bit grey levels per unit of x
DENSITY = (
    "log p_0(sqrt(alpha_bar_0) x) + D log sqrt(alpha_bar_0), p_0 the flow's density at t = 0, x the image plus noise "
    "uniform in the bin of each grey level; bits/dim = -log2 p / D - log2(bin width)"
)


def diffusion_report(
    likelihood: DiffusionLikelihood, module: nn.Module, scheduler: HFDDPMScheduler, **about: Any
) -> dict[str, Any]:
    """Return everything that was measured, and on what, ready for JSON; bits are bits per dimension.

    Args:
        likelihood: The result of `evaluate`, with the same network and scheduler.
        about: Further facts, such as the checkpoint's name; they come first.
    """
    images, config = likelihood.images, scheduler.config
    found: dict[str, Any] = {
        **about,
        "weights_sha256": weights_sha256(module),
        "T": len(scheduler),
        **{key: config[key] for key in ("variance_type", "prediction_type", "beta_schedule")},
        "n": len(images.levels),
        "shape": list(images.levels.shape[1:]),
        "bit_depth": images.bit_depth,
        "seed": likelihood.seed,
        "clip": likelihood.clip,
        "seconds": {name: round(seconds, 1) for name, seconds in likelihood.seconds.items()},
        "versions": versions(),
    }
    if likelihood.bound is not None:
        found["bound"] = _bound(likelihood.bound)
    if likelihood.flow is not None and likelihood.halved is not None:
        found["ode"] = _flow(likelihood, likelihood.flow.bits, likelihood.halved.bits)
    return found


def diffusion_table(found: dict[str, Any]) -> str:
    """Format a few lines for the terminal: value, standard error and number of images."""
    rows: list[tuple[str, dict[str, float]]] = []
    if "bound" in found:
        bound = found["bound"]
        rows += [("variational bound", bound["bits_per_dim"]), ("  prior, L_T", bound["prior"])]
        rows += [("  rate, L_1 .. L_{T-1}", bound["kl"]), ("  decoder, L_0", bound["decoder"])]
    if "ode" in found:
        rows.append(("probability-flow ODE", found["ode"]["bits_per_dim"]))
    lines = [f"{'bits/dim':<26}{'mean':>9}   standard error   n"]
    lines += [
        f"{name:<26}{value['mean']:>9.4f} ± {value['standard_error']:<14.4f} {found['n']}" for name, value in rows
    ]
    if "bound" in found:
        split = found["bound"]["codelength"]
        lines.append(
            f"codelength: rate {split['rate']:.4f} + distortion {split['distortion']:.4f} bits/dim, "
            f"RMSE {split['rmse']:.3f} of 255"
        )
    if "ode" in found:
        halving = found["ode"]["halving"]
        lines.append(
            f"ODE with half of its {found['ode']['steps']} steps, {halving['n']} images: "
            f"{halving['mean_difference']:+.1e} bits/dim, at most {halving['largest_difference']:.1e} per image"
        )
    return "\n".join(lines)


def mean_and_error(values: Tensor) -> dict[str, float]:
    """Return the mean of values (n,) and its standard error, s / sqrt(n) with n - 1 in s."""
    error = values.std() / len(values) ** 0.5 if len(values) > 1 else torch.tensor(torch.nan)
    return {"mean": float(values.mean()), "standard_error": float(error)}


def _bound(terms: BoundTerms) -> dict[str, Any]:
    """Return the parts of the bound, with rate and RMSE by t as in DDPM's Fig. 5 and the codelength as in its sec. 4.3.

    A receiver of x_t, that is of the prior and the terms above t, knows the x_0 prediction from x_t. In the code's t,
    where index 0 is one step of noise: rate_t = L_T + sum of L_s over s > t.
    """
    n = len(terms.rows)
    bits, x_0_error, epsilon_error = terms.bits / n, terms.x_0_error / n, terms.epsilon_error / n
    received = float(terms.prior.mean()) + bits.flip(0).cumsum(dim=0).flip(0) - bits
    rmse = GREY_STEP * x_0_error.sqrt()
    return {
        "bits_per_dim": mean_and_error(terms.total),
        "prior": mean_and_error(terms.prior),
        "kl": mean_and_error(terms.rate),
        "decoder": mean_and_error(terms.decoder),
        "codelength": {"rate": float(received[0]), "distortion": float(bits[0]), "rmse": float(rmse[0])},
        "per_t": {
            "t": list(range(len(bits))),
            "bits_per_dim": bits.tolist(),
            "x_0_mse": x_0_error.tolist(),
            "epsilon_mse": epsilon_error.tolist(),
        },
        "rate_distortion": {"t": list(range(len(bits))), "rate": received.tolist(), "rmse": rmse.tolist()},
    }


def _flow(likelihood: DiffusionLikelihood, bits: Tensor, halved: Tensor) -> dict[str, Any]:
    difference = halved - bits[: len(halved)]
    return {
        "bits_per_dim": mean_and_error(bits),
        "density": DENSITY,
        "method": "rk4",
        "steps": likelihood.ode_steps,
        "network_calls": CALLS_A_STEP * likelihood.ode_steps,
        "probes": likelihood.num_probes,
        "halving": {
            "n": len(halved),
            "mean_difference": float(difference.mean()),
            "largest_difference": float(difference.abs().max()),
        },
    }


def versions() -> dict[str, str]:
    import diffusers

    from hf_ddpm.version import __version__

    return {
        "hf_ddpm": __version__,
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }
