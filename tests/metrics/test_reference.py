"""Statistics of a data set: computed once, portable, and refused where they do not fit."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub.utils import _cache_assets
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from hf_ddpm.data import ImageData, to_uint8
from hf_ddpm.errors import UserError
from hf_ddpm.metrics import extractors, feature_statistics, frechet_distance, reference
from hf_ddpm.metrics.extractors import (
    Extractor,
    Features,
    digit_extractor,
    inception_extractor,
    module_extractor,
    open_extractor,
)
from hf_ddpm.metrics.inception import Inception2015
from hf_ddpm.metrics.reference import (
    load_reference,
    mnist_test,
    read_npz,
    real_features,
    reference_of,
    require_same_conditions,
    save_reference,
)

INCEPTION = {"extractor": "inception-2015-12-05", "weights_sha256": "0" * 64}


@pytest.fixture(autouse=True)
def assets(tmp_path, monkeypatch):
    """The user's cache, empty."""
    monkeypatch.setattr(_cache_assets, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


@pytest.fixture
def photos(tmp_path):
    draw = np.random.default_rng(0)
    for i in range(70):
        (tmp_path / "my photos").mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "my photos" / f"{i}.png")
    return tmp_path / "my photos"


def opened(folder, **keywords):
    return ImageData(str(folder), **{"image_size": 8, "channels": 3} | keywords)


def means(seed=0):
    torch.manual_seed(seed)
    return module_extractor(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5)), "means")


def with_places(images):
    """An extractor with features of places too."""
    pixels = images.float().flatten(1)
    return Features(pixels[:, :4], pixels[:, 4:7])


def test_every_image_counts_once_and_the_second_time_is_read(photos, monkeypatch):
    data, extractor = opened(photos), means()
    found = reference_of(data, extractor)
    whole = next(data.batches(batch_size=70, seed=1))
    expected = feature_statistics(extractor(to_uint8(whole.x_0)).pool)
    assert found.pool.num_samples == 70 and found.spatial is None
    torch.testing.assert_close(found.pool.mean, expected.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.pool.covariance, expected.covariance, rtol=1e-5, atol=1e-8)
    monkeypatch.setattr(reference, "_computed", None)
    again = reference_of(opened(photos), means())
    assert all(torch.equal(a, b) for a, b in zip(found.pool[:2], again.pool[:2], strict=True))


@pytest.mark.parametrize(
    ("keywords", "seed"), [({"image_size": 4}, 0), ({"resize": "pad"}, 0), ({"max_images": 69}, 0), ({}, 1)]
)
def test_other_images_or_weights_are_other_statistics(keywords, seed, photos, assets):
    reference_of(opened(photos), means())
    reference_of(opened(photos, **keywords), means(seed))
    assert len(list(assets.rglob("*.safetensors"))) == 2


def test_a_file_is_portable_and_names_no_folder_of_this_machine(photos, tmp_path):
    data = opened(photos)
    extractor = Extractor("places", "FD (places)", "as they are", nn.Linear(1, 1), with_places)
    found = reference_of(data, extractor)
    save_reference(found, tmp_path / "deep" / "mine.safetensors")
    again = load_reference(tmp_path / "deep" / "mine.safetensors")
    for part, other in zip(found[:2], again[:2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(part[:2], other[:2], strict=True))
    assert again.spatial.mean.shape == (3,) and again.conditions == found.conditions
    assert again.conditions["data"] == {"source": "my photos", "origin": "local", "split": "train"}
    assert str(tmp_path).encode() not in (tmp_path / "deep" / "mine.safetensors").read_bytes()
    require_same_conditions(again, extractor)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["mine.safetensors"]


def test_another_extractor_is_refused(photos):
    found = reference_of(opened(photos), means())
    require_same_conditions(found, means(), image_size=(8, 8))
    with pytest.raises(UserError, match=r"made with image_size=\[8, 8\] but the samples are measured with .*\[4, 8\]"):
        require_same_conditions(found, means(), image_size=(4, 8))
    with pytest.raises(
        UserError, match=r"made with weights_sha256='.*' but the samples .*, so they cannot be compared"
    ):
        require_same_conditions(found, means(1))
    sentence = "made with extractor='means' but the samples are measured with extractor='digits'"
    with pytest.raises(UserError, match=sentence):
        require_same_conditions(found, open_extractor("digits"))


def write_npz(file, **more):
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = feature_statistics(features)
    arrays = {"mu": statistics.mean.numpy(), "sigma": statistics.covariance.numpy()} | more
    np.savez(file, **{name: value for name, value in arrays.items() if value is not None})
    return statistics


def test_published_statistics_fit_one_resize(tmp_path, monkeypatch):
    expected = write_npz(tmp_path / "a.npz", mu_s=np.zeros(2), sigma_s=np.eye(2))
    torch.manual_seed(0)
    torch.save(Inception2015().state_dict(), tmp_path / "w.pth")
    sha256 = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    monkeypatch.setattr("hf_ddpm.metrics.inception.SHA256_BEGINS", sha256[:8])  # the published file is not at hand
    seen = {name: inception_extractor(str(tmp_path / "w.pth"), name) for name in ("pytorch-fid", "guided-diffusion")}
    for origin, other in (("pytorch-fid", "guided-diffusion"), ("guided-diffusion", "pytorch-fid")):
        found = read_npz(tmp_path / "a.npz", origin, 50)
        assert torch.equal(found.pool.covariance, expected.covariance) and found.spatial.mean.shape == (2,)
        require_same_conditions(found, seen[origin])
        with pytest.raises(UserError, match=f"made with preprocessing='bilinear to 299x299 as {origin} does it'"):
            require_same_conditions(found, seen[other])
    picture = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    one, two = (extractor(picture).pool for extractor in seen.values())
    assert not torch.allclose(one, two, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mu": None}, "has no statistics mu and sigma"),
        ({"sigma": np.eye(5)}, r"a mean of shape \(6,\) and a covariance of shape \(5, 5\)"),
        ({"mu": np.full(6, np.nan)}, "they must be finite, .* at least 2 images: use"),
        ({"mu": np.array([print], dtype=object)}, "has no statistics mu and sigma"),
        ({"mu": np.array(["a"] * 6)}, "has no statistics mu and sigma"),
    ],
    ids=["none", "shape", "nan", "pickle", "words"],
)
def test_an_npz_of_something_else_is_one_sentence(arrays, said, tmp_path):
    write_npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=said):
        read_npz(tmp_path / "a.npz", "pytorch-fid", 50)


