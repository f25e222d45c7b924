"""The blocks of a recipe that are settings of the training loop."""

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
    """The length of a run, its batch size, its folder, and how it is computed.

    Args:
        total_steps: The number of optimizer steps of the whole run, including resumed parts.
        batch_size: The number of images per optimizer step, over all processes and accumulation steps.
        output_dir: The folder of this run; it must be new, or that of the run to resume.
        seed: The seed of the weights, the data order, t and the noise, for any number of processes.
        init_from: The folder or Hub name of a checkpoint whose weights initialise the run, as far as they fit; null
            uses random weights.
        init_raw: Whether to use the weights of `init_from` that were not averaged.
        gradient_accumulation_steps: The number of parts in which a process computes its share of the batch.
        mixed_precision: The precision of the network's computation; null uses that of the launcher. The schedule stays
            in float32.
        compile: Whether to `torch.compile` the network; this takes minutes once.
        gradient_checkpointing: Whether to compute the activations of the network twice instead of storing them, which
            uses less memory and more time; the gradients are the same.
        channels_last: Whether to use the memory format that suits convolutions on a GPU.
        cpu_threads: The number of threads of a process on a CPU; null shares the machine's cores between its processes.
        max_hours: The number of hours after which the run stops, saves, and exits with 75, or null for no limit.
        log_every: The number of steps between two lines of the log.
        tracker: Where scalars are logged in addition to log.jsonl; auto is tensorboard if it is installed.
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
            raise UserError("training.init_raw=True selects weights of init_from: set --init_from too")
        if self.max_hours is not None and not self.max_hours > 0:
            raise UserError(f"training.max_hours={self.max_hours} must be positive, or null for no limit")
        if self.seed < 0:
            raise UserError(f"training.seed={self.seed} must not be negative")

    def local_batch_size(self, num_processes: int) -> int:
        """Return the number of images of one process in one accumulation step."""
        parts = num_processes * self.gradient_accumulation_steps
        if self.batch_size % parts:
            raise UserError(
                f"batch_size={self.batch_size} is the global batch size and must be a multiple of {parts}, the number "
                f"of processes ({num_processes}) times gradient_accumulation_steps={self.gradient_accumulation_steps}"
            )
        return self.batch_size // parts


@dataclass(frozen=True)
class Optimization:
    """The optimizer and its learning rate.

    Args:
        optimizer: The optimizer, where muon is Muon for the hidden matrices (see muon.py) and Adam for the rest.
        lr: The peak learning rate of Adam.
        muon_lr: The peak learning rate of Muon.
        betas: The decay rates of Adam's two moments.
        eps: The number that is added to the denominator of Adam.
        weight_decay: The weight decay, which is decoupled, except that of adam, which is L2.
        warmup_steps: The number of steps in which the learning rate increases linearly from 0.
        decay: The shape of the learning rate after the warm-up; cosine and linear end at `floor` after the last step.
        floor: The last learning rate of cosine and linear, as a fraction of the peak learning rate.
        max_grad_norm: The norm to which the global norm of the gradient is clipped, or null for no clipping. The log
            contains the norm before clipping.
        fused: Whether adamw and adam use one kernel for all parameters.
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
                f"lr={self.lr} and muon_lr={self.muon_lr} must be positive, max_grad_norm={self.max_grad_norm} must be "
                f"positive or null, and warmup_steps={self.warmup_steps} must not be negative"
            )
        if not 0 <= self.floor < 1:
            raise UserError(f"floor={self.floor} must be a fraction of the peak learning rate in [0, 1)")
        if not all(0 <= beta < 1 for beta in self.betas) or self.eps <= 0 or self.weight_decay < 0:
            raise UserError(
                f"betas={list(self.betas)} must lie in [0, 1), eps={self.eps} must be positive, and "
                f"weight_decay={self.weight_decay} must not be negative"
            )

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Create the optimizer of `model`, with every group of parameters at its peak learning rate."""
        adam: dict[str, Any] = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        match self.optimizer:
            case "muon":
                return Muon(*split_parameters(model), muon_lr=self.muon_lr, **adam)
            case "adam":
                return torch.optim.Adam(model.parameters(), fused=self.fused, **adam)
            case _:
                return torch.optim.AdamW(model.parameters(), fused=self.fused, **adam)

    def set_learning_rate(self, optimizer: torch.optim.Optimizer, step: int, total_steps: int) -> None:
        """Set the learning rate of every group to that of optimizer step `step` (from 0).

        It is a function of the step alone, so it does not change with a resume, accumulation or the number of
        processes.
        """
        for group in optimizer.param_groups:
            peak = self.muon_lr if group.get("kind") == "muon" else self.lr
            group["lr"] = peak * self.schedule(step, total_steps)

    def schedule(self, step: int, total_steps: int) -> float:
        """Return the learning rate at `step` as a fraction of its peak, in [0, 1]."""
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
    """The latent space in which a diffusion model or a classifier works, instead of pixels.

    Args:
        vae: The folder or Hub name of a frozen HFVAE, AutoencoderKL or AutoencoderTiny; null is pixels.
        cache: Whether to encode every image once, into the cache of `datasets`, instead of each time it is used.
    """

    vae: str | None = None
    cache: bool = False

    def __post_init__(self) -> None:
        if self.vae == "":
            raise UserError("latents.vae='' is not a VAE: set a folder or a Hub name, or null for pixels")
        if self.cache and self.vae is None:
            raise UserError("latents.cache=True needs latents.vae, whose latents it stores")


@dataclass(frozen=True)
class Grids:
    """Grids of samples of a model that draws an image in one call, during training and at the end.

    Args:
        every: The number of steps between two grids; null draws only the last grid.
        num_images: The number of images of a grid.
    """

    every: int | None = None
    num_images: int = 64

    def __post_init__(self) -> None:
        _require_positive(self, "every", "num_images")


@dataclass(frozen=True)
class Sampling:
    """Grids of samples during training and at the end, drawn with the averaged weights.

    Args:
        every: The number of steps between two grids; null draws only the last grid.
        num_images: The number of images of a grid.
        num_inference_steps: The number of sampling steps.
        eta: The noise of a step, where 0 is DDIM and 1 is DDPM; null leaves it to `solver`.
        solver: The sampler, where default is UniPC, or DDIM if the network does not fit UniPC; ddpm is Algorithm 2; the
            others are those of `hf-ddpm sample`.
    """

    every: int | None = None
    num_images: int = 64
    num_inference_steps: int = DEFAULT_STEPS
    eta: float | None = None
    solver: Literal["default", "ddim", "ddpm", "dpm-solver++", "unipc", "heun", "euler"] = "default"

    def __post_init__(self) -> None:
        _require_positive(self, "every", "num_images", "num_inference_steps")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise UserError(f"sampling.eta={self.eta} must lie in [0, 1], or be null to leave it to the solver")
        if self.eta is not None and self.solver != "default":
            raise UserError(f"sampling.eta={self.eta} does not apply to solver={self.solver!r}: set --eta null")

    def sampler(self, pipeline: HFDDPMPipeline) -> dict[str, Any]:
        """Set the requested sampler of a pipeline, and return the arguments of its call."""
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
    """The evaluation of samples: during training, to keep the best checkpoint, and at the end, for the cards.

    The selection compares samples with the training images. The figures on the card are measured on other images: those
    that `reference` summarises, those of `data.held_back`, or the test split.

    Args:
        every: The number of steps between two selections, of which the best checkpoint is kept in the run's folder
            `best`; null disables the selection.
        samples: The number of samples to draw and measure, where 0 measures nothing; null is 1,000 for the embedded
            digits, compared with MNIST's test digits, and 0 for other data.
        extractor: The network that extracts features of images, as in `hf-ddpm evaluate --extractor`.
        reference: The statistics to use instead of test images, either mnist-test or a file.
        test_source: The source of the test images; null is the source of the training data.
        test_split: The split of the test images.
        sampling_seed: The seed of the samples for the card; the selection uses the next seed.
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
            raise UserError("evaluation.samples=1 is too small for a distance: set at least 2, or 0 for no evaluation")


