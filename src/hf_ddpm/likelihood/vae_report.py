"""Reports of the likelihood of a VAE: a dictionary for JSON, a table for the terminal, and a plot of the latents."""

from pathlib import Path
from typing import Any

from torch import Tensor

from hf_ddpm.likelihood.importance import ACTIVE_VARIANCE, VAELikelihood
from hf_ddpm.likelihood.picture import drawing
from hf_ddpm.likelihood.report import mean_and_error, versions
from hf_ddpm.models.vae import HFVAE
from hf_ddpm.weights import weights_sha256

MASS = "mass of an image; bits/dim = nats / (D ln 2)"
DENSITY = (
    "density at the image plus noise uniform in the bin of each grey level; "
    "bits/dim = nats / (D ln 2) - log2(bin width)"
)
CROSS_ENTROPY = (
    "cross-entropy of grey levels under a Bernoulli: not a normalised likelihood; bits/dim = nats / (D ln 2)"
)


def vae_report(likelihood: VAELikelihood, vae: HFVAE, **about: Any) -> dict[str, Any]:
    """Return everything that was measured, and on what, ready for JSON.

    Args:
        likelihood: The result of `evaluate_vae`, with the same network.
        about: Further facts, such as the checkpoint's name; they come first.
    """
    images, terms = likelihood.images, likelihood.terms
    kl, activity = terms.kl_per_dimension.flatten(), terms.activity.flatten()
    effective = mean_and_error(terms.effective_samples)
    return {
        **about,
        "weights_sha256": weights_sha256(vae),
        "likelihood": vae.config["likelihood"],
        "measure": CROSS_ENTROPY if not likelihood.normalised else DENSITY if likelihood.density else MASS,
        "latent_shape": list(terms.kl.shape),
        "n": len(images.levels),
        "shape": list(images.levels.shape[1:]),
        "bit_depth": images.bit_depth,
        "seed": likelihood.seed,
        "num_samples": likelihood.num_samples,
        "seconds": round(likelihood.seconds, 1),
        "versions": versions(),
        "nll" if likelihood.normalised else "cross_entropy": _in_both_units(likelihood, -terms.log_p_x),
        "negative_elbo": _in_both_units(likelihood, -terms.elbo),
        "rate": {"nats": mean_and_error(terms.rate)},
        "distortion": {"nats": mean_and_error(-terms.log_p_x_given_z)},
        "effective_samples": {**effective, "least": float(terms.effective_samples.min())},
        "active_units": {"count": terms.active_units, "of": kl.numel(), "threshold": ACTIVE_VARIANCE},
        "per_dimension": {"kl": kl.tolist(), "activity": activity.tolist()},
    }


def vae_table(found: dict[str, Any]) -> str:
    """Format a few lines for the terminal: value, standard error and number of images."""
    exact = "nll" in found
    main = found["nll"] if exact else found["cross_entropy"]
    sampled = f"{'-log p(x)' if exact else 'cross-entropy'}, K = {found['num_samples']}"
    rows = [(sampled, main["nats"]), ("-ELBO", found["negative_elbo"]["nats"])]
    rows += [("  rate, KL(q(z|x) || p(z))", found["rate"]["nats"])]
    rows += [("  distortion, -E log p(x|z)", found["distortion"]["nats"])]
    lines = [f"{'nats per image':<28}{'mean':>11}   standard error   n"]
    lines += [_line(name, value, found["n"]) for name, value in rows]
    lines += [f"{'bits/dim':<28}", _line(sampled, main["bits_per_dim"], found["n"])]
    lines += [_line("-ELBO", found["negative_elbo"]["bits_per_dim"], found["n"])]
    active, effective = found["active_units"], found["effective_samples"]
    lines.append(
        f"active units: {active['count']} of {active['of']}; effective sample size of the K draws: "
        f"{effective['mean']:.1f} on average, {effective['least']:.1f} at least"
    )
    if not exact:
        lines.append("grey levels under a Bernoulli have a cross-entropy, not a likelihood: do not compare the two")
    return "\n".join(lines)


def draw_latents(found: dict[str, Any], path: Path) -> None:
    """Write a PNG plot of the KL of every latent dimension, in descending order, with inactive dimensions in grey.

    Args:
        found: The report, from `vae_report`.
        path: The file, which ends with .png.
    """
    pairs = sorted(zip(found["per_dimension"]["kl"], found["per_dimension"]["activity"], strict=True), reverse=True)
    active, threshold = found["active_units"], found["active_units"]["threshold"]
    colours = ["tab:blue" if activity > threshold else "lightgrey" for _, activity in pairs]
    with drawing(path, width=8) as figure:
        axes = figure.subplots()
        axes.bar(range(len(pairs)), [kl for kl, _ in pairs], color=colours, width=0.9)
        axes.set_xlabel("latent dimension, sorted")
        axes.set_ylabel("KL in nats, mean over images")
        axes.set_title(
            f"rate {found['rate']['nats']['mean']:.2f} nats, {active['count']} of {active['of']} units active"
        )
        axes.grid(axis="y", alpha=0.3)


def _in_both_units(likelihood: VAELikelihood, nats: Tensor) -> dict[str, dict[str, float]]:
    return {"nats": mean_and_error(nats), "bits_per_dim": mean_and_error(likelihood.bits_per_dim(nats))}


def _line(name: str, value: dict[str, float], n: int) -> str:
    return f"{name:<28}{value['mean']:>11.4f} ± {value['standard_error']:<14.4f} {n}"
