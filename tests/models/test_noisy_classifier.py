"""The noisy classifier: published sizes, poolings against plain computations, and what it says of wrong numbers."""

import json
import math

import pytest
import torch
from torch.nn.functional import group_norm, linear, relu, silu

from hf_ddpm import CLASSIFIER_PRESETS, HFDDPMScheduler, NoisyClassifier, classifier_preset
from hf_ddpm.errors import UserError
from hf_ddpm.models.classifier_pools import AttentionPool
from hf_ddpm.models.noisy_classifier import SCHEDULE_KEYS

POOLS = NoisyClassifier.__init__.__annotations__["pool"].__args__
PUBLISHED = {64: 65_438_568, 128: 42_568_040, 256: 54_096_360, 512: 54_448_360}


def tiny(seed=0, **keywords):
    """A classifier whose residual branches are not zero."""
    torch.manual_seed(seed)
    classifier = classifier_preset("tiny", **keywords).eval()
    for weight in classifier.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return classifier


def noisy(count=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.randint(1000, (count,), generator=generator)


@pytest.mark.parametrize("name", CLASSIFIER_PRESETS)
def test_every_preset_has_as_many_weights_as_it_says(name):
    with torch.device("meta"):
        classifier = classifier_preset(name)
    assert sum(weight.numel() for weight in classifier.parameters()) == CLASSIFIER_PRESETS[name].parameters


@pytest.mark.parametrize("size", PUBLISHED)
def test_adm_classifiers_are_as_large_as_published(size):
    assert CLASSIFIER_PRESETS[f"adm-classifier-{size}"].parameters == PUBLISHED[size]


@pytest.mark.parametrize("pool", POOLS)
def test_every_pooling_gives_logits_with_gradients(pool):
    classifier = tiny(pool=pool, num_classes=3)
    x_t, t = noisy()
    logits = classifier(x_t.requires_grad_(), t).logits
    assert logits.shape == (3, 3)
    logits.log_softmax(1)[:, 1].sum().backward()
    assert all(float(gradient.abs().max()) > 0 for gradient in x_t.grad)
    assert all(weight.grad is not None for weight in classifier.parameters())


# --- the poolings against plain computations -------------------------------------------------------------------------


def test_the_attention_pool_is_clips():
    """The mean token asks all tokens, head by head: softmax(q k / sqrt(d)) v."""
    torch.manual_seed(0)
    channels, head_dim, classes = 6, 2, 5
    pool = AttentionPool(channels, (2, 3), classes, head_dim).double()
    assert float(pool.positional_embedding.detach().std()) == pytest.approx(channels**-0.5, rel=0.3)
    features = torch.randn(4, channels, 2, 3, dtype=torch.float64)
    tokens = features.reshape(4, channels, 6).transpose(1, 2)
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + pool.positional_embedding.T
    told = []
    for image in tokens:
        q, k, v = (image @ w.T + b for w, b in zip(pool.qkv.weight.chunk(3), pool.qkv.bias.chunk(3), strict=True))
        heads = [slice(start, start + head_dim) for start in range(0, channels, head_dim)]
        weights = [torch.softmax(k[:, head] @ q[0, head] / math.sqrt(head_dim), 0) for head in heads]
        told.append(torch.cat([w @ v[:, head] for w, head in zip(weights, heads, strict=True)]))
    expected = linear(torch.stack(told), pool.out.weight, pool.out.bias)
    torch.testing.assert_close(pool(features), expected)


def stages_of(classifier, x_t, t):
    """What conv_in, each residual block with its attention, each downsampler and the middle give."""
    found = {}

    def keep(name):
        return lambda _module, _given, output: found.__setitem__(name, output)

    modules = {"in": classifier.conv_in, "mid": classifier.mid_block}
    for level, block in enumerate(classifier.down_blocks):
        attentions = getattr(block, "attentions", [])
        for i, part in enumerate(attentions or block.resnets):
            modules[f"{level} block {i}"] = part
        for part in block.downsamplers or []:
            modules[f"{level} down"] = part
    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    logits = classifier(x_t, t).logits
    for hook in hooks:
        hook.remove()
    order = [
        "in",
        *(n for level in range(len(classifier.down_blocks)) for n in sorted(found) if n.startswith(str(level))),
        "mid",
    ]
    return [found[name] for name in order], logits


@pytest.mark.parametrize("pool", ["spatial", "spatial_v2"])
def test_the_spatial_pools_see_the_mean_of_every_stage(pool):
    classifier = tiny(pool=pool, layers_per_block=2)
    stages, logits = stages_of(classifier, *noisy())
    assert [stage.shape[1] for stage in stages] == [4, 4, 4, 4, 8, 8, 8]
    first, *norm, last = (classifier.head[i] for i in ([0, 2] if pool == "spatial" else [0, 1, 3]))
    hidden = linear(torch.cat([stage.mean((2, 3)) for stage in stages], 1), first.weight, first.bias)
    assert hidden.shape[1] == 2048
    hidden = silu(group_norm(hidden, 32, norm[0].weight, norm[0].bias)) if norm else relu(hidden)
    torch.testing.assert_close(logits, linear(hidden, last.weight, last.bias))


def test_the_adaptive_pool_is_a_mean_and_starts_at_zero():
    classifier = tiny(pool="adaptive")
    stages, logits = stages_of(classifier, *noisy())
    norm, out = classifier.head[0], classifier.head[3]
    mean = silu(group_norm(stages[-1], norm.num_groups, norm.weight, norm.bias)).mean((2, 3))
    torch.testing.assert_close(logits, linear(mean, out.weight[:, :, 0, 0], out.bias))
    assert not classifier_preset("tiny", pool="adaptive")(*noisy()).logits.any()  # log p = -log K at first


# --- x_t and t -------------------------------------------------------------------------------------------------------


def test_t_is_in_the_scale_and_shift_of_every_residual_block():
    """Branches start at zero, so at first t changes nothing; afterwards it does."""
    torch.manual_seed(0)
    x_t, _ = noisy()
    first, later = classifier_preset("tiny").eval(), tiny()
    assert torch.equal(first(x_t, 0).logits, first(x_t, 999).logits)
    assert float((later(x_t, 0).logits - later(x_t, 999).logits).detach().abs().max()) > 0.01
    for block in (*later.down_blocks, later.mid_block):
        assert all(part.time_embedding_norm == "scale_shift" for part in block.resnets)


def test_t_is_a_number_or_one_for_each_image_and_images_do_not_mix():
    classifier = tiny()
    x_t, t = noisy()
    together = classifier(x_t, t).logits
    for i in range(3):
        for one in (int(t[i]), t[i], t[i : i + 1], t[i].int()):
            torch.testing.assert_close(classifier(x_t[i : i + 1], one, return_dict=False)[0], together[i : i + 1])
    torch.testing.assert_close(classifier(x_t, 5).logits, classifier(x_t, torch.full((3,), 5)).logits)
    with pytest.raises(ValueError, match=r"timesteps of shape \(2,\) must be one number, or one for each .* size 3"):
        classifier(x_t, t[:2])
    with pytest.raises(ValueError, match=r"images of shape \(3, 1, 8, 9\) must have shape \(B, 1, 8, 8\)"):
        classifier(torch.zeros(3, 1, 8, 9), 0)


def test_images_may_be_oblong():
    classifier = tiny(sample_size=(8, 16))
    assert classifier(torch.zeros(2, 1, 8, 16), 0).logits.shape == (2, 10)


# --- on disk ---------------------------------------------------------------------------------------------------------


def test_saved_and_opened_it_is_the_same_with_names_and_schedule(tmp_path):
    scheduler = HFDDPMScheduler(20, trained_betas=[0.1] * 20)
    schedule = {key: scheduler.config[key] for key in SCHEDULE_KEYS}
    classifier = tiny(num_classes=3, id2label={0: "zero", 2: "two"}, noise_schedule=schedule)
    classifier.save_pretrained(tmp_path)
    opened = NoisyClassifier.from_pretrained(tmp_path)
    assert torch.equal(opened(*noisy()).logits, classifier(*noisy()).logits)
    assert opened.class_names == classifier.class_names == ["zero", "1", "two"]
    assert opened.config["id2label"] == classifier.config["id2label"] == {"0": "zero", "2": "two"}
    again = HFDDPMScheduler(**opened.config["noise_schedule"])
    assert torch.equal(again.alphas_cumprod, scheduler.alphas_cumprod)


STRANGE = [
    ({"num_classes": 10**5 + 1}, "num_classes=100001, which must be from 1 to 100000"),
    ({"num_classes": "10"}, "num_classes='10', which must be int"),
    ({"noise_schedule": [1]}, r"noise_schedule=\[1\], which must be"),
    (
        {"noise_schedule": {"num_train_timesteps": 10**9}},
        "noise_schedule, has num_train_timesteps=1000000000, which must be from 1",
    ),
    ({"noise_schedule": {"beta_start": "x"}}, "noise_schedule has beta_start='x', which must be float"),
    ({"noise_schedule": {"trained_betas": "x"}}, "has trained_betas='x', which must be a list of float or null"),
    ({"noise_schedule": {"prediction_type": "epsilon"}}, "noise_schedule has the unknown key 'prediction_type': use"),
    ({"latents": {"class": "HFVAE", "scaling_factor": "x"}}, "latents has scaling_factor='x', which must be float"),
    ({"latents": {"vae": "HFVAE"}}, "latents has the unknown key 'vae': use only class, scaling_factor"),
    ({"id2label": {"0": 7}}, "id2label={'0': 7}, which must be an object of names"),
    ({"id2label": {"10": "ten"}}, "id2label has the name 'ten' for class '10'"),
    ({"pool": "spatail"}, "pool='spatail' must be one of .*did you mean 'spatial'"),
    ({"sample_size": [2, 2, 2]}, "sample_size"),
    ({"block_out_channels": [8192, 9000]}, "block_out_channels=9000, which must be from"),
    ({"down_block_types": ["os.system", "DownBlock2D"]}, "down_block_types="),
    ({"layers_per_block": 33}, "layers_per_block=33, which must be from"),
]


@pytest.mark.parametrize(("values", "sentence"), STRANGE)
def test_a_config_of_a_stranger_is_looked_at_first(values, sentence, tmp_path):
    tiny().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(ValueError, match=sentence):
        NoisyClassifier.from_pretrained(tmp_path)


def test_pickles_are_not_opened(tmp_path):
    tiny().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match="has no safetensors, only pickles"):
        NoisyClassifier.from_pretrained(tmp_path)


