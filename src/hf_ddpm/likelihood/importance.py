"""A VAE's likelihood by importance sampling (Burda et al. 2016, arXiv 1509.00519), and the two halves of its bound.

With exactly K draws z_k from q(z|x), in logarithms from end to end:

    log p(x) ~= log 1/K sum_k w_k,    w_k = p(x|z_k) p(z_k) / q(z_k|x)     (eq. 8)

Its expectation is a lower bound of log p(x) that rises with K; K = 1 gives the ELBO. The same draws give the ELBO's
halves: distortion, -E_q[log p(x|z)], and rate, KL(q(z|x) || p(z)) (Alemi et al. 2018, arXiv 1711.00464).
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

ACTIVE_VARIANCE = 0.01  # of a unit's posterior mean over images; less is called inactive (Burda et al., sec. 5.2)
_MOST_DRAWS, _MOST_ELEMENTS = 1000, 2**23  # in one call of the decoder: more of either are slower, or fill the memory


@dataclass(frozen=True)
class ImportanceTerms:
    """What K draws an image say, float64 on the CPU, in nats.

    Attributes:
        rows: int64 (n,), which images.
        log_p_x: (n,), the estimate of log p(x).
        log_p_x_given_z: (n,), the mean of log p(x|z_k) over the draws: minus the distortion.
        rate: (n,), KL(q(z|x) || N(0, I)) in closed form.
        effective_samples: (n,), (sum w)^2 / sum w^2 in 1 .. K: how many draws carry the estimate.
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
        """Cov_x(E_q[z]) of each latent dimension, (J, h, w): the variance of mu over the images, by n - 1."""
        n = len(self.rows)
        return (self.mean_square - self.mean.square() / n) / (n - 1) if n > 1 else self.mean * torch.nan

    @property
    def active_units(self) -> int:
        """How many latent dimensions have an activity above `ACTIVE_VARIANCE`."""
        return int((self.activity > ACTIVE_VARIANCE).sum())

    @classmethod
    def merged(cls, parts: "Sequence[ImportanceTerms]") -> "ImportanceTerms":
        """The terms of all images from those of several processes, in the order of the images."""
        order = torch.cat([part.rows for part in parts]).argsort()
        columns = [[getattr(part, field.name) for part in parts] for field in fields(cls)]
        of_images = [torch.cat(column)[order] for column in columns[:5]]
        return cls(*of_images, *(torch.stack(column).sum(dim=0) for column in columns[5:]))


