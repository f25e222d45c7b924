"""The weights of improved-diffusion and guided-diffusion under the names of diffusers' blocks.

A UNet there is a list of input blocks, a middle and a list of output blocks; here it is a list of levels. Every tensor
has a counterpart with the same values, except those of attention: the queries, keys and values of all heads are one
convolution there, whose output channels are ordered by (head, qkv, d), or by (qkv, head, d) in the "new" order.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hf_ddpm.conversion.openai_flags import Flags
from hf_ddpm.errors import UserError

Parts = Mapping[str, str]
WHOLE: Parts = {"": ""}
RESIDUAL: Parts = {
    ".in_layers.0": ".norm1",
    ".in_layers.2": ".conv1",
    ".emb_layers.1": ".time_emb_proj",
    ".out_layers.0": ".norm2",
    ".out_layers.3": ".conv2",
    ".skip_connection": ".conv_shortcut",
}
ATTENTION: Parts = {".norm": ".group_norm", ".qkv": "", ".proj_out": ".to_out.0"}  # qkv becomes three layers
QKV = ("to_q", "to_k", "to_v")


@dataclass(frozen=True)
class Found:
    """What the weights say about the flags.

    Attributes:
        is_classifier: Whether there is no way up.
        num_classes: The number of classes of the embedding or of the logits; None without classes.
        channels: The number of channels of the images.
        is_upsampler: Whether the input has a low-resolution image.
        pool: The pooling of a classifier.
        flags: The values of the flags that the weights determine.
    """

    is_classifier: bool
    num_classes: int | None
    channels: int
    is_upsampler: bool
    pool: str | None
    flags: dict[str, Any]


def look_at(tensors: Mapping[str, Tensor]) -> Found:
    """Return what the weights say.

    Raises:
        UserError: If they are not those of a UNet or a classifier of these repositories.
    """
    needed = ("time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.1.0.in_layers.2.weight")
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise UserError(
            f"the file has no tensor {missing[0]}, so it is not a network of improved-diffusion or guided-diffusion: "
            "pass the .pt file of a model, such as 256x256_diffusion.pt"
        )
    is_classifier = not any(name.startswith("output_blocks.") for name in tensors)
    out = _last_layer(tensors).shape[0]
    pool = _pool(tensors) if is_classifier else None
    inputs = tensors["input_blocks.0.0.weight"].shape[1]  # an upsampler has those of two RGB images
    flags: dict[str, Any] = {
        "num_channels": tensors["time_embed.0.weight"].shape[1],
        "use_scale_shift_norm": _is_scale_shift(tensors),
        "resblock_updown": not any(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name) for name in tensors),
    }
    if is_classifier:
        return Found(True, out, inputs, False, pool, flags)
    embedded = tensors.get("label_emb.weight")
    channels = 3 if inputs == 6 else inputs
    flags |= {"class_cond": embedded is not None, "learn_sigma": out == 2 * channels}
    return Found(False, None if embedded is None else embedded.shape[0], channels, inputs != channels, None, flags)


def check_flags(flags: Flags, found: Found, tensors: Mapping[str, Tensor], words: Mapping[str, str]) -> None:
    """Reject flags that contradict the weights.

    Args:
        flags: The flags.
        found: What the weights say.
        tensors: The weights.
        words: The name of a flag as the user may have typed it, if it differs; those of classifiers.

    Raises:
        UserError: If a flag does; the message names it and what the weights say.
    """
    if found.is_upsampler != flags.is_upsampler:
        if found.is_upsampler:
            raise UserError(
                "the weights are those of an upsampler, whose input has a low-resolution image: pass --large_size and "
                "--small_size, or the --config of an upsampler"
            )
        raise UserError(
            "the weights are not those of an upsampler, because their input has no low-resolution image: leave "
            "--large_size and --small_size out, or choose another --config"
        )
    for name, said in found.flags.items():
        given, shown = getattr(flags, name), words.get(name, name)
        if given != said:
            raise UserError(f"--{shown} {given} contradicts the weights: pass --{shown} {said}")
    _check_widths(flags, tensors, words)
    _check_attention(flags, tensors, words)


def _check_widths(flags: Flags, tensors: Mapping[str, Tensor], words: Mapping[str, str]) -> None:
    said = [_width(tensors, k) for k in range(_count(tensors, "input_blocks"))]
    last = len(flags.widths) - 1
    expected = [flags.widths[0]]
    for level, width in enumerate(flags.widths):
        expected += [width] * (flags.num_res_blocks + (level < last))
    if said != expected:
        blocks = words.get("num_res_blocks", "num_res_blocks")
        raise UserError(
            f"--{blocks} {flags.num_res_blocks}, --{flags.size_flag} {flags.size} and --channel_mult "
            f"{flags.channel_mult!r} give input blocks of the widths {_runs(expected)}, but the weights have "
            f"{_runs(said)}: correct the flag that differs"
        )


def _check_attention(flags: Flags, tensors: Mapping[str, Tensor], words: Mapping[str, str]) -> None:
    sizes = []
    for level in range(len(flags.widths)):
        block = 1 + level * (flags.num_res_blocks + 1)
        if f"input_blocks.{block}.1.qkv.weight" in tensors:
            sizes.append(flags.size // 2**level)
    if [flags.size // 2**level for level, there in enumerate(flags.attention) if there] != sizes:
        name = words.get("attention_resolutions", "attention_resolutions")
        raise UserError(
            f"--{name} {flags.attention_resolutions} contradicts the weights, which have attention at "
            f"{','.join(map(str, sizes)) or 'no size'}: pass --{name} {','.join(map(str, sizes)) or '1'}"
        )


def renamed(tensors: Mapping[str, Tensor], flags: Flags, *, classifier: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights under our names, and the names of those that have no counterpart.

    Args:
        tensors: The weights under their original names.
        flags: The flags.
        classifier: Whether they are those of a classifier.
    """
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for old, new, parts in _places(flags, classifier=classifier):
        for old_part, new_part in parts.items():
            for kind in ("weight", "bias"):
                name = f"{old}{old_part}.{kind}"
                if name not in tensors:
                    continue
                used.add(name)
                if old_part == ".qkv":
                    split = split_qkv(tensors[name], _heads(flags, tensors[name]), flags.use_new_attention_order)
                    found |= {f"{new}.{layer}.{kind}": part for layer, part in zip(QKV, split, strict=True)}
                else:
                    value = tensors[name]
                    found[f"{new}{new_part}.{kind}"] = value.squeeze(2) if value.ndim == 3 else value
    for old, new in (
        ("label_emb.weight", "class_embedding.weight"),
        ("out.2.positional_embedding", "head.2.positional_embedding"),
    ):
        if old in tensors:
            used.add(old)
            found[new] = tensors[old]
    return found, [name for name in tensors if name not in used]


