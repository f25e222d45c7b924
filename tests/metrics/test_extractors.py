"""Extractors: what each sees of an image, what its numbers are called, and what is no extractor."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import interpolate
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from hf_ddpm.data import ImageData, to_float, to_uint8
from hf_ddpm.errors import UserError
from hf_ddpm.metrics import digit_score, feature_statistics, frechet_distance
from hf_ddpm.metrics.digits import DigitFeatures, digit_statistics
from hf_ddpm.metrics.extractors import module_extractor, open_extractor
from hf_ddpm.metrics.inception import Inception2015

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
PROCESSOR = {"do_resize": True, "size": {"height": 28, "width": 28}, "resample": 3, "do_center_crop": False}
PROCESSOR |= {"do_rescale": True, "do_normalize": True, "image_mean": MEAN, "image_std": STD}
MODELS = {
    "dinov2": lambda: Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    ),
    "resnet": lambda: ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ),
    "vit": lambda: ViTModel(
        ViTConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        )
    ),
}


def images(count, channels=3, size=28, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator).to(torch.uint8)


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory):
    """A random model of transformers in a folder, as the Hub has them."""

    def make(name, kind="BitImageProcessor"):
        folder = tmp_path_factory.mktemp(name) / "model"
        torch.manual_seed(0)
        MODELS[name]().save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"image_processor_type": kind}))
        return folder

    return make


@pytest.fixture(scope="module")
def digits():
    return to_uint8(next(ImageData("digits").batches(batch_size=300, seed=0)).x_0)


def test_digits_are_measured_as_the_digit_distance_is(digits):
    extractor = open_extractor("digits")
    found = extractor(digits)
    samples, reference = feature_statistics(found.pool[:100]), feature_statistics(found.pool[100:])
    expected = digit_score(digits[:100], digit_statistics(digits[100:])).distance
    assert frechet_distance(*samples[:2], *reference[:2]) == pytest.approx(expected, rel=1e-9)
    assert found.logits.shape == (300, 10) and found.spatial is None
    assert extractor.distance == "digit distance"
    padded = torch.zeros(300, 1, 32, 32, dtype=torch.uint8)
    padded[..., 2:30, 2:30] = digits
    assert torch.equal(extractor(padded).pool, found.pool)


def test_dinov2_is_its_class_token_of_what_its_own_preprocessing_makes(vision_model):
    folder, pictures = vision_model("dinov2"), images(3)
    model = Dinov2Model.from_pretrained(folder)
    x = (pictures / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        expected = model(pixel_values=x).last_hidden_state[:, 0]
    extractor = open_extractor(str(folder))
    torch.testing.assert_close(extractor(pictures).pool, expected, rtol=1e-4, atol=1e-5)
    assert (extractor.name, extractor.distance) == ("model", "FD (model)")
    assert str(folder) not in json.dumps(extractor.conditions)
    resized = extractor(images(3, size=20)).pool
    assert resized.shape == (3, 16) and not torch.equal(resized, expected)


def test_the_same_weights_that_see_images_otherwise_are_another_extractor(vision_model):
    one, again, other = (vision_model("dinov2") for _ in range(3))
    file = other / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.1, 0.1, 0.1]}))
    conditions = [open_extractor(str(folder)).conditions for folder in (one, again, other)]
    assert conditions[0] == conditions[1]
    assert conditions[0]["weights_sha256"] == conditions[2]["weights_sha256"]
    assert conditions[0]["preprocessing"] != conditions[2]["preprocessing"]


@pytest.mark.parametrize(("name", "dimension"), [("resnet", 16), ("vit", 16)])
def test_other_models_have_one_vector_an_image(name, dimension, vision_model):
    extractor = open_extractor(str(vision_model(name, "ViTImageProcessor")))
    grey = images(2, channels=1)
    found = extractor(grey).pool
    assert found.shape == (2, dimension) and found.dtype == torch.float32
    assert torch.equal(found, extractor(grey.repeat(1, 3, 1, 1)).pool)


def test_missing_weights_would_be_random_and_are_refused(vision_model):
    folder = vision_model("dinov2")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "layernorm" not in k}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(
        UserError, match=r"lacks weights \(layernorm.bias, layernorm.weight, ...\), which would be random"
    ):
        open_extractor(str(folder))


def test_a_model_that_wants_text_too_is_refused(tmp_path):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small | {"vocab_size": 20}, vision_config=small | {"image_size": 28, "patch_size": 14}
    )
    CLIPModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(PROCESSOR | {"image_processor_type": "CLIPImageProcessor"})
    )
    with pytest.raises(UserError, match="is a CLIPModel, whose main input is not an image"):
        open_extractor(str(tmp_path))


def test_what_is_no_model_is_one_sentence(tmp_path, vision_model):
    with pytest.raises(
        UserError, match=r"'.*' cannot be opened as a vision model of transformers \(.*\): use digits, eff"
    ):
        open_extractor(str(tmp_path))
    pickled = vision_model("dinov2")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be opened as a vision model"):
        open_extractor(str(pickled))
    with pytest.raises(UserError, match=r"the Inception network cannot be read from 'none.pth'"):
        open_extractor("none.pth")


def test_inception_has_the_name_fid(tmp_path, monkeypatch):
    torch.manual_seed(0)
    torch.save(Inception2015().state_dict(), tmp_path / "w.pth")
    sha256 = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    monkeypatch.setattr("hf_ddpm.metrics.inception.SHA256_BEGINS", sha256[:8])  # the published file is not at hand
    extractor = open_extractor(str(tmp_path / "w.pth"))
    found = extractor(images(1))
    assert extractor.distance == "FID"
    assert [part.shape[1] for part in found] == [2048, 2023, 1008]


def test_efficientnet_sees_what_is_in_a_picture():
    """Trained weights: a coarse pattern of colours is nearest to its own mirror image."""
    extractor = open_extractor("efficientnet-lite0")
    patterns = torch.rand(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    pictures = (interpolate(patterns, 32, mode="bilinear") * 255).to(torch.uint8)
    one, two = extractor(pictures), extractor(pictures.flip(-1))
    assert one.pool.shape == (6, 1280) and one.logits.shape == (6, 1000)
    assert torch.equal(torch.cdist(one.pool, two.pool).argmin(dim=1), torch.arange(6))
    assert extractor.distance == "FD (EfficientNet-Lite0)"


def test_a_network_of_ones_own():
    class Means(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.scale * x.mean(dim=(2, 3))

    extractor = module_extractor(Means(), "means")
    pictures = images(4)
    torch.testing.assert_close(extractor(pictures).pool, to_float(pictures).mean(dim=(2, 3)))
    assert extractor.distance == "FD (means)"
    assert torch.equal(module_extractor(nn.Flatten(), "pixels")(pictures).pool, to_float(pictures).flatten(1))
    with pytest.raises(UserError, match=r"scalar returned \(4,\) for a batch of 4; it must return \(B, D\)"):
        module_extractor(nn.Sequential(nn.Flatten(0), nn.Linear(4 * 3 * 28 * 28, 4)), "scalar")(pictures)


@pytest.mark.parametrize(
    "wrong", [images(2).float(), images(2)[0], images(2, channels=2)], ids=["float", "3d", "2 channels"]
)
def test_images_of_another_kind_are_one_sentence(wrong):
    with pytest.raises(UserError, match="cannot be measured: pass uint8 of shape"):
        open_extractor("digits")(wrong)


def test_the_digit_network_refuses_other_pictures():
    for wrong in (images(2), images(2, channels=1, size=20)):
        with pytest.raises(UserError, match="are not digits: use 1 channel and at least 28x28"):
            open_extractor("digits")(wrong)


def test_conditions_change_with_the_weights():
    one, two = (module_extractor(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "net") for _ in range(2))
    assert one.conditions["weights_sha256"] != two.conditions["weights_sha256"]
    assert open_extractor("digits").conditions == open_extractor("digits").conditions
    assert DigitFeatures.trained().conv1.weight.isfinite().all()