@dataclass(frozen=True)
class VAELikelihood:
    """What was measured on a set of images, and how; `vae_report.py` makes a table, a file and a picture of it.

    Attributes:
        terms: of the images in their order.
        normalised: whether p(x|z) adds up to 1 over all such images; greys under a Bernoulli have a cross-entropy only.
        density: whether p(x|z) is a density of dequantised images, else the mass of one image.
        seconds: on the slowest process.
    """

    images: GridImages
    seed: int
    num_samples: int
    terms: ImportanceTerms
    normalised: bool
    density: bool
    seconds: float

    def bits_per_dim(self, nats: Tensor) -> Tensor:
        """-log2 p / D of nats = -log p; from a density a bin's width is taken for its mass, - log2(bin width)."""
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
    """-log p(x), ELBO, rate and distortion of a VAE on at least 256 images.

    Under `bernoulli` images are black and white. Under the Gaussian densities they are dequantised: noise uniform in
    the bin of each grey level is added, and the encoder sees the same x as p(x|z). The images are shared out to the
    processes of `accelerator`; every one of them returns the whole result. Neither their number nor `batch_size`
    changes it beyond the rounding of the network (1e-6 of the mean).

    Args:
        images: from `draw_images` or `grid_images`.
        num_samples: K, draws of z for each image.
        seed: of all noise.
        batch_size: draws in one call of the decoder; `draws_at_once` if None.
        cross_entropy: measure greys under `bernoulli` too, whose cross-entropy no normalised likelihood belongs to.

    Raises:
        UserError: fewer images or draws, images that do not fit the network or its likelihood, a sigma that was not
            measured, or weights that give nan.
    """
    check_images(images)
    require_at_least(0, seed=seed)
    _check_fit(vae, images)
    batch_size = draws_at_once(images) if batch_size is None else batch_size
    likelihood = vae.config["likelihood"]
    normalised = likelihood != "bernoulli" or is_binary(images)
    if not normalised and not cross_entropy:
        raise UserError(
            "the images have greys and likelihood='bernoulli' knows black and white: binarise them, or ask for the "
            "cross-entropy, which is no likelihood (--binarize none, cross_entropy=True)"
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
        raise UserError(f"{lost} images have no finite log p(x): the training diverged, take an earlier checkpoint")
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
    """log p(x), its bound and what the latents carry, of the images in `rows`: K = `num_samples` draws of z an image.

    The K draws of an image come from (seed, image index) alone. No more than `batch_size` are decoded at a time: many
    images with few draws side by side, or a part of one image's draws, whose weights join a running sum of logarithms.
    The network keeps its precision, p(x|z) of what it says and the weights are float64.

    Args:
        rows: int64 (n,), which of the images; the result is in their order among all.
        progress: called after each call of the decoder with its number of draws.

    Raises:
        UserError: fewer than one draw, or a batch of none.
    """
    if num_samples < 1 or batch_size < 1:
        raise UserError(
            f"num_samples={num_samples} and batch_size={batch_size} must be at least 1; 200 draws are usual"
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
    """How many draws one call of the decoder takes if nothing else is said: 1000, fewer of images that are large."""
    return max(1, min(_MOST_DRAWS, _MOST_ELEMENTS // images.levels[0].numel()))


def is_binary(images: GridImages) -> bool:
    """Whether every element is black or white, the lowest level or the highest."""
    return bool(((images.levels == 0) | (images.levels == 2**images.bit_depth - 1)).all())


def _estimates(
    vae: HFVAE, x: Tensor, mean: Tensor, log_variance: Tensor, noise: Tensor, batch_size: int, progress: Progress
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x), the mean of log p(x|z) and the effective sample size, each (B,), from noise (B, K, J, h, w)."""
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
    """log p(x|z) of images (B, C, H, W) and L draws each, (B, L, J, h, w), as (B, L) in nats."""
    found = vae.likelihood_params(z.flatten(0, 1).to(vae.device, vae.dtype))
    exact = replace(found, **{field.name: getattr(found, field.name).to(x) for field in fields(found)})
    beside = x[:, None].expand(-1, z.shape[1], -1, -1, -1).flatten(0, 1)  # of one image a view, no copies
    return exact.log_prob(beside).view(z.shape[:2])


def _is_density(vae: HFVAE) -> bool:
    return str(vae.config["likelihood"]).startswith("gaussian")


def _check_fit(vae: HFVAE, images: GridImages) -> None:
    """Refuse a network that is no HFVAE or not finished, and images that it was not made for."""
    if "likelihood" not in getattr(vae, "config", {}):  # by its config: a compiled one is of another class
        raise UserError(f"the network is {type(vae).__name__}: HFVAE alone knows its p(x|z), train one")
    likelihood, channels = vae.config["likelihood"], vae.config["in_channels"]
    shape, wanted = tuple(images.levels.shape[1:]), (channels, *size_pair(vae.config["sample_size"]))
    if shape != wanted:
        raise UserError(
            f"the images have shape {shape} and the network takes {wanted}: convert or resize them as integers"
        )
    if likelihood == "discretized_gaussian" and images.bit_depth != 8:
        raise UserError(
            f"the images have {images.bit_depth} bits and likelihood='discretized_gaussian' gives masses to the 256 "
            "levels of 8: convert them"
        )
    if vae.log_variance is not None and bool(vae.log_variance.isnan()):
        raise UserError(f"likelihood={likelihood!r} has no sigma yet: call measure_log_variance(images) and save again")
