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
MOST_KEPT = 0.01  # alpha_bar at T
LOOK_EVERY = 20  # steps between two looks at what z changes, each of which costs a call of the generator


class Pairs(NamedTuple):
    """The images that a turn is about, each (B, C, H, W), and their t, (B,).

    Attributes:
        t: the step from x_t to x_{t-1}.
        x_t: the noisy images.
        real: x_{t-1} of q(x_{t-1}, x_t | x_0).
        x_0: what the generator predicts from x_t.
        fake: x_{t-1} of q(x_{t-1} | x_t, x_0), of that x_0.
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
    has draws of its own of t, noise and z.

    Args:
        scheduler: owns the noise process, in few steps; `prediction_type` is `sample`, `variance_type` `fixed_small`.
        latent_dim: of z.
        total_steps: of the training, which `l2_until` is a share of.
        r1_gamma: gamma / 2 ||grad_{x_{t-1}} D||^2 of real pairs; it is not multiplied by `r1_every`, as in the figures
            that are published. 0 is none.
        r1_every: steps between two penalties.
        r2_gamma: the same of fake pairs (R3GAN, arXiv 2501.05441); 0 is none.
        relativistic: each fake is judged against the real image of the same x_t (arXiv 2501.05441, eq. 2), instead of
            each for itself.
        l2_weight: of ||x_0 - G||^2 per dimension, which draws the generator to the mean over z.
        l2_until: share of the training in which that weight falls to 0 along a line; None: it stays.
        timestep_weights: how often each t is drawn, T numbers; None: all alike.
        timestep_group: neighbours in the batch that share one t. If it equals the discriminator's `group_size`, the
            minibatch standard deviation compares images of one noise level. The paper does not group: 1.

    Raises:
        ValueError: a number out of range, or a scheduler whose steps are no draws of the posterior or end before noise.
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
            raise ValueError(f"{obstacle}: the generator predicts x_0, from whose posterior x_{{t-1}} is drawn")
        if (kept := float(scheduler.alphas_cumprod[-1])) > MOST_KEPT:
            raise ValueError(
                f"after the last step alpha_bar is {kept:.3g} and must be at most {MOST_KEPT}, because sampling starts "
                "from noise: take beta_schedule 'vp', or a beta_end nearer to 1"
            )
        for name, value in (("r1_gamma", r1_gamma), ("r2_gamma", r2_gamma), ("l2_weight", l2_weight)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be a number of at least 0, where 0 leaves the term out")
        if latent_dim < 0 or total_steps < 1:
            raise ValueError(f"latent_dim={latent_dim} must be at least 0, and total_steps={total_steps} at least 1")
        if r1_every < 1:
            raise ValueError(f"r1_every={r1_every} must be at least 1, which is every step")
        if timestep_group < 1:
            raise ValueError(f"timestep_group={timestep_group} must be at least 1, which is a t of its own for each")
        if l2_until is not None and not 0 < l2_until <= 1:
            raise ValueError(f"l2_until={l2_until} must be a share of the training in (0, 1], or null")
        self.scheduler, self.latent_dim, self.total_steps = scheduler, latent_dim, total_steps
        self.r1_gamma, self.r1_every, self.r2_gamma, self.relativistic = r1_gamma, r1_every, r2_gamma, relativistic
        self.l2_weight, self.l2_until = l2_weight, l2_until
        self.timestep_group = timestep_group
        self._weights = _timestep_weights(timestep_weights, len(scheduler))

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, step: int = 0) -> Draws:
        """For each player `t` (B,), `noise`, `step_noise`, `posterior_noise` (B, C, H, W) and `z` (B, latent_dim).

        The generator has an `other_z` too, by which it is seen how much z changes.
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
        """Algorithm box of the paper: the loss of each image, (B,), of the player whose turn it is."""
        if turn not in self.turns:
            raise ValueError(f"turn={turn!r} must be one of {', '.join(self.turns)}")
        play = self._of_discriminator if turn == DISCRIMINATOR else self._of_generator
        return play(models, batch, draws, step)

    def learn(self, turn: str, draws: Draws, losses: Tensor, gather: Callable[[Tensor], Tensor]) -> None:
        """It learns nothing beside the players."""

    def state(self) -> dict[str, Tensor]:
        """Nothing: the phase of R1 follows from the step."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def l2_weight_at(self, step: int) -> float:
        """The weight of the L2 term after `step` steps."""
        if self.l2_until is None:
            return self.l2_weight
        return self.l2_weight * max(0.0, 1 - step / (self.l2_until * self.total_steps))

    def _of_discriminator(self, models: Mapping[str, nn.Module], batch: "Batch", draws: Draws, step: int) -> Losses:
        """-log D(real) - log(1 - D(fake)), and every few steps gamma / 2 ||grad D||^2."""
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
        """-log D(fake), and the L2 term."""
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
        """What the player of this turn is shown."""
        rows = {name: draws.rows[f"{turn}.{name}"] for name in ("t", "noise", "step_noise", "posterior_noise", "z")}
        t = rows["t"]
        real, x_t = self.scheduler.add_noise_pair(batch.x_0, rows["noise"], rows["step_noise"], t)
        x_0 = models[GENERATOR](x_t, t, rows["z"], batch.labels).sample
        return Pairs(t, x_t, real, x_0, self.scheduler.sample_posterior(x_0, x_t, rows["posterior_noise"], t))


def _judged(
    judge: nn.Module, previous: Tensor, x_t: Tensor, t: Tensor, y: Tensor | None, penalised: bool
) -> tuple[Tensor, Tensor | None]:
    """The logits of pairs, (B,), and, if they are penalised, ||grad_{x_{t-1}} D||^2 with a graph, (B,), in float32."""
    if not penalised:
        return _widened(judge(previous, x_t, t, y).logits), None
    previous = _widened(previous.detach()).requires_grad_()
    logits = judge(previous, x_t, t, y, full_precision=True).logits
    (slope,) = torch.autograd.grad(logits.sum(), previous, create_graph=True)
    return logits, slope.square().flatten(1).sum(dim=1)


def _widened(x: Tensor) -> Tensor:
    """In float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _by_t(name: str, figures: Tensor, t: Tensor, num_steps: int) -> dict[str, Tensor]:
    """[sum, count] of the figures of each t, `name_t0` and on."""
    pairs = torch.stack([figures, torch.ones_like(figures)], dim=1)  # (B, 2)
    sums = torch.zeros(num_steps, 2, dtype=pairs.dtype, device=pairs.device).index_add_(0, t, pairs)
    return {f"{name}_t{step}": sums[step] for step in range(num_steps)}


def _timestep_weights(weights: Sequence[float] | None, num_steps: int) -> Tensor:
    """How likely each t is but for a factor, (T,) float64."""
    values = torch.as_tensor([1.0] * num_steps if weights is None else weights, dtype=torch.float64)
    if values.shape != (num_steps,) or not (values >= 0).all() or not 0 < float(values.sum()) < math.inf:
        raise ValueError(
            f"timestep_weights={values.tolist()} must be {num_steps} numbers of at least 0, one for each timestep"
        )
    return values
