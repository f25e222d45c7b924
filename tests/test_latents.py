"""Training data as latents of a frozen VAE: the same whether cached or not, on any number of processes."""

import datasets
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel

from hf_ddpm import HFVAE, HFVAEPipeline
from hf_ddpm.errors import UserError
from hf_ddpm.latents import LatentData, open_vae

BLOCK = {"source": "digits", "image_size": 16, "channels": 1, "max_images": 100, "label_column": "auto"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return HFVAE(
        sample_size=16, network="conv", block_out_channels=(8, 8), latent_channels=2, likelihood="gaussian_fixed"
    ).eval()


def steps(data, count, **where):
    return [batch for batch, _ in zip(data.batches(batch_size=8, seed=3, **where), range(count), strict=False)]


@pytest.mark.parametrize("flip", [False, True])
def test_cached_latents_are_those_that_are_encoded_anew(flip, vae):
    block = BLOCK | {"horizontal_flip": flip}
    seen, cached = (LatentData(vae, block, seed=0, cache=cache) for cache in (False, True))
    assert seen.scale == cached.scale and (seen.channels, seen.image_size) == (2, (8, 8))
    for one, two in zip(steps(seen, 30), steps(cached, 30), strict=True):  # more than two epochs
        assert torch.equal(one.indices, two.indices) and torch.equal(one.labels, two.labels)
        torch.testing.assert_close(one.x_0, two.x_0, atol=1e-5, rtol=0)
    plain = steps(LatentData(vae, BLOCK, seed=0), 30)
    changed = [not torch.equal(a.x_0, b.x_0) for a, b in zip(plain, steps(seen, 30), strict=True)]
    assert any(changed) == flip


def test_the_cache_is_made_once_for_the_same_vae_and_data(vae, monkeypatch):
    calls = []
    encode = HFVAE.encode
    monkeypatch.setattr(HFVAE, "encode", lambda self, x, **k: calls.append(len(x)) or encode(self, x, **k))
    counts = []
    for block in (BLOCK, BLOCK, BLOCK | {"max_images": 80}):
        calls.clear()
        LatentData(vae, block, seed=0, cache=True)
        counts.append(sum(calls))
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(1.1)
    calls.clear()
    LatentData(vae, BLOCK, seed=0, cache=True)
    assert counts[1] < counts[0] == counts[2] == sum(calls)


def test_latents_have_unit_variance_and_are_drawn_anew(vae):
    data = LatentData(vae, BLOCK, seed=0)
    drawn = torch.cat([batch.x_0 for batch in steps(data, 25)])
    assert drawn.std().item() == pytest.approx(1, abs=0.03)
    assert vae.config["scaling_factor"] == data.scale
    first, again = steps(data, 1)[0], steps(data, 14)[13]  # the same images, an epoch and a half later
    assert not torch.equal(first.x_0, again.x_0)


@pytest.mark.parametrize("cache", [False, True])
def test_a_step_is_the_same_on_two_processes_and_after_a_resume(cache, vae):
    data = LatentData(vae, BLOCK | {"horizontal_flip": True}, seed=0, cache=cache)
    whole = steps(data, 6)[5]
    parts = [steps(data, 1, start_step=5, rank=rank, world_size=2)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)
    torch.testing.assert_close(torch.cat([part.x_0 for part in parts]), whole.x_0, atol=1e-5, rtol=0)


def test_a_vae_opens_alone_or_in_a_pipeline(vae, tmp_path):
    vae.save_pretrained(tmp_path / "alone")
    HFVAEPipeline(vae).save_pretrained(tmp_path / "pipeline")
    AutoencoderKL(1, 1, block_out_channels=(8,), norm_num_groups=8).save_pretrained(tmp_path / "stock")
    for name in ("alone", "pipeline"):
        opened = open_vae(str(tmp_path / name))
        assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), vae.parameters(), strict=True))
        assert not opened.training and not any(p.requires_grad for p in opened.parameters())
    assert type(open_vae(str(tmp_path / "stock"))) is AutoencoderKL


def test_mistakes_are_one_sentence(vae, tmp_path):
    UNet2DModel(block_out_channels=(32, 32, 32, 32)).save_pretrained(tmp_path / "unet")
    with pytest.raises(UserError, match="class 'UNet2DModel'; allowed are HFVAE, AutoencoderKL, AutoencoderTiny"):
        open_vae(str(tmp_path / "unet"))
    with pytest.raises(UserError, match=r"nowhere.* cannot be opened as a VAE"):
        open_vae(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="3: give --channels 1"):
        LatentData(vae, BLOCK | {"channels": 3}, seed=0)
    with pytest.raises(UserError, match="does not take images of 15x15"):
        LatentData(vae, BLOCK | {"image_size": 15}, seed=0)
    with pytest.raises(UserError, match="keeps each image once"):
        LatentData(vae, BLOCK | {"binarize": "dynamic"}, seed=0, cache=True)
