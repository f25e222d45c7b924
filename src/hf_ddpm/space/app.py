"""A page that samples from one checkpoint: images, the denoising of an image, and interpolations between two seeds.

A Space contains this file as app.py, and checkpoint.json beside it names the checkpoint and its commit. The checkpoint
is opened with hf_ddpm if that is installed, and otherwise with the code files of its repository. `hf-ddpm demo` shows
the same page.
"""

import inspect
import json
from collections import Counter
from collections.abc import Callable
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL.Image import Image, fromarray
from torch import Tensor

LARGEST_SEED = 2**53 - 1  # the largest integer that a browser represents exactly
MOST_IMAGES, MOST_FRAMES, BATCH = 64, 100, 16
UNIPC, UNIPC_STEPS, DDIM_STEPS = "UniPC", 20, 50  # the default number of steps of each sampler
IN_TURN = "each in turn"
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "network"}  # the scheduler keeps the state of a sampling run
CSS = """
.drawn img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated }
.drawn .grid-wrap { max-height: none; height: auto; overflow: hidden }
"""
LOOK: dict[str, Any] = {"css": CSS, "footer_links": ["api"], "run_history": False, "ssr_mode": False}


def open_checkpoint(name: str, commit: str) -> Any:
    """Load the pipeline of a checkpoint, onto the GPU if there is one. Without hf_ddpm the code of the commit runs."""
    if find_spec("hf_ddpm") is None:
        at = {"revision": commit, "custom_revision": commit}
        pipeline = DiffusionPipeline.from_pretrained(name, custom_pipeline=name, trust_remote_code=True, **at)
    else:
        from hf_ddpm.checkpoint import load_checkpoint

        pipeline = load_checkpoint(name, revision=commit)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def build(pipeline: Any, name: str) -> gr.Blocks:
    """Build the page, which `launch(**LOOK)` shows.

    Args:
        pipeline: An `HFDDPMPipeline`, `HFVAEPipeline` or `HFDDGANPipeline`, from hf_ddpm or from code files.
        name: The name of the checkpoint, for the title.

    Raises:
        ValueError: If the model draws no images, has no size, or its images have neither 1 nor 3 channels.
    """
    check_pictures(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    with gr.Blocks(title=name, analytics_enabled=False) as page:
        gr.Markdown(
            f"# {name}\n\nImage i of a seed is the one that `hf-ddpm sample --seed` draws with the same settings."
        )
        with gr.Tab("Sample"):
            gallery_tab(pipeline, sample, ["Seed"], 1, in_turn=True, solver=True)
        if type(scheduler_of(pipeline)).__name__ == "HFDDPMScheduler":  # others do not return their x_0 prediction
            with gr.Tab("Denoising"):
                denoising_tab(pipeline)
        with gr.Tab("Interpolation"):
            gallery_tab(pipeline, interpolate, ["First seed", "Second seed"], 2, eta=False)
    return page


def gallery_tab(
    pipeline: Any, function: Callable[..., list[Image]], seeds: list[str], least: int, **controlled: bool
) -> None:
    """Add a gallery of the images that `function` draws from some seeds.

    Args:
        seeds: The captions of the fields of the seeds, whose values are 0, 1, ...
        least: The smallest number of images.
        controlled: Arguments of `walk_controls`.
    """
    name = function.__name__
    with gr.Row():
        with gr.Column(scale=1):
            inputs: list[Any] = [seed_box(caption, value) for value, caption in enumerate(seeds)]
            inputs.append(gr.Slider(least, MOST_IMAGES, 8, step=1, label="Number of images"))
            controls = walk_controls(pipeline, **controlled)
            button = gr.Button("Draw", variant="primary", elem_id=f"{name}-draw")
        with gr.Column(scale=2):
            gallery = image_gallery("Images", f"{name}-images")
    call = spoken(function, pipeline, tuple(controls))
    button.click(call, [*inputs, *controls.values()], gallery, api_name=name, **ONE_AT_A_TIME)


def denoising_tab(pipeline: Any) -> None:
    """Add a view of x_t and the x_0 that the network predicts from it, beside each other."""
    with gr.Row():
        with gr.Column(scale=1):
            seed, controls = seed_box("Seed", 0), walk_controls(pipeline, most_steps=MOST_FRAMES)
            button = gr.Button("Draw", variant="primary", elem_id="denoise-draw")
        with gr.Column(scale=2):
            at = gr.Slider(0, 1, 0, step=1, label="Steps taken", interactive=False, elem_id="denoise-at")
            with gr.Row():
                shown = [*image_box("**x_t**", "denoise-x-t")]
                shown.append(image_box("**x_0**, predicted from x_t", "denoise-x-0")[1])
    frames = gr.State(time_to_live=3600)
    call = spoken(denoise, pipeline, tuple(controls))
    button.click(call, [seed, *controls.values()], [frames, at, *shown], api_name="denoise", **ONE_AT_A_TIME)
    moved: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
    at.input(frame, [frames, at], shown, concurrency_limit=None, **moved)


def image_gallery(label: str, elem_id: str) -> gr.Gallery:
    """Create a gallery with rows of four images, which are shown losslessly."""
    look: dict[str, Any] = {"show_label": False, "format": "png", "height": "auto", "buttons": ["download_all"]}
    return gr.Gallery(label=label, columns=4, elem_id=elem_id, elem_classes="drawn", **look)


def image_box(caption: str, elem_id: str) -> tuple[gr.Markdown, gr.Image]:
    """Create an image under its caption."""
    look: dict[str, Any] = {"show_label": False, "format": "png", "height": 300, "buttons": ["download", "fullscreen"]}
    with gr.Column(min_width=160):
        return gr.Markdown(caption), gr.Image(elem_id=elem_id, elem_classes="drawn", interactive=False, **look)


def seed_box(label: str, value: int) -> gr.Number:
    """Create a field for a seed; `whole` checks its value."""
    return gr.Number(value, label=label)


def walk_controls(
    pipeline: Any, *, most_steps: int | None = None, eta: bool = True, in_turn: bool = False, solver: bool = False
) -> dict[str, Any]:
    """Create the components, by the argument of a call that they set; a pipeline that draws in one call has none.

    Args:
        most_steps: The largest number of steps, if that is less than the steps of training.
        eta: Whether to offer eta.
        in_turn: Whether to offer all classes in turn: class i modulo their number for image i.
        solver: Whether to offer UniPC, which draws better images in fewer steps, if it supports the network.
    """
    scheduler, controls = scheduler_of(pipeline), {}
    solver = solver and takes_unipc(pipeline)
    if solver:
        choices: list[Any] = [(UNIPC, UNIPC), ("DDIM and DDPM, by eta", "")]
        controls["solver"] = gr.Dropdown(choices, value=UNIPC, label="Sampler")
    if scheduler is not None:
        most = min(scheduler.config.num_train_timesteps, most_steps or np.inf)
        start = UNIPC_STEPS if solver else DDIM_STEPS
        controls["num_inference_steps"] = gr.Slider(1, most, min(start, most), step=1, label="Steps")
    if eta and takes_eta(pipeline):
        start = pipeline.config.default_eta or 0
        controls["eta"] = gr.Slider(0, 1, start, step=0.05, label="eta", info="0 is DDIM, 1 is DDPM")
    if pipeline.num_classes is not None:
        labels: list[Any] = [*([(IN_TURN, -1)] if in_turn else []), *class_choices(pipeline)]
        controls["class_labels"] = gr.Dropdown(labels, value=labels[0][1], label="Class")
    return controls | guidance_controls(pipeline)


def guidance_controls(pipeline: Any) -> dict[str, Any]:
    """Create the controls that trade diversity for fidelity: guidance of a network or a classifier, or truncation."""
    controls: dict[str, Any] = {}
    if pipeline.config.get("null_class") is not None and "guidance_scale" in inspect.signature(pipeline).parameters:
        about = "1 is off; larger values give images that are closer to the class and less diverse"
        controls["guidance_scale"] = gr.Slider(1, 8, 1, step=0.05, label="Guidance", info=about)
    if pipeline.components.get("classifier") is not None:
        controls["classifier_scale"] = gr.Slider(0, 10, 1, step=0.1, label="Classifier scale", info="0 is off")
    if "truncation" in inspect.signature(pipeline).parameters:
        about = "1 is off; smaller values give less diverse images"
        controls["truncation"] = gr.Slider(0, 1, 1, step=0.05, label="Truncation", info=about)
    return controls


def class_choices(pipeline: Any) -> list[tuple[str, int]]:
    """Return the classes of a network, or of the classifier that guides it, by their names if they have some."""
    guided = pipeline.components.get("classifier") is not None
    # the code files of an older checkpoint support neither classifiers nor names
    named = (pipeline.class_signature.id2label if guided else pipeline.config.get("id2label")) or {}
    names = [named.get(k, str(k)) for k in range(pipeline.num_classes)]
    several = {name for name, count in Counter(names).items() if count > 1}
    return [(f"{name} ({k})" if name in several else name, k) for k, name in enumerate(names)]


def sample(pipeline: Any, progress: gr.Progress, walk: dict[str, Any], seed: float, count: int) -> list[Image]:
    """Draw images 0 .. count - 1 of a seed."""
    number = whole("Seed", seed, LARGEST_SEED)
    generators = [image_generator(number, i) for i in range(count)]
    if walk.pop("solver", "") == UNIPC and walk["num_inference_steps"] < len(scheduler_of(pipeline)):
        walk.pop("eta", None)
        pipeline = by_unipc(pipeline)
    return drawn(pipeline, progress, walk, count, generator=generators)


def takes_unipc(pipeline: Any) -> bool:
    """Return whether UniPC supports the network: its scheduler is an HFDDPMScheduler that predicts noise, x_0 or v."""
    scheduler = scheduler_of(pipeline)
    return type(scheduler).__name__ == "HFDDPMScheduler" and scheduler.config.prediction_type != "mean"


def by_unipc(pipeline: Any) -> Any:
    """Return the same pipeline with UniPC instead of its scheduler, as `hf-ddpm sample` uses it."""
    solver = UniPCMultistepScheduler.from_config(scheduler_of(pipeline).config, timestep_spacing="trailing")
    other = copy(pipeline)
    other.register_modules(scheduler=solver)
    return other


def interpolate(
    pipeline: Any, progress: gr.Progress, walk: dict[str, Any], first: float, second: float, count: int
) -> list[Image]:
    """Draw `count` images from image 0 of one seed to image 0 of another, along the sphere of the noise, with eta 0."""
    generator = image_generator(whole("First seed", first, LARGEST_SEED), 0)
    x = noise(pipeline, generator)
    y = noise(pipeline, image_generator(whole("Second seed", second, LARGEST_SEED), 0))
    if takes_eta(pipeline):
        walk = walk | {"eta": 0.0}
    latents = torch.cat([slerp(x, y, k / (count - 1)) for k in range(count)])
    generators = [
        generator.clone_state() for _ in range(count)
    ]  # all images take the later noise of a GAN from the first
    return drawn(pipeline, progress, walk, count, latents=latents, generator=generators)


def denoise(pipeline: Any, progress: gr.Progress, walk: dict[str, Any], seed: float) -> tuple[Any, ...]:
    """Draw all frames of the denoising of image 0, and return them with what shows the middle one."""
    generator = image_generator(whole("Seed", seed, LARGEST_SEED), 0)
    x = noise(pipeline, generator)
    levels: list[str] = []
    x_t, x_0 = [picture(pipeline, x)], []

    def keep(_pipeline: Any, i: int, t: Tensor, seen: dict[str, Tensor]) -> None:
        progress((i + 1, walk["num_inference_steps"]))
        levels.append(f"t = {int(t)}")
        x_t.append(picture(pipeline, seen["latents"]))
        x_0.append(picture(pipeline, seen["pred_original_sample"]))

    pipeline(1, latents=x, generator=[generator], callback_on_step_end=keep, **walk)
    frames = {"level": [*levels, "done"], "x_t": x_t, "x_0": [*x_0, x_t[-1]]}  # x_0[k] was predicted from x_t[k]
    at = len(levels) // 2
    return frames, gr.Slider(maximum=len(levels), value=at, interactive=True), *frame(frames, at)


def frame(frames: dict[str, Any] | None, at: int) -> tuple[str, Image, Image]:
    """Return the caption of x_t after `at` steps, x_t, and the x_0 predicted from it."""
    if frames is None:  # the session that drew them has ended
        raise gr.Error("these frames are no longer stored: press Draw again", print_exception=False)
    at = min(at, len(frames["level"]) - 1)
    return f"**x_t**, {frames['level'][at]}", frames["x_t"][at], frames["x_0"][at]


def drawn(
    pipeline: Any, progress: gr.Progress, walk: dict[str, Any], count: int, **fixed: list[torch.Generator] | Tensor
) -> list[Image]:
    """Draw `count` images, a batch at a time.

    Args:
        walk: The arguments of a call; class -1 means all classes in turn.
        fixed: The generators or the latents of all images.
    """
    images: list[Image] = []
    for start in range(0, count, BATCH):
        part = range(start, min(start + BATCH, count))
        call = walk | {name: values[start : part.stop] for name, values in fixed.items()}
        if walk.get("class_labels") == -1:
            call["class_labels"] = [i % pipeline.num_classes for i in part]
        if scheduler_of(pipeline) is not None:
            call["callback_on_step_end"] = reporter(progress, start, len(part), count, walk["num_inference_steps"])
        images += pipeline(len(part), **call).images
    return images


def reporter(progress: gr.Progress, start: int, size: int, count: int, steps: int) -> Callable[..., None]:
    """Return a callback that reports the progress of all images, while `size` images from `start` on are drawn."""

    def report(_pipeline: Any, i: int, _t: Tensor, _seen: dict[str, Tensor]) -> None:
        progress((start + size * (i + 1) / steps) / count)

    return report


def spoken(function: Callable[..., Any], pipeline: Any, names: tuple[str, ...]) -> Callable[..., Any]:
    """Return a handler that passes the last values of the page by these names, and shows errors in one sentence."""

    def call(progress: gr.Progress = gr.Progress(), *values: Any) -> Any:  # noqa: B008  # gradio expects it
        own = len(values) - len(names)
        walk = dict(zip(names, values[own:], strict=True))
        try:
            return function(pipeline, progress, walk, *values[:own])
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        except (MemoryError, RuntimeError) as error:
            if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
                raise
            raise gr.Error("the images do not fit into memory: draw fewer images", print_exception=False) from error

    return call


def whole(name: str, value: float | None, most: int) -> int:
    """Return the number in a field; raise a `ValueError` if it is not whole, below 0 or above `most`."""
    if value is None or not float(value).is_integer() or not 0 <= value <= most:
        raise ValueError(f"{name} {'(empty)' if value is None else value} must be a whole number from 0 to {most}")
    return int(value)


def image_generator(seed: int, index: int) -> torch.Generator:
    """Return the generator of image `index`, the same as in hf_ddpm.sampling."""
    state = np.random.SeedSequence((2, seed, index)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def noise(pipeline: Any, generator: torch.Generator) -> Tensor:
    """Draw the initial noise of an image, (1, C, h, w): x_T, or a VAE's z."""
    dtype = next(pipeline.noise_network.parameters()).dtype
    return randn_tensor((1, *pipeline.noise_shape), generator=generator, device=pipeline.device, dtype=dtype)


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Interpolate spherically, weight 0 is `first` (DDIM, eq. 67); nearly parallel tensors linearly."""
    a, b = first.flatten().cpu().double(), second.flatten().cpu().double()
    theta = (a @ b / (a.norm() * b.norm())).clamp(-1, 1).acos()
    if theta.sin() < 1e-6:
        return torch.lerp(first, second, weight)
    mixed = (((1 - weight) * theta).sin() * a + (weight * theta).sin() * b) / theta.sin()
    return mixed.to(first).view(first.shape)


@torch.no_grad()
def picture(pipeline: Any, x: Tensor) -> Image:
    """Return the first of x (B, C, h, w) as an image, clipped to [-1, 1]; latents of a VAE are decoded."""
    if pipeline.vae is not None:
        x = pipeline._space.decoded(x)
    array = ((x[0].float().clamp(-1, 1) + 1) * 127.5).round().byte()  # (C, H, W)
    return fromarray(array.permute(1, 2, 0).squeeze(-1).cpu().numpy())


def check_pictures(pipeline: Any) -> None:
    """Raise a `ValueError` for a model that this page cannot show."""
    if not isinstance(getattr(type(pipeline), "noise_shape", None), property):
        raise ValueError(
            f"{type(pipeline).__name__} has no noise_shape, so it cannot draw images for this page: if it is a model "
            "that draws images, its code files are older than the page; open it with hf_ddpm and push it again"
        )
    if pipeline.image_channels not in (1, 3):
        raise ValueError(f"the images have {pipeline.image_channels} channels, and the page can only show 1 or 3")
    if pipeline.noise_shape is None:
        raise ValueError("the network's config has no sample_size, so the size of images is unknown: add it there")


def scheduler_of(pipeline: Any) -> Any:
    """Return the scheduler; None for a pipeline with a fixed number of calls, such as a VAE or a denoising GAN."""
    chosen = "eta" in inspect.signature(pipeline).parameters
    return pipeline.components.get("scheduler") if chosen else None


def takes_eta(pipeline: Any) -> bool:
    """Return whether a call may have eta: there is a scheduler, and its step takes it."""
    scheduler = scheduler_of(pipeline)
    return scheduler is not None and "eta" in inspect.signature(scheduler.step).parameters


if __name__ == "__main__":
    shown = json.loads(Path(__file__).with_name("checkpoint.json").read_text())
    build(open_checkpoint(shown["checkpoint"], shown["commit"]), shown["checkpoint"]).launch(**LOOK)
