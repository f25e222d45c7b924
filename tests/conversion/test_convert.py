"""Converted networks against a forward pass in the original layout, what the flags say, and files that are not models.

Negative controls show that the comparison would find a wrong order or number of heads: with small random weights, the
softmax of attention is nearly uniform, and a wrong head count changes the output by 3e-5 only.
"""

import json
import os
import pickle
import re
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from safetensors.torch import save_file

import hf_ddpm.conversion.convert as convert_module
from benchmarks.openai_reference import Config, Weights, classifier, unet
from hf_ddpm import (
    ADMUNet,
    HFClassifierPipeline,
    HFDDPMPipeline,
    HFDDPMScheduler,
    NoisyClassifier,
    classifier_preset,
)
from hf_ddpm.cli import main
from hf_ddpm.conversion import openai_flags
from hf_ddpm.conversion.convert import convert, plan_conversion
from hf_ddpm.conversion.openai_flags import (
    PUBLISHED,
    Published,
    imagenet_names,
    read_flags,
)
from hf_ddpm.conversion.openai_networks import classifier_keywords, network_keywords
from hf_ddpm.conversion.openai_weights import split_qkv
from hf_ddpm.errors import UserError

CLASSES = 7
# Small networks, each with one property of a published one: its configuration here, and its flags.
UPDOWN = {"resblock_updown": "True", "learn_sigma": "True", "attention_resolutions": "8,4", "num_channels": "64"}
UPDOWN |= {"image_size": "16", "channel_mult": "1,2,2", "num_res_blocks": "1"}
CONV = {**UPDOWN, "resblock_updown": "False"}
CASES = {
    "heads by width, new order (ADM-64)": (
        Config(64, head_dim=32, new_order=True, classes=CLASSES),
        {**UPDOWN, "num_head_channels": "32", "use_new_attention_order": "True", "class_cond": "True"},
        "UNet2DModel",
    ),
    "heads by width, legacy order (ADM-256)": (
        Config(64, head_dim=32),
        {**UPDOWN, "num_head_channels": "32"},
        "UNet2DModel",
    ),
    "four heads (ADM-128)": (
        Config(64, mult=(1, 2, 3), classes=CLASSES),
        {**UPDOWN, "channel_mult": "1,2,3", "class_cond": "True"},
        "ADMUNet",
    ),
    "a narrow first level (ADM-512)": (
        Config(64, mult=(0.5, 1, 2), head_dim=32),
        {**UPDOWN, "channel_mult": "0.5,1,2", "num_head_channels": "32"},
        "ADMUNet",
    ),
    "an upsampler": (
        Config(64, mult=(1, 1, 2), low_res=True),
        {**UPDOWN, "channel_mult": "1,1,2", "large_size": "16", "small_size": "4"},
        "ADMUNet",
    ),
    "convolutions, four heads of one width (iDDPM CIFAR-10)": (Config(64, updown=False), CONV, "UNet2DModel"),
    "convolutions, four heads (iDDPM ImageNet-64)": (
        Config(64, mult=(1, 2, 3), updown=False),
        {**CONV, "channel_mult": "1,2,3"},
        "ADMUNet",
    ),
    "one head, no scale and shift (iDDPM LSUN)": (
        Config(64, heads=1, updown=False, scale_shift=False, attention=(4,)),
        {**CONV, "num_heads": "1", "use_scale_shift_norm": "False", "attention_resolutions": "4"},
        "UNet2DModel",
    ),
    "rescaled timesteps (iDDPM)": (
        Config(64, updown=False, time_scale=1 / 4),
        {**CONV, "diffusion_steps": "4000", "noise_schedule": "cosine", "rescale_timesteps": "True"},
        "UNet2DModel",
    ),
    "fixed variances": (Config(64, out=3, updown=False), {**CONV, "learn_sigma": "False"}, "UNet2DModel"),
}


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(5)
    x, small = (torch.randn(2, 3, size, size, generator=generator) for size in (16, 4))
    return {"x": x, "t": torch.tensor([3, 801]), "y": torch.tensor([CLASSES - 1, 0]), "small": small}


def original(config, inputs):
    """A checkpoint in the original layout, and the output of the original network."""
    weights = Weights()
    output = unet(
        weights,
        config,
        inputs["x"],
        inputs["t"],
        inputs["y"] if config.classes else None,
        inputs["small"] if config.low_res else None,
    )
    return weights.checkpoint(), output


