"""Several players and their turns: a toy GAN with a double backward, in parts, on processes, resumed."""

import json
from types import SimpleNamespace

import pytest
import torch
import two_players
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from launching import difference
from safetensors.torch import load_file

from hf_ddpm.checkpoint import load_pipeline
from hf_ddpm.errors import UserError
from hf_ddpm.kinds import KINDS
from hf_ddpm.training.command_line import parse_command_line
from hf_ddpm.training.ema import EMA
from hf_ddpm.training.players import Player
from hf_ddpm.training.settings import Optimization, Training
from hf_ddpm.training.train import optimizer_step, prepare, train


@pytest.fixture(autouse=True)
def toy_recipe(tmp_path, monkeypatch):
    (tmp_path / "toy.yaml").write_text(two_players.RECIPE)
    monkeypatch.setitem(KINDS, "toy", two_players.TOY)
    return tmp_path / "toy.yaml"


def words(folder, *more):
    return ["--recipe", str(folder.parent / "toy.yaml"), "--output_dir", str(folder), *more]


def toy(folder, *more):
    return train(*parse_command_line(words(folder, *more)))


def state(folder, step=6):
    """All that a saved state holds of weights: by its file, both players' and the average."""
    found = folder / "states" / f"step_{step:08d}"
    return {str(f.relative_to(found)): load_file(f) for f in sorted(found.rglob("*.safetensors"))}


def largest_difference(one, two):
    assert one.keys() == two.keys()
    return max(difference(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("version", "averaged"), [(1, True), (2, False)])
def test_weights_that_nobody_gathers_are_refused(version, averaged):
    """Accelerate has no FSDP on a CPU, so that its words stand in for it here."""
    sharding = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=version == 2)
    network = torch.nn.Linear(2, 2)
    player = Player(network, Optimization(lr=0.1), EMA(network) if averaged else None)
    with pytest.raises(UserError, match="distributed_type MULTI_GPU, or fsdp_version 2"):
        player.prepare(sharding, Training(total_steps=1))


def test_both_players_learn_and_one_of_them_is_saved(tmp_path):
    checkpoint = toy(tmp_path / "run")
    begun = state(tmp_path / "run", 3)
    assert set(begun) == {
        "model.safetensors",
        "model_1.safetensors",
        "ema_generator/diffusion_pytorch_model.safetensors",
        "objective.safetensors",
    }
    for name, weights in state(tmp_path / "run").items():
        assert difference(weights, begun[name]) > 1e-4, name
    raw = load_file(checkpoint / "unet" / "diffusion_pytorch_model.raw.safetensors")
    assert difference(raw, state(tmp_path / "run")["model.safetensors"]) == 0
    averaged = state(tmp_path / "run")["ema_generator/diffusion_pytorch_model.safetensors"]
    assert difference(load_pipeline(str(checkpoint)).unet.state_dict(), averaged) == 0


def test_every_players_figures_are_logged(tmp_path):
    toy(tmp_path / "run", "--total_steps", "2", "--log_every", "2")
    (line,) = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert line.keys() >= {"discriminator/loss", "discriminator/r1", "generator/loss", "step", "seconds"}
    assert (line["generator/lr"], line["discriminator/lr"]) == (1e-3, 2e-3)


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path):
    toy(tmp_path / "whole")
    toy(tmp_path / "cut", "--total_steps", "3")
    toy(tmp_path / "cut", "--total_steps", "6", "--resume", "latest")
    assert largest_difference(state(tmp_path / "whole"), state(tmp_path / "cut")) == 0


def run_and_batch(folder):
    run = prepare(*parse_command_line(words(folder)))
    return run, next(run.data.batches(batch_size=8, seed=0))


def test_those_who_wait_are_frozen_and_nothing_stays_behind(tmp_path, monkeypatch):
    run, batch = run_and_batch(tmp_path / "run")
    seen, loss = {}, run.objective.loss

    def watched(turn, models, *rest):
        trainable = {name: {p.requires_grad for p in network.parameters()} for name, network in models.items()}
        seen[turn] = trainable, models[turn] is run.players[turn].model
        return loss(turn, models, *rest)

    monkeypatch.setattr(run.objective, "loss", watched)
    optimizer_step(run, batch)
    assert seen["discriminator"] == ({"discriminator": {True}, "generator": {False}}, True)
    assert seen["generator"] == ({"discriminator": {False}, "generator": {True}}, True)
    weights = [p for player in run.players.values() for p in player.model.parameters()]
    assert all(p.requires_grad and p.grad is None for p in weights)


def test_each_optimizer_is_asked_whether_its_own_step_was_skipped(tmp_path, monkeypatch):
    """A skipped step of the generator leaves its average and what is learned from it; the discriminator goes on."""
    run, batch = run_and_batch(tmp_path / "run")
    skipped = run.players["generator"].optimizer
    before = {k: v.clone() for k, v in run.players["generator"].ema.model.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda optimizer: optimizer is skipped))
        optimizer_step(run, batch)
    assert difference(run.players["generator"].ema.model.state_dict(), before) == 0
    assert run.objective.average == 0
    optimizer_step(run, batch)
    assert difference(run.players["generator"].ema.model.state_dict(), before) > 0
    assert run.objective.average > 0


@pytest.mark.parametrize(
    ("turns", "sentence"),
    [
        (
            ("discriminator", "generator", "critic"),
            r"a turn 'critic', which is not a player: its turns \(discriminator",
        ),
        (
            ("generator",),
            r"no turn of player 'discriminator': its turns \(generator\) must be the players \(generator, disc",
        ),
    ],
)
def test_turns_are_those_of_the_players(turns, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(two_players.ToyObjective, "turns", turns)
    with pytest.raises(UserError, match=sentence):
        prepare(*parse_command_line(words(tmp_path / "run")))


@pytest.mark.parametrize("lost", ["discriminator/loss", "generator/loss"])
def test_a_player_that_diverges_is_named(lost, tmp_path, monkeypatch):
    loss = two_players.ToyObjective.loss

    def diverged(self, turn, *rest):
        found = loss(self, turn, *rest)
        return found._replace(each=found.each * torch.nan) if lost.startswith(turn) else found

    monkeypatch.setattr(two_players.ToyObjective, "loss", diverged)
    with pytest.raises(UserError, match=f"the {lost} is nan at step 1"):
        toy(tmp_path / "run")


def test_a_family_without_pictures_leaves_a_checkpoint_without(tmp_path, monkeypatch, capsys):
    made = two_players.ToyFamily.__init__

    def blind(self, recipe):
        made(self, recipe)
        self.sampling = None

    monkeypatch.setattr(two_players.ToyFamily, "__init__", blind)
    checkpoint = toy(tmp_path / "run", "--total_steps", "1")
    assert not list((tmp_path / "run").rglob("*.png"))
    assert "samples.png" not in (checkpoint / "README.md").read_text()
    assert "samples:" not in capsys.readouterr().out
