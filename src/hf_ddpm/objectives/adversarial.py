"""The objective of a denoising diffusion GAN (Xiao et al. 2022, arXiv 2112.07804), for its two players."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from hf_ddpm.objectives.objective import Draws, Losses
from hf_ddpm.schedulers import HFDDPMScheduler
from hf_ddpm.schedulers.annotations import check_arguments

if TYPE_CHECKING:
    from hf_ddpm.data import Batch

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
MOST_KEPT = 0.01  # the largest alpha_bar after the last step
LOOK_EVERY = 20  # steps between two measurements of the effect of z, each of which costs a call of the generator


class Pairs(NamedTuple):
    """The images of a turn, each (B, C, H, W), and their timesteps, (B,).

    Attributes:
        t: The timesteps, of the step from x_t to x_{t-1}.
        x_t: The noisy images.
        real: x_{t-1} drawn from q(x_{t-1}, x_t | x_0).
        x_0: The prediction of the generator from x_t.
        fake: x_{t-1} drawn from q(x_{t-1} | x_t, x_0) with that prediction.
    """

    t: Tensor
    x_t: Tensor
    real: Tensor
    x_0: Tensor
    fake: Tensor


class AdversarialObjective:
    """min_G max_D E_t E_q [log D(x_{t-1}, x_t, t)] + E_{p_theta} [log(1 - D)], non-saturating (eq. 5 to 7).

    The discriminator compares real and fake x_{t-1} of one x_t. A real pair is drawn from q(x_{t-1}, x_t | x_0); for
    the fake, the generator predicts x_0 from (x_t, z, t), and x_{t-1} is drawn from q(x_{t-1} | x_t, x_0). Each player
    has its own draws of t, noise and z.

    Args:
        scheduler: The noise process, in few steps, with `prediction_type="sample"` and `variance_type="fixed_small"`.
        latent_dim: The dimension of z.
        total_steps: The number of training steps, to which `l2_until` refers.
        r1_gamma: The gamma of the R1 penalty on real pairs, gamma / 2 ||grad_{x_{t-1}} D||^2. It is not multiplied by
            `r1_every`, as in the published results. 0 disables the penalty.
        r1_every: The number of steps between two penalties.
        r2_gamma: The gamma of the same penalty on fake pairs (R3GAN, arXiv 2501.05441). 0 disables it.
        relativistic: Whether each fake is judged relative to the real image of the same x_t, instead of by itself. See
            arXiv 2501.05441, eq. 2.
        l2_weight: The weight of ||x_0 - G||^2 per dimension, which pulls the generator towards the mean over z.
        l2_until: The fraction of the training over which `l2_weight` decreases linearly to 0. None keeps it constant.
        timestep_weights: The relative frequency of each t, as T numbers. None draws all t equally often.
        timestep_group: The number of neighbours in the batch that share one t. If it equals the discriminator's
            `group_size`, the minibatch standard deviation compares images of one noise level. The paper does not group:
            1.

    Raises:
        ValueError: If a number is out of range, or the steps of the scheduler are not draws from the posterior, or do
            not end in noise.
    """

    turns = (DISCRIMINATOR, GENERATOR)

    def __init__(
        self,
        scheduler: HFDDPMScheduler,
        *,
        latent_dim: int,
        total_steps: int,
        r1_gamma: float = 0.05,
        r1_every: int = 10,
        r2_gamma: float = 0.0,
        relativistic: bool = False,
        l2_weight: float = 0.0,
        l2_until: float | None = None,
        timestep_weights: Sequence[float] | None = None,
        timestep_group: int = 1,
    ) -> None:
        check_arguments(AdversarialObjective, locals())
        if not isinstance(scheduler, HFDDPMScheduler):
            raise ValueError(f"scheduler of type {type(scheduler).__name__} must be an HFDDPMScheduler")
        if obstacle := scheduler.posterior_obstacle:
            raise ValueError(f"{obstacle}: the generator predicts x_0, and x_{{t-1}} is drawn from the posterior")
        if (kept := float(scheduler.alphas_cumprod[-1])) > MOST_KEPT:
            given = scheduler.config["trained_betas"] is not None
            remedy = "trained_betas with a last beta closer to 1" if given else "beta_schedule 'vp'"
            raise ValueError(
                f"alpha_bar after the last step is {kept:.3g}, but it must be at most {MOST_KEPT} because sampling "
                f"starts from noise: use {remedy}"
            )
        for name, value in (("r1_gamma", r1_gamma), ("r2_gamma", r2_gamma), ("l2_weight", l2_weight)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be a finite number of at least 0; 0 disables the term")
        if latent_dim < 0 or total_steps < 1:
            raise ValueError(
                f"latent_dim={latent_dim} must be at least 0, and total_steps={total_steps} must be at least 1"
            )
        if r1_every < 1:
            raise ValueError(f"r1_every={r1_every} must be at least 1; 1 is every step")
        if timestep_group < 1:
            raise ValueError(f"timestep_group={timestep_group} must be at least 1; 1 gives each image its own t")
        if l2_until is not None and not 0 < l2_until <= 1:
            raise ValueError(f"l2_until={l2_until} must be a fraction of the training in (0, 1], or null")
        self.scheduler, self.latent_dim, self.total_steps = scheduler, latent_dim, total_steps
        self.r1_gamma, self.r1_every, self.r2_gamma, self.relativistic = r1_gamma, r1_every, r2_gamma, relativistic
        self.l2_weight, self.l2_until = l2_weight, l2_until
        self.timestep_group = timestep_group
        self._weights = _timestep_weights(timestep_weights, len(scheduler))

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, step: int = 0) -> Draws:
        """Draw `t` (B,), `noise`, `step_noise`, `posterior_noise` (B, C, H, W) and `z` (B, latent_dim) for each player.

        The generator also gets an `other_z`, which is used to measure the effect of z.
        """
        device, rows = generator.device, {}
        for turn in self.turns:
            groups = -(-shape[0] // self.timestep_group)
            t = torch.multinomial(self._weights.to(device), groups, replacement=True, generator=generator)
            rows[f"{turn}.t"] = t.repeat_interleave(self.timestep_group)[: shape[0]]
            for name in ("noise", "step_noise", "posterior_noise"):
                rows[f"{turn}.{name}"] = torch.randn(shape, generator=generator, device=device)
            for name in ("z", "other_z") if turn == GENERATOR else ("z",):
                rows[f"{turn}.{name}"] = torch.randn((shape[0], self.latent_dim), generator=generator, device=device)
        return Draws(rows, torch.ones(shape[0], device=device))

    def loss(self, turn: str, models: Mapping[str, nn.Module], batch: "Batch", draws: Draws, step: int) -> Losses:
        """Compute the loss of each image, (B,), for the player whose turn it is, as in the paper's algorithm box."""
        if turn not in self.turns:
            raise ValueError(f"turn={turn!r} must be one of {', '.join(self.turns)}")
        play = self._of_discriminator if turn == DISCRIMINATOR else self._of_generator
        return play(models, batch, draws, step)

    def learn(self, turn: str, draws: Draws, losses: Tensor, gather: Callable[[Tensor], Tensor]) -> None:
        """Do nothing: the objective itself learns nothing."""

    def state(self) -> dict[str, Tensor]:
        """Return an empty state: the phase of R1 follows from the step."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing: the state is empty."""

    def l2_weight_at(self, step: int) -> float:
        """Return the weight of the L2 term after `step` steps."""
        if self.l2_until is None:
            return self.l2_weight
        return self.l2_weight * max(0.0, 1 - step / (self.l2_until * self.total_steps))

    def _of_discriminator(self, models: Mapping[str, nn.Module], batch: "Batch", draws: Draws, step: int) -> Losses:
        """-log D(real) - log(1 - D(fake)), plus gamma / 2 ||grad D||^2 every few steps."""
        judge, y = models[DISCRIMINATOR], batch.labels
        with torch.no_grad():
            pairs = self._pairs(DISCRIMINATOR, models, batch, draws)
        penalised = step % self.r1_every == 0
        real, slope = _judged(judge, pairs.real, pairs.x_t, pairs.t, y, penalised and self.r1_gamma > 0)
        fake, other_slope = _judged(judge, pairs.fake, pairs.x_t, pairs.t, y, penalised and self.r2_gamma > 0)
        each = softplus(fake - real) if self.relativistic else softplus(-real) + softplus(fake)
        said = _by_t("gap", (real - fake).detach(), pairs.t, len(self.scheduler))
        for name, gamma, penalty in (("r1", self.r1_gamma, slope), ("r2", self.r2_gamma, other_slope)):
            if penalty is not None:
                each = each + gamma / 2 * penalty
                said[name] = penalty.detach().mean()
        return Losses(each, said)

    def _of_generator(self, models: Mapping[str, nn.Module], batch: "Batch", draws: Draws, step: int) -> Losses:
        """-log D(fake), plus the L2 term."""
        judge, y = models[DISCRIMINATOR], batch.labels
        pairs = self._pairs(GENERATOR, models, batch, draws)
        fake = _widened(judge(pairs.fake, pairs.x_t, pairs.t, y).logits)
        real = _widened(judge(pairs.real, pairs.x_t, pairs.t, y).logits) if self.relativistic else 0.0
        each, said = softplus(real - fake), {}
        if weight := self.l2_weight_at(step):
            l2 = (_widened(pairs.x_0) - batch.x_0).square().flatten(1).mean(dim=1)
            each, said = each + weight * l2, {"l2": l2.detach().mean()}
        if self.latent_dim and step % LOOK_EVERY == 0:
            with torch.no_grad():
                other = models[GENERATOR](pairs.x_t, pairs.t, draws.rows[f"{GENERATOR}.other_z"], y).sample
                spread = _widened(pairs.x_0 - other).square().flatten(1).mean(dim=1)  # twice the variance over z
            said |= _by_t("z_variance", spread / 2, pairs.t, len(self.scheduler))
        return Losses(each, said)

    def _pairs(self, turn: str, models: Mapping[str, nn.Module], batch: "Batch", draws: Draws) -> Pairs:
        """Return the images that the player of this turn sees."""
        rows = {name: draws.rows[f"{turn}.{name}"] for name in ("t", "noise", "step_noise", "posterior_noise", "z")}
        t = rows["t"]
        real, x_t = self.scheduler.add_noise_pair(batch.x_0, rows["noise"], rows["step_noise"], t)
        x_0 = models[GENERATOR](x_t, t, rows["z"], batch.labels).sample
        return Pairs(t, x_t, real, x_0, self.scheduler.sample_posterior(x_0, x_t, rows["posterior_noise"], t))


