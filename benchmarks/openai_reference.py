"""The networks of improved-diffusion and guided-diffusion in the layout of their checkpoints, written from the papers.

Nothing here uses diffusers or hf_ddpm: it is what converted networks are compared with. A `Weights` without tensors
draws each one when the forward pass first asks for it, so one pass gives a checkpoint in the original layout.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Weights:
    """The tensors of a checkpoint by their names in the original layout; missing ones are drawn.

    They are drawn so that a mistake shows: the queries and keys of attention are large enough to make it choose, norms
    scale by about 1, and layers that training starts at zero are not zero.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    seed: int = 0
    asked: set[str] = field(default_factory=set)

    def __call__(self, name: str, *shape: int, gain: float = 1.0) -> Tensor:
        self.asked.add(name)
        if name not in self.tensors:
            generator = torch.Generator().manual_seed(self.seed + len(self.tensors))
            drawn = torch.randn(shape, generator=generator)
            fan_in = math.prod(shape[1:]) or 1
            self.tensors[name] = 0.1 * drawn if len(shape) == 1 else gain * drawn / fan_in**0.5
        assert self.tensors[name].shape == shape, (name, self.tensors[name].shape, shape)
        return self.tensors[name]

    def conv(self, name: str, x: Tensor, out: int, size: int, stride: int = 1, gain: float = 1.0) -> Tensor:
        kernel = self(f"{name}.weight", out, x.shape[1], size, size, gain=gain)
        return F.conv2d(x, kernel, self(f"{name}.bias", out), stride=stride, padding=size // 2)

    def pointwise(self, name: str, x: Tensor, out: int, gain: float = 1.0) -> Tensor:
        """A one-dimensional convolution of size 1 on (B, C, N)."""
        kernel = self(f"{name}.weight", out, x.shape[1], 1, gain=gain)
        return F.conv1d(x, kernel, self(f"{name}.bias", out))

    def linear(self, name: str, x: Tensor, out: int) -> Tensor:
        return F.linear(x, self(f"{name}.weight", out, x.shape[1]), self(f"{name}.bias", out))

    def norm(self, name: str, x: Tensor, groups: int) -> Tensor:
        scale, shift = 1 + self(f"{name}.weight", x.shape[1]), self(f"{name}.bias", x.shape[1])
        return F.group_norm(x, groups, scale, shift, eps=1e-5)

    def checkpoint(self) -> dict[str, Tensor]:
        """The tensors as they are saved: the weights of norms are near 1."""
        norms = ("in_layers.0.weight", "out_layers.0.weight", "norm.weight", "out.0.weight")
        return {name: value + 1 if name.endswith(norms) else value for name, value in self.tensors.items()}


@dataclass(frozen=True)
class Config:
    """A network; `heads` and `head_dim` as num_heads and num_head_channels, of which the second counts if it is given.

    `attention` are the factors by which images are smaller where there is attention.
    """

    width: int = 32
    mult: tuple[float, ...] = (1, 2, 2)
    blocks: int = 1
    attention: tuple[int, ...] = (2, 4)
    heads: int = 4
    head_dim: int | None = None
    new_order: bool = False
    updown: bool = True
    scale_shift: bool = True
    classes: int | None = None
    channels: int = 3
    out: int = 6
    low_res: bool = False
    groups: int = 32
    time_scale: float = 1.0


def unet(w: Weights, c: Config, x: Tensor, t: Tensor, y: Tensor | None = None, low_res: Tensor | None = None) -> Tensor:
    """The output (B, out, H, W) for x_t (B, channels, H, W) and t (B,)."""
    emb = embedding(w, c, t)
    if c.classes is not None:
        emb = emb + w("label_emb.weight", c.classes, 4 * c.width)[y]
    if low_res is not None:
        x = torch.cat([x, F.interpolate(low_res, x.shape[2:], mode="bilinear")], dim=1)
    h, stages = encoder(w, c, x, emb)
    skips, index, factor = stages, 0, 2 ** (len(c.mult) - 1)
    for level in reversed(range(len(c.mult))):
        for block in range(c.blocks + 1):
            place, part = f"output_blocks.{index}", 1
            h = residual(w, c, f"{place}.0", torch.cat([h, skips.pop()], dim=1), int(c.mult[level] * c.width), emb)
            if factor in c.attention:
                h, part = attention(w, c, f"{place}.{part}", h), part + 1
            if level and block == c.blocks:
                if c.updown:
                    h = residual(w, c, f"{place}.{part}", h, h.shape[1], emb, resample="up")
                else:
                    h = w.conv(f"{place}.{part}.conv", F.interpolate(h, scale_factor=2, mode="nearest"), h.shape[1], 3)
                factor //= 2
            index += 1
    return w.conv("out.2", F.silu(w.norm("out.0", h, c.groups)), c.out, 3)


def classifier(w: Weights, c: Config, x: Tensor, t: Tensor, num_classes: int) -> Tensor:
    """The logits (B, K) of the encoder half with the attention pool."""
    h, _ = encoder(w, c, x, embedding(w, c, t))
    h = F.silu(w.norm("out.0", h, c.groups)).flatten(2)
    h = torch.cat([h.mean(dim=2, keepdim=True), h], dim=2)  # (B, C, 1 + HW)
    h = h + w("out.2.positional_embedding", h.shape[1], h.shape[2])
    heads = h.shape[1] // (c.head_dim or h.shape[1] // c.heads)
    q, k, v = w.pointwise("out.2.qkv_proj", h, 3 * h.shape[1]).chunk(3, dim=1)
    return w.pointwise("out.2.c_proj", attend(q, k, v, heads), num_classes)[:, :, 0]


def embedding(w: Weights, c: Config, t: Tensor) -> Tensor:
    half = c.width // 2
    angles = (c.time_scale * t)[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
    emb = torch.cat([angles.cos(), angles.sin()], dim=1)
    return w.linear("time_embed.2", F.silu(w.linear("time_embed.0", emb, 4 * c.width)), 4 * c.width)


def encoder(w: Weights, c: Config, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The features of the middle, and the outputs of all stages before it."""
    h = w.conv("input_blocks.0.0", x, int(c.mult[0] * c.width), 3)
    stages, index, factor = [h], 1, 1
    for level, mult in enumerate(c.mult):
        for _ in range(c.blocks):
            h = residual(w, c, f"input_blocks.{index}.0", h, int(mult * c.width), emb)
            if factor in c.attention:
                h = attention(w, c, f"input_blocks.{index}.1", h)
            stages.append(h)
            index += 1
        if level < len(c.mult) - 1:
            place = f"input_blocks.{index}.0"
            if c.updown:
                h = residual(w, c, place, h, h.shape[1], emb, resample="down")
            else:
                h = w.conv(f"{place}.op", h, h.shape[1], 3, stride=2)
            stages.append(h)
            index, factor = index + 1, 2 * factor
    h = residual(w, c, "middle_block.0", h, h.shape[1], emb)
    h = attention(w, c, "middle_block.1", h)
    return residual(w, c, "middle_block.2", h, h.shape[1], emb), stages


def residual(w: Weights, c: Config, name: str, x: Tensor, out: int, emb: Tensor, resample: str = "") -> Tensor:
    """A residual block; the embedding scales and shifts the second norm, or is added before it."""
    h = F.silu(w.norm(f"{name}.in_layers.0", x, c.groups))
    if resample == "down":
        h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
    elif resample == "up":
        h, x = (F.interpolate(part, scale_factor=2, mode="nearest") for part in (h, x))
    h = w.conv(f"{name}.in_layers.2", h, out, 3)
    shift = w.linear(f"{name}.emb_layers.1", F.silu(emb), 2 * out if c.scale_shift else out)[:, :, None, None]
    if c.scale_shift:
        scale, shift = shift.chunk(2, dim=1)
        h = w.norm(f"{name}.out_layers.0", h, c.groups) * (1 + scale) + shift
    else:
        h = w.norm(f"{name}.out_layers.0", h + shift, c.groups)
    h = w.conv(f"{name}.out_layers.3", F.silu(h), out, 3, gain=0.5)
    return h + (x if x.shape[1] == out else w.conv(f"{name}.skip_connection", x, out, 1))


def attention(w: Weights, c: Config, name: str, x: Tensor) -> Tensor:
    flat = x.flatten(2)  # (B, C, HW)
    heads = c.heads if c.head_dim is None else flat.shape[1] // c.head_dim
    qkv = w.pointwise(f"{name}.qkv", w.norm(f"{name}.norm", flat, c.groups), 3 * flat.shape[1], gain=1.5)
    if c.new_order:
        q, k, v = qkv.chunk(3, dim=1)
    else:  # the channels of a head are together: its queries, its keys, its values
        q, k, v = (part.flatten(1, 2) for part in qkv.unflatten(1, (heads, 3, -1)).unbind(dim=2))
    return x + w.pointwise(f"{name}.proj_out", attend(q, k, v, heads), flat.shape[1]).view_as(x)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of (B, C, N), whose channels are (head, d)."""
    q, k, v = (part.unflatten(1, (heads, -1)) for part in (q, k, v))  # (B, heads, d, N)
    weights = torch.einsum("bhdn,bhdm->bhnm", q, k).div(q.shape[2] ** 0.5).softmax(dim=3)
    return torch.einsum("bhnm,bhdm->bhdn", weights, v).flatten(1, 2)