# --- wrong numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"pool": "attn"}, "pool='attn' must be one of 'adaptive', 'attention', 'spatial', 'spatial_v2'"),
        ({"sample_size": 9}, "9x9 do not fit a network with 2 levels: height and width must be multiples of 2"),
        ({"norm_num_groups": 3}, r"block_out_channels=\[4, 8\] must be multiples of norm_num_groups=3"),
        ({"attention_head_dim": 3}, "attention_head_dim=3 must divide the channels .* 8"),
        ({"num_classes": 1}, "num_classes=1 must be at least 2"),
        ({"in_channels": 0}, "in_channels=0 must be a whole number of at least 1"),
        ({"dropout": 1.0}, r"dropout=1\.0 must be a probability in \[0, 1\)"),
        (
            {"down_block_types": ("AttnDownBlock2D",)},
            "length of block_out_channels is 2 and that of down_block_types is 1",
        ),
        ({"id2label": {3: "three"}, "num_classes": 3}, "the name 'three' for class 3: the classes are 0 to 2"),
        ({"noise_schedule": {"eta": 0}}, "noise_schedule has the unknown key 'eta': use only num_train_timesteps"),
        ({"sample_size": 512}, "an attention pool over 256x256 positions exceeds the limit of 16384"),
        ({"time_embedding_channels": -1}, r"time_embedding_channels=-1 must be"),
        ({"wide": 2}, "NoisyClassifier has no keyword 'wide'"),
    ],
)
def test_mistakes_are_one_sentence(keywords, sentence):
    with pytest.raises(UserError, match=sentence), torch.device("meta"):
        classifier_preset("tiny", **keywords)


def test_a_preset_that_is_not_there_names_the_nearest():
    with pytest.raises(UserError, match=r"there is no classifier preset 'minst'; .*did you mean mnist"):
        classifier_preset("minst")