def _judged(
    judge: nn.Module, previous: Tensor, x_t: Tensor, t: Tensor, y: Tensor | None, penalised: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the logits of pairs, (B,), and, if penalised, ||grad_{x_{t-1}} D||^2, (B,), in float32 with a graph."""
    if not penalised:
        return _widened(judge(previous, x_t, t, y).logits), None
    previous = _widened(previous.detach()).requires_grad_()
    logits = judge(previous, x_t, t, y, full_precision=True).logits
    (slope,) = torch.autograd.grad(logits.sum(), previous, create_graph=True)
    return logits, slope.square().flatten(1).sum(dim=1)


def _widened(x: Tensor) -> Tensor:
    """Convert a tensor to float32, unless it has a higher precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _by_t(name: str, figures: Tensor, t: Tensor, num_steps: int) -> dict[str, Tensor]:
    """Return [sum, count] of the figures of each t, as `name_t0`, `name_t1`, ..."""
    pairs = torch.stack([figures, torch.ones_like(figures)], dim=1)  # (B, 2)
    sums = torch.zeros(num_steps, 2, dtype=pairs.dtype, device=pairs.device).index_add_(0, t, pairs)
    return {f"{name}_t{step}": sums[step] for step in range(num_steps)}


def _timestep_weights(weights: Sequence[float] | None, num_steps: int) -> Tensor:
    """Return the unnormalised probability of each t, (T,) float64."""
    values = torch.as_tensor([1.0] * num_steps if weights is None else weights, dtype=torch.float64)
    if values.shape != (num_steps,) or not (values >= 0).all() or not 0 < float(values.sum()) < math.inf:
        raise ValueError(
            f"timestep_weights={values.tolist()} must be one number of at least 0 for each timestep (T={num_steps}), "
            "with a finite sum above 0"
        )
    return values
