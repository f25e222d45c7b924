"""The Inception network of FID without its published weights: names, shapes, resize, and what its parts compute."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from hf_ddpm.errors import UserError
from hf_ddpm.metrics.inception import Inception2015, inception_of, load_inception, resize_like_tensorflow_1


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = Inception2015().eval().requires_grad_(False)
    for name, value in network.named_buffers():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    return network


# The published layout: torchvision's Inception v3 without its auxiliary classifier and with 1,008 classes. Each row is
# a module, its number of convolutions, and some of their shapes.
PUBLISHED = {
    "Conv2d_1a_3x3": (1, {"conv": (32, 3, 3, 3)}),
    "Conv2d_2a_3x3": (1, {"conv": (32, 32, 3, 3)}),
    "Conv2d_2b_3x3": (1, {"conv": (64, 32, 3, 3)}),
    "Conv2d_3b_1x1": (1, {"conv": (80, 64, 1, 1)}),
    "Conv2d_4a_3x3": (1, {"conv": (192, 80, 3, 3)}),
    "Mixed_5b": (7, {"branch5x5_2.conv": (64, 48, 5, 5), "branch_pool.conv": (32, 192, 1, 1)}),
    "Mixed_5c": (7, {"branch3x3dbl_3.conv": (96, 96, 3, 3), "branch_pool.conv": (64, 256, 1, 1)}),
    "Mixed_5d": (7, {"branch1x1.conv": (64, 288, 1, 1), "branch_pool.conv": (64, 288, 1, 1)}),
    "Mixed_6a": (4, {"branch3x3.conv": (384, 288, 3, 3), "branch3x3dbl_3.conv": (96, 96, 3, 3)}),
    "Mixed_6b": (10, {"branch7x7_2.conv": (128, 128, 1, 7), "branch7x7dbl_2.conv": (128, 128, 7, 1)}),
    "Mixed_6c": (10, {"branch7x7_3.conv": (192, 160, 7, 1), "branch7x7dbl_5.conv": (192, 160, 1, 7)}),
    "Mixed_6d": (10, {"branch1x1.conv": (192, 768, 1, 1), "branch_pool.conv": (192, 768, 1, 1)}),
    "Mixed_6e": (10, {"branch7x7dbl_1.conv": (192, 768, 1, 1), "branch7x7_1.conv": (192, 768, 1, 1)}),
    "Mixed_7a": (6, {"branch3x3_2.conv": (320, 192, 3, 3), "branch7x7x3_4.conv": (192, 192, 3, 3)}),
    "Mixed_7b": (9, {"branch3x3_2a.conv": (384, 384, 1, 3), "branch3x3dbl_3b.conv": (384, 384, 3, 1)}),
    "Mixed_7c": (9, {"branch3x3dbl_1.conv": (448, 2048, 1, 1), "branch_pool.conv": (192, 2048, 1, 1)}),
    "fc": (0, {"": (1008, 2048)}),
}


def test_names_and_shapes_are_the_published_ones(network):
    assert [name for name, _ in network.named_children()] == [*PUBLISHED]
    for name, (count, shapes) in PUBLISHED.items():
        weights = {key: value for key, value in network.state_dict().items() if key.startswith(f"{name}.")}
        assert sum(key.endswith("conv.weight") for key in weights) == count
        for part, shape in shapes.items():
            assert tuple(weights[f"{name}.{part}.weight".replace("..", ".")].shape) == shape
    assert len(network.state_dict()) == 94 * 6 + 2
    assert (
        sum(p.numel() for p in network.parameters()) == 23_850_960
    )  # 27,161,264 - 3,326,696 of the auxiliary + 8 * 2049
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {0.001}


def test_the_sizes_on_the_way(network):
    seen = {}

    def watch(name):
        def note(_module, _inputs, output):
            seen[name] = tuple(output.shape[1:])

        return note

    hooks = [module.register_forward_hook(watch(name)) for name, module in network.named_children()]
    found = network(torch.randint(0, 256, (1, 3, 32, 40)).to(torch.uint8))
    for hook in hooks:
        hook.remove()
    assert {name: seen[name] for name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6a")} == {
        "Conv2d_2b_3x3": (64, 147, 147),
        "Conv2d_4a_3x3": (192, 71, 71),
        "Mixed_5d": (288, 35, 35),
        "Mixed_6a": (768, 17, 17),
    }
    assert (seen["Mixed_7a"], seen["Mixed_7c"]) == ((1280, 8, 8), (2048, 8, 8))
    assert [tuple(part.shape) for part in found] == [(1, 2048), (1, 7 * 17 * 17), (1, 1008)]


def test_a_block_is_its_branches_side_by_side_and_its_average_ignores_the_border(network):
    x = torch.randn(1, 192, 5, 5)
    block = network.Mixed_5b
    ones = torch.ones(1, 1, 5, 5)
    counts = avg_pool2d(ones, 3, 1, 1, count_include_pad=True)  # the share of a window that is not border
    pooled = avg_pool2d(x, 3, 1, 1, count_include_pad=True) / counts
    expected = [
        block.branch1x1(x),
        block.branch5x5_2(block.branch5x5_1(x)),
        block.branch3x3dbl_3(block.branch3x3dbl_2(block.branch3x3dbl_1(x))),
        block.branch_pool(pooled),
    ]
    torch.testing.assert_close(block(x), torch.cat(expected, dim=1))
    split, x = network.Mixed_7c, torch.randn(1, 2048, 3, 3)
    ends = [part.shape[1] for part in (split.branch1x1(x), split.branch3x3_2a(split.branch3x3_1(x)))]
    assert split(x).shape[1] == 2048 and ends == [320, 384]
    torch.testing.assert_close(split(x)[:, -192:], split.branch_pool(torch.nn.functional.max_pool2d(x, 3, 1, 1)))


def test_logits_have_no_bias_and_grey_images_are_three_equal_channels(network):
    grey = torch.randint(0, 256, (2, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    one, three = network(grey), network(grey.repeat(1, 3, 1, 1))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, three, strict=True))
    torch.testing.assert_close(one.logits, network.fc(one.pool) - network.fc.bias, rtol=1e-4, atol=1e-5)


def line(values, size):
    """TensorFlow 1's formula, pixel by pixel."""
    found = []
    for i in range(size):
        place = i * len(values) / size
        below = math.floor(place)
        above = min(below + 1, len(values) - 1)
        found.append(values[below] + (values[above] - values[below]) * (place - below))
    return found


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (5, 7), (1, 1), (400, 333), (299, 299)])
def test_the_resize_is_the_formula_pixel_by_pixel(height, width):
    image = np.random.default_rng(0).uniform(0, 255, (height, width))
    rows = np.array([line(row, 299) for row in image])
    expected = np.array([line(column, 299) for column in rows.T]).T
    found = resize_like_tensorflow_1(torch.tensor(image)[None, None], 299)[0, 0]
    np.testing.assert_allclose(found, expected, atol=0.02)  # the places are float32, as TensorFlow's
    if (height, width) == (299, 299):
        np.testing.assert_array_equal(found, image)


