"""A toy family of two players: a generator of x_0 and a discriminator with R1, whose loss has a double backward.

As a script it trains from a recipe as training/train.py does: `two_players.py --recipe toy.yaml`.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn
from torch.nn.functional import softplus

from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler, unet_preset
from hf_ddpm.data import ImageData
from hf_ddpm.kinds import KINDS
from hf_ddpm.objectives import Draws, Losses
from hf_ddpm.sampling import sample_images
from hf_ddpm.training.ema import EMA
from hf_ddpm.training.players import Player
from hf_ddpm.training.recipe import Block
from hf_ddpm.training.settings import OF_SAVING, OF_THE_LOOP, Optimization, Sampling
from hf_ddpm.training.train import main

RECIPE = """
family: toy
data: {image_size: 8}
generator: {lr: 1e-3, optimizer: adam}
discriminator: {lr: 2e-3, optimizer: adam, max_grad_norm: 0.5}
training: {total_steps: 6, batch_size: 8, tracker: none, log_every: 1, cpu_threads: 1}
sampling: {num_images: 4, num_inference_steps: 2}
checkpoints: {every: 3}
"""


class Discriminator(ModelMixin, ConfigMixin):
    """(B, 1, 8, 8) to (B,)."""

    @register_to_config
    def __init__(self, width: int = 8):
        super().__init__()
        layers = [nn.Conv2d(1, width, 3, stride=2, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(16 * width, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x).squeeze(1)


class ToyObjective:
    """The non-saturating loss with R1, whose weight follows from the losses of the generator: a state to be kept."""

    turns = ("discriminator", "generator")

    def __init__(self):
        self.average = torch.zeros((), dtype=torch.float64)

    def draw(self, shape, generator, step=0):
        z = torch.randn(shape, generator=generator, device=generator.device)
        return Draws({"z": z}, torch.ones(shape[0], device=generator.device))

    def loss(self, turn, models, batch, draws, step):
        fake = models["generator"](draws.rows["z"], 0).sample
        judge = models["discriminator"]
        if turn == "generator":
            return Losses(softplus(-judge(fake)))
        x_0 = batch.x_0.detach().requires_grad_()
        real = judge(x_0)
        (slope,) = torch.autograd.grad(real.sum(), x_0, create_graph=True)
        r1 = slope.square().flatten(1).sum(dim=1)
        weight = 1 + self.average.item()
        said = {"r1": r1.mean()} if step % 2 == 0 else {}  # not of every step
        return Losses(softplus(-real) + softplus(judge(fake.detach())) + weight * r1, said)

    def learn(self, turn, draws, losses, gather):
        if turn == "generator":
            self.average = 0.5 * self.average + 0.5 * gather(losses).double().mean()

    def state(self):
        return {"average": self.average.view(1)}

    def load(self, state):
        self.average = state["average"].view(())


class ToyFamily:
    blocks: ClassVar = {
        "data": Block(ImageData),
        "generator": Block(Optimization),
        "discriminator": Block(Optimization),
        **OF_THE_LOOP,
        "sampling": Block(Sampling),
        **OF_SAVING,
    }
    artefact, title, sample_options = "generator", "toy", ""

    def __init__(self, recipe):
        self.recipe, self.sampling, self.objective = recipe, Sampling(**recipe["sampling"]), ToyObjective()
        self.scheduler = HFDDPMScheduler(10, prediction_type="sample")

    def open_data(self, seed, device):
        return ImageData(**self.recipe["data"])

    def build_players(self, data):
        networks = {"generator": unet_preset("tiny"), "discriminator": Discriminator()}
        for weight in networks["generator"].parameters():
            nn.init.normal_(weight, std=0.1)  # its last layer starts at zero
        optimizations = {name: Optimization(**self.recipe[name]) for name in networks}
        emas = {"generator": EMA(networks["generator"], max_decay=0.9), "discriminator": None}
        return {name: Player(network, optimizations[name], emas[name]) for name, network in networks.items()}

    def measure(self, networks, data, seed):
        pass

    def pipeline(self, networks):
        return HFDDPMPipeline(networks["generator"], self.scheduler)

    def sample(self, pipeline, indices, seed):
        return list(sample_images(pipeline, indices, seed=seed, num_inference_steps=2, eta=0.0))

    def facts(self, networks):
        return {}


TOY = replace(KINDS["diffusion"], word="toy", family="two_players:ToyFamily")

if __name__ == "__main__":
    KINDS["toy"] = TOY
    main()