def test_an_npz_needs_its_origin_and_its_number(tmp_path):
    write_npz(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"origin='tf' of .*a.npz must be one of guided-diffusion, pytorch-fid"):
        read_npz(tmp_path / "a.npz", "tf", 50)
    with pytest.raises(UserError, match="with num_images=1, but they must be"):
        read_npz(tmp_path / "a.npz", "pytorch-fid", 1)
    (tmp_path / "b.npz").write_bytes(b"PK nothing")
    for name in ("b.npz", "none.npz"):
        with pytest.raises(UserError, match=f"{name} has no statistics mu and sigma"):
            read_npz(tmp_path / name, "pytorch-fid", 50)


def test_a_damaged_file_is_one_sentence(photos, tmp_path):
    found = reference_of(opened(photos), means())
    save_reference(found, tmp_path / "mine.safetensors")
    whole = (tmp_path / "mine.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    save_file({"pool.mean": torch.zeros(2)}, tmp_path / "other.safetensors")
    with safe_open(tmp_path / "mine.safetensors", framework="pt") as file:
        metadata = file.metadata()
    save_file({"pool.mean": torch.zeros(2)}, tmp_path / "less.safetensors", metadata=metadata)
    save_file({"pool.mean": torch.zeros(2)}, tmp_path / "odd.safetensors", metadata=metadata | {"conditions": "[1]"})
    for name in ("cut", "other", "less", "odd", "none"):
        with pytest.raises(UserError, match=f"{name}.safetensors does not contain the statistics of a dataset"):
            load_reference(tmp_path / f"{name}.safetensors")


def test_data_without_statistics_are_one_sentence(photos):
    with pytest.raises(UserError, match="is a stream, which has no fixed statistics"):
        reference_of(opened(photos, streaming=True), means())
    with pytest.raises(UserError, match="the number of images is 1, but a covariance"):
        reference_of(opened(photos, max_images=1), means())


def test_conditions_are_json(photos):
    found = reference_of(opened(photos), means())
    assert json.loads(json.dumps(found.conditions)) == found.conditions
    assert found.conditions.keys() >= {
        "extractor",
        "preprocessing",
        "weights_sha256",
        "data",
        "num_images",
        "image_size",
    }
    assert INCEPTION["extractor"] == extractors.INCEPTION


def test_features_are_kept_in_one_order_and_give_the_same_statistics(tmp_path, monkeypatch):
    """All features are enough for the statistics: no image is looked at again."""
    data, extractor = ImageData("digits", max_images=90, label_column="auto"), digit_extractor()
    looked = []
    counting = replace(extractor, look=lambda images: looked.append(len(images)) or extractor.look(images))
    features = real_features(data, counting, 1000)
    assert sorted(features.rows.tolist()) == [*range(90)] and sum(looked) == 90
    assert torch.equal(features.labels, data.labels(features.rows))
    assert torch.allclose(features.pool, extractor(data.pixels(features.rows)).pool, atol=1e-4)
    found = reference_of(data, counting, features)
    assert sum(looked) == 90
    again = real_features(data, counting, 1000)
    assert torch.equal(again.pool, features.pool) and torch.equal(again.rows, features.rows) and sum(looked) == 90
    monkeypatch.setattr("hf_ddpm.metrics.reference.cached_assets_path", lambda *_: tmp_path / "others")
    streamed = reference_of(data, extractor)
    assert torch.allclose(streamed.pool.covariance, found.pool.covariance, rtol=1e-6, atol=1e-6)
    few = real_features(data, extractor, 20)
    assert torch.equal(few.rows, features.rows[:20])


def test_damaged_features_are_named(assets):
    data = ImageData("digits", max_images=20)
    real_features(data, digit_extractor())
    (file,) = assets.rglob("*.safetensors")
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"does not contain features .*: delete it and run the command again"):
        real_features(data, digit_extractor())


def test_the_statistics_that_ship_are_those_of_the_test_digits():
    found = mnist_test()
    assert found.pool.num_samples == 10_000 and found.conditions["data"]["split"] == "test"
    require_same_conditions(found, digit_extractor())
    pixels = ImageData("digits").pixels(torch.arange(0, 5000, 5))  # a thousand real training digits
    features = feature_statistics(digit_extractor()(pixels).pool)
    assert 4 < frechet_distance(*features[:2], *found.pool[:2]) < 9
