"""The same VAE trained by hf_ddpm and by pythae: likelihood, seconds per epoch, and lines of code that a user writes.

pythae is not a dependency: `pip install pythae` in addition to the pinned packages; without it, its row is missing.
"""

import contextlib
import inspect
import io
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.options import Options
from benchmarks.ours import recipe_with
from benchmarks.quality_cell import about_data
from benchmarks.report import Result, table
from hf_ddpm import HFVAE, HFVAEPipeline
from hf_ddpm.data import ImageData
from hf_ddpm.likelihood import draw_images, evaluate_vae
from hf_ddpm.likelihood.report import mean_and_error
from hf_ddpm.training.train import train

TITLE = "The same VAE trained with pythae"
ABOUT = """The VAE has two layers of 200 (ReLU), 50 latent numbers and a Bernoulli decoder. Both sides use the same
initial weights, batch 100, Adam with a constant learning rate of 1e-3, no KL warm-up, no averaging, and digits that are
binarised once (seed 0), because both support these settings. -log p(x) is measured for both by `evaluate_vae` (K =
200). The seconds are those of a whole training, including what it saves and, for ours, decoding the data: the median of
three trainings of each, taken in turn. The lines of code of hf_ddpm name a shipped recipe and measure it; pythae has no
recipe for this network."""
EPOCHS, DIGITS, BATCH, ROUNDS = 10, 10_000, 100, 3
NETWORK: dict[str, Any] = {"hidden_sizes": (200, 200), "latent_channels": 50}
OURS = """accelerate launch training/train.py --recipe mnist-vae-binary
hf-ddpm likelihood runs/mnist-vae-binary/checkpoint --data ylecun/mnist --split test
"""


def measure(options: Options) -> Result:
    arms = {"hf_ddpm": by_us} | ({"pythae": by_pythae} if find_spec("pythae") else {})
    epochs, digits, samples = (1, 256, 5) if options.quick else (EPOCHS, DIGITS, 200)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    vaes = {}
    for _ in range(1 if options.quick else ROUNDS):  # with the same seed and so the same weights
        for name, trained in arms.items():
            vaes[name], taken = trained(options.data, epochs)
            seconds[name].append(taken / epochs)
    rows: dict[str, dict[str, Any]] = {}
    for name, vae in vaes.items():
        where = {"source": "digits"} if options.data is None else {"source": str(options.data), "split": "test"}
        images = draw_images(ImageData(**where, binarize="static"), digits, seed=0)
        found = evaluate_vae(vae, images, num_samples=samples, seed=0).terms
        rows[name] = {"nll": mean_and_error(-found.log_p_x), "elbo": mean_and_error(-found.elbo)}
        rows[name] |= {"active": found.active_units, "seconds_per_epoch": statistics.median(seconds[name])}
        rows[name] |= {"rounds": [round(each, 2) for each in seconds[name]]}
        rows[name]["lines"] = len(OURS.splitlines()) if name == "hf_ddpm" else lines_for_pythae()
    return {"epochs": epochs, "digits": digits, "K": samples, "data": about_data(options.data), "rows": rows}


def training_digits(data: Path | None) -> tuple[dict[str, Any], int]:
    """Return the data block of the training digits, and their number."""
    block = {"source": "digits", "max_images": 500} if data is None else {"source": str(data)}
    return block | {"binarize": "static"}, 500 if data is None else 60_000


def by_us(data: Path | None, epochs: int) -> tuple[HFVAE, float]:
    """Train the recipe, restricted to features that pythae supports; return the VAE and the seconds."""
    block, count = training_digits(data)
    with tempfile.TemporaryDirectory() as folder:
        training = {"total_steps": epochs * count // BATCH, "output_dir": f"{folder}/run", "tracker": "none"}
        overrides: dict[str, dict[str, Any]] = {
            "data": block,
            "vae": {"activation": "relu"},
            "elbo": {"kl_warmup_steps": 0},
            "optimization": {"optimizer": "adam", "lr": 1e-3, "decay": "constant"},
            "ema": {"max_decay": 0.0},
            "training": training | {"batch_size": BATCH, "cpu_threads": torch.get_num_threads()},
            "sampling": {"every": None},
            "checkpoints": {"every": None},
        }
        started = time.perf_counter()
        checkpoint = train(recipe_with("mnist-vae-binary", overrides))
        return HFVAEPipeline.from_pretrained(checkpoint).vae, time.perf_counter() - started


# the code that a user of pythae writes for the same result: networks, training, likelihood
def by_pythae(data: Path | None, epochs: int) -> tuple[HFVAE, float]:
    """Train the same layers with pythae's pipeline; return the VAE with the trained layers and the seconds."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self, layers: torch.nn.Module) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> Any:
            mean, log_variance = self.layers(2 * x - 1).flatten(1).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self, layers: torch.nn.Module) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=torch.sigmoid(self.layers(z)))

    torch.manual_seed(0)
    vae = HFVAE(**NETWORK)
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=50, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(vae.encoder), decoder=Decoder(vae.decoder))
    block, count = training_digits(data)
    batches = ImageData(**block).batches(batch_size=count, seed=0)
    images = (next(batches).x_0 + 1) / 2
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        settings = BaseTrainerConfig(
            output_dir=folder,
            learning_rate=1e-3,
            per_device_train_batch_size=BATCH,
            num_epochs=epochs,
            optimizer_cls="Adam",
            no_cuda=True,
        )
        started = time.perf_counter()
        TrainingPipeline(model, settings)(images)
        seconds = time.perf_counter() - started
    return vae.eval(), seconds


def lines_for_pythae() -> int:
    """Count the lines of `by_pythae` without blank lines, docstring and timing, plus one for its `get_nll`."""
    lines = [line.strip() for line in inspect.getsource(by_pythae).splitlines()]
    return 1 + sum(bool(line) and not line.startswith(('"""', "started", "seconds")) for line in lines)


def render(result: Result) -> str:
    rows = [
        [
            name,
            f"{row['nll']['mean']:.2f} ± {row['nll']['standard_error']:.2f}",
            f"{row['elbo']['mean']:.2f}",
            row["active"],
            f"{row['seconds_per_epoch']:.1f}",
            row["lines"],
        ]
        for name, row in result["rows"].items()
    ]
    header = ["", f"-log p(x), K = {result['K']}", "-ELBO", "active units", "seconds per epoch", "lines of code"]
    about = f"{result['epochs']} epochs, {result['digits']:,} digits, {result['data']}.\n\n"
    missing = "" if "pythae" in result["rows"] else "\n\npythae was not installed: `pip install pythae` adds its row."
    return about + table(header, rows) + missing
