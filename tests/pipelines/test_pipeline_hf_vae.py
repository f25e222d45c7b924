"""The VAE's pipeline: its doors, what its latents do with images, invariances of seeds and batches, and bad calls."""

import ast
import json
import math
import re
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from hf_ddpm import HFDDPMPipeline, HFVAEPipeline
from hf_ddpm.models.vae import HFVAE
from hf_ddpm.pipelines import slerp
from hf_ddpm.pipelines.doors import GENERATED

DRAW = """
import numpy as np, torch
generator = torch.Generator().manual_seed(5)
drawn = [pipe(2, generator, sample_pixels=pixels, output_type="np").images for pixels in (False, True)]
x = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
np.save({out!r}, np.stack([*drawn, pipe.reconstruct(x, output_type="np").images]))
"""
DOORS = {
    1: "from hf_ddpm import HFVAEPipeline\npipe = HFVAEPipeline.from_pretrained({folder!r})",
    2: "from diffusers import DiffusionPipeline\npipe = DiffusionPipeline.from_pretrained({folder!r})",
    3: "from diffusers import DiffusionPipeline\n"
    "pipe = DiffusionPipeline.from_pretrained({folder!r}, custom_pipeline={folder!r}, trust_remote_code=True)",
}
CONV = {"network": "conv", "block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 2}
MODELS = [
    {"likelihood": "bernoulli"},
    {"likelihood": "gaussian", "in_channels": 3},
    {"likelihood": "gaussian_fixed"},
    {"likelihood": "gaussian_global", **CONV},
    {"likelihood": "discretized_gaussian", "in_channels": 3, **CONV},
]
every_model = pytest.mark.parametrize("config", MODELS, ids=lambda c: f"{c.get('network', 'mlp')}-{c['likelihood']}")


@pytest.fixture
def make_vae_pipeline():
    """A pipeline of a tiny random VAE of 8x8 images whose latents show in them: HFVAE's keywords -> pipeline."""

    def make(**config):
        torch.manual_seed(0)
        vae = HFVAE(**{"sample_size": 8, "latent_channels": 3, "hidden_sizes": (16,)} | config)
        with torch.no_grad():
            for weight in vae.parameters():
                weight.copy_(torch.randn_like(weight) * 0.3)
        return HFVAEPipeline(vae)

    return make


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def some_images(pipeline, count=2, seed=0):
    """(count, C, 8, 8), uniform in [-1, 1]."""
    shape = (count, pipeline.vae.config["in_channels"], 8, 8)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def shown(x):
    """As `output_type="pt"` shows it."""
    return (x / 2 + 0.5).clamp(0, 1)


@pytest.fixture
def draw_through(run_python, tmp_path):
    def draw(door, folder, before=""):
        out = str(tmp_path / f"door{door}.npy")
        code = (before + DOORS[door] + DRAW).replace("{folder!r}", repr(str(folder))).replace("{out!r}", repr(out))
        run_python(code, without_hf_ddpm=door != 1)
        return np.load(out)

    return draw


def draw(pipeline, tmp_path):
    exec(DRAW.replace("{out!r}", repr(str(tmp_path / "here.npy"))), {"pipe": pipeline})
    return np.load(tmp_path / "here.npy")


@pytest.mark.parametrize("config", [MODELS[1], MODELS[4]], ids=["mlp", "conv"])
def test_doors_1_and_3_show_the_same_images_and_door_2_is_shut(
    config, make_vae_pipeline, draw_through, run_python, tmp_path
):
    pipeline, folder = make_vae_pipeline(**config), tmp_path / "checkpoint"
    pipeline.save_pretrained(folder)
    expected = draw(pipeline, tmp_path)
    assert expected.std() > 0.05
    assert np.array_equal(draw_through(1, folder), expected)
    assert np.array_equal(draw_through(3, folder), expected)
    refused = run_python(DOORS[2].format(folder=str(folder)), without_hf_ddpm=True, check=False)
    assert refused.returncode != 0
    assert "HFVAEPipeline" in refused.stderr


def test_a_checkpoint_opened_by_door_3_saves_itself_whole(make_vae_pipeline, run_python, draw_through, tmp_path):
    pipeline, folder, again = make_vae_pipeline(in_channels=3), tmp_path / "checkpoint", tmp_path / "again"
    pipeline.save_pretrained(folder)
    code = DOORS[3].format(folder=str(folder)) + f"\npipe.save_pretrained({str(again)!r})"
    run_python(code, without_hf_ddpm=True)
    for name in sorted(path.name for path in folder.glob("*.py")):
        assert (again / name).read_text() == (folder / name).read_text()
    # not by its place in a cache of that process
    assert json.loads((again / "model_index.json").read_text())["vae"] == ["diffusers", "HFVAE"]
    assert np.array_equal(draw_through(1, again), draw(pipeline, tmp_path))


def test_door_3_beside_hf_ddpm(make_vae_pipeline, run_python, tmp_path):
    pipeline = make_vae_pipeline()
    pipeline.save_pretrained(tmp_path / "vae")
    code = "import torch, hf_ddpm\n" + DOORS[3].format(folder=str(tmp_path / "vae"))
    mean = run_python(code + "\nprint(float(pipe.decode(torch.ones(1, 3, 1, 1), 'np').images.mean()))").stdout
    expected = pipeline.decode(torch.ones(1, 3, 1, 1), "np").images.mean()
    assert float(mean.split()[-1]) == pytest.approx(float(expected), abs=1e-6)


def test_saved_code_is_the_packages_with_relative_imports(make_vae_pipeline, tmp_path):
    import hf_ddpm.models.vae as vae
    import hf_ddpm.models.vae_likelihoods as likelihoods
    import hf_ddpm.pipelines.pipeline_hf_vae as pipeline

    make_vae_pipeline().save_pretrained(tmp_path)
    trees = {path.stem: ast.parse(path.read_text()) for path in tmp_path.glob("*.py")}
    imports = {name: [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)] for name, tree in trees.items()}
    # diffusers copies first-level imports of pipeline.py alone
    assert {node.module for node in imports["pipeline"] if node.level} == trees.keys() - {"pipeline"}
    for name in trees:
        roots = {node.module.split(".")[0] for node in imports[name] if not node.level}
        assert roots <= {*sys.stdlib_module_names, "torch", "diffusers", "huggingface_hub", "safetensors"}
        assert {node.module for node in imports[name] if node.level} <= trees.keys()
    assert "editing" not in trees  # what a VAE does not need
    for module, name in ((pipeline, "pipeline"), (vae, "vae"), (likelihoods, "vae_likelihoods")):
        source = Path(module.__file__).read_text()
        expected = re.sub(r"^from hf_ddpm\.(models|schedulers|pipelines|gate)\.", "from .", source, flags=re.M)
        saved, mark, added = (tmp_path / f"{name}.py").read_text().partition(GENERATED)
        assert (saved, bool(mark)) == (expected, name == "pipeline")
        assert all(
            re.fullmatch(r"import sys|from \.\w+ import __name__ as _|sys\.modules\..*", a)
            for a in added.split("\n")[:-1]
        )
    assert not list((tmp_path / "vae").glob("*.py"))  # code in a component's folder would ask door 1 for trust


