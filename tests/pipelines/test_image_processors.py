"""Image processors of `transformers`, with a gradient: pictures as they prepare them, or a refusal."""

import numpy as np
import pytest
import torch
from transformers import (
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
    LevitImageProcessorPil,
    MobileViTImageProcessorPil,
    PerceiverImageProcessorPil,
    ViTImageProcessorPil,
)

from hf_ddpm.pipelines.image_processors import check_processor, prepared

STATISTICS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16}, **STATISTICS)


@pytest.mark.parametrize(("channels", "resample"), [(1, 2), (3, 3)])
def test_pictures_are_prepared_as_their_processor_prepares_them(channels, resample):
    """Smooth pictures, which bicubic interpolation leaves within their range."""
    y, x = torch.meshgrid(torch.linspace(0, 3, 12), torch.linspace(0, 2, 12), indexing="ij")
    pictures = torch.stack([(x + y).sin(), (x - 2 * y).cos()])[:, None] - 0.1 * torch.arange(channels).view(-1, 1, 1)
    levels = (127 + 90 * pictures).round()
    processor = ViTImageProcessorPil.from_dict({**PROCESSOR.to_dict(), "resample": resample})
    found = prepared(levels / 127.5 - 1, processor)
    stored = levels.expand(-1, 3, -1, -1).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    wanted = processor(list(stored), return_tensors="np", input_data_format="channels_last")["pixel_values"]
    assert np.abs(found.numpy() - wanted).max() < 0.05  # of about 5; PIL rounds to whole levels


def test_the_middle_is_cut_out_of_a_picture_whose_shorter_edge_is_given():
    settings = {"size": {"shortest_edge": 8}, "crop_size": {"height": 6, "width": 6}, "do_center_crop": True}
    processor = type("Processor", (), {"to_dict": lambda _self: {**settings, "do_normalize": False}})()
    image = torch.linspace(-1, 1, 16).expand(1, 1, 8, 16)
    found = prepared(image, processor)
    torch.testing.assert_close(found, ((image + 1) / 2)[..., 1:7, 5:11].expand(-1, 3, -1, -1))


@pytest.mark.parametrize("size", [(28, 28), (64, 48), None])
@pytest.mark.parametrize(
    "processor",
    [
        PROCESSOR,
        CLIPImageProcessorPil(),
        ConvNextImageProcessorPil(size={"shortest_edge": 384}),
        ConvNextImageProcessorPil(size={"shortest_edge": 224}, **STATISTICS),
        ViTImageProcessorPil(do_resize=False, **STATISTICS),
    ],
)
def test_processors_that_resize_crop_and_normalize_have_a_gradient(processor, size):
    check_processor(processor, size)
    x = torch.zeros(1, 3, *(size or (32, 32)), requires_grad=True)
    prepared(x, processor).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "processor",
    [
        EfficientNetImageProcessorPil(),  # scales to [-1, 1] before it normalizes
        LevitImageProcessorPil(),  # resizes to more than it says, and crops
        MobileViTImageProcessorPil(),  # turns the channels around
        PerceiverImageProcessorPil(),  # crops before it resizes
        ViTImageProcessorPil(do_rescale=False),  # wants levels, not shares
    ],
)
def test_processors_that_do_something_else_are_refused_in_one_sentence(processor):
    with pytest.raises(ValueError, match="does more than resize, crop and normalize") as error:
        check_processor(processor, (28, 28))
    assert type(processor).__name__ in str(error.value) and "\n" not in str(error.value)