@dataclass(frozen=True)
class Checkpoints:
    """The states to resume from.

    Args:
        every: The number of steps between two states; null saves only at the end.
        keep: The number of states to keep.
    """

    every: int | None = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        _require_positive(self, "every", "keep")


@dataclass(frozen=True)
class Hub:
    """Where checkpoints are pushed to, with the token of HF_TOKEN or `hf auth login`.

    Args:
        push_to_hub: Whether to push the finished checkpoint.
        hub_model_id: The name of the repository, as `user/name`; null is the name of output_dir, of the token's user.
        hub_private_repo: Whether the repository is private, if this run creates it.
        hub_every: The number of steps between pushes during training, each with the tag `step-<N>`; null pushes only
            the last checkpoint.
        license: The licence of the weights, such as mit or cc-by-4.0, for their card; null states none, unless they
            were trained on the digits of this package.
    """

    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = False
    hub_every: int | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "hub_every")
        if not self.push_to_hub and (self.hub_model_id or self.hub_private_repo or self.hub_every):
            raise UserError("hub: nothing is pushed without --push_to_hub: set it, or leave the other keys out")


OF_THE_LOOP: Blocks = {"training": Block(Training)}
OF_SAVING: Blocks = {"evaluation": Block(Evaluation), "checkpoints": Block(Checkpoints), "hub": Block(Hub)}