@every_model
def test_saved_equals_loaded_bit_for_bit(config, make_vae_pipeline, tmp_path):
    pipeline = make_vae_pipeline(**config)
    pipeline.save_pretrained(tmp_path)
    loaded = HFVAEPipeline.from_pretrained(tmp_path)
    saved, read = ({k: v for k, v in p.vae.config.items() if k[0] != "_"} for p in (pipeline, loaded))
    assert json.dumps(saved) == json.dumps(read)  # tuples come back as lists
    for name, weight in pipeline.vae.state_dict().items():
        assert torch.equal(loaded.vae.state_dict()[name], weight)
    one, two = (p(2, generators(3, 4), sample_pixels=True, output_type="pt").images for p in (pipeline, loaded))
    assert torch.equal(one, two)


def test_a_checkpoint_of_another_class_is_one_sentence(make_pipeline, make_vae_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "stock")
    make_pipeline({"prediction_type": "mean"}).save_pretrained(tmp_path / "ddpm")
    make_vae_pipeline().save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match=r"a checkpoint of DDPMPipeline and has no vae .* load it with HFDDPMPipeline"):
        HFVAEPipeline.from_pretrained(tmp_path / "stock")
    with pytest.raises(ValueError, match="a checkpoint of HFDDPMPipeline and has no vae for HFVAEPipeline"):
        HFVAEPipeline.from_pretrained(tmp_path / "ddpm")
    with pytest.raises(
        ValueError, match=r"of HFVAEPipeline and has no unet or scheduler .* load it with HFVAEPipeline"
    ):
        HFDDPMPipeline.from_pretrained(tmp_path / "vae")
    heir = type("Mine", (HFVAEPipeline,), {})  # a class of a user is as good
    assert type(heir.from_pretrained(tmp_path / "vae")) is heir


