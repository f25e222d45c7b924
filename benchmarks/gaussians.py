"""25 Gaussians in the plane: how many modes a denoising GAN finds, by the weight of R1, by T, and with and without z.

    python -m benchmarks.gaussians

Uses small networks with the objective and the steps of hf_ddpm, on one core. Existing results are kept.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.by_command import by_seed, measure_missing, publish, word_of
from benchmarks.report import Result, table
from hf_ddpm import HFDDPMScheduler
from hf_ddpm.data import Batch
from hf_ddpm.metrics.modes import Modes
from hf_ddpm.models.ddgan_blocks import minibatch_std
from hf_ddpm.objectives import DISCRIMINATOR, GENERATOR, AdversarialObjective

TITLE = "25 Gaussians: the modes found by a denoising GAN"
ABOUT = """The data are 25 Gaussians on a grid with a spacing of 2 and a standard deviation of .05, as in arXiv
2112.07804. A mode counts as found if at least 1% of 10,000 samples lie within three standard deviations of it; such
samples are called good. The KL is that between the shares of samples by their nearest mode and 25 equal shares, in
nats. Generator and discriminator are MLPs with three layers of 128, whose inputs include sinusoids of the coordinates;
all variants are trained for the same number of steps on one thread. The variance of the noise is that of `geometric`
from .01 to .995: .02, .09, .31, .99. The paper's schedule has a separate row: its last step begins at .48, where the
modes overlap. The values are medians of three seeds, with the smallest and the largest."""
RESULTS = Path("benchmarks/results/gaussians")
SPACING, SD = 2.0, 0.05
SCALE = 2**0.5 * SPACING  # the standard deviation of the data, which are divided by it
NUM_SAMPLES, WIDTH, LATENT = 10_000, 128, 16


@dataclass(frozen=True)
class Arm:
    """The settings of one training."""

    num_steps: int = 4
    schedule: str = "geometric"
    r1_gamma: float = 0.02
    r1_every: int = 4
    with_z: bool = True
    sinusoids: int = 2  # sinusoids of each coordinate that both networks also see
    group_size: int = 16  # pairs with one t whose spread the discriminator sees
    more: dict[str, Any] = field(default_factory=dict)  # further arguments of the objective
    total_steps: int = 5000
    batch_size: int = 256
    lr: float = 2e-3


BETAS = {"geometric": {"beta_start": 0.01, "beta_end": 0.995}, "vp": {}}
BASE = Arm()
ARMS = {
    "T = 4": BASE,
    **{f"T = {steps}": replace(BASE, num_steps=steps) for steps in (1, 2, 8)},
    "T = 4, the paper's schedule": replace(BASE, schedule="vp"),
    "T = 4, without z": replace(BASE, with_z=False),
    **{f"T = 4, gamma {gamma}": replace(BASE, r1_gamma=gamma) for gamma in (0.0, 0.001, 0.2, 1.0)},
    "T = 4, without sinusoids": replace(BASE, sinusoids=0),
    "T = 4, the discriminator without spread": replace(BASE, group_size=1),
    "T = 4, relativistic with R2": replace(BASE, more={"relativistic": True, "r2_gamma": BASE.r1_gamma}),
    "T = 4, L2 until half of the training": replace(BASE, more={"l2_weight": 1.0, "l2_until": 0.5}),
}


class PlaneGenerator(nn.Module):
    """A network from x_t, t and z to x_0 (B, 2, 1, 1)."""

    def __init__(self, num_steps: int, sinusoids: int, with_z: bool) -> None:
        super().__init__()
        self.sinusoids, self.with_z, self.time = sinusoids, with_z, nn.Embedding(num_steps, LATENT)
        self.layers = _mlp(2 + 4 * sinusoids + 2 * LATENT, 2)

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor, class_labels: Tensor | None = None) -> SimpleNamespace:
        z = z if self.with_z else torch.zeros_like(z)
        x_0 = self.layers(torch.cat([_with_waves(x_t.flatten(1), self.sinusoids), self.time(t), z], dim=1))
        return SimpleNamespace(sample=x_0.view_as(x_t))


class PlaneDiscriminator(nn.Module):
    """A network from pairs (x_{t-1}, x_t) at t to logits (B,), which also sees how much the pairs of a group differ."""

    def __init__(self, num_steps: int, sinusoids: int, group_size: int) -> None:
        super().__init__()
        self.sinusoids, self.group_size, self.time = sinusoids, group_size, nn.Embedding(num_steps, LATENT)
        self.layers, self.head = _mlp(4 + 8 * sinusoids + LATENT, WIDTH), _mlp(WIDTH + 1, 1, layers=1)

    def forward(
        self, previous: Tensor, x_t: Tensor, t: Tensor, class_labels: Tensor | None = None, full_precision: bool = False
    ) -> SimpleNamespace:
        pair = torch.cat([previous.flatten(1), x_t.flatten(1)], dim=1)
        h = self.layers(torch.cat([_with_waves(pair, self.sinusoids), self.time(t)], dim=1))
        h = minibatch_std(h[:, :, None, None], self.group_size).flatten(1)
        return SimpleNamespace(logits=self.head(h).squeeze(1))


def _with_waves(x: Tensor, sinusoids: int) -> Tensor:
    waves = [wave(2**i * torch.pi * x) for i in range(sinusoids) for wave in (torch.sin, torch.cos)]
    return torch.cat([x, *waves], dim=1)


def _mlp(inputs: int, outputs: int, layers: int = 3) -> nn.Sequential:
    widths = [inputs, *[WIDTH] * layers]
    hidden = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.LeakyReLU(0.2))]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, outputs))


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, and write the medians of all results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gaussians", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", default=[*ARMS], choices=[*ARMS], metavar="ARM", help="run only: " + "; ".join(ARMS)
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    measure_missing(RESULTS, given.only, given.seeds, measure)
    result = {"command": "python -m benchmarks.gaussians", "arms": by_seed(RESULTS, list(ARMS))}
    publish(RESULTS.with_suffix(".json"), result)
    print(render(result))


def measure(name: str, seed: int) -> Result:
    """Train one arm with one seed, and return its figures."""
    began = time.perf_counter()
    samples = played(ARMS[name], seed)
    found = {**counted(samples), "seconds": round(time.perf_counter() - began, 1)}
    print(name, seed, found)
    if seed == 0:
        picture(samples[:3000], RESULTS / f"{word_of(name)}.png")
    return {"arm": name, "settings": asdict(ARMS[name]), **found}


def played(arm: Arm, seed: int) -> Tensor:
    """Train a generator and return samples (B, 2) with its averaged weights."""
    torch.manual_seed(seed)
    process: dict[str, Any] = {"beta_schedule": arm.schedule, **BETAS[arm.schedule]}
    scheduler = HFDDPMScheduler(arm.num_steps, **process, prediction_type="sample", clip_sample=False)
    penalty = {"r1_gamma": arm.r1_gamma, "r1_every": arm.r1_every, "timestep_group": arm.group_size}
    objective = AdversarialObjective(scheduler, latent_dim=LATENT, total_steps=arm.total_steps, **penalty, **arm.more)
    models: dict[str, nn.Module] = {
        GENERATOR: PlaneGenerator(arm.num_steps, arm.sinusoids, arm.with_z),
        DISCRIMINATOR: PlaneDiscriminator(arm.num_steps, arm.sinusoids, arm.group_size),
    }
    optimizers = {
        name: torch.optim.Adam(model.parameters(), lr=arm.lr, betas=(0.0, 0.99)) for name, model in models.items()
    }
    average = torch.optim.swa_utils.AveragedModel(models[GENERATOR], multi_avg_fn=_ema)
    generator = torch.Generator().manual_seed(seed)
    for step in range(arm.total_steps):
        batch = Batch(grid(arm.batch_size, generator), None, torch.arange(arm.batch_size))
        draws = objective.draw((arm.batch_size, 2, 1, 1), generator, step)
        share = 0.02 + 0.98 * (1 - step / arm.total_steps)
        for turn in objective.turns:
            optimizers[turn].param_groups[0]["lr"] = share * arm.lr
            loss = objective.loss(turn, models, batch, draws, step).each.mean()
            optimizers[turn].zero_grad()
            loss.backward()
            optimizers[turn].step()
        average.update_parameters(models[GENERATOR])
    return drawn(average, scheduler, seed)


def _ema(averages: Any, weights: Any, _count: Any) -> None:
    torch._foreach_lerp_(averages, weights, 0.005)


def grid(count: int, generator: torch.Generator) -> Tensor:
    """Draw from the 25 Gaussians, divided by their standard deviation, (count, 2, 1, 1)."""
    centres = SPACING * (torch.randint(5, (count, 2), generator=generator) - 2)
    return ((centres + SD * torch.randn(count, 2, generator=generator)) / SCALE).view(count, 2, 1, 1)


@torch.no_grad()
def drawn(network: nn.Module, scheduler: HFDDPMScheduler, seed: int) -> Tensor:
    """Draw samples (B, 2) on the scale of the grid, with the same steps as `HFDDGANPipeline`."""
    generator = torch.Generator().manual_seed(1000 + seed)
    scheduler.set_timesteps(len(scheduler), timestep_spacing="trailing")
    x = torch.randn(NUM_SAMPLES, 2, 1, 1, generator=generator)
    for t in scheduler.timesteps.tolist():
        z = torch.randn(NUM_SAMPLES, LATENT, generator=generator)
        x_0 = network(x, torch.full((NUM_SAMPLES,), t), z).sample
        x = scheduler.step(x_0, t, x, generator=generator).prev_sample
    return SCALE * x.flatten(1)


def counted(samples: Tensor) -> dict[str, float]:
    """Count the modes that are found and the share of good samples, and compute the divergence from equal shares."""
    nearest = (samples / SPACING).round().clamp(-2, 2)
    good = ((samples - SPACING * nearest).norm(dim=1) < 3 * SD).double()
    place = (5 * (nearest[:, 0] + 2) + nearest[:, 1] + 2).long()
    shares = torch.zeros(25, dtype=torch.float64).index_add_(0, place, good) / len(samples)
    divergence = Modes.of(place.bincount(minlength=25)).divergence
    return {"modes": int((shares >= 0.01).sum()), "good": float(good.mean()), "KL": divergence}


def picture(samples: Tensor, file: Path) -> None:
    """Plot a dot for each sample."""
    figure = Figure(figsize=(2, 2), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*samples.T.numpy(), s=0.5, linewidths=0)
    axes.set(xlim=(-5.5, 5.5), ylim=(-5.5, 5.5), xticks=[], yticks=[], aspect="equal")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def render(result: Result) -> str:
    """Return a table with a row for each arm."""
    rows = []
    for name, row in result["arms"].items():
        modes, good, divergence = row["modes"], row["good"], row["KL"]
        rows.append(
            [
                name,
                f"{statistics.median(modes):.0f} ({min(modes)} to {max(modes)})",
                f"{statistics.median(good):.2f} ({min(good):.2f} to {max(good):.2f})",
                f"{statistics.median(divergence):.3f} ({min(divergence):.3f} to {max(divergence):.3f})",
                f"{statistics.median(row['seconds']):.0f}",
            ]
        )
    return table(["training", "modes of 25", "good samples", "KL to uniform", "seconds"], rows)


if __name__ == "__main__":
    main()
