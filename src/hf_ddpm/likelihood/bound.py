"""Bits/dim by the variational bound: every term of DDPM's eq. 5, for every image (Ho et al. 2020)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hf_ddpm.likelihood.images import GridImages, Stream, normal_noise
from hf_ddpm.likelihood.network import Network
from hf_ddpm.variational_bound import decoder_term, kl_term, prior_term, reverse_moments

Progress = Callable[[int], object]  # called with the number of network calls that were made


class BoundTerms(NamedTuple):
    """The bound of some images, float64 on the CPU; bits are bits per dimension.

    rows: int64 (n,), the rows of the images. prior, rate, decoder: (n,) in bits, L_T, the sum of L_t over t >= 1, and
    L_0 of each image. bits, x_0_error, epsilon_error: (T,), sums over the images of L_t in bits, and of the squared
    errors, averaged over dimensions, of the x_0 prediction as it is used (clipped, if requested) and of the epsilon
    that it implies.
    """

    rows: Tensor
    prior: Tensor
    rate: Tensor
    decoder: Tensor
    bits: Tensor
    x_0_error: Tensor
    epsilon_error: Tensor

    @property
    def total(self) -> Tensor:
        """The bound of each image, (n,) in bits."""
        return self.prior + self.rate + self.decoder

    @classmethod
    def merged(cls, parts: "Sequence[BoundTerms]") -> "BoundTerms":
        """Merge the terms of several processes, in the order of the images."""
        order = torch.cat([part.rows for part in parts]).argsort()
        of_images = [torch.cat([part[i] for part in parts])[order] for i in range(4)]
        of_steps = [torch.stack([part[i] for part in parts]).sum(dim=0) for i in range(4, 7)]
        return cls(*of_images, *of_steps)


@torch.no_grad()
def bound_terms(
    network: Network,
    images: GridImages,
    rows: Tensor,
    *,
    seed: int,
    batch_size: int = 64,
    clip: bool = True,
    progress: Progress = lambda calls: None,
) -> BoundTerms:
    """Compute all T + 1 terms of the bound of the images in `rows`, with T network calls per image.

    Batches consist of (image, t) pairs. The noise of a pair depends only on (seed, image index, t), so that nothing but
    the rounding of the network depends on the other pairs in its batch.

    Args:
        rows: The rows of the images, int64 (n,).
        batch_size: The number of pairs per batch.
        clip: Whether the x_0 prediction is clipped to [-1, 1], as in the papers' figures.
        progress: A function that is called after each batch with its number of pairs.
    """
    steps = len(network.scheduler)
    of_pairs = torch.zeros(len(rows) * steps, 3, dtype=torch.float64)
    for start in range(0, len(of_pairs), batch_size):
        pairs = torch.arange(start, min(start + batch_size, len(of_pairs)))
        of_pairs[pairs] = _pair_terms(network, images, rows[pairs // steps], pairs % steps, seed, clip).cpu()
        progress(len(pairs))
    table = of_pairs.view(len(rows), steps, 3)
    bits = table[:, :, 0]
    prior = [prior_term(network.scheduler, images.x_0(row[None])) / math.log(2) for row in rows]
    return BoundTerms(
        rows, torch.cat([torch.empty(0, dtype=torch.float64), *prior]), bits[:, 1:].sum(dim=1), bits[:, 0].clone(),
        *table.sum(dim=0).unbind(dim=1),
    )  # fmt: skip


def _pair_terms(network: Network, images: GridImages, rows: Tensor, t: Tensor, seed: int, clip: bool) -> Tensor:
    """Compute L_t in bits, and the squared errors of x_0 and epsilon, of each pair, (B, 3) float64."""
    scheduler, device = network.scheduler, network.formulas
    x_0 = images.x_0(rows)
    pairs = zip(rows.tolist(), t.tolist(), strict=True)
    noise = normal_noise([images.generator(seed, row, Stream.NOISE, step) for row, step in pairs], x_0.shape[1:])
    x_0, noise, t_there = x_0.to(device), noise.to(device), t.to(device)
    x_t = scheduler.add_noise(x_0, noise, t_there)
    output = network(x_t, t_there, images.labels_of(rows))

    mean, log_variance = reverse_moments(scheduler, output, x_t, t_there, clip=clip)
    nats = kl_term(scheduler, x_0, x_t, t_there, mean, log_variance)
    first = (t == 0).nonzero().flatten().to(device)  # only these few, because their logarithms are expensive
    nats[first] = decoder_term(x_0[first], mean[first], log_variance[first], bit_depth=images.bit_depth)

    predicted = scheduler.predict_x_0(scheduler.split_output(output, x_t)[0], x_t, t_there)
    predicted = predicted.clamp(-1, 1) if clip else predicted
    x_0_error = (predicted - x_0).square().flatten(1).mean(dim=1)
    epsilon_error = (scheduler.predict_epsilon(predicted, x_t, t_there) - noise).square().flatten(1).mean(dim=1)
    return torch.stack([nats / math.log(2), x_0_error, epsilon_error], dim=1)
