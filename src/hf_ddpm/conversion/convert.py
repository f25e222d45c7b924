"""Convert checkpoints of improved-diffusion and guided-diffusion; see docs/adm.md."""

import json
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_ddpm.checkpoint import FACTS_FILE, new_folder, writing
from hf_ddpm.conversion.openai_flags import (
    OF_CLASSIFIERS,
    PUBLISHED,
    Flags,
    imagenet_names,
    read_flags,
)
from hf_ddpm.conversion.openai_networks import classifier_keywords, network_keywords, scheduler_keywords
from hf_ddpm.conversion.openai_weights import Found, check_flags, look_at, renamed
from hf_ddpm.errors import UserError, as_user_error, quoted
from hf_ddpm.model_card import render_card
from hf_ddpm.models import ADMUNet, NoisyClassifier
from hf_ddpm.models.noisy_classifier import SCHEDULE_KEYS
from hf_ddpm.models.time_tables import table_of_sinusoids
from hf_ddpm.pipelines import HFClassifierPipeline, HFDDPMPipeline
from hf_ddpm.pipelines.doors import stock_samples_the_same
from hf_ddpm.schedulers import HFDDPMScheduler
from hf_ddpm.weights import file_sha256

NETWORKS: dict[str, Any] = {"UNet2DModel": UNet2DModel, "ADMUNet": ADMUNet}
_SHOWN = 5  # names of tensors in a message


