"""A VAE's likelihood by importance sampling (Burda et al. 2016, arXiv 1509.00519), and the two terms of its bound.

With exactly K draws z_k from q(z|x), computed in logarithms throughout:

    log p(x) ~= log 1/K sum_k w_k,    w_k = p(x|z_k) p(z_k) / q(z_k|x)     (eq. 8)

Its expectation is a lower bound of log p(x) that rises with K; K = 1 gives the ELBO. The same draws give the two terms
of the ELBO: distortion, -E_q[log p(x|z)], and rate, KL(q(z|x) || p(z)) (Alemi et al. 2018, arXiv 1711.00464).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_ddpm.errors import UserError, require_at_least
from hf_ddpm.likelihood.bound import Progress
from hf_ddpm.likelihood.evaluate import check_images, gathered
from hf_ddpm.likelihood.flow import dequantised
from hf_ddpm.likelihood.images import GridImages, Stream, normal_noise, share
from hf_ddpm.likelihood.network import float64_device
from hf_ddpm.models.image_size import size_pair
from hf_ddpm.models.vae import HFVAE
from hf_ddpm.objectives.elbo import kl_per_dimension, log_prior_ratio
from hf_ddpm.pipelines.evaluating import evaluating
from hf_ddpm.progress import ProgressBar

ACTIVE_VARIANCE = 0.01  # a unit is inactive if its posterior mean varies less over images (Burda et al., sec. 5.2)
_MOST_DRAWS, _MOST_ELEMENTS = 1000, 2**23  # in one call of the decoder: more are slower, or do not fit into memory


@dataclass(frozen=True)
class ImportanceTerms:
    """The estimates from K draws per image, float64 on the CPU, in nats.

    Attributes:
        rows: The rows of the images, int64 (n,).
        log_p_x: (n,), the estimate of log p(x).
        log_p_x_given_z: (n,), the mean of log p(x|z_k) over the draws, which is minus the distortion.
        rate: (n,), KL(q(z|x) || N(0, I)) in closed form.
        effective_samples: (n,), (sum w)^2 / sum w^2 in 1 .. K, the effective number of draws.
        kl, mean, mean_square: (J, h, w), sums over the images of each latent dimension's KL, of mu and of mu^2.
    """

    rows: Tensor
    log_p_x: Tensor
    log_p_x_given_z: Tensor
    rate: Tensor
    effective_samples: Tensor
    kl: Tensor
    mean: Tensor
    mean_square: Tensor

    @property
    def elbo(self) -> Tensor:
        """E_q[log p(x|z)] - KL of each image, (n,)."""
        return self.log_p_x_given_z - self.rate

    @property
    def kl_per_dimension(self) -> Tensor:
        """The mean KL of each latent dimension, (J, h, w); they add up to the mean rate."""
        return self.kl / len(self.rows)

    @property
    def activity(self) -> Tensor:
        """Cov_x(E_q[z]) of each latent dimension, (J, h, w): the variance of mu over the images, with n - 1."""
        n = len(self.rows)
        return (self.mean_square - self.mean.square() / n) / (n - 1) if n > 1 else self.mean * torch.nan

    @property
    def active_units(self) -> int:
        """The number of latent dimensions with an activity above `ACTIVE_VARIANCE`."""
        return int((self.activity > ACTIVE_VARIANCE).sum())

    @classmethod
    def merged(cls, parts: "Sequence[ImportanceTerms]") -> "ImportanceTerms":
        """Merge the terms of several processes, in the order of the images."""
        order = torch.cat([part.rows for part in parts]).argsort()
        columns = [[getattr(part, field.name) for part in parts] for field in fields(cls)]
        of_images = [torch.cat(column)[order] for column in columns[:5]]
        return cls(*of_images, *(torch.stack(column).sum(dim=0) for column in columns[5:]))


@dataclass(frozen=True)
class VAELikelihood:
    """The measured likelihood of a set of images, with its settings; `vae_report.py` formats and plots it.

    Attributes:
        terms: The terms of the images in order.
        normalised: Whether p(x|z) sums to 1 over all such images; grey images under a Bernoulli likelihood have only a
            cross-entropy.
        density: Whether p(x|z) is a density of dequantised images; otherwise it is the mass of one image.
        seconds: The time on the slowest process.
    """

    images: GridImages
    seed: int
    num_samples: int
    terms: ImportanceTerms
    normalised: bool
    density: bool
    seconds: float

    def bits_per_dim(self, nats: Tensor) -> Tensor:
        """Convert nats = -log p to -log2 p / D; a density is multiplied by the bin width, - log2(bin width)."""
        bits = nats / (self.images.levels[0].numel() * math.log(2))
        return bits - math.log2(self.images.bin_width) if self.density else bits


def evaluate_vae(
    vae: HFVAE,
    images: GridImages,
    *,
    num_samples: int = 200,
    seed: int = 0,
    batch_size: int | None = None,
    cross_entropy: bool = False,
    accelerator: Accelerator | None = None,
) -> VAELikelihood:
    """Measure -log p(x), ELBO, rate and distortion of a VAE on at least 256 images.

    Under `bernoulli`, images are black and white. Under the Gaussian densities, they are dequantised: noise that is
    uniform in the bin of each grey level is added, and the encoder sees the same x as p(x|z). The images are shared
    among the processes of `accelerator`, each of which returns the complete result. The number of processes and
    `batch_size` change it only by the rounding of the network (1e-6 of the mean).

    Args:
        vae: The VAE.
        images: The images, from `draw_images` or `grid_images`.
        num_samples: K, the number of draws of z for each image.
        seed: The seed of all noise.
        batch_size: The number of draws in one call of the decoder; None uses `draws_at_once`.
        cross_entropy: Whether to measure grey images under `bernoulli` too; their cross-entropy is not a likelihood.
        accelerator: The accelerator of the processes.

    Raises:
        UserError: If there are too few images or draws, if the images do not fit the network or its likelihood, if
            sigma was not measured, or if the results are not finite.
    """
    check_images(images)
    require_at_least(0, seed=seed)
    _check_fit(vae, images)
    batch_size = draws_at_once(images) if batch_size is None else batch_size
    likelihood = vae.config["likelihood"]
    normalised = likelihood != "bernoulli" or is_binary(images)
    if not normalised and not cross_entropy:
        raise UserError(
            "the images have grey levels, but likelihood='bernoulli' needs black and white: binarise them, or request "
            "the cross-entropy, which is not a likelihood (--binarize none, cross_entropy=True)"
        )
    accelerator = accelerator or Accelerator(cpu=vae.device.type == "cpu")
    rows = share(len(images.levels), accelerator.process_index, accelerator.num_processes)
    settings = {"num_samples": num_samples, "seed": seed, "batch_size": batch_size}
    # TF32 would make the batch size visible
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    bar = ProgressBar("draws", len(rows) * num_samples, accelerator)
    with exact, evaluating(vae), bar:
        own = importance_terms(vae, images, rows, progress=bar.update, **settings)
    terms, seconds = gathered(own, ImportanceTerms.merged, bar.seconds)
    lost = int((~terms.log_p_x.isfinite()).sum())
    if lost:
        raise UserError(f"log p(x) is not finite for {lost} image(s): the training diverged, use an earlier checkpoint")
    return VAELikelihood(images, seed, num_samples, terms, normalised, _is_density(vae), seconds)


@torch.no_grad()
def importance_terms(
    vae: HFVAE,
    images: GridImages,
    rows: Tensor,
    *,
    num_samples: int,
    seed: int,
    batch_size: int,
    progress: Progress = lambda draws: None,
) -> ImportanceTerms:
    """Estimate log p(x), its bound and the information in the latents with K = `num_samples` draws of z per image.

    The K draws of an image depend only on (seed, image index). At most `batch_size` draws are decoded at a time: those
    of many images with few draws, or some of the draws of one image, whose weights are added to a running sum in
    logarithms. The network keeps its precision; p(x|z) and the weights are computed from its output in float64.

    Args:
        rows: The rows of the images, int64 (n,), in any order; the result is sorted by row.
        progress: A function that is called after each call of the decoder with its number of draws.

    Raises:
        UserError: If `num_samples` or `batch_size` is less than 1.
    """
    if num_samples < 1 or batch_size < 1:
        raise UserError(
            f"num_samples={num_samples} and batch_size={batch_size} must be at least 1; 200 draws are common"
        )
    of_images = [torch.empty(4, 0, dtype=torch.float64)]
    of_latents = torch.zeros(3, *vae.latent_shape, dtype=torch.float64)
    rows = rows.sort().values
    for part in rows.split(max(1, batch_size // num_samples)) if len(rows) else ():
        x = dequantised(images, part, seed) if _is_density(vae) else images.x_0(part)
        x = x.to(float64_device(vae.device))
        posterior = vae.posterior(x.to(vae.device, vae.dtype))
        mean, log_variance = posterior.mean.to(x), posterior.logvar.to(x)  # (B, J, h, w)
        noise = normal_noise(  # (B, K, J, h, w)
            [images.generator(seed, row, Stream.LATENT) for row in part.tolist()],
            torch.Size((num_samples, *mean.shape[1:])),
        ).to(x)
        kl = kl_per_dimension(mean, log_variance)
        estimates = _estimates(vae, x, mean, log_variance, noise, batch_size, progress)
        of_images.append(torch.stack([*estimates, kl.flatten(1).sum(dim=1)]).cpu())
        of_latents += torch.stack([kl, mean, mean.square()]).sum(dim=1).cpu()
    log_p_x, log_p_x_given_z, effective, rate = torch.cat(of_images, dim=1)
    return ImportanceTerms(rows, log_p_x, log_p_x_given_z, rate, effective, *of_latents)


def draws_at_once(images: GridImages) -> int:
    """Return the default number of draws in one call of the decoder: 1000, or fewer for large images."""
    return max(1, min(_MOST_DRAWS, _MOST_ELEMENTS // images.levels[0].numel()))


def is_binary(images: GridImages) -> bool:
    """Return whether every element is black or white, the lowest level or the highest."""
    return bool(((images.levels == 0) | (images.levels == 2**images.bit_depth - 1)).all())


def _estimates(
    vae: HFVAE, x: Tensor, mean: Tensor, log_variance: Tensor, noise: Tensor, batch_size: int, progress: Progress
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p(x), the mean of log p(x|z) and the effective sample size, each (B,), from noise (B, K, J, h, w)."""
    num_samples = noise.shape[1]
    log_sum = x.new_full((len(x),), -math.inf)  # log sum w
    log_sum_squares, log_p_sum = log_sum.clone(), x.new_zeros(len(x))
    for part in noise.split(max(1, batch_size // len(x)), dim=1):
        log_p = _log_p_x_given_z(vae, x, mean[:, None] + torch.exp(0.5 * log_variance)[:, None] * part)
        log_w = log_p + log_prior_ratio(mean, log_variance, part)  # (B, L)
        log_sum = torch.logaddexp(log_sum, log_w.logsumexp(dim=1))
        log_sum_squares = torch.logaddexp(log_sum_squares, (2 * log_w).logsumexp(dim=1))
        log_p_sum += log_p.sum(dim=1)
        progress(log_w.numel())
    return log_sum - math.log(num_samples), log_p_sum / num_samples, torch.exp(2 * log_sum - log_sum_squares)


def _log_p_x_given_z(vae: HFVAE, x: Tensor, z: Tensor) -> Tensor:
    """Return log p(x|z) of images (B, C, H, W) with L draws each, (B, L, J, h, w), as (B, L) in nats."""
    found = vae.likelihood_params(z.flatten(0, 1).to(vae.device, vae.dtype))
    exact = replace(found, **{field.name: getattr(found, field.name).to(x) for field in fields(found)})
    beside = x[:, None].expand(-1, z.shape[1], -1, -1, -1).flatten(0, 1)  # for one image, a view without copies
    return exact.log_prob(beside).view(z.shape[:2])


def _is_density(vae: HFVAE) -> bool:
    return str(vae.config["likelihood"]).startswith("gaussian")


def _check_fit(vae: HFVAE, images: GridImages) -> None:
    """Raise an error for a network that is not an HFVAE or not finished, and for images that do not fit it."""
    if "likelihood" not in getattr(vae, "config", {}):  # checked by the config: a compiled network has another class
        raise UserError(f"the network is {type(vae).__name__}, but only an HFVAE defines p(x|z): use an HFVAE")
    likelihood, channels = vae.config["likelihood"], vae.config["in_channels"]
    shape, wanted = tuple(images.levels.shape[1:]), (channels, *size_pair(vae.config["sample_size"]))
    if shape != wanted:
        raise UserError(
            f"the images have shape {shape}, but the network needs {wanted}: convert them, or resize integer pixels"
        )
    if likelihood == "discretized_gaussian" and images.bit_depth != 8:
        raise UserError(
            f"the images have bit depth {images.bit_depth}, but likelihood='discretized_gaussian' defines the 256 "
            "levels of 8 bits: convert them"
        )
    if vae.log_variance is not None and bool(vae.log_variance.isnan()):
        remedy = "the training has diverged, use an earlier checkpoint"
        if likelihood == "gaussian_optimal":
            remedy = "call measure_log_variance(images) and save again"
        raise UserError(f"likelihood={likelihood!r} has no sigma: {remedy}")