def split_qkv(qkv: Tensor, heads: int, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Split the convolution (3C, C, 1) or its bias (3C,) into queries, keys and values with channels (head, d)."""
    whole = qkv.squeeze(2) if qkv.ndim == 3 else qkv
    if new_order:
        query, key, value = whole.chunk(3)
        return query, key, value
    query, key, value = whole.unflatten(0, (heads, 3, -1)).unbind(1)
    return query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)


def _places(flags: Flags, *, classifier: bool) -> Iterator[tuple[str, str, Parts]]:
    """Yield the original and our place of each module, and the parts that it has."""
    yield "time_embed.0", "time_embedding.linear_1", WHOLE
    yield "time_embed.2", "time_embedding.linear_2", WHOLE
    yield "input_blocks.0.0", "conv_in", WHOLE
    yield from _way_down(flags)
    yield "middle_block.0", "mid_block.resnets.0", RESIDUAL
    yield "middle_block.1", "mid_block.attentions.0", ATTENTION
    yield "middle_block.2", "mid_block.resnets.1", RESIDUAL
    if classifier:
        yield "out.2.qkv_proj", "head.2.qkv", WHOLE
        yield "out.2.c_proj", "head.2.out", WHOLE
        yield from ((f"out.{k}", f"head.{k}", WHOLE) for k in range(4))
        return
    yield from _way_up(flags)
    yield "out.0", "conv_norm_out", WHOLE
    yield "out.2", "conv_out", WHOLE


def _way_down(flags: Flags) -> Iterator[tuple[str, str, Parts]]:
    index, last = 1, len(flags.widths) - 1
    for level in range(last + 1):
        for block in range(flags.num_res_blocks):
            yield f"input_blocks.{index}.0", f"down_blocks.{level}.resnets.{block}", RESIDUAL
            yield f"input_blocks.{index}.1", f"down_blocks.{level}.attentions.{block}", ATTENTION
            index += 1
        if level < last:
            if flags.resblock_updown:
                yield f"input_blocks.{index}.0", f"down_blocks.{level}.downsamplers.0", RESIDUAL
            else:
                yield f"input_blocks.{index}.0.op", f"down_blocks.{level}.downsamplers.0.conv", WHOLE
            index += 1


def _way_up(flags: Flags) -> Iterator[tuple[str, str, Parts]]:
    index, last = 0, len(flags.widths) - 1
    for level in range(last + 1):  # from the lowest resolution
        attended = flags.attention[last - level]
        for block in range(flags.num_res_blocks + 1):
            yield f"output_blocks.{index}.0", f"up_blocks.{level}.resnets.{block}", RESIDUAL
            if attended:
                yield f"output_blocks.{index}.1", f"up_blocks.{level}.attentions.{block}", ATTENTION
            if level < last and block == flags.num_res_blocks:
                part = f"output_blocks.{index}.{2 if attended else 1}"
                if flags.resblock_updown:
                    yield part, f"up_blocks.{level}.upsamplers.0", RESIDUAL
                else:
                    yield f"{part}.conv", f"up_blocks.{level}.upsamplers.0.conv", WHOLE
            index += 1


def _heads(flags: Flags, qkv: Tensor) -> int:
    width = qkv.shape[0] // 3
    return flags.num_heads if flags.num_head_channels == -1 else width // flags.num_head_channels


def _pool(tensors: Mapping[str, Tensor]) -> str:
    """Return the pooling of a classifier, which the names and sizes of its last layers determine."""
    if "out.2.positional_embedding" in tensors:
        return "attention"
    if "out.2.weight" in tensors:
        return "spatial"
    first = tensors.get("out.0.weight")
    return "spatial_v2" if first is not None and first.ndim == 2 else "adaptive"


def _last_layer(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the weights of the layer that gives the output or the logits.

    Raises:
        UserError: If there is none.
    """
    for name in ("out.2.c_proj.weight", "out.3.weight", "out.2.weight"):
        if name in tensors:
            return tensors[name]
    raise UserError("the file has no output layer (out.2.weight): it is incomplete, download it again")


def _is_scale_shift(tensors: Mapping[str, Tensor]) -> bool:
    place = "input_blocks.1.0"
    projection, out = tensors.get(f"{place}.emb_layers.1.weight"), tensors[f"{place}.in_layers.2.weight"]
    return projection is not None and projection.shape[0] == 2 * out.shape[0]


def _count(tensors: Mapping[str, Tensor], blocks: str) -> int:
    numbers = [int(match[1]) for name in tensors if (match := re.match(rf"{blocks}\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def _width(tensors: Mapping[str, Tensor], index: int) -> int | None:
    """Return the width of the output of an input block; None if its weights are missing."""
    for part in ("weight", "in_layers.2.weight", "op.weight"):
        if (found := tensors.get(f"input_blocks.{index}.0.{part}")) is not None:
            return found.shape[0]
    return None


def _runs(widths: Sequence[int | None]) -> str:
    """Return a list of widths, shortened: 3 x 256, 2 x 512."""
    runs: list[list[Any]] = []
    for width in widths:
        if runs and runs[-1][1] == width:
            runs[-1][0] += 1
        else:
            runs.append([1, width])
    return ", ".join(f"{count} x {width}" for count, width in runs)
