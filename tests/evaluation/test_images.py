"""Images by their indices, whoever made them."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ddpm.errors import UserError
from hf_ddpm.evaluation.images import Drawn, Found, class_order, in_channels, pixels_of
from hf_ddpm.sampling import sample_images


@pytest.fixture
def folder(tmp_path):
    """Twelve coloured images of 6x8 in two classes."""
    generator = np.random.default_rng(0)
    for i in range(12):
        place = tmp_path / "images" / ("cat" if i < 5 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(place / f"{i:02d}.png")
    return tmp_path / "images"


def all_of(source, indices):
    parts = list(source.pictures(indices))
    labels = None if parts[0].labels is None else torch.cat([part.labels for part in parts])
    return torch.cat([part.pixels for part in parts]), labels


def test_samples_are_functions_of_their_indices(make_pipeline):
    """Whatever is asked for together, image i has the class and the pixels of i."""
    pipeline = make_pipeline(num_class_embeds=3)
    walk = {"num_inference_steps": 2}
    sources = [Drawn(pipeline, sample_images, 5, size, walk, lambda i: i % 3) for size in (2, 5)]
    whole, labels = all_of(sources[0], range(7))
    assert whole.shape == (7, 1, 8, 8) and whole.dtype == torch.uint8
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    part, some = all_of(sources[1], range(3, 7))
    assert (whole[3:].int() - part.int()).abs().max() <= 1 and some.tolist() == [0, 1, 2, 0]
    alone = list(sample_images(pipeline, [4], seed=5, num_inference_steps=2, class_label=1))
    assert (whole[4:5].int() - pixels_of(alone).int()).abs().max() <= 1


def test_weights_that_diverged_are_the_users_to_know(make_pipeline):
    pipeline = make_pipeline()
    torch.nn.init.constant_(pipeline.unet.conv_out.bias, torch.nan)
    with pytest.raises(UserError, match="the images contain NaN: the weights or the latents have diverged"):
        all_of(Drawn(pipeline, sample_images, 0, 2, {"num_inference_steps": 2}), range(2))


@pytest.mark.parametrize("how", ["in-turn", "balanced"])
def test_every_run_of_classes_has_each_once(how):
    order = class_order(how, 4, seed=1)
    labels = torch.tensor([order(i) for i in range(400)]).view(-1, 4)
    assert (labels.sort(dim=1).values == torch.arange(4)).all()
    assert (labels == torch.arange(4)).all() == (how == "in-turn")
    assert order(17) == class_order(how, 4, seed=1)(17)


def test_the_classes_of_the_data(folder):
    labels = torch.tensor([0, 0, 0, 2, 2, 1])
    order = class_order("data", 3, 0, labels)
    drawn = [order(i) for i in range(12)]
    assert sorted(drawn[:6]) == sorted(labels.tolist()) and drawn[:6] == drawn[6:]
    with pytest.raises(UserError, match="--labels data needs the labels of real images: pass"):
        class_order("data", 3, 0)


def test_a_folder_is_scored_as_it_is(folder, own_cache):
    source = Found(str(folder))
    assert (source.num_images, source.image_size, source.channels) == (12, (6, 8), 3)
    pixels, labels = all_of(source, range(12))
    assert labels.tolist() == [0] * 5 + [1] * 7
    for i, name in enumerate(sorted(folder.rglob("*.png"))):
        assert (pixels[i].permute(1, 2, 0).numpy() == np.asarray(Image.open(name))).all()


def test_images_of_several_sizes_are_refused(folder, own_cache):
    """Resizing them would change the number."""
    Image.new("RGB", (9, 6)).save(folder / "dog" / "odd.png")
    with pytest.raises(UserError, match=r"image 12 .*: .*odd.png: it has 6x9 pixels, but must have 6x8"):
        all_of(Found(str(folder)), range(13))


def test_the_npz_of_guided_diffusion(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", pixels, np.arange(5))
    source = Found(str(tmp_path / "samples.npz"))
    found, labels = all_of(source, range(1, 4))
    assert (found.permute(0, 2, 3, 1).numpy() == pixels[1:4]).all() and labels.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({}, "does not contain images in arr_0"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "is float64 of shape"),
        ({"arr_0": np.zeros((2, 3, 4, 4), dtype=np.uint8)}, "images must be uint8 of shape"),
        ({"arr_0": np.zeros((0, 4, 4, 3), dtype=np.uint8)}, "use another file"),
        ({"arr_0": np.array([object()])}, "does not contain images in arr_0"),
    ],
)
def test_an_npz_of_something_else_is_refused(arrays, sentence, tmp_path):
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(UserError, match=sentence):
        Found(str(tmp_path / "odd.npz"))


def test_grey_and_colour():
    grey = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    assert torch.equal(in_channels(in_channels(grey, 3), 1), grey)
    colour = grey.expand(-1, 3, -1, -1).clone()
    colour[0, 0] += 1
    with pytest.raises(UserError, match="in colour and the real ones are grey"):
        in_channels(colour, 1)