@dataclass(frozen=True)
class Plan:
    """How the tensors of a file become those of a network.

    Attributes:
        flags: The flags.
        network: The network, on the meta device.
        scheduler: The scheduler that the network was trained with.
        id2label: The names of the classes; None if they are unknown.
        tensors: The tensors under our names.
        left_over: The original names of tensors without a counterpart.
        unknown: Our names of tensors that the network does not have.
        missing: Our names of tensors without a counterpart.
        misshapen: Our names of tensors with another shape, and both shapes.
    """

    flags: Flags
    network: nn.Module
    scheduler: HFDDPMScheduler
    id2label: dict[int, str] | None
    tensors: dict[str, Tensor]
    left_over: list[str]
    unknown: list[str]
    missing: list[str]
    misshapen: list[str]

    @property
    def obstacles(self) -> list[str]:
        """A sentence for each tensor that does not map."""
        return [
            *(f"{name} of the file has no counterpart" for name in self.left_over),
            *(f"{name} is in the file, but the network has no such tensor" for name in self.unknown),
            *(f"{name} of the network is not in the file" for name in self.missing),
            *self.misshapen,
        ]


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a .pt or .safetensors file; nothing in it is executed, and its tensors stay on the disk until they are used.

    Raises:
        UserError: If the file does not exist, is damaged, or contains anything but tensors by their names.
    """
    if not file.is_file():
        raise UserError(f"{str(file)!r} is not a file: pass the .pt file of a model")
    try:
        found = load_file(file) if file.suffix == ".safetensors" else _load(file)
    except (pickle.UnpicklingError, AttributeError) as error:
        if "Unsupported global" not in str(error) and "GLOBAL" not in str(error):
            raise UserError(f"{str(file)!r} is not a .pt file: download it again") from error
        raise UserError(
            f"{str(file)!r} contains objects other than tensors, which may be code and are not loaded: pass a file of "
            "weights alone"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError) as error:
        raise UserError(f"{str(file)!r} cannot be read ({quoted(error)}): download it again") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        there = f"an object of type {type(found).__name__}"
        if isinstance(found, dict):
            there = f"a dict with the keys {', '.join(map(repr, [*found][:_SHOWN]))}"
        raise UserError(
            f"{str(file)!r} contains {there}, not tensors by their names: save the state_dict of the model alone, with "
            "torch.save"
        )
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def _load(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)  # of a torch before 1.6


def plan_conversion(
    tensors: Mapping[str, Tensor], origin: str, config: str | None, words: Mapping[str, str]
) -> tuple[Plan, Found]:
    """Plan a conversion, without changing anything.

    Args:
        tensors: The tensors of the file.
        origin: "improved-diffusion" or "guided-diffusion".
        config: The name of a published configuration; None for the defaults of the scripts.
        words: Flags as they were typed, by name.

    Raises:
        UserError: If the flags are unknown, or contradict the weights.
    """
    found = look_at(tensors)
    flags = read_flags(origin, config, words, classifier=found.is_classifier)
    named = PUBLISHED[origin].get(config or "")
    if named is not None and named.classifier != found.is_classifier:
        kinds = ("a classifier", "a diffusion model")
        given, said = kinds if named.classifier else kinds[::-1]
        raise UserError(f"--config {config} is {given}, but the file contains {said}: choose another configuration")
    typed = {ours: name for name, ours in OF_CLASSIFIERS.items()} if found.is_classifier else {}
    check_flags(flags, found, tensors, typed)
    names = imagenet_names() if named is not None else {}
    id2label = names if len(names) == found.num_classes else None
    with as_user_error():
        scheduler = HFDDPMScheduler(**scheduler_keywords(flags))
        network = _build(flags, found, scheduler, id2label)
    moved, left_over = renamed(tensors, flags, classifier=found.is_classifier)
    if flags.rescale_timesteps and "time_proj.weight" in network.state_dict():
        # not in the file, because the original computes it
        moved["time_proj.weight"] = table_of_sinusoids(flags.diffusion_steps, flags.num_channels).weight
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    misshapen = [
        f"{name} has the shape {tuple(moved[name].shape)} in the file, but {shape} in the network"
        for name, shape in wanted.items()
        if name in moved and tuple(moved[name].shape) != shape
    ]
    unknown = [name for name in moved if name not in wanted]
    missing = [name for name in wanted if name not in moved]
    return Plan(flags, network, scheduler, id2label, moved, left_over, unknown, missing, misshapen), found


def convert(
    file: Path, folder: Path, *, origin: str, config: str | None = None, words: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Convert a file to a checkpoint.

    Args:
        file: The .pt or .safetensors file.
        folder: A new folder.
        origin, config, words: As in `plan_conversion`.

    Returns:
        dict: The facts of the checkpoint, which its card shows.

    Raises:
        UserError: If a tensor has no counterpart, or anything cannot be read or written; nothing half-written remains.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to {folder} exists already: choose a new folder")
    tensors = read_tensors(file)
    plan, found = plan_conversion(tensors, origin, config, words or {})
    if plan.obstacles:
        more = f", and {len(plan.obstacles) - _SHOWN} more" if len(plan.obstacles) > _SHOWN else ""
        raise UserError(
            f"{str(file)!r} does not fit these flags: {'; '.join(plan.obstacles[:_SHOWN])}{more}; --dry-run lists all"
        )
    network = plan.network
    network.load_state_dict({name: value.float() for name, value in plan.tensors.items()}, assign=True)
    network.requires_grad_(False).eval()
    facts = _facts(plan, found, file, origin, config)
    _save(network, plan, folder, facts)
    return facts


def _build(flags: Flags, found: Found, scheduler: HFDDPMScheduler, id2label: dict[int, str] | None) -> nn.Module:
    """Build the network on the meta device."""
    with torch.device("meta"):
        if found.is_classifier:
            schedule = {key: scheduler.config[key] for key in SCHEDULE_KEYS}
            keywords = classifier_keywords(
                flags, num_classes=found.num_classes or 0, pool=found.pool or "", channels=found.channels
            )
            return NoisyClassifier(**keywords, noise_schedule=schedule, id2label=id2label)
        name, keywords = network_keywords(flags, num_classes=found.num_classes, channels=found.channels)
        built: nn.Module = NETWORKS[name](**keywords)
        return built


def _facts(plan: Plan, found: Found, file: Path, origin: str, config: str | None) -> dict[str, Any]:
    """Return what the card shows."""
    named = PUBLISHED[origin].get(config or "")
    defaults = asdict(read_flags(origin, None, {}, classifier=found.is_classifier))
    shown = {ours: name for name, ours in OF_CLASSIFIERS.items()} if found.is_classifier else {}
    given = {name: value for name, value in asdict(plan.flags).items() if value != defaults[name]}
    return {
        "family": "classifier" if found.is_classifier else "diffusion",
        "name": config or file.stem,
        "weights": sum(value.numel() for value in plan.network.state_dict().values()),
        "stock": not found.is_classifier and stock_samples_the_same(plan.scheduler.config, plan.network, None),
        "converted": {
            "origin": origin,
            "file": file.name,
            "sha256": file_sha256(file),
            "config": config,
            "network": type(plan.network).__name__,
            "flags": {shown.get(name, name): value for name, value in given.items()},
            "num_train_timesteps": len(plan.scheduler),
            "image_size": plan.flags.size,
            "num_classes": found.num_classes,
            "upsampler": found.is_upsampler,
            "sampling": None if named is None else named.sampling,
            "classifier_scale": None if named is None else named.classifier_scale,
        },
    }


def _save(network: nn.Module, plan: Plan, folder: Path, facts: dict[str, Any]) -> None:
    """Write the checkpoint and its card, completely or not at all."""
    needed = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise UserError(
            f"--to {folder} needs {needed / 2**20:,.0f} MiB, but only {free / 2**20:,.0f} MiB are free: free disk "
            "space or choose another disk"
        )
    with writing(folder), new_folder(folder) as temporary:
        if facts["converted"]["upsampler"]:
            network.save_pretrained(temporary / "unet")  # type: ignore[operator]
            plan.scheduler.save_pretrained(temporary / "scheduler")
        elif isinstance(network, NoisyClassifier):
            HFClassifierPipeline(network).save_pretrained(temporary)
        else:
            HFDDPMPipeline(network, plan.scheduler, id2label=plan.id2label).save_pretrained(temporary)  # type: ignore[arg-type]
        (temporary / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n")
        (temporary / "README.md").write_text(render_card(facts, pictured=False))
