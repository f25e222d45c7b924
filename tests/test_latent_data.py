"""Training data as latents of a frozen VAE: the same whether cached or not, on any number of processes."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel
from PIL import Image

from hf_ddpm import HFVAE, HFVAEPipeline, latent_data
from hf_ddpm.data.order import SampleOrder
from hf_ddpm.errors import UserError
from hf_ddpm.latent_data import ENCODED_AT_ONCE, LatentData, open_vae
from hf_ddpm.weights import weights_sha256

BLOCK = {"source": "digits", "image_size": 16, "channels": 1, "max_images": 100, "label_column": "auto"}

pytestmark = pytest.mark.usefixtures("own_cache")


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


def test_opening_data_leaves_the_vae_as_it_was(vae):
    before = (dict(vae.config), weights_sha256(vae))
    data = LatentData(vae, BLOCK, seed=0)
    steps(data, 1)
    assert (dict(vae.config), weights_sha256(vae)) == before


def test_facts_name_the_vae_and_where_it_was_found(vae, tmp_path):
    vae.save_pretrained(tmp_path / "o'brien" / "vae")
    place = str(tmp_path / "o'brien" / "vae")
    data = LatentData(open_vae(place), BLOCK, seed=0, cache=True)
    facts = data.facts.latents
    assert (facts.source, facts.origin, facts.vae, facts.shape) == (place, "local", "HFVAE", (2, 8, 8))
    assert data.description.endswith(
        f"Used as latents of HFVAE, 2x8x8, times {data.scale:.5f}, encoded once into the cache of datasets."
    )
    assert LatentData(vae, BLOCK, seed=0).facts.latents.origin is None  # built here


def test_latents_have_unit_variance_and_are_drawn_anew(vae):
    data = LatentData(vae, BLOCK, seed=0)
    drawn = torch.cat([batch.x_0 for batch in steps(data, 25)])
    assert drawn.std().item() == pytest.approx(1, abs=0.03)
    assert data.facts.latents.scaling_factor == data.scale
    first, again = steps(data, 1)[0], steps(data, 14)[13]  # the same images, an epoch and a half later
    assert not torch.equal(first.x_0, again.x_0)


@pytest.mark.parametrize("cache", [False, True])
def test_a_step_is_the_same_on_two_processes_and_after_a_resume(cache, vae):
    data = LatentData(vae, BLOCK | {"horizontal_flip": True}, seed=0, cache=cache)
    whole = steps(data, 6)[5]
    parts = [steps(data, 1, start_step=5, rank=rank, world_size=2)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)
    torch.testing.assert_close(torch.cat([part.x_0 for part in parts]), whole.x_0, atol=1e-5, rtol=0)


def images(folder, count, *bad):
    """A data block of `count` files, all different, those in `bad` no images."""
    folder.mkdir()
    for i in range(count):
        Image.new("L", (16, 16), 3 * i).save(folder / f"{i:03d}.png")
    for i in bad:
        (folder / f"{i:03d}.png").write_bytes(b"half a picture")
    return {"source": str(folder), "image_size": 16, "channels": 1}


@pytest.mark.parametrize("bad", [(0, 17), (0, 1, 16, 17), (5, 6), (17,), (0,)])
def test_the_cache_has_the_next_readable_image_for_a_bad_one(bad, vae, tmp_path):
    """Also for the last rows, after which the first come."""
    block = images(tmp_path / "images", 18, *bad) | {"on_bad_image": "skip"}
    seen, cached = (LatentData(vae, block, seed=0, cache=cache) for cache in (False, True))
    for one, two in zip(steps(seen, 4), steps(cached, 4), strict=True):  # more than two epochs
        assert one.indices.tolist() == two.indices.tolist()
        torch.testing.assert_close(one.x_0, two.x_0, atol=1e-5, rtol=0)


def test_a_bad_image_met_while_encoding_is_named(vae, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_data, "MEASURED_IMAGES", ENCODED_AT_ONCE)
    count = ENCODED_AT_ONCE + 6
    bad = int(SampleOrder(count, 0).rows(ENCODED_AT_ONCE + 3, 1)[0])  # not among those that are measured first
    block = images(tmp_path / "images", count, bad) | {"cache": "none"}
    with pytest.raises(UserError, match=rf"^image {bad} of .* cannot be decoded: .*{bad:03d}\.png"):
        LatentData(vae, block, seed=0, cache=True)


@pytest.mark.parametrize("how", ["file in its place", "cut short"])
def test_a_cache_that_cannot_be_used_is_one_sentence(how, vae, tmp_path):
    cache = tmp_path / "cache"
    if how == "cut short":
        LatentData(vae, BLOCK, seed=0, cache=True)
        file = next(cache.rglob("*.arrow"))
        file.write_bytes(file.read_bytes()[:500])
    else:
        cache.write_text("")
    sentence = r"^encoded images cannot be written to or read from .*: free disk space, delete this folder .* false$"
    with pytest.raises(UserError, match=sentence):
        LatentData(vae, BLOCK, seed=0, cache=True)
    if how == "cut short":
        shutil.rmtree(next(cache.glob("generator/*")))  # which the sentence names
        LatentData(vae, BLOCK, seed=0, cache=True)


def test_a_vae_that_diverged_is_refused(vae):
    with torch.no_grad():
        vae.encoder.conv_out.weight.fill_(torch.nan)
    with pytest.raises(
        UserError, match=r"latents\.vae: .*cannot be scaled because 1 / std is nan: training has.*use another VAE"
    ):
        LatentData(vae, BLOCK, seed=0)


def test_another_config_is_another_cache(vae):
    """The same weights, normalised in other groups."""
    config = {**vae.config, "norm_num_groups": 4}
    other = HFVAE(**{name: value for name, value in config.items() if name[0] != "_"}).eval()
    other.load_state_dict(vae.state_dict())
    one, two = (LatentData(model, BLOCK, seed=0, cache=True) for model in (vae, other))
    assert (steps(one, 1)[0].x_0 / one.scale - steps(two, 1)[0].x_0 / two.scale).abs().max() > 1e-3


def test_a_vae_opens_alone_or_in_a_pipeline(vae, tmp_path):
    vae.save_pretrained(tmp_path / "alone")
    HFVAEPipeline(vae).save_pretrained(tmp_path / "pipeline")
    AutoencoderKL(1, 1, block_out_channels=(8,), norm_num_groups=8).save_pretrained(tmp_path / "stock")
    for name in ("alone", "pipeline"):
        opened = open_vae(str(tmp_path / name))
        assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), vae.parameters(), strict=True))
        assert opened.config["_name_or_path"] == str(tmp_path / name)
        assert not opened.training and not any(p.requires_grad for p in opened.parameters())
    assert type(open_vae(str(tmp_path / "stock"))) is AutoencoderKL


WEIGHTS = "diffusion_pytorch_model.safetensors"


def change(folder, **values):
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: shutil.rmtree(run / "c" / "vae"), "cannot be opened as a VAE: it has no folder vae: use the"),
        (lambda run: (run / "c/vae/config.json").unlink(), r": \S*vae/config\.json is missing: the checkp"),
        (lambda run: (run / "c/vae/config.json").write_text("[1]"), r"vae/config\.json does not contain a JSON object"),
        (lambda run: (run / "c/vae/config.json").write_text("{"), r"vae/config\.json cannot be read as JSON"),
        (
            lambda run: change(run / "c", sample_size=None),
            r"vae/config\.json has sample_size=None, which must be int or list",
        ),
        (lambda run: change(run / "c", _class_name=["HFVAE"]), r"class is \['HFVAE'\], but must be one of HFVAE"),
        (
            lambda run: change(run / "c", latent_channels=4),
            r"expected shape .*: config\.json and the weights do not belong to",
        ),
        (
            lambda run: change(run / "c", layers_per_block=2),
            r"weights are missing \(.*, such as .*\): config\.json and",
        ),
        (lambda run: (run / "c/vae" / WEIGHTS).unlink(), rf"vae/{WEIGHTS} is missing: restore it"),
        (lambda run: (run / "c/vae" / WEIGHTS).write_bytes(b"12"), rf": \S*vae/{WEIGHTS} is truncated or damaged"),
    ],
)
def test_a_damaged_vae_is_one_sentence(damage, said, vae, tmp_path):
    HFVAEPipeline(vae).save_pretrained(tmp_path / "c")
    damage(tmp_path)
    with pytest.raises(UserError, match=rf"^latents\.vae='{tmp_path}/c' .*{said}") as caught:
        open_vae(str(tmp_path / "c"))
    assert "\n" not in str(caught.value)


def test_what_is_no_vae_folder_gets_a_hint(vae, tmp_path):
    HFVAEPipeline(vae).save_pretrained(tmp_path / "run" / "checkpoint")
    with pytest.raises(UserError, match=r"run' cannot be opened as a VAE: did you mean .*run/checkpoint\?"):
        open_vae(str(tmp_path / "run"))
    (tmp_path / "file").write_text("")
    for name in ("file", "nowhere"):
        with pytest.raises(UserError, match=rf"cannot be opened as a VAE: there is no checkpoint folder at .*{name}'"):
            open_vae(str(tmp_path / name))


def test_mistakes_are_one_sentence(vae, tmp_path):
    UNet2DModel(block_out_channels=(32, 32, 32, 32)).save_pretrained(tmp_path / "unet")
    sentence = "its class is 'UNet2DModel', but must be one of HFVAE, AutoencoderKL, AutoencoderTiny"
    with pytest.raises(UserError, match=sentence):
        open_vae(str(tmp_path / "unet"))
    with pytest.raises(UserError, match=r"nowhere.* cannot be opened as a VAE"):
        open_vae(str(tmp_path / "nowhere"))
    HFVAE(sample_size=16).save_pretrained(tmp_path / "mlp")
    with pytest.raises(UserError, match="mlp' is an MLP, whose latents have no height and width: use a convolutional"):
        open_vae(str(tmp_path / "mlp"))
    with pytest.raises(UserError, match="3: pass --channels 1"):
        LatentData(vae, BLOCK | {"channels": 3}, seed=0)
    with pytest.raises(UserError, match="does not support images of 15x15"):
        LatentData(vae, BLOCK | {"image_size": 15}, seed=0)
    with pytest.raises(UserError, match="stores each image once"):
        LatentData(vae, BLOCK | {"binarize": "dynamic"}, seed=0, cache=True)


def test_pickles_of_a_stock_vae_are_not_opened(tmp_path):
    AutoencoderKL(block_out_channels=(32,)).save_pretrained(tmp_path / "stock", safe_serialization=False)
    with pytest.raises(UserError, match=r"stock' cannot be opened as a VAE"):
        open_vae(str(tmp_path / "stock"))
