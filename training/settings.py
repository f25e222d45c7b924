"""The blocks of a recipe that are settings of the loop itself."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from hf_ddpm.errors import UserError, require_at_least
from hf_ddpm.pipelines import HFDDPMPipeline
from hf_ddpm.sampling import DDIM, DDPM, DEFAULT_STEPS, use_algorithm_2, use_default_sampler, use_solver
from hf_ddpm.training.muon import Muon, split_parameters
from hf_ddpm.training.recipe import Block, Blocks


def _require_positive(settings: Any, *names: str) -> None:
    require_at_least(1, **{name: getattr(settings, name) for name in names})


@dataclass(frozen=True)
class Training:
    """How long, how wide, and where.

    Args:
        total_steps: optimizer steps of the whole run, resumed parts included.
        batch_size: images per optimizer step, over all processes and accumulation steps together.
        output_dir: folder of this run; it must be new, or the one that is resumed.
        seed: fixes weights, data order, t and noise, whatever the number of processes.
        init_from: folder or Hub name of a checkpoint whose weights the run begins with, as far as they fit; null is
            random.
        init_raw: take those that were not averaged.
        gradient_accumulation_steps: parts that a process's share of the batch is computed in.
        mixed_precision: computation of the network; null takes the launcher's choice. The schedule stays in float32.
        compile: `torch.compile` the network; it costs minutes once.
        gradient_checkpointing: compute the network's inner values twice instead of keeping them, which takes less
            memory and more time; the gradients are the same.
        channels_last: memory layout that suits convolutions on a GPU.
        cpu_threads: threads of one process on a CPU; null shares the machine's cores between its processes.
        max_hours: stop after so many hours, save, and exit with 75; null does not stop.
        log_every: steps between two lines of the log.
        tracker: where scalars go beside log.jsonl; auto is tensorboard if it is installed.
    """

    total_steps: int
    batch_size: int = 32
    output_dir: str = "runs/run"
    seed: int = 0
    init_from: str | None = None
    init_raw: bool = False
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    compile: bool = False
    gradient_checkpointing: bool = False
    channels_last: bool = False
    cpu_threads: int | None = None
    max_hours: float | None = None
    log_every: int = 50
    tracker: Literal["auto", "none", "tensorboard", "wandb", "trackio"] = "auto"

    def __post_init__(self) -> None:
        _require_positive(self, "total_steps", "batch_size", "gradient_accumulation_steps", "cpu_threads", "log_every")
        if self.init_raw and self.init_from is None:
            raise UserError("training.init_raw=True says which weights of init_from to take: give --init_from too")
        if self.max_hours is not None and not self.max_hours > 0:
            raise UserError(f"training.max_hours={self.max_hours} must be positive, or null, which sets no limit")
        if self.seed < 0:
            raise UserError(f"training.seed={self.seed} must not be negative")

    def local_batch_size(self, num_processes: int) -> int:
        """Images of one process in one accumulation step."""
        parts = num_processes * self.gradient_accumulation_steps
        if self.batch_size % parts:
            raise UserError(
                f"batch_size={self.batch_size} is the global batch and must be a multiple of {parts}, "
                f"{num_processes} processes times gradient_accumulation_steps={self.gradient_accumulation_steps}"
            )
        return self.batch_size // parts


@dataclass(frozen=True)
class Optimization:
    """The optimizer and its learning rate.

    Args:
        optimizer: adamw, adam, or muon (see muon.py) for the hidden matrices and Adam for the rest.
        lr: peak learning rate of Adam.
        muon_lr: peak learning rate of muon.
        betas: decay rates of Adam's two moments.
        eps: added to the denominator.
        weight_decay: decoupled, but for adam, where it is L2.
        warmup_steps: steps of linear growth from 0.
        decay: shape after the warm-up; cosine and linear end at `floor` after the last step.
        floor: where they end, as a share of the peak learning rate.
        max_grad_norm: clip the global norm of the gradient; null does not clip. The log has it, before it was clipped.
        fused: one kernel for all parameters, of adamw and adam.
    """

    lr: float
    optimizer: Literal["adamw", "adam", "muon"] = "adamw"
    muon_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    floor: float = 0.0
    max_grad_norm: float | None = 1.0
    fused: bool = True

    def __post_init__(self) -> None:
        if (
            min(self.lr, self.muon_lr) <= 0
            or self.warmup_steps < 0
            or (self.max_grad_norm is not None and self.max_grad_norm <= 0)
        ):
            raise UserError(
                f"lr={self.lr}, muon_lr={self.muon_lr} and max_grad_norm={self.max_grad_norm} must be positive, "
                f"warmup_steps={self.warmup_steps} not negative"
            )
        if not 0 <= self.floor < 1:
            raise UserError(f"floor={self.floor} must be a share of the peak learning rate in [0, 1)")
        if not all(0 <= beta < 1 for beta in self.betas) or self.eps <= 0 or self.weight_decay < 0:
            raise UserError(
                f"betas={list(self.betas)} must lie in [0, 1), eps={self.eps} must be positive and "
                f"weight_decay={self.weight_decay} not negative"
            )

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of `model`, every group of parameters at its peak learning rate."""
        adam: dict[str, Any] = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        match self.optimizer:
            case "muon":
                return Muon(*split_parameters(model), muon_lr=self.muon_lr, **adam)
            case "adam":
                return torch.optim.Adam(model.parameters(), fused=self.fused, **adam)
            case _:
                return torch.optim.AdamW(model.parameters(), fused=self.fused, **adam)

    def set_learning_rate(self, optimizer: torch.optim.Optimizer, step: int, total_steps: int) -> None:
        """Give every group the learning rate of optimizer step `step` (from 0).

        It is a function of the step alone, so it survives a resume, accumulation and any number of processes.
        """
        for group in optimizer.param_groups:
            peak = self.muon_lr if group.get("kind") == "muon" else self.lr
            group["lr"] = peak * self.schedule(step, total_steps)

    def schedule(self, step: int, total_steps: int) -> float:
        """The share of the peak learning rate at `step`, in [0, 1]."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        match self.decay:
            case "cosine":
                return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2
            case "linear":
                return self.floor + (1 - self.floor) * (1 - done)
            case _:
                return 1.0


@dataclass(frozen=True)
class Latents:
    """The latent space that a diffusion model or a classifier works in, if not in pixels.

    Args:
        vae: folder or Hub name of a frozen HFVAE, AutoencoderKL or AutoencoderTiny; null is pixels.
        cache: encode every image once, into the cache of `datasets`, instead of each time it is seen.
    """

    vae: str | None = None
    cache: bool = False

    def __post_init__(self) -> None:
        if self.vae == "":
            raise UserError("latents.vae='' names no VAE: give a folder or a Hub name, or null for pixels")
        if self.cache and self.vae is None:
            raise UserError("latents.cache=True needs latents.vae, whose latents it keeps")


@dataclass(frozen=True)
class Grids:
    """Sample grids of a model that draws an image in one call, during training and at the end.

    Args:
        every: steps between two grids; null draws only the last.
        num_images: images of a grid.
    """

    every: int | None = None
    num_images: int = 64

    def __post_init__(self) -> None:
        _require_positive(self, "every", "num_images")


@dataclass(frozen=True)
class Sampling:
    """Sample grids during training and at the end, drawn with the averaged weights.

    Args:
        every: steps between two grids; null draws only the last.
        num_images: images of a grid.
        num_inference_steps: steps of the walk.
        eta: 0 is DDIM, 1 is DDPM; null leaves it to `solver`.
        solver: default is UniPC, and DDIM where the network does not fit UniPC; ddpm is Algorithm 2; others are those
            of `hf-ddpm sample`.
    """

    every: int | None = None
    num_images: int = 64
    num_inference_steps: int = DEFAULT_STEPS
    eta: float | None = None
    solver: Literal["default", "ddim", "ddpm", "dpm-solver++", "unipc", "heun", "euler"] = "default"

    def __post_init__(self) -> None:
        _require_positive(self, "every", "num_images", "num_inference_steps")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise UserError(f"sampling.eta={self.eta} must lie in [0, 1], or be null, which leaves it to the solver")
        if self.eta is not None and self.solver != "default":
            raise UserError(f"sampling.eta={self.eta} has no meaning for solver={self.solver!r}: leave one of them out")

    def sampler(self, pipeline: HFDDPMPipeline) -> dict[str, Any]:
        """Give a pipeline the sampler that is asked for; the keywords of a call of it."""
        steps: dict[str, Any] = {"num_inference_steps": self.num_inference_steps}
        if self.eta is not None or self.solver == DDIM:
            return steps | {"eta": self.eta or 0.0}
        if self.solver == "default":
            return use_default_sampler(pipeline, self.num_inference_steps)
        if self.solver == DDPM:
            use_algorithm_2(pipeline)
        else:
            use_solver(pipeline, self.solver)
        return steps


@dataclass(frozen=True)
class Evaluation:
    """Measured samples: during training, to keep the best checkpoint, and of the finished ones, for their cards.

    Selection compares with the training images. What a card says is measured on others: the images that `reference`
    sums up, those of `data.held_back`, or the test split.

    Args:
        every: steps between two selections, of which the best is kept in the run's folder `best`; null selects none.
        samples: how many are drawn and measured; 0 measures nothing, null is 1,000 of the embedded digits, against
            MNIST's test digits, and nothing of other data.
        extractor: the network that looks at images, as `hf-ddpm evaluate --extractor` takes it.
        reference: mnist-test, or a file of statistics, instead of images.
        test_source: of the images to test on; null is the training data's.
        test_split: of it.
        sampling_seed: of the samples for the card; those for the selection have the next one.
    """

    every: int | None = None
    samples: int | None = None
    extractor: str = "digits"
    reference: str | None = None
    test_source: str | None = None
    test_split: str = "test"
    sampling_seed: int = 1

    def __post_init__(self) -> None:
        _require_positive(self, "every")
        require_at_least(0, samples=self.samples, sampling_seed=self.sampling_seed)
        if self.samples == 1:
            raise UserError("evaluation.samples=1 has no distance: give at least 2, or 0 for no evaluation")


@dataclass(frozen=True)
class Checkpoints:
    """States to resume from.

    Args:
        every: steps between two states; null saves only at the end.
        keep: how many states to keep.
    """

    every: int | None = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        _require_positive(self, "every", "keep")


@dataclass(frozen=True)
class Hub:
    """Where checkpoints are pushed to, with the token of HF_TOKEN or `hf auth login`.

    Args:
        push_to_hub: push the finished checkpoint.
        hub_model_id: `user/name`; null is the name of output_dir, under the token's user.
        hub_private_repo: nobody but its owner sees the repository, if this run makes it.
        hub_every: steps between pushes during training, each with the tag `step-<N>`; null pushes the last alone.
        license: of the weights, for their card, such as mit or cc-by-4.0; null says none, unless they are of the digits
            of this package.
    """

    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = False
    hub_every: int | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "hub_every")
        if not self.push_to_hub and (self.hub_model_id or self.hub_private_repo or self.hub_every):
            raise UserError("hub: nothing is pushed without --push_to_hub: give it, or leave the other keys out")


OF_THE_LOOP: Blocks = {"training": Block(Training)}
OF_SAVING: Blocks = {"evaluation": Block(Evaluation), "checkpoints": Block(Checkpoints), "hub": Block(Hub)}
