"""A run that begins with the weights of a checkpoint."""

import pytest
import torch

from hf_ddpm import HFDDGANPipeline, HFDDPMPipeline
from hf_ddpm.checkpoint import load_pipeline
from hf_ddpm.errors import UserError
from hf_ddpm.training.command_line import parse_command_line
from hf_ddpm.training.train import prepare, train

TINY = ["--preset", "tiny", "--image_size", "8", "--batch_size", "8", "--log_every", "1", "--samples", "0"]
TINY += ["--num_images", "4", "--num_inference_steps", "2", "--sampling.every", "null", "--checkpoints.every", "null"]
TINY += ["--tracker", "none", "--max_images", "64", "--cpu_threads", "1"]
GAN = ["--recipe", "mnist-ddgan-unconditional", "--generator.preset", "tiny", "--discriminator.preset", "tiny"]
GAN += ["--image_size", "8", "--batch_size", "8", "--samples", "0", "--evaluation.every", "null", "--num_images", "4"]
GAN += ["--sampling.every", "null", "--tracker", "none", "--max_images", "64", "--cpu_threads", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint whose averaged weights are not the raw ones."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = [*TINY, "--output_dir", str(folder), "--total_steps", "4", "--warmup_steps", "0"]
    return train(*parse_command_line(words))


def begun(folder, *words, base=TINY):
    run = prepare(*parse_command_line([*base, "--output_dir", str(folder), "--total_steps", "4", *map(str, words)]))
    return run, {name: player.model.state_dict() for name, player in run.players.items()}


@pytest.mark.parametrize("raw", [False, True])
def test_the_weights_are_those_of_the_checkpoint(raw, trained, tmp_path):
    run, weights = begun(tmp_path, "--init_from", trained, *(["--init_raw", "true"] if raw else []))
    wanted = load_pipeline(str(trained), **({"variant": "raw"} if raw else {})).unet.state_dict()
    assert all(torch.equal(weights["model"][name], weight) for name, weight in wanted.items())
    average = run.players["model"].ema.model.state_dict()
    assert all(torch.equal(average[name], weight) for name, weight in wanted.items())
    assert run.notes == [f"init_from: loaded {len(wanted)} of {len(wanted)} tensors of the unet from {trained}"]
    other = load_pipeline(str(trained), **({} if raw else {"variant": "raw"})).unet.state_dict()
    assert any(not torch.equal(wanted[name], weight) for name, weight in other.items())


def test_what_does_not_fit_is_named(trained, tmp_path):
    run, weights = begun(tmp_path, "--init_from", trained, "--label_column", "auto", "--prediction_type", "epsilon")
    assert "these do not fit and were not loaded: class_embedding.weight" in run.notes[0]
    assert run.notes[1].endswith("but this run uses 'epsilon'")
    wanted = load_pipeline(str(trained)).unet.state_dict()
    assert all(torch.equal(weights["model"][name], weight) for name, weight in wanted.items())


def test_mistakes_are_sentences(trained, tmp_path):
    for words, said in {
        ("--init_from", str(tmp_path / "nothing")): "there is no checkpoint folder at",
        ("--init_raw", "true"): "set --init_from too",
        (
            "--init_from",
            str(trained),
            "--model.block_out_channels",
            "[24, 24]",
            "--norm_num_groups",
            "8",
        ): "use the recipe that it was trained with",
    }.items():
        with pytest.raises(UserError, match=said):
            begun(tmp_path / "run", *words)
    with pytest.raises(UserError, match="contains a diffusion model, but the recipe trains a denoising GAN"):
        begun(tmp_path / "run", "--init_from", trained, base=GAN)


def test_a_resumed_run_does_not_begin_anew(trained, tmp_path):
    words = [*TINY, "--output_dir", str(tmp_path / "run"), "--init_from", str(trained)]
    train(*parse_command_line([*words, "--total_steps", "1"]))
    trained.rename(trained.with_name("gone"))
    try:
        train(*parse_command_line([*words, "--total_steps", "2", "--resume", "auto"]))
    finally:
        trained.with_name("gone").rename(trained)
    assert HFDDPMPipeline.from_pretrained(tmp_path / "run" / "checkpoint")


def test_a_gan_may_begin_with_a_generator_alone(tmp_path):
    words = [*GAN, "--output_dir", str(tmp_path / "first"), "--total_steps", "1"]
    checkpoint = train(*parse_command_line(words))
    pipeline = HFDDGANPipeline.from_pretrained(checkpoint)
    HFDDGANPipeline(pipeline.generator, pipeline.scheduler).save_pretrained(tmp_path / "alone")
    run, weights = begun(tmp_path / "run", "--init_from", tmp_path / "alone", base=GAN)
    wanted = pipeline.generator.state_dict()
    assert all(torch.equal(weights["generator"][name], weight) for name, weight in wanted.items())
    assert run.notes[1] == f"init_from: {tmp_path / 'alone'} has no discriminator, which is initialised at random"
    run, weights = begun(tmp_path / "both", "--init_from", checkpoint, base=GAN)
    wanted = pipeline.discriminator.state_dict()
    assert all(torch.equal(weights["discriminator"][name], weight) for name, weight in wanted.items())