def test_the_resize_is_far_from_torchs():
    """Half a pixel's shift: 8 grey levels on average for noise-like images of 32 pixels."""
    image = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
    theirs = interpolate(image, size=(299, 299), mode="bilinear", align_corners=False)
    assert (resize_like_tensorflow_1(image, 299) - theirs).abs().mean() > 5


def test_a_file_of_the_layout_opens_and_another_is_refused(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "random.pth")
    opened = inception_of(tmp_path / "random.pth")
    assert all(
        torch.equal(a, b) for a, b in zip(opened.state_dict().values(), network.state_dict().values(), strict=True)
    )
    with pytest.raises(UserError, match=r"is not the Inception network of FID: its SHA-256 begins with .*6726825d"):
        load_inception(str(tmp_path / "random.pth"))


class Code:
    def __reduce__(self):
        return (exit, (3,))


@pytest.mark.parametrize("content", [Code(), {"fc.weight": torch.zeros(2)}, [1, 2]], ids=["code", "other", "list"])
def test_what_holds_no_network_is_one_sentence(content, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path))}/file.pth does not contain the Inception network"):
        inception_of(tmp_path / "file.pth")


def test_a_missing_file_and_an_unreachable_address_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"the Inception network cannot be read from '.*none.pth' \(.*No such file"):
        load_inception(str(tmp_path / "none.pth"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/w-6726825d.pth cannot be downloaded \(.*pass the path of"):
        load_inception("http://127.0.0.1:9/w-6726825d.pth")


def test_a_preprocessing_that_is_not_known_is_a_sentence():
    with pytest.raises(
        UserError, match="preprocessing is 'clean-fid'; it must be one of guided-diffusion, pytorch-fid"
    ):
        Inception2015("clean-fid")