@pytest.mark.parametrize("pixels", [False, True], ids=["mean", "pixels"])
@every_model
def test_a_generator_for_each_image_fixes_it_whatever_the_batch(config, pixels, make_vae_pipeline):
    pipeline = make_vae_pipeline(**config)
    together = pipeline(3, generators(1, 2, 3), sample_pixels=pixels, output_type="pt").images
    alone = [pipeline(1, generators(s), sample_pixels=pixels, output_type="pt").images for s in (1, 2, 3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=0.01)


def test_a_generator_for_each_image_fixes_its_draws_of_q(make_vae_pipeline):
    pipeline = make_vae_pipeline()
    x = some_images(pipeline, 3)
    together = pipeline.sample_posterior(x, 2, generators(1, 2, 3), "pt")
    for i in range(3):
        (alone,) = pipeline.sample_posterior(x[i : i + 1], 4, generators(i + 1), "pt")
        torch.testing.assert_close(together[i], alone[:2], atol=1e-5, rtol=0)
    batch, one = pipeline.encode(x, True, generators(1, 2, 3)), pipeline.encode(x[2:], True, generators(3))
    torch.testing.assert_close(batch[2:], one)


def test_a_call_is_the_decoder_of_its_latents(make_vae_pipeline):
    pipeline = make_vae_pipeline()
    z = torch.randn(4, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    drawn = pipeline(4, torch.Generator().manual_seed(0), output_type="pt").images
    with torch.no_grad():
        mean = pipeline.vae.decode(z).sample
    assert torch.equal(drawn, shown(mean))
    assert torch.equal(pipeline(4, latents=z, output_type="pt").images, drawn)
    assert torch.equal(pipeline.decode(z, "pt", return_dict=False)[0], drawn)


def test_sampled_pixels_are_a_draw_of_p(make_vae_pipeline):
    pipeline = make_vae_pipeline()
    z = torch.full((1, 3, 1, 1), 0.5)
    mean = pipeline.decode(z, "pt").images
    draws = pipeline(4000, torch.Generator().manual_seed(0), z.expand(4000, -1, -1, -1), True, "pt").images
    assert set(draws.unique().tolist()) == {0.0, 1.0}  # under bernoulli black or white
    assert (draws.mean(dim=0) - mean[0]).abs().max() < 4 * 0.5 / math.sqrt(4000)  # 4 standard errors at most
    fixed = make_vae_pipeline(likelihood="gaussian_global")
    fixed.vae.log_variance.data.fill_(2 * math.log(0.05))
    fixed.vae.decoder[-2].weight.data.mul_(0.1)  # pixels near the middle: nothing is clipped
    fixed.vae.decoder[-2].bias.data.zero_()
    draws = fixed(2000, torch.Generator().manual_seed(0), z.expand(2000, -1, -1, -1), True, "pt").images
    sigma = fixed.vae.likelihood_params(z).log_variance.div(2).exp().item()
    assert draws.std(dim=0).mean().item() == pytest.approx(sigma / 2, rel=0.02)  # images in [0, 1] are half as wide


@every_model
def test_output_types_are_the_same_images(config, make_vae_pipeline):
    pipeline = make_vae_pipeline(**config)
    x = some_images(pipeline)
    tensors, arrays, pictures = (pipeline.reconstruct(x, output_type=kind).images for kind in ("pt", "np", "pil"))
    assert np.array_equal(tensors.permute(0, 2, 3, 1).numpy(), arrays)
    for picture, array in zip(pictures, arrays, strict=True):
        assert picture.mode == {1: "L", 3: "RGB"}[x.shape[1]]
        assert np.array_equal(np.asarray(picture).reshape(array.shape), (array * 255).round().astype("uint8"))


def test_images_in_pil_and_tensors_are_the_same(make_vae_pipeline):
    pipeline = make_vae_pipeline()
    pictures = pipeline(2, torch.Generator().manual_seed(0)).images
    eight_bits = torch.stack([torch.from_numpy(np.asarray(picture).copy())[None] for picture in pictures])
    torch.testing.assert_close(pipeline.encode(pictures), pipeline.encode(eight_bits))
    assert torch.equal(pipeline.encode(eight_bits), pipeline.encode(eight_bits / 127.5 - 1))


@every_model
def test_reconstruction_is_decode_of_encode(config, make_vae_pipeline):
    pipeline = make_vae_pipeline(**config)
    x = some_images(pipeline)
    with torch.no_grad():
        expected = pipeline.vae(x).sample
    assert torch.equal(pipeline.reconstruct(x, output_type="pt").images, shown(expected))
    drawn = pipeline.reconstruct(x, True, torch.Generator().manual_seed(0), "pt").images
    with torch.no_grad():
        expected = pipeline.vae(x, sample_posterior=True, generator=torch.Generator().manual_seed(0)).sample
    assert torch.equal(drawn, shown(expected))


def test_no_gradients_no_dropout_and_the_mode_comes_back(make_vae_pipeline):
    pipeline = make_vae_pipeline()
    pipeline.vae.encoder.append(torch.nn.Dropout(0.5)).train()
    pipeline.vae.decoder.eval()
    x = some_images(pipeline)
    first, second = pipeline.encode(x), pipeline.encode(x)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert pipeline.vae.encoder.training
    assert not pipeline.vae.decoder.training


def test_convolutions_take_other_sizes(make_vae_pipeline):
    pipeline = make_vae_pipeline(**MODELS[3])
    x = torch.zeros(1, 1, 12, 16)
    assert pipeline.encode(x).shape == (1, 2, 6, 8)
    assert pipeline.reconstruct(x, output_type="pt").images.shape == x.shape


@pytest.mark.parametrize("method", ["lerp", "slerp"])
@every_model
def test_interpolation_ends_at_the_reconstructions(config, method, make_vae_pipeline):
    pipeline = make_vae_pipeline(**config)
    x, y = some_images(pipeline, seed=0), some_images(pipeline, seed=1)
    start, middle, end = pipeline.interpolate(x, y, [0.0, 0.5, 1.0], method, "pt")
    assert torch.allclose(start, pipeline.reconstruct(x, output_type="pt").images, atol=1e-5)
    assert torch.allclose(end, pipeline.reconstruct(y, output_type="pt").images, atol=1e-5)
    assert torch.allclose(middle, pipeline.interpolate(y, x, [0.5], method, "pt")[0], atol=1e-5)  # either way round


def test_lerp_is_straight_and_slerp_an_arc(make_vae_pipeline):
    pipeline = make_vae_pipeline()
    x, y = some_images(pipeline, seed=0), some_images(pipeline, seed=1)
    z_1, z_2 = pipeline.encode(x), pipeline.encode(y)
    straight = pipeline.decode(0.7 * z_1 + 0.3 * z_2, "pt").images
    assert torch.allclose(pipeline.interpolate(x, y, [0.3], output_type="pt")[0], straight, atol=1e-5)
    arc = [pipeline.decode(slerp(z_1, z_2, share), "pt").images for share in (0.3, 0.6)]
    for mixed, expected in zip(pipeline.interpolate(x, y, [0.3, 0.6], "slerp", "pt"), arc, strict=True):
        assert torch.equal(mixed, expected)
    assert not torch.allclose(straight, arc[0], atol=1e-3)


def test_slerp_keeps_norms_and_knows_zero():
    z_1, z_2 = torch.randn(2, 5, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    z_2 = z_2 * (z_1.flatten(1).norm(dim=1) / z_2.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    for share in (0.2, 0.5, 0.9):
        assert torch.allclose(slerp(z_1, z_2, share).flatten(1).norm(dim=1), z_1.flatten(1).norm(dim=1), rtol=1e-5)
    assert torch.allclose(slerp(torch.zeros_like(z_2), z_2, 0.25), 0.25 * z_2)  # zeros have no direction: no NaN


def test_draws_of_q_have_its_moments(make_vae_pipeline):
    """The decoder is made the identity, so that images show z."""
    pipeline = make_vae_pipeline(likelihood="gaussian_fixed", sample_size=2, latent_channels=4, hidden_sizes=())
    with torch.no_grad():
        pipeline.vae.encoder[1].weight.mul_(0.1)
        pipeline.vae.encoder[1].bias.copy_(torch.tensor([0.1, -0.2, 0.0, 0.2, *[2 * math.log(0.1)] * 4]))
        pipeline.vae.decoder[1].weight.copy_(torch.eye(4))
        pipeline.vae.decoder[1].bias.zero_()
    x = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    posterior = pipeline.vae.encode(x).latent_dist
    n = 4000
    for i, drawn in enumerate(pipeline.sample_posterior(x, n, torch.Generator().manual_seed(1), "pt")):
        z = (drawn * 2 - 1).flatten(1)
        sigma = posterior.std[i].flatten()
        assert drawn.shape == (n, 1, 2, 2)
        assert ((z.mean(dim=0) - posterior.mean[i].flatten()).abs() < 4 * sigma / math.sqrt(n)).all()
        assert torch.allclose(z.std(dim=0), sigma, rtol=0.05)


def test_posterior_draws_come_as_lists_of_each_image(make_vae_pipeline):
    pipeline = make_vae_pipeline()
    x = some_images(pipeline, 2)
    tensors, pictures = (pipeline.sample_posterior(x, 3, generators(1, 2), kind) for kind in ("pt", "pil"))
    assert [len(drawn) for drawn in pictures] == [3, 3]
    as_arrays = [[np.asarray(picture) for picture in drawn] for drawn in pictures]
    assert np.array_equal(np.array(as_arrays), (torch.stack(tensors)[:, :, 0] * 255).round().numpy().astype("uint8"))


@pytest.mark.parametrize("config", [MODELS[0], MODELS[3]], ids=["mlp", "conv"])
def test_a_traversal_changes_one_dimension(config, make_vae_pipeline):
    pipeline = make_vae_pipeline(**config)
    x, values = some_images(pipeline, 1), [-2.0, 0.5, 3.0]
    mean = pipeline.encode(x)
    walked = pipeline.traverse(x, 1, values, output_type="pt").images
    for value, image in zip(values, walked, strict=True):
        z = mean.clone()
        z[0, 1] = value
        assert torch.allclose(image, pipeline.decode(z, "pt").images[0], atol=1e-5)
    assert torch.equal(pipeline.traverse(None, 1, values, latents=mean, output_type="pt").images, walked)
    assert torch.equal(pipeline.encode(x), mean)  # nothing was written into


def test_a_traversal_through_the_images_own_value_shows_its_reconstruction(make_vae_pipeline):
    pipeline = make_vae_pipeline()
    x = some_images(pipeline, 1)
    own = pipeline.encode(x)[0, 2].item()
    assert torch.equal(
        pipeline.traverse(x, 2, [own], output_type="pt").images, pipeline.reconstruct(x, output_type="pt").images
    )


def test_the_manifold_is_a_grid_of_quantiles(make_vae_pipeline):
    pipeline, normal = make_vae_pipeline(latent_channels=2), NormalDist()
    grid = pipeline.manifold(4, "pt").images.view(4, 4, 1, 8, 8)
    for row, column in ((0, 0), (0, 3), (3, 0), (3, 3), (1, 2)):
        z = torch.tensor([normal.inv_cdf((row + 0.5) / 4), normal.inv_cdf((column + 0.5) / 4)]).view(1, 2, 1, 1)
        assert torch.allclose(grid[row, column], pipeline.decode(z, "pt").images[0], atol=1e-5)
    (middle,) = pipeline.manifold(1, "pt").images
    assert torch.equal(middle, pipeline.decode(torch.zeros(1, 2, 1, 1), "pt").images[0])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda p, x: p(0), "batch_size=0 must be a whole number of at least 1"),
        (lambda p, x: p(3, generators(1, 2)), r"list of 2 generator\(s\) does not fit batch_size=3"),
        (lambda p, x: p(output_type="jpg"), "output_type='jpg' must be one of 'pil', 'np', 'pt'"),
        (lambda p, x: p(latents=[0.0]), "latents of type list must be a tensor"),
        (lambda p, x: p(latents=torch.zeros(2, 3, 1, 1)), r"latents of shape \(2, 3, 1, 1\) do not fit batch_size=1"),
        (lambda p, x: p(latents=torch.zeros(1, 4, 1, 1)), r"latents of shape \(1, 4, 1, 1\) must have shape \(B, 3, 1"),
        (lambda p, x: p.decode(torch.zeros(3)), r"latents of shape \(3,\) must have shape \(B, J, h, w\)"),
        (lambda p, x: p.encode(x[..., :7]), r"images of shape \(2, 1, 8, 7\) must have shape \(B, 1, 8, 8\)"),
        (lambda p, x: p.encode(x * 3), r"must lie in \[0, 1\] or in \[-1, 1\]"),
        (lambda p, x: p.encode(x, True, generators(1)), r"list of 1 generator\(s\) does not fit batch_size=2"),
        (lambda p, x: p.sample_posterior(x, 0), "num_samples=0 must be a whole number of at least 1"),
        (lambda p, x: p.interpolate(x, x[:1], [0.5]), r"images of shapes \(.*\) and \(1, .*\) do not form pairs"),
        (lambda p, x: p.interpolate(x, x, [1.5]), r"weights=\[1.5\] must be a list of numbers in \[0, 1\]"),
        (lambda p, x: p.interpolate(x, x, [0.5], "slurp"), "method='slurp' must be one of .*did you mean 'slerp'"),
        (lambda p, x: p.traverse(x, 0, [0.0]), "traverse requires one image, not 2"),
        (lambda p, x: p.traverse(x[:1], 3, [0.0]), "dimension=3 must be a whole number from 0 to 2"),
        (lambda p, x: p.traverse(x[:1], 0, [math.nan]), r"values=\[nan\] must be a list of finite numbers"),
        (lambda p, x: p.traverse(x[:1], 0, 1.0), "values=1.0 must be a list of finite numbers"),
        (lambda p, x: p.traverse(None, 0, [0.0]), "traverse requires either one image, or None and latents"),
        (lambda p, x: p.manifold(4), r"2 latent numbers, but this model has 3, \(J, h, w\) = \(3, 1, 1\)"),
        (lambda p, x: HFVAEPipeline(torch.nn.Linear(1, 1)), "vae of type Linear must be an HFVAE"),
        (lambda p, x: HFVAEPipeline(AutoencoderKL()), "vae of type AutoencoderKL must be an HFVAE"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence, make_vae_pipeline):
    pipeline = make_vae_pipeline()
    with pytest.raises(ValueError, match=sentence):
        call(pipeline, some_images(pipeline))


def test_images_that_are_not_numbers_are_not_black(make_vae_pipeline):
    pipeline = make_vae_pipeline()
    pipeline.vae.decoder.requires_grad_(False)
    for weight in pipeline.vae.decoder.parameters():
        weight.fill_(math.nan)
    for output_type in ("pil", "np"):
        with pytest.raises(ValueError, match=r"the images contain NaN: .* use an earlier checkpoint"):
            pipeline(2, output_type=output_type)
    assert pipeline(2, output_type="pt").images.isnan().all()


def test_a_sigma_that_was_never_measured_is_one_sentence(make_vae_pipeline):
    pipeline = make_vae_pipeline(likelihood="gaussian_optimal")
    pipeline.vae.log_variance.data.fill_(math.nan)
    assert pipeline(1, output_type="pt").images.isfinite().all()  # the mean needs none
    with pytest.raises(ValueError, match="call measure_log_variance"):
        pipeline(1, sample_pixels=True)


def test_a_manifold_of_no_size_is_refused(make_vae_pipeline):
    with pytest.raises(ValueError, match="size=0 must be a whole number of at least 1"):
        make_vae_pipeline(latent_channels=2).manifold(0)
