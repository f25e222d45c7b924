"""What the networks of Improved DDPM and ADM cost, and how exactly converted weights compute."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import Growth, kib
from benchmarks.openai_reference import Config, Weights, unet
from benchmarks.options import Options
from benchmarks.report import Result, table
from hf_ddpm.conversion.convert import plan_conversion
from hf_ddpm.conversion.openai_flags import PUBLISHED, Flags
from hf_ddpm.models import unet_preset

TITLE = "The networks of Improved DDPM and ADM"
ABOUT = """FLOPs are the multiplications and additions of one forward pass of one image, and activations are the tensors
that its backward pass needs in float32 without gradient checkpointing; both are counted on the meta device. Seconds and
peak memory are those of a process of two threads: one forward pass of one image, and one training step of AdamW with a
batch of 1 with gradient checkpointing, where the machine has enough memory.

In the second table, weights in the layout of the original checkpoints are converted, and their output for a 64x64 image
is compared with that of a forward pass that was written from the papers, without diffusers. All weights are random,
those that training starts at zero too. The controls convert the same weights with a wrong flag that the weights cannot
contradict; with one head, both orders are the same. The largest differences are relative to the largest output."""
ROOT = Path(__file__).resolve().parent.parent
PRESETS = (
    "iddpm-cifar10",
    "iddpm-imagenet-64",
    "iddpm-imagenet-64-conditional",
    "iddpm-lsun-256",
    "adm-64",
    "adm-128",
    "adm-256",
    "adm-lsun-256",
    "adm-512",
    "upsampler-64-256",
    "upsampler-128-512",
)
MOST_MIB = 18_000  # estimated memory of what is run
COMPARED = {
    "guided-diffusion": (
        "imagenet-64-conditional",
        "imagenet-128-conditional",
        "imagenet-256-conditional",
        "imagenet-512-conditional",
        "lsun-256",
        "upsampler-64-256",
        "upsampler-128-512",
    ),
    "improved-diffusion": ("imagenet-64-unconditional", "imagenet-64-conditional", "cifar10", "lsun-bedroom-256"),
}


def measure(options: Options) -> Result:
    presets = ("iddpm-cifar10",) if options.quick else PRESETS
    counted = {name: _counted(name) for name in presets}
    networks = {name: found | _run(name, found["weights"]) for name, found in counted.items()}
    compared = {"improved-diffusion": ("cifar10",)} if options.quick else COMPARED
    parity = [_side("parity", origin, config) for origin, names in compared.items() for config in names]
    largest = "cifar10" if options.quick else "imagenet-512-conditional"
    return {"networks": networks, "parity": parity, "conversion": _side("conversion", largest)}


def render(result: Result) -> str:
    shown = ["preset", "class", "weights", "GFLOPs", "activations, GiB", "forward, s", "GiB", "step, s", "GiB"]
    rows = []
    for name, row in result["networks"].items():
        sides = [row[side] or {"seconds": None, "mib": None} for side in ("forward", "step")]
        times = [value for side in sides for value in (side["seconds"], side["mib"] and side["mib"] / 1024)]
        rows.append([name, row["class"], f"{row['weights']:,}", row["gflops"], row["activations_gib"], *times])
    cells = [["-" if cell is None else cell for cell in row] for row in rows]
    exact = [
        [one["config"], f"{one['weights']:,}", one["tensors"], f"{one['difference']:.1e}", _controls(one["controls"])]
        for one in result["parity"]
    ]
    parity = table(["converted", "weights", "tensors", "largest difference", "with a wrong flag"], exact)
    made = result["conversion"]
    last = (
        f"Converting a file of {made['mib'] / 1024:.2f} GiB ({made['weights']:,} weights) takes "
        f"{made['seconds']:.1f} s and {made['anon_mib'] / 1024:.2f} GiB of memory besides the mapped file."
    )
    return f"{table(shown, cells)}\n\n{parity}\n\n{last}"


def _controls(controls: dict[str, float]) -> str:
    return ", ".join(f"`{flag}`: {value:.1e}" for flag, value in controls.items())


def _counted(name: str) -> dict[str, Any]:
    """Count weights, operations and activations on the meta device."""
    with torch.device("meta"):
        network = unet_preset(name).train()
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        counter = FlopCounterMode(display=False)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), counter:
            _call(network)
    weights = sum(parameter.numel() for parameter in network.parameters())
    return {
        "class": type(network).__name__,
        "weights": weights,
        "gflops": counter.get_total_flops() / 1e9,
        "activations_gib": sum(kept.values()) / 2**30,
    }


def _call(network: Any) -> Tensor:
    config, device = network.config, network.device
    size, channels = config["sample_size"], config["in_channels"]
    keywords = {}
    if config["num_class_embeds"]:
        keywords["class_labels"] = torch.zeros(1, dtype=torch.long, device=device)
    if config.get("low_res_channels"):
        keywords["low_res"] = torch.zeros(1, channels, size // 4, size // 4, device=device)
    x_t, t = torch.zeros(1, channels, size, size, device=device), torch.zeros(1, dtype=torch.long, device=device)
    found: Tensor = network(x_t, t, **keywords).sample
    return found


def _run(name: str, weights: int) -> dict[str, Any]:
    """Run a forward pass and a training step, each in a process of its own, if they fit in the memory."""
    needed = {"forward": 4 * weights / 2**20, "step": 16 * weights / 2**20}
    return {side: _side(side, name) if mib < MOST_MIB else None for side, mib in needed.items()}


def _side(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.adm_networks", *words]
    ended = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def forward(name: str) -> dict[str, float]:
    """Return the seconds and the peak memory of one forward pass."""
    network = unet_preset(name).eval()
    with torch.no_grad():
        started = time.perf_counter()
        _call(network)
    return {"seconds": time.perf_counter() - started, "mib": kib("VmHWM") / 1024}


def step(name: str) -> dict[str, float]:
    """Return the seconds and the peak memory of one training step."""
    network = unet_preset(name).train()
    network.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    started = time.perf_counter()
    _call(network).square().mean().backward()
    optimizer.step()
    return {"seconds": time.perf_counter() - started, "mib": kib("VmHWM") / 1024}


def parity(origin: str, config: str) -> dict[str, Any]:
    """Compare a published network with random weights, in the original layout and converted."""
    flags = PUBLISHED[origin][config].flags
    reference = _reference(flags)
    classes = reference.classes
    generator = torch.Generator().manual_seed(0)
    x, low_res = (torch.randn(1, 3, size, size, generator=generator) for size in (64, 16))
    t, y = torch.tensor([0.8 * flags.diffusion_steps]).long(), torch.tensor([7])
    weights = Weights()
    with torch.no_grad():
        expected = unet(weights, reference, x, t, y if classes else None, low_res if flags.is_upsampler else None)
    tensors = weights.checkpoint()

    def difference(**words: str) -> float:
        plan, _ = plan_conversion(tensors, origin, config, words)
        plan.network.load_state_dict(plan.tensors, assign=True)
        network: Any = plan.network.eval()
        keywords = ({"class_labels": y} if classes else {}) | ({"low_res": low_res} if flags.is_upsampler else {})
        with torch.no_grad():
            found = network(x, t, **keywords).sample
        return ((found - expected).abs().max() / expected.abs().max()).item()

    return {
        "config": config,
        "weights": sum(value.numel() for value in tensors.values()),
        "tensors": len(tensors),
        "difference": difference(),
        "controls": {f"{name} {word}": difference(**{name: word}) for name, word in _wrong(flags)},
    }


def _wrong(flags: Flags) -> Iterator[tuple[str, str]]:
    """Yield flags that the weights do not contradict."""
    yield "use_new_attention_order", str(not flags.use_new_attention_order)
    if flags.num_head_channels != -1:
        yield "num_head_channels", str(flags.num_head_channels // 2)
    elif flags.num_heads > 1:
        yield "num_heads", str(flags.num_heads // 2)
    if flags.rescale_timesteps:
        yield "rescale_timesteps", "False"


def conversion(config: str) -> dict[str, float]:
    """Return the seconds and the memory of converting a file of random weights."""
    from hf_ddpm.conversion.convert import convert

    origin = next(origin for origin, published in PUBLISHED.items() if config in published)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt"
        subprocess.run([sys.executable, "-m", "benchmarks.adm_networks", "file", origin, config, str(file)], check=True)
        started = time.perf_counter()
        with Growth() as memory:
            facts = convert(file, Path(folder) / "out", origin=origin, config=config)
        seconds, size_mib = time.perf_counter() - started, file.stat().st_size / 2**20
    return {"mib": size_mib, "weights": facts["weights"], "seconds": seconds, "anon_mib": memory.mib}


def file(origin: str, config: str, path: str) -> dict[str, Any]:
    """Write random weights in the original layout, from one pass over a small image."""
    flags, weights = PUBLISHED[origin][config].flags, Weights()
    side = 2 ** (len(flags.widths) - 1)
    with torch.no_grad():
        unet(weights, _reference(flags), torch.zeros(1, 3, side, side), torch.tensor([1]), torch.tensor([0]))
    torch.save(weights.checkpoint(), path)
    return {}


def _reference(flags: Flags) -> Config:
    """Return the configuration of the network that was written from the papers."""
    return Config(
        width=flags.num_channels,
        mult=flags.multipliers,
        blocks=flags.num_res_blocks,
        attention=tuple(2**level for level, there in enumerate(flags.attention) if there),
        heads=flags.num_heads,
        head_dim=None if flags.num_head_channels == -1 else flags.num_head_channels,
        new_order=flags.use_new_attention_order,
        updown=flags.resblock_updown,
        scale_shift=flags.use_scale_shift_norm,
        classes=1000 if flags.class_cond else None,
        low_res=flags.is_upsampler,
        time_scale=1000 / flags.diffusion_steps if flags.rescale_timesteps else 1.0,
    )


if __name__ == "__main__":
    sides = {"forward": forward, "step": step, "parity": parity, "conversion": conversion, "file": file}
    print(json.dumps(sides[sys.argv[1]](*sys.argv[2:])))
