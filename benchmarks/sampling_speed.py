"""The time that each kind of model takes to draw a hundred digits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks.options import Options
from benchmarks.report import Result, table
from benchmarks.timing import Rounds
from hf_ddpm import HFDDGANPipeline, HFDDPMPipeline, HFDDPMScheduler, HFVAEPipeline, unet_preset
from hf_ddpm.models import HFVAE, generator_preset

TITLE = "Time to draw 100 digits"
ABOUT = """The table shows the seconds for 100 images in one call on one thread, with the networks of `mnist-ddgan`,
`mnist-conditional` and `mnist-vae` and random weights. The pipelines take turns in one process, and the times are
medians of five rounds, except for the thousand steps, which have one round; the last column is the median of the ratios
of the rounds. In the paper, DDGAN takes 0.21 s and DDPM 80.5 s (arXiv 2112.07804)."""
ROUNDS = 5
FIRST = "DDGAN, T = 4"
Draw = Callable[[int], object]


def measure(options: Options) -> Result:
    count, rounds, steps = (2, 1, 20) if options.quick else (100, ROUNDS, 1000)
    with one_thread():
        draws = contestants()
        long = {FIRST: draws[FIRST], f"DDPM, {steps} steps": diffusion(steps, 1.0)}
        rows = rows_of(draws, count, rounds) + rows_of(long, count, rounds=1)[1:]  # these take minutes
    return {"images": count, "rows": rows}


def rows_of(draws: dict[str, Draw], count: int, rounds: int) -> list[list[str | float]]:
    """Return the name, the seconds, and the ratio to the seconds of the first, for each contestant."""
    times = Rounds(
        {name: lambda draw=draw: draw(count) for name, draw in draws.items()}, rounds=rounds, warm_up=rounds > 1
    )
    return [[name, times.median(name), times.speedup(FIRST, over=name)] for name in draws]


def contestants() -> dict[str, Draw]:
    """Return for each name a function that draws a given number of images."""
    vae = HFVAE(latent_channels=10, hidden_sizes=(500, 500), activation="silu").eval()
    pipeline = HFVAEPipeline(vae)
    return {
        **{f"DDGAN, T = {steps}": adversarial(steps) for steps in (4, 1, 2, 8)},
        "VAE": lambda count: pipeline(count, output_type="pt"),
        **{f"DDPM, {steps} steps": diffusion(steps, 1.0) for steps in (4, 10, 50)},
        "DDIM, 50 steps": diffusion(50, 0.0),
    }


def adversarial(steps: int) -> Draw:
    """Return the pipeline of `mnist-ddgan` with the given number of steps."""
    scheduler = HFDDPMScheduler(steps, beta_schedule="vp", beta_end=0.01, prediction_type="sample", clip_sample=False)
    pipeline = HFDDGANPipeline(generator_preset("mnist", num_classes=10).eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return lambda count: pipeline(count, class_labels=7, output_type="pt")


def diffusion(steps: int, eta: float) -> Draw:
    """Return the pipeline of `mnist-conditional` with the given number of steps."""
    scheduler = HFDDPMScheduler(beta_schedule="cosine", prediction_type="sample", timestep_spacing="trailing")
    pipeline = HFDDPMPipeline(unet_preset("mnist", num_class_embeds=10).eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return lambda count: pipeline(count, steps, eta=eta, class_labels=7, output_type="pt")


@contextmanager
def one_thread() -> Iterator[None]:
    """Use only one thread of torch within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def render(result: Result) -> str:
    return table(["model", f"{result['images']} images, s", f"ratio to {FIRST}"], result["rows"])