def output_of(network, config, inputs):
    keywords = {"class_labels": inputs["y"]} if config.classes else {}
    keywords |= {"low_res": inputs["small"]} if config.low_res else {}
    with torch.no_grad():
        return network(inputs["x"], inputs["t"], **keywords).sample


def network_of(tensors, flags, **changed):
    plan, _ = plan_conversion(tensors, "guided-diffusion", None, {**flags, **changed})
    assert plan.obstacles == []
    plan.network.load_state_dict(plan.tensors, assign=True)
    return plan.network.eval()


@pytest.mark.parametrize("case", CASES)
def test_parity(case, inputs):
    config, flags, name = CASES[case]
    tensors, expected = original(config, inputs)
    network = network_of(tensors, flags)
    assert type(network).__name__ == name
    assert (output_of(network, config, inputs) - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        ("heads by width, legacy order (ADM-256)", {"use_new_attention_order": "True"}),
        ("heads by width, new order (ADM-64)", {"use_new_attention_order": "False"}),
        ("heads by width, legacy order (ADM-256)", {"num_head_channels": "64"}),
        ("heads by width, new order (ADM-64)", {"num_head_channels": "64"}),
        ("four heads (ADM-128)", {"num_heads": "2"}),
        ("four heads (ADM-128)", {"use_new_attention_order": "True"}),
        ("rescaled timesteps (iDDPM)", {"rescale_timesteps": "False"}),
    ],
)
def test_a_wrong_flag_that_the_weights_cannot_tell_would_show(case, wrong, inputs):
    config, flags, _ = CASES[case]
    tensors, expected = original(config, inputs)
    found = output_of(network_of(tensors, flags, **wrong), config, inputs)
    assert (found - expected).abs().max() > 5e-3 * expected.abs().max()


@pytest.mark.parametrize("new_order", [True, False])
def test_queries_keys_and_values(new_order):
    """Of two heads of three channels, whose output channels are numbered."""
    names = [(kind, head, d) for kind in range(3) for head in range(2) for d in range(3)]
    order = names if new_order else sorted(names, key=lambda name: (name[1], name[0], name[2]))
    qkv = torch.tensor([100.0 * kind + 10 * head + d for kind, head, d in order])
    for kind, found in enumerate(split_qkv(qkv, 2, new_order)):
        assert found.tolist() == [100.0 * kind + 10 * head + d for head in range(2) for d in range(3)]


def test_a_classifier(inputs, tmp_path):
    config = Config(64, mult=(1, 2, 2), head_dim=64, attention=(2, 4))
    weights = Weights()
    expected = classifier(weights, config, inputs["x"], inputs["t"], CLASSES)
    torch.save(weights.checkpoint(), tmp_path / "classifier.pt")
    words = {"classifier_width": "64", "classifier_depth": "1", "image_size": "16", "channel_mult": "1,2,2"}
    words["classifier_attention_resolutions"] = "8,4"
    convert(tmp_path / "classifier.pt", tmp_path / "out", origin="guided-diffusion", words=words)
    opened = HFClassifierPipeline.from_pretrained(tmp_path / "out").classifier
    with torch.no_grad():
        found = opened(inputs["x"], inputs["t"]).logits
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    # the flags of the model that it guides, pasted as in the README, do not change it
    pasted = {**words, "use_new_attention_order": "True", "num_head_channels": "32", "classifier_pool": "attention"}
    again, _ = plan_conversion(weights.checkpoint(), "guided-diffusion", None, {**pasted, "num_res_blocks": "3"})
    assert again.obstacles == []
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in again.tensors.items())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`classifier_depth=1`" in card and "num_head_channels" not in card
    assert opened.config["noise_schedule"]["beta_schedule"] == "linear"


def saved(config, inputs, file):
    tensors, _ = original(config, inputs)
    torch.save(tensors, file)
    return file


def as_words(flags):
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


def test_the_command_takes_pasted_flags_and_the_checkpoint_samples(inputs, tmp_path, capsys):
    config, flags, _ = CASES["four heads (ADM-128)"]
    file = saved(config, inputs, tmp_path / "model.pt")
    words = [str(file), "--from", "guided-diffusion", *as_words(flags), "--use_fp16", "True", "--dropout", "0.1"]
    main(["convert", *words, "--dry-run"])
    assert "tensors of model.pt become" in (said := capsys.readouterr().out) and "every tensor maps" in said
    main(["convert", *words, "--to", str(tmp_path / "out")])
    assert "ADMUNet" in capsys.readouterr().out
    pipeline = HFDDPMPipeline.from_pretrained(tmp_path / "out")
    assert pipeline.scheduler.config["clip_after_guidance"] is False
    assert pipeline.scheduler.config["variance_type"] == "learned_range"
    assert pipeline.unet.config["dropout"] == 0.1
    images = pipeline(1, 2, class_labels=3, output_type="pt").images
    assert images.shape == (1, 3, 16, 16) and images.isfinite().all()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "guided-diffusion" in card and "ADMUNet" in card and "How its authors sample" not in card
    facts = json.loads((tmp_path / "out" / "training.json").read_text())["converted"]
    assert facts["file"] == "model.pt" and facts["flags"]["num_channels"] == 64
    with pytest.raises(SystemExit, match=r"out exists already: choose a new folder"):
        main(["convert", *words, "--to", str(tmp_path / "out")])


