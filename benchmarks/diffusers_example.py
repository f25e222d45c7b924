"""The training loop of diffusers' example (examples/unconditional_image_generation/train_unconditional.py).

It has the same parts in the same order: images of a `datasets` dataset that are decoded and transformed at each access,
a shuffling DataLoader in the training process, DDPMScheduler.add_noise, F.mse_loss, clipping at 1, AdamW, a cosine
schedule, EMAModel, and the loss, which is read at every step for the progress bar. Trackers and checkpoints are left
out, which favours the example. The transforms are written with PIL and numpy, because they do not need torchvision.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

LR, WARMUP_STEPS, BATCH_SIZE = 1e-4, 500, 16


def to_tensor(image: Image.Image, channels: int, size: int, pad: bool) -> Tensor:
    """Resize or pad an image to (channels, size, size) in [-1, 1]: Resize, ToTensor and Normalize([0.5], [0.5])."""
    image = image.convert("L" if channels == 1 else "RGB")
    if pad:
        image = ImageOps.expand(image, (size - image.width) // 2)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).view(size, size, channels).permute(2, 0, 1)
    return (pixels.float().div(255) - 0.5) / 0.5


def learning_rate(step: int, total_steps: int) -> float:
    """Return the learning rate relative to its peak, like diffusers' `get_cosine_schedule_with_warmup` (fixed end)."""
    if step < WARMUP_STEPS:
        return step / WARMUP_STEPS
    return max(0.0, 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / max(1, total_steps - WARMUP_STEPS))))


class DiffusersExample:
    """The example's training loop, one step at a time.

    Args:
        model: A UNet2DModel that predicts the noise.
        dataset: A dataset with a column `image`.
        total_steps: The step at which the learning rate reaches 0; this attribute may be changed during training.
        lr: The learning rate of AdamW; the other settings are the example's defaults.
        batch_size: The batch size of one step.
        pad: Whether to add a border to small images instead of resizing them to the model's size.
        mixed_precision: no, fp16 or bf16, like `accelerate launch --mixed_precision`.
        compile: Whether to compile the model, like `accelerate launch --dynamo_backend inductor`.
        num_workers: The number of processes that decode images, the example's --dataloader_num_workers; 0 decodes in
            the training process.
    """

    def __init__(
        self,
        model: UNet2DModel,
        dataset: Dataset,
        *,
        total_steps: int,
        lr: float = LR,
        batch_size: int = BATCH_SIZE,
        pad: bool = False,
        mixed_precision: str = "no",
        compile: bool = False,
        num_workers: int = 0,
    ) -> None:
        channels, size = model.config["in_channels"], model.config["sample_size"]
        size = size if isinstance(size, int) else size[0]

        def transform(examples: dict[str, list[Image.Image]]) -> dict[str, list[Tensor]]:
            return {"input": [to_tensor(image, channels, size, pad) for image in examples["image"]]}

        backend = "inductor" if compile else None
        self.accelerator = Accelerator(mixed_precision=mixed_precision, dynamo_backend=backend)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
        self.ema = EMAModel(
            model.parameters(),
            decay=0.9999,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=0.75,
            model_cls=UNet2DModel,
            model_config=model.config,
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        self.total_steps = total_steps
        rates = LambdaLR(optimizer, lambda step: learning_rate(step, self.total_steps))
        transformed = dataset.with_transform(transform)
        loader = DataLoader(transformed, batch_size=batch_size, shuffle=True, num_workers=num_workers)
        self.model, self.optimizer, self.loader, self.rates = self.accelerator.prepare(model, optimizer, loader, rates)
        self.ema.to(self.accelerator.device)
        self._batches = self._endless()

    def step(self) -> float:
        """Do one optimizer step and return its loss."""
        x_0 = next(self._batches)["input"]
        noise = torch.randn(x_0.shape, device=x_0.device)
        num_steps = self.scheduler.config["num_train_timesteps"]
        t = torch.randint(0, num_steps, (len(x_0),), device=x_0.device).long()
        x_t = self.scheduler.add_noise(x_0, noise, t)
        with self.accelerator.accumulate(self.model):
            loss = F.mse_loss(self.model(x_t, t).sample.float(), noise.float())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.rates.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.ema.step(self.model.parameters())
        return loss.detach().item()

    def averaged_model(self) -> UNet2DModel:
        """Return the model with the averaged weights, from which the example samples and which it saves."""
        model = self.accelerator.unwrap_model(self.model)
        self.ema.copy_to(model.parameters())
        return model.eval()

    def _endless(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self.loader