def test_an_unconditional_model_opens_through_stock_diffusers(inputs, tmp_path):
    from diffusers import DDPMPipeline

    config, flags, _ = CASES["heads by width, legacy order (ADM-256)"]
    file = saved(config, inputs, tmp_path / "model.pt")
    convert(file, tmp_path / "out", origin="guided-diffusion", words=flags)
    drawn = []
    for kind in (HFDDPMPipeline, DDPMPipeline):
        pipeline = kind.from_pretrained(tmp_path / "out")
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        drawn.append(pipeline(1, num_inference_steps=5, generator=generator, output_type="np").images)
    assert abs(drawn[0] - drawn[1]).max() < 1e-4


def test_an_upsampler_is_a_network_and_a_scheduler(inputs, tmp_path):
    config, flags, _ = CASES["an upsampler"]
    tensors, expected = original(config, inputs)
    save_file(tensors, tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", tmp_path / "out", origin="guided-diffusion", words=flags)
    network = ADMUNet.from_pretrained(tmp_path / "out", subfolder="unet").eval()
    assert (output_of(network, config, inputs) - expected).abs().max() < 2e-5 * expected.abs().max()
    assert len(HFDDPMScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")) == 1000


@pytest.mark.parametrize(
    ("case", "wrong", "sentence"),
    [
        ("four heads (ADM-128)", {"num_channels": "32"}, "--num_channels 32 contradicts .* pass --num_channels 64"),
        ("four heads (ADM-128)", {"class_cond": "False"}, "--class_cond False contradicts .* --class_cond True"),
        ("four heads (ADM-128)", {"learn_sigma": "False"}, "--learn_sigma False contradicts .* --learn_sigma True"),
        ("four heads (ADM-128)", {"resblock_updown": "no"}, "--resblock_updown False contradicts .* True"),
        ("four heads (ADM-128)", {"use_scale_shift_norm": "False"}, "--use_scale_shift_norm False contradicts"),
        (
            "four heads (ADM-128)",
            {"num_res_blocks": "2"},
            "--num_res_blocks 2, .* but the weights have 3 x 64, 2 x 128",
        ),
        ("four heads (ADM-128)", {"channel_mult": "1,2,2"}, "--channel_mult '1,2,2' give .* 3 x 64, 3 x 128"),
        ("four heads (ADM-128)", {"channel_mult": ""}, "--image_size 16 needs --channel_mult: only 32, 64, 128"),
        ("four heads (ADM-128)", {"attention_resolutions": "4"}, "contradicts .* pass --attention_resolutions 8,4"),
        (
            "four heads (ADM-128)",
            {"attention_resolutions": "a"},
            "a must be a list of positive numbers",
        ),
        ("four heads (ADM-128)", {"num_heads": "3"}, "--num_heads 3 must divide the widths of .* 128, 192"),
        ("heads by width, legacy order (ADM-256)", {"num_head_channels": "48"}, "--num_head_channels 48 must divide"),
        ("four heads (ADM-128)", {"num_heads": "0"}, "--num_heads 0 must be at least 1"),
        ("four heads (ADM-128)", {"num_head_channels": "0"}, "--num_head_channels 0 must be at least 1, or -1"),
        ("four heads (ADM-128)", {"diffusion_steps": "0"}, "--diffusion_steps 0 must be at least 1"),
        ("four heads (ADM-128)", {"channel_mult": "1,nan,2"}, "must be a list of positive numbers"),
        ("four heads (ADM-128)", {"attention_resolutions": "inf"}, "must be a list of positive numbers"),
        ("four heads (ADM-128)", {"dropout": "1.5"}, "--dropout 1.5 must be a probability"),
        ("four heads (ADM-128)", {"num_heads": "x"}, "--num_heads x must be a number"),
        ("four heads (ADM-128)", {"class_cond": "maybe"}, "--class_cond maybe must be True or False"),
        ("four heads (ADM-128)", {"noise_schedule": "sine"}, "--noise_schedule sine must be linear or cosine"),
        ("four heads (ADM-128)", {"large_size": "16"}, "not those of an upsampler, .*: leave --large_size"),
        ("an upsampler", {"large_size": "0"}, "--large_size 0 must be at least 1"),
        ("an upsampler", {"large_size": None}, "weights are those of an upsampler, .*: pass --large_size"),
    ],
)
def test_flags_that_contradict_the_weights(case, wrong, sentence, inputs):
    config, flags, _ = CASES[case]
    tensors, _ = original(config, inputs)
    words = {name: word for name, word in {**flags, **wrong}.items() if word is not None}
    with pytest.raises(UserError, match=sentence) as error:
        plan_conversion(tensors, "guided-diffusion", None, words)
    assert "\n" not in str(error.value)


def test_tensors_that_do_not_map_are_all_named_by_a_dry_run(inputs, tmp_path, capsys):
    config, flags, _ = CASES["four heads (ADM-128)"]
    tensors, _ = original(config, inputs)
    tensors["extra.weight"] = torch.zeros(3)
    del tensors["middle_block.2.out_layers.0.bias"]
    torch.save(tensors, tmp_path / "model.pt")
    words = ["convert", str(tmp_path / "model.pt"), "--from", "guided-diffusion", *as_words(flags)]
    main([*words, "--dry-run"])
    said = capsys.readouterr().out
    assert "extra.weight of the file has no counterpart" in said
    assert "mid_block.resnets.1.norm2.bias of the network is not in the file" in said
    with pytest.raises(SystemExit, match=r"does not fit these flags: extra\.weight of the file has no counterpart"):
        main([*words, "--to", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


class Payload:
    def __reduce__(self):
        return os.mkdir, ("payload-ran",)


def test_files_that_are_not_models(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = saved(Config(64), inputs, tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"a": Payload()}, protocol=2))
    torch.save({"a": Payload()}, tmp_path / "zipped-code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"model": {"a": torch.zeros(2)}, "step": 3}, tmp_path / "nested.pt")
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html>404</html>")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    sentences = {
        "half.pt": "'half.pt' cannot be read .*: download it again",
        "code.pt": "'code.pt' contains objects other than tensors, which may be code and are not loaded",
        "zipped-code.pt": "'zipped-code.pt' contains objects other than tensors",
        "list.pt": "'list.pt' contains an object of type list, not tensors by their names: save the state_dict",
        "nested.pt": "'nested.pt' contains a dict with the keys 'model', 'step', not tensors by their names",
        "page.pt": "'page.pt' is not a .pt file: download it again",
        "other.pt": "the file has no tensor time_embed.0.weight, so it is not a network of improved-diffusion",
        "nowhere.pt": "'nowhere.pt' is not a file",
    }
    for name, sentence in sentences.items():
        with pytest.raises(SystemExit) as stop:
            main(["convert", name, "--from", "guided-diffusion", "--to", "out"])
        assert re.search(sentence, str(stop.value.code)) and "\n" not in str(stop.value.code), stop.value.code
    assert not (tmp_path / "payload-ran").exists() and not (tmp_path / "out").exists()


def test_words_that_are_not_there(inputs, tmp_path):
    file = saved(Config(64), inputs, tmp_path / "model.pt")
    for words, sentence in (
        (["--from", "guided-diffusion"], "--to is missing: pass a new folder"),
        (["--from", "stable-diffusion", "--to", "out"], "invalid choice: 'stable-diffusion'"),
        (["--from", "guided-diffusion", "--to", "out", "--config", "imagenet-256"], "must be one of .*; did you mean"),
        (
            ["--from", "guided-diffusion", "--to", "out", "--config", "imagenet-classifier-256"],
            "--config imagenet-classifier-256 is a classifier, but the file contains a diffusion model",
        ),
    ):
        with pytest.raises(SystemExit, match=sentence):
            main(["convert", str(file), *words])


def test_a_place_that_cannot_be_written_is_a_sentence(inputs, tmp_path):
    config, flags, _ = CASES["four heads (ADM-128)"]
    file = saved(config, inputs, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"out could not be written \(.*\): free disk space or choose another path"):
        convert(file, file / "below-a-file" / "out", origin="guided-diffusion", words=flags)


def test_a_disk_without_room_leaves_nothing(inputs, tmp_path, monkeypatch):
    config, flags, _ = CASES["four heads (ADM-128)"]
    file = saved(config, inputs, tmp_path / "model.pt")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"--to .*out needs 33 MiB, but only 0 MiB are free: free disk space or"):
        convert(file, tmp_path / "out", origin="guided-diffusion", words=flags)
    assert not (tmp_path / "out").exists()


def test_the_names_of_imagenet_are_in_the_order_of_its_numbers():
    """The numbers are those of the classes on the page of DiT, which shares them with ADM."""
    names = imagenet_names()
    assert len(names) == 1000
    known = {207: "golden retriever", 360: "otter", 387: "lesser panda", 974: "geyser", 88: "macaw", 979: "valley"}
    known |= {417: "balloon", 279: "Arctic fox", 0: "tench", 999: "toilet tissue"}
    assert {number: names[number] for number in known} == known


def test_a_published_model_of_imagenet_knows_the_names(tmp_path, monkeypatch):
    """The smallest published layout, shrunken: the configuration's name alone gives the names."""
    small = replace(PUBLISHED["guided-diffusion"]["imagenet-64-conditional"].flags, image_size=16, num_channels=32)
    small = replace(small, channel_mult="1,2", attention_resolutions="8", num_res_blocks=1, num_head_channels=32)
    published = MappingProxyType({"guided-diffusion": {"imagenet-64-conditional": Published(small)}})
    for module in (convert_module, openai_flags):
        monkeypatch.setattr(module, "PUBLISHED", published)
    config = Config(32, mult=(1, 2), attention=(2,), head_dim=32, new_order=True, classes=1000)
    weights = Weights()
    unet(weights, config, torch.zeros(1, 3, 16, 16), torch.tensor([1]), torch.tensor([0]))
    torch.save(weights.checkpoint(), tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "out", origin="guided-diffusion", config="imagenet-64-conditional")
    pipeline = HFDDPMPipeline.from_pretrained(tmp_path / "out")
    calls = [
        pipeline(1, 2, class_labels=label, generator=torch.manual_seed(0), output_type="np").images
        for label in ("golden retriever", 207)
    ]
    assert (calls[0] == calls[1]).all()
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'timestep_spacing="250"' in card and 'timestep_spacing="ddim25", eta=0.0' in card
    assert "Nothing was measured on this checkpoint after it was converted." in card
    with pytest.raises(ValueError, match="is the name of the classes 134 and 517"):
        pipeline(1, 2, class_labels="crane")


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_published_classifiers_are_those_of_the_presets(size):
    flags = read_flags("guided-diffusion", f"imagenet-classifier-{size}", {}, classifier=True)
    keywords = classifier_keywords(flags, num_classes=1000, pool="attention")
    with torch.device("meta"):
        network, preset = NoisyClassifier(**keywords), classifier_preset(f"adm-classifier-{size}")
    shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (network, preset)]
    assert shapes[0] == shapes[1]
    assert network.config["attention_head_dim"] == preset.config["attention_head_dim"]
    assert (flags.noise_schedule == "cosine") == (size == 64)


@pytest.mark.parametrize(
    ("origin", "config", "parameters"),
    [
        ("guided-diffusion", "imagenet-64-conditional", 295_904_454),
        ("guided-diffusion", "imagenet-128-conditional", 421_529_606),
        ("guided-diffusion", "imagenet-256-conditional", 553_838_086),
        ("guided-diffusion", "imagenet-256-unconditional", 552_814_086),
        ("guided-diffusion", "imagenet-512-conditional", 558_997_638),
        ("guided-diffusion", "lsun-256", 552_814_086),
        ("guided-diffusion", "upsampler-64-256", 311_795_910),
        ("guided-diffusion", "upsampler-128-512", 308_835_270),
        ("improved-diffusion", "imagenet-64-unconditional", 121_063_942 + 4000 * 128),
        ("improved-diffusion", "imagenet-64-conditional", 273_049_350),
        ("improved-diffusion", "cifar10", 52_546_438 + 4000 * 128),
        ("improved-diffusion", "lsun-bedroom-256", 113_676_678),
    ],
)
def test_published_configurations_are_the_networks_of_the_papers(origin, config, parameters):
    from hf_ddpm.conversion.convert import NETWORKS

    flags = read_flags(origin, config, {}, classifier=False)
    name, keywords = network_keywords(flags, num_classes=1000 if flags.class_cond else None)
    with torch.device("meta"):
        network = NETWORKS[name](**keywords)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert config in PUBLISHED[origin]
