"""Training runs: exact resume, the same path on 1 and 2 processes, every kind of source, and the user's mistakes."""

import json
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate.optimizer import AcceleratedOptimizer
from launching import SCRIPT, difference, launch_script, losses
from PIL import Image
from safetensors.torch import load_file

from hf_ddpm import HFDDPMPipeline
from hf_ddpm.checkpoint import load_pipeline
from hf_ddpm.data import ImageData, to_uint8
from hf_ddpm.data.order import SampleOrder
from hf_ddpm.errors import UserError
from hf_ddpm.objectives import MODEL
from hf_ddpm.training.command_line import parse_command_line, read_recipe
from hf_ddpm.training.diffusion import classes_of
from hf_ddpm.training.family import check_recipe
from hf_ddpm.training.remarks import slow_remark
from hf_ddpm.training.saving import _drawn_at
from hf_ddpm.training.train import main, optimizer_step, prepare, train

TINY = ["--preset", "tiny", "--image_size", "8", "--batch_size", "8", "--warmup_steps", "2", "--log_every", "1"]
TINY += ["--num_images", "4", "--num_inference_steps", "2", "--sampling.every", "null", "--checkpoints.every", "null"]
TINY += ["--tracker", "none", "--max_images", "64", "--cpu_threads", "1"]
IMPORTANCE = ["--loss", "vlb", "--timestep_sampling", "loss_second_moment", "--scheduler.num_train_timesteps", "4"]
IMPORTANCE += ["--variance_type", "learned_range"]
DROPPED = ["--label_column", "auto", "--label_dropout", "0.5"]
TWO_PROCESSES = {  # as `accelerate config` writes it for two GPUs; `launch_script` says why not for two CPUs
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",
    "use_cpu": False,
    "num_machines": 1,
    "num_processes": 2,
    "machine_rank": 0,
    "main_process_port": 0,
    "mixed_precision": "no",
}


def tiny(folder, *words):
    """Train in this process; later words win."""
    recipe, resume = parse_command_line([*TINY, "--output_dir", str(folder), "--total_steps", "6", *words])
    return train(recipe, resume)


def launch(folder, *words, processes=1, config_file=None):
    """Train as a user does, in `processes` processes or as an `accelerate config` file says."""
    words = [*TINY, "--output_dir", str(folder), "--total_steps", "6", *words]
    return launch_script(SCRIPT, *words, processes=processes, config_file=config_file)


def weights(folder):
    return load_file(Path(folder) / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors")


def raw_weights(folder, step=6):
    return load_file(Path(folder) / "states" / f"step_{step:08d}" / "model.safetensors")


def as_version_0_1(state):
    """A state as that version wrote it, without checksums."""
    manifest = json.loads((state / "state.json").read_text())
    (state / "counters.json").write_text(json.dumps({key: manifest[key] for key in ("step", "seconds")}))
    (state / "state.json").unlink()
    if (state / "objective.safetensors").exists():
        (state / "objective.safetensors").rename(state / "loss_history.safetensors")


def loss_history(folder, step):
    return load_file(Path(folder) / "states" / f"step_{step:08d}" / "objective.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# --- what a run leaves ---------------------------------------------------------------------------------------------


def test_a_run_leaves_what_it_says(tmp_path, capsys):
    checkpoint = tiny(tmp_path / "run", "--sampling.every", "3", "--checkpoints.every", "2", "--checkpoints.keep", "2")
    run = tmp_path / "run"
    assert checkpoint == run / "checkpoint"
    assert [p.name for p in sorted((run / "samples").iterdir())] == [
        "final.png",
        "step_00000003.png",
        "step_00000006.png",
    ]
    assert [p.name for p in sorted((run / "states").iterdir())] == ["step_00000004", "step_00000006"]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(line["loss"]) for line in log)
    assert Image.open(checkpoint / "samples.png").size == (16, 16)
    known = json.loads((checkpoint / "training.json").read_text())
    assert (known["steps"], known["images_seen"], known["weights"]) == (6, 48, 11_621)
    shown = capsys.readouterr().out
    assert str(checkpoint) in shown and "hf-ddpm sample" in shown
    assert not list(tmp_path.rglob("*unfinished*"))


def test_the_checkpoint_holds_the_average_not_the_raw_weights(tmp_path):
    checkpoint = tiny(tmp_path)
    assert not same(weights(tmp_path), raw_weights(tmp_path))
    assert load_pipeline(str(checkpoint)).unet.config["sample_size"] in ((8, 8), [8, 8])


def test_training_learns(tmp_path):
    tiny(tmp_path, "--total_steps", "60", "--lr", "1e-2", "--batch_size", "32")
    found = losses(tmp_path)
    assert np.mean(found[-10:]) < 0.7 * np.mean(found[:5])


def test_tensorboard_is_written(tmp_path):
    tiny(tmp_path, "--tracker", "tensorboard", "--total_steps", "2")
    assert list(tmp_path.rglob("events.out.tfevents*"))


# --- the same path ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dropout", "optimizer"), [("0.0", "adamw"), ("0.2", "adam"), ("0.2", "muon")])
def test_resumed_is_uninterrupted_bit_for_bit(dropout, optimizer, tmp_path):
    words = [
        "--model.dropout",
        dropout,
        "--optimizer",
        optimizer,
        "--horizontal_flip",
        "true",
        "--timestep_sampling",
        "stratified",
    ]
    tiny(tmp_path / "whole", *words)
    tiny(tmp_path / "parts", *words, "--checkpoints.every", "3", "--decay", "cosine")
    expected = tiny(tmp_path / "cosine", *words, "--decay", "cosine")
    for state in (tmp_path / "parts" / "states").iterdir():
        if state.name != "step_00000003":
            for file in sorted(state.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            state.rmdir()
    for file in (tmp_path / "parts" / "checkpoint" / "unet").iterdir():
        file.unlink()
    tiny(tmp_path / "parts", *words, "--decay", "cosine", "--resume", "latest")
    assert expected.exists()
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "cosine"))
    assert same(raw_weights(tmp_path / "parts"), raw_weights(tmp_path / "cosine"))
    one, two = ((tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("parts", "cosine"))
    assert [json.loads(a)["loss"] for a in one] == [json.loads(b)["loss"] for b in two]


def test_more_steps_later_is_one_long_run(tmp_path):
    tiny(tmp_path / "long", "--total_steps", "6", "--decay", "constant")
    tiny(tmp_path / "short", "--total_steps", "4", "--decay", "constant")
    tiny(tmp_path / "short", "--total_steps", "6", "--decay", "constant", "--resume", "latest")
    assert same(weights(tmp_path / "long"), weights(tmp_path / "short"))


def test_importance_sampling_resumes_bit_for_bit(tmp_path):
    """The history of losses decides t: it is full, and p_t no longer uniform, when the run is cut."""
    words = [*IMPORTANCE, "--total_steps", "14", "--checkpoints.every", "9", "--decay", "constant"]
    tiny(tmp_path / "whole", *words)
    tiny(tmp_path / "parts", *words, "--total_steps", "9")
    at_cut = loss_history(tmp_path / "parts", 9)
    assert at_cut["counts"].min() >= 10 and at_cut["losses"].std() > 0
    tiny(tmp_path / "parts", *words, "--resume", "latest")
    assert same(raw_weights(tmp_path / "parts", 14), raw_weights(tmp_path / "whole", 14))
    assert same(loss_history(tmp_path / "parts", 14), loss_history(tmp_path / "whole", 14))
    state = tmp_path / "whole" / "states" / "step_00000009"
    as_version_0_1(state)
    (state / "loss_history.safetensors").unlink()
    with pytest.raises(UserError, match="step_00000009 cannot be read"):
        tiny(tmp_path / "whole", *words, "--resume", str(state))


def test_a_run_of_version_0_1_resumes_bit_for_bit(tmp_path):
    """Its recipe names no family, and its states call what the objective has learned a history of losses."""
    words = [*IMPORTANCE, "--total_steps", "12", "--checkpoints.every", "9", "--decay", "constant"]
    tiny(tmp_path / "whole", *words)
    tiny(tmp_path / "parts", *words, "--total_steps", "9")
    state, recipe = tmp_path / "parts" / "states" / "step_00000009", tmp_path / "parts" / "recipe.yaml"
    as_version_0_1(state)
    blocks = yaml.safe_load(recipe.read_text())
    assert blocks.pop("family") == "diffusion"
    recipe.write_text(yaml.safe_dump(blocks))
    tiny(tmp_path / "parts", *words, "--resume", "latest")
    assert same(raw_weights(tmp_path / "parts", 12), raw_weights(tmp_path / "whole", 12))
    assert same(loss_history(tmp_path / "parts", 12), loss_history(tmp_path / "whole", 12))


def test_a_state_without_importance_sampling_has_no_history(tmp_path):
    tiny(tmp_path, "--total_steps", "1")
    assert not list(tmp_path.rglob("objective*"))


def walk(*words, rank=0, processes=1):
    """The history of losses and the weights after 20 steps, in which half of the labels are dropped."""
    run = prepare(*parse_command_line([*TINY, *IMPORTANCE, *DROPPED, "--total_steps", "20", *words]))
    batches = run.data.batches(batch_size=8, seed=0, rank=rank, world_size=processes)
    for run.step in range(20):
        optimizer_step(run, next(batches))
    return run.objective.state(), run.accelerator.unwrap_model(run.players[MODEL].model).state_dict()


WALK_ON_TWO_PROCESSES = """
import os, runpy, sys
from safetensors.torch import save_file
tests, folder = sys.argv[1:]
rank = int(os.environ["RANK"])
history, weights = runpy.run_path(tests)["walk"]("--output_dir", folder + "/run", rank=rank, processes=2)
save_file(history, f"{folder}/history{rank}.safetensors")
save_file(weights, f"{folder}/weights{rank}.safetensors")
"""


def test_importance_sampling_is_the_same_on_every_process_and_in_parts(on_two_processes, tmp_path):
    """Each process writes the history that it holds; one process, whole or in 4 parts, walks the same path to 1e-4."""
    (tmp_path / "walk.py").write_text(WALK_ON_TWO_PROCESSES)
    process = on_two_processes(tmp_path / "walk.py", __file__, str(tmp_path))
    assert process.returncode == 0, process.stderr
    histories, (two, _) = (
        [load_file(tmp_path / f"{what}{rank}.safetensors") for rank in (0, 1)] for what in ("history", "weights")
    )
    assert same(*histories)
    assert histories[0]["counts"].sum() == 160 and histories[0]["counts"].min() >= 10
    for parts in ("1", "4"):
        history, one = walk("--output_dir", str(tmp_path / parts), "--gradient_accumulation_steps", parts)
        assert torch.equal(history["counts"], histories[0]["counts"])
        assert torch.allclose(history["losses"], histories[0]["losses"], rtol=1e-3)
        assert difference(one, two) < 1e-4


def test_a_skipped_step_leaves_no_losses(tmp_path, monkeypatch):
    """As fp16 skips a step whose gradients overflow: its losses are not those of the weights that go on."""
    words = [*TINY, *IMPORTANCE, "--output_dir", str(tmp_path), "--total_steps", "2"]
    run = prepare(*parse_command_line(words))
    batches = run.data.batches(batch_size=8, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(AcceleratedOptimizer, "step_was_skipped", True)
        optimizer_step(run, next(batches))
    assert run.objective.sampler.history.counts.sum() == 0
    optimizer_step(run, next(batches))
    assert run.objective.sampler.history.counts.sum() == 8


@pytest.mark.parametrize("steps", [20])
def test_accumulation_and_processes_walk_the_same_path(steps, on_two_processes, tmp_path):
    """1x8, 4 accumulated parts of 2, and 2 processes of 4 agree to 1e-4 after 20 steps, without dropout."""
    words = ["--total_steps", str(steps), "--horizontal_flip", "true", "--timestep_sampling", "antithetic"]
    tiny(tmp_path / "one", *words)
    tiny(tmp_path / "accumulated", *words, "--gradient_accumulation_steps", "4")
    process = on_two_processes(SCRIPT, *TINY, *words, "--output_dir", str(tmp_path / "two"))
    assert process.returncode == 0, process.stderr
    assert "on 2 process(es)" in process.stdout
    assert difference(weights(tmp_path / "one"), weights(tmp_path / "accumulated")) < 1e-4
    assert difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-4
    start = load_pipeline(str(tiny(tmp_path / "start", "--total_steps", "1"))).unet.state_dict()
    assert difference(weights(tmp_path / "one"), start) > 1e-3


def test_two_processes_resume_bit_for_bit(on_two_processes, tmp_path):
    words = ["--model.dropout", "0.2", "--decay", "constant", "--checkpoints.every", "3"]
    for name, steps in (("whole", "6"), ("parts", "3")):
        run = [*TINY, *words, "--total_steps", steps, "--output_dir", str(tmp_path / name)]
        assert on_two_processes(SCRIPT, *run).returncode == 0
    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.safe_dump(TWO_PROCESSES))
    process = launch(tmp_path / "parts", *words, "--resume", "latest", config_file=file)
    assert process.returncode == 0, process.stderr
    assert "on 2 process(es)" in process.stdout
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert Image.open(tmp_path / "parts" / "samples" / "final.png").size == (16, 16)


ENDS = """
import gc, sys
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel
from hf_ddpm.training.train import main

end_training = Accelerator.end_training

def end(accelerator):
    print("wrapped at the end:", sum(isinstance(o, DistributedDataParallel) for o in gc.get_objects()), flush=True)
    end_training(accelerator)

Accelerator.end_training = end
main(sys.argv[1:])
"""


def test_the_wrapper_goes_before_the_process_group(on_two_processes, tmp_path):
    """The other way round PyTorch's gloo threads and Python's lock may wait for each other: a run that never ends."""
    (tmp_path / "ends.py").write_text(ENDS)
    process = on_two_processes(tmp_path / "ends.py", *TINY, "--output_dir", str(tmp_path / "run"), "--total_steps", "1")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("wrapped at the end: 0") == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_of_any_process_is_said_once(rank, on_two_processes, tmp_path):
    data = ImageData("digits", image_size=8, max_images=64)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(to_uint8(next(data.batches(batch_size=64, seed=0)).x_0)):
        Image.fromarray(image[0].numpy()).save(tmp_path / "images" / f"{number:02}.png")
    order = SampleOrder(64, 0).rows(8, 8)  # of step 1: the first process has four of them, the second the others
    (tmp_path / "images" / f"{order[4 * rank]:02}.png").write_bytes(b"no image")
    words = ["--data.source", str(tmp_path / "images"), "--data.cache", "none", "--output_dir", str(tmp_path / "run")]
    done = on_two_processes(SCRIPT, *TINY, "--samples", "0", "--total_steps", "4", *words)
    assert done.returncode == 1
    assert done.stderr.count(f"error: image {order[4 * rank]} of") == 1 and "Traceback" not in done.stderr


def test_what_the_first_look_at_the_data_finds_is_said_before_the_first_step(tmp_path, capsys):
    for number in range(12):
        Image.new("RGB", (8, 8), (number, 2, 3)).save(tmp_path / f"{number}.png")
    tiny(tmp_path / "run", "--data.source", str(tmp_path), "--samples", "0", "--max_images", "null")
    said = capsys.readouterr().out.splitlines()
    assert "Colours converted to luminance (images so far: 12)." in said[0]
    assert "all images are nearly black" in said[0]


def test_processes_that_do_not_find_each_other_are_refused(tmp_path, monkeypatch):
    """`distributed_type: FSDP` on a CPU starts two processes that each believe to be alone."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="the launcher set WORLD_SIZE=2, but Accelerate has num_processes=1"):
        tiny(tmp_path)


def test_the_seed_decides(tmp_path):
    tiny(tmp_path / "a")
    tiny(tmp_path / "b")
    tiny(tmp_path / "c", "--seed", "1")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_bf16_trains_with_an_exact_schedule(tmp_path):
    tiny(tmp_path / "bf16", "--mixed_precision", "bf16", "--total_steps", "3")
    tiny(tmp_path / "full", "--total_steps", "3")
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "full"), rel=0.02)
    assert all(weight.dtype == torch.float32 for weight in weights(tmp_path / "bf16").values())


def test_channels_last_is_the_same_training(tmp_path):
    tiny(tmp_path / "last", "--channels_last", "true")
    tiny(tmp_path / "first")
    assert difference(weights(tmp_path / "last"), weights(tmp_path / "first")) < 1e-4


@pytest.mark.parametrize("bound", [1e-3, None])
def test_gradients_are_clipped_to_their_global_norm(bound, tmp_path):
    words = [*TINY, "--output_dir", str(tmp_path), "--total_steps", "2"]
    run = prepare(*parse_command_line([*words, "--max_grad_norm", "null" if bound is None else str(bound)]))
    norms = []

    def measure(optimizer, args, kwargs):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    run.players[MODEL].optimizer.optimizer.register_step_pre_hook(measure)
    said = optimizer_step(run, next(run.data.batches(batch_size=8, seed=0)))
    assert norms[0] > 0.05 if bound is None else norms[0] == pytest.approx(bound, rel=1e-2)
    assert said["gradient_norm"].tolist()[0] > 0.05  # before it was clipped


@pytest.mark.slow
def test_compiled_is_the_same_training(tmp_path):
    tiny(tmp_path / "compiled", "--compile", "true", "--total_steps", "3")
    tiny(tmp_path / "plain", "--total_steps", "3")
    assert difference(weights(tmp_path / "compiled"), weights(tmp_path / "plain")) < 1e-4


# --- every recipe and every source -----------------------------------------------------------------------------------


@pytest.fixture
def mixed_folder(tmp_path):
    """A folder of images of mixed modes and sizes, in two folders that are their classes."""
    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    for i, mode in enumerate(["L", "RGB", "RGBA", "P", "1", "LA"] * 3):
        pixels = rng.integers(0, 256, (12 + i % 3, 10, 3), dtype=np.uint8)
        (folder / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(folder / str(i % 2) / f"{i:03d}.png")
    return folder


def test_a_run_that_becomes_slow_says_once_what_helps(tmp_path, capsys, monkeypatch):
    """The advice is followed: the run continues with one thread, where nothing more is advised."""
    batches = ImageData.batches

    def of_a_busy_machine(data, **options):
        usual, began = 0.0, time.perf_counter()
        for step, batch in enumerate(batches(data, **options)):
            usual = max(usual, time.perf_counter() - began) if 0 < step < 4 else usual
            time.sleep(0.0 if step < 4 else 5 * usual)
            began = time.perf_counter()
            yield batch

    monkeypatch.setattr(ImageData, "batches", of_a_busy_machine)
    words = ("--log_every", "1", "--checkpoints.every", "6", "--sampling.every", "null")
    tiny(tmp_path, "--cpu_threads", "2", "--total_steps", "7", *words)
    said = "".join(capsys.readouterr())
    assert len(re.findall(r"a step takes [\d.]+ seconds now and took [\d.]+ at the start: .*", said)) == 1
    assert "continue it with --resume latest --cpu_threads 1" in said
    tiny(tmp_path, "--total_steps", "14", *words, "--resume", "latest", "--cpu_threads", "1")
    said = "".join(capsys.readouterr())
    assert "changed: training.cpu_threads is 1, and was 2" in said and "a step takes" not in said


@pytest.mark.parametrize(
    ("seconds", "threads", "advises"),
    [
        ([0.2, 0.1, 0.1, 0.31], 2, True),
        ([0.2, 0.1, 0.1, 0.29], 2, False),
        ([0.2, 0.1, 0.1, 0.31], 1, False),  # nothing would help
        ([0.1, 0.9], 2, False),  # the first lines are still those of the start
    ],
)
def test_slow_is_three_times_the_time_of_the_start(seconds, threads, advises):
    assert (slow_remark(seconds, threads) is not None) == advises


RECIPES = ["mnist", "mnist-hybrid", "cifar10", "cifar10-iddpm", "lsun-256", "celebahq-256", "celeba-64"]
RECIPES += ["mnist-conditional-cfg", "cifar10-conditional", "lsun-adm-256", "imagenet-iddpm-64"]
RECIPES += ["imagenet-iddpm-64-conditional", *(f"imagenet-adm-{size}" for size in (64, 128, 256, 512))]
SMALL_ADM = {
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
BY_WIDTH = SMALL_ADM | {"attention_head_dim": 8}
BY_NUMBER = SMALL_ADM | {"num_heads": 2}
SHRUNKEN = {
    "ddpm-cifar10": {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4, "layers_per_block": 1},
    "ddpm-256": {"block_out_channels": [8, 8, 8, 8, 8, 16], "norm_num_groups": 4, "layers_per_block": 1},
    "iddpm-cifar10": {
        "block_out_channels": [8, 8, 8, 16],
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "attention_head_dim": 8,
    },
    "ddim-celeba64": {"block_out_channels": [8, 8, 8, 8, 16], "norm_num_groups": 4, "layers_per_block": 1},
    "iddpm-imagenet-64": {"block_out_channels": [8, 8, 8, 16], "norm_num_groups": 4, "layers_per_block": 1},
    "iddpm-imagenet-64-conditional": {"block_out_channels": [8, 8, 8, 16], "norm_num_groups": 4, "layers_per_block": 1},
    "adm-64": BY_WIDTH,
    "adm-128": BY_NUMBER,
    "adm-256": BY_WIDTH,
    "adm-lsun-256": BY_WIDTH,
    "adm-512": BY_WIDTH | {"time_embedding_channels": 16},
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_a_shrunken_copy(name, mixed_folder, tmp_path):
    recipe = read_recipe(name)
    recipe["data"] |= {
        "source": str(mixed_folder),
        "num_workers": 0,
        "image_size": 32,
        "channels": recipe["data"]["channels"],
    }
    recipe["data"].pop("crop_box", None)
    recipe["model"] |= SHRUNKEN.get(recipe["model"]["preset"], {})
    recipe["training"] |= {
        "total_steps": 2,
        "batch_size": 4,
        "output_dir": str(tmp_path / "run"),
        "tracker": "none",
        "log_every": 1,
        "mixed_precision": "no",
    }
    recipe["sampling"] |= {"every": None, "num_images": 2, "num_inference_steps": 2}
    checkpoint = train(check_recipe(recipe))
    pipeline = HFDDPMPipeline.from_pretrained(checkpoint)
    assert pipeline.unet.config["in_channels"] == recipe["data"]["channels"]
    labelled, dropping = "label_column" in recipe["data"], "label_dropout" in recipe["objective"]
    assert (pipeline.num_classes, pipeline.signature.null_class) == (2 if labelled else None, 2 if dropping else None)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
@pytest.mark.parametrize("loss", ["hybrid", "vlb"])
def test_a_learned_variance_trains_saves_and_samples(loss, variance_type, tmp_path):
    checkpoint = tiny(tmp_path, "--loss", loss, "--variance_type", variance_type, "--lr", "1e-2")
    pipeline = load_pipeline(str(checkpoint))
    assert pipeline.unet.config["out_channels"] == 2
    assert pipeline.scheduler.config["variance_type"] == variance_type
    index = json.loads((checkpoint / "model_index.json").read_text())
    assert index["_class_name"] == "HFDDPMPipeline"  # stock classes would not split the output
    start = load_pipeline(
        str(tiny(tmp_path / "start", "--loss", loss, "--variance_type", variance_type, "--lr", "1e-9"))
    )
    head, at_start = (unet.conv_out.weight for unet in (pipeline.unet, start.unet))
    assert ((head - at_start).abs().amax(dim=(1, 2, 3)) > 1e-3).all()  # the variance's half has learned too
    images = {}
    for eta in (None, 0.0, 1.0):
        generator = torch.Generator().manual_seed(0)
        images[eta] = pipeline(4, 3, eta=eta, generator=generator, output_type="np").images
        assert images[eta].shape == (4, 8, 8, 1) and np.isfinite(images[eta]).all()
    assert not np.allclose(images[None], images[1.0])  # Algorithm 2 reads the learned variance, eta does not


def test_the_outputs_follow_the_variance_of_the_scheduler(tmp_path):
    """A preset of 2C outputs has C of them for a fixed variance, unless the recipe says otherwise."""
    small = [f"--model.{key}={value}" for key, value in SHRUNKEN["iddpm-cifar10"].items()]
    checkpoint = tiny(tmp_path, "--preset", "iddpm-cifar10", *small, "--total_steps", "1")
    assert load_pipeline(str(checkpoint)).unet.config["out_channels"] == 1


def test_a_folder_of_mixed_modes_trains(mixed_folder, tmp_path):
    checkpoint = tiny(tmp_path / "run", "--data.source", str(mixed_folder), "--data.channels", "3")
    assert Image.open(checkpoint / "samples.png").mode == "RGB"


def test_tar_shards_train_by_streaming(mixed_folder, tmp_path):
    shard = tmp_path / "shard-000000.tar"
    with tarfile.open(shard, "w") as tar:
        for path in sorted(mixed_folder.rglob("*.png")):
            tar.add(path, arcname=path.name)
    words = ["--data.source", str(shard), "--streaming", "true", "--data.channels", "3", "--decay", "constant"]
    tiny(tmp_path / "whole", *words)
    tiny(tmp_path / "parts", *words, "--total_steps", "3")
    tiny(tmp_path / "parts", *words, "--resume", "latest")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_classes_train_and_sample(tmp_path):
    checkpoint = tiny(tmp_path, "--label_column", "label", "--num_images", "12", "--sampling.every", "3")
    assert HFDDPMPipeline.from_pretrained(checkpoint).unet.config["num_class_embeds"] == 10
    for name in ("step_00000003.png", "final.png"):  # a column for each class
        assert Image.open(tmp_path / "samples" / name).size == (80, 16)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--image_size", "9"], "9"),
        (["--preset", "tinny"], "tiny"),
        (["--num_inference_steps", "2000"], "at most T=1000"),
        (["--batch_size", "9", "--gradient_accumulation_steps", "2"], "multiple of 2"),
        (["--variance_type", "learned"], "objective: .*no gradient in L_simple: use loss='hybrid' or 'vlb'"),
        (["--loss", "hybrid"], "objective: .*'fixed_small' is fixed.*use variance_type='learned_range'"),
        ([*IMPORTANCE, "--model.out_channels", "1"], "variance_type='learned_range': .* set --out_channels 2"),
        (["--eta", "2"], r"eta=2\.0 must lie in \[0, 1\]"),
        (["--training.seed", "-1"], "seed=-1 must not be negative"),
        (["--optimization.betas", "[0.9, 1.5]"], r"betas=\[0\.9, 1\.5\] must lie in"),
        (["--weight_decay", "-1"], r"weight_decay=-1\.0 must not be negative"),
        (["--channels", "-1"], "channels=-1"),
        (["--channels", "5"], "channels=5 must be 1, 2, 3 or 4"),
        (["--model.out_channels", "2"], "set --out_channels 1"),
        (
            ["--model.num_class_embeds", "10"],
            "num_class_embeds=10, but the data have no labels: set --label_column auto",
        ),
        (["--label_dropout", "1"], r"objective: label_dropout=1\.0 must be a probability in \[0, 1\)"),
        (["--label_dropout", "0.1", "--data.source", "./nowhere"], "needs labels, but .*: set --label_column auto, or"),
        ([*DROPPED, "--class_embed_type", "timestep", "--data.source", "./nowhere"], "not possible with .*'timestep'"),
        ([*DROPPED, "--num_class_embeds", "10"], "leaves no class for .*: leave it out, or set it to 11"),
        (["--steps_offset", "1", "--num_inference_steps", "1000", "--timestep_spacing", "leading"], "1000"),
        (["--beta_schedule", "jsd", "--prediction_type", "epsilon"], "'epsilon' is undefined"),
        (["--data.source", "./nowhere"], "nowhere"),
        (["--data.label_column", "colour"], "colour"),
        (["--resume", "latest"], "contains no run: use --resume auto"),
        (["--output_dir", "/dev/null/run"], "/dev/null/run could not be written"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(words, sentence, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([*TINY, "--output_dir", str(tmp_path / "run"), "--total_steps", "2", *words])
    assert re.search(sentence, str(stop.value.code)), stop.value.code
    assert "\n" not in str(stop.value.code)
    assert not (tmp_path / "run").exists()


def test_another_run_is_neither_overwritten_nor_mixed(tmp_path):
    tiny(tmp_path, "--total_steps", "2")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("[!.]*")}
    with pytest.raises(UserError, match=r"contains another run: continue it with --resume auto, or set another"):
        tiny(tmp_path, "--total_steps", "2")
    with pytest.raises(UserError, match=r"optimization\.weight_decay is 0\.5 but the run began with 0\.0"):
        tiny(tmp_path, "--resume", "latest", "--weight_decay", "0.5")
    with pytest.raises(UserError, match="beyond total_steps=1"):
        tiny(tmp_path, "--resume", "latest", "--total_steps", "1")
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("[!.]*")} == before


def test_a_damaged_state_is_named(tmp_path):
    tiny(tmp_path, "--total_steps", "2")
    file = tmp_path / "states" / "step_00000002" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"step_00000002 is damaged \(model.safetensors has 100 bytes"):
        tiny(tmp_path, "--resume", "latest")


@pytest.mark.parametrize("damage", [b"", b"no pickle"])
def test_a_damaged_optimizer_of_a_state_without_checksums_is_named(damage, tmp_path):
    tiny(tmp_path, "--total_steps", "2")
    as_version_0_1(tmp_path / "states" / "step_00000002")
    (tmp_path / "states" / "step_00000002" / "optimizer.bin").write_bytes(damage)
    with pytest.raises(UserError, match=r"step_00000002 cannot be read"):
        tiny(tmp_path, "--resume", "latest")


def test_the_state_of_another_run_is_refused(tmp_path):
    tiny(tmp_path / "one", "--total_steps", "2")
    state = str(tmp_path / "one" / "states" / "step_00000002")
    with pytest.raises(UserError, match=r"is not a state of output_dir .*two: use auto, latest, or a folder in"):
        tiny(tmp_path / "two", "--total_steps", "4", "--resume", state)
    assert not (tmp_path / "two").exists()
    (tmp_path / "one" / "recipe.yaml").unlink()
    with pytest.raises(UserError, match=r"recipe\.yaml is missing or damaged"):
        tiny(tmp_path / "one", "--total_steps", "4", "--resume", state)


@pytest.mark.parametrize(
    "words",
    [
        ["--preset", "tinny"],
        ["--image_size", "9"],
        ["--model.dropout", "2"],
        ["--max_decay", "1"],
        ["--batch_size", "9", "--gradient_accumulation_steps", "2"],
        ["--tracker", "trackio"],
    ],
    ids=lambda words: words[0],
)
def test_a_mistake_in_the_recipe_costs_no_download(words, tmp_path):
    """The data set does not exist; what is wrong with the rest is said before anybody looks for it."""
    with pytest.raises(UserError) as mistake:
        tiny(tmp_path, "--data.source", "./nowhere", *words)
    assert "nowhere" not in str(mistake.value)


def test_a_tracker_that_is_not_installed_is_an_error(tmp_path):
    with pytest.raises(UserError, match="tracker='trackio' is not installed: run pip install trackio"):
        tiny(tmp_path, "--tracker", "trackio")


def test_going_back_forgets_what_came_after(tmp_path):
    words = ["--checkpoints.every", "2", "--checkpoints.keep", "9"]
    tiny(tmp_path, *words)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')  # as a full disk leaves it
    state = str(tmp_path / "states" / "step_00000002")
    tiny(tmp_path, *words, "--resume", state, "--total_steps", "4", "--checkpoints.keep", "1")
    assert [p.name for p in (tmp_path / "states").iterdir()] == ["step_00000004"]
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_a_state_that_diverged_is_never_saved(tmp_path):
    words = ["--lr", "1e18", "--max_grad_norm", "null", "--total_steps", "40", "--checkpoints.every", "1"]
    with pytest.raises(UserError, match=r"the loss is (nan|inf)"):
        tiny(tmp_path, *words, "--log_every", "1000")
    last = sorted((tmp_path / "states").glob("step_*"))[-1]
    assert all(torch.isfinite(w).all() for w in load_file(last / "model.safetensors").values())


def test_a_grid_of_weights_that_diverged_is_a_sentence(tmp_path, capsys):
    """One step whose loss was finite leaves weights that are not."""
    words = ["--optimizer", "adamw", "--lr", "1e38", "--max_grad_norm", "null", "--warmup_steps", "0"]
    words += ["--max_decay", "0", "--sampling.every", "1"]
    with pytest.raises(UserError, match=r"the loss is nan at step 2: start again with --resume auto and a lower --lr$"):
        tiny(tmp_path, *words)
    said = capsys.readouterr().err
    assert re.search(
        r"WARNING: a grid of samples failed at step 1 \(the grid at step 1 failed \(the images contain NaN", said
    ), said


def test_an_image_error_has_the_remedy_of_divergence_only_if_the_weights_diverged():
    run = SimpleNamespace(step=7, how_to_mend=lambda: "lower it")
    said = []
    for reason in ("the images contain NaN: the weights have diverged", "images of shape (3, 8, 8) are not digits"):
        with pytest.raises(UserError) as error, _drawn_at(run, "evaluation"):
            raise ValueError(reason)
        said.append(str(error.value))
    assert said[0] == "the evaluation at step 7 failed (the images contain NaN: the weights have diverged): lower it"
    assert said[1] == "the evaluation at step 7 failed (images of shape (3, 8, 8) are not digits)"


def test_data_that_cannot_be_read_leave_the_folder_free(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.new("L", (8, 8)).save(tmp_path / "photos" / f"{i}.png")
    bad = tmp_path / "photos" / "2.png"
    bad.write_bytes(bad.read_bytes()[:40])
    words = ["--data.source", str(tmp_path / "photos"), "--batch_size", "2", "--total_steps", "2"]
    with pytest.raises(UserError, match=r"2\.png"):
        tiny(tmp_path / "run", *words)
    tiny(tmp_path / "run", *words, "--on_bad_image", "skip")


def test_divergence_stops_the_run_with_its_last_state_whole(tmp_path):
    with pytest.raises(
        UserError, match=r"the loss is (nan|inf).*: continue from the last state, .* lower --muon_lr and --lr"
    ):
        tiny(tmp_path, "--lr", "1e18", "--max_grad_norm", "null", "--total_steps", "40", "--checkpoints.every", "1")
    assert list((tmp_path / "states").glob("step_*"))


def test_a_full_disk_keeps_the_previous_state(run_python, tmp_path):
    """A process that may write no file over 30 kB: the state's optimizer fails, what was there stays."""
    tiny(tmp_path, "--total_steps", "2")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        "import sys; sys.dont_write_bytecode = True\n"
        "from hf_ddpm.training.train import main\n"
        f"main({[*TINY, '--output_dir', str(tmp_path), '--total_steps', '4', '--resume', 'latest']!r})"
    )
    process = run_python(code, check=False)
    assert process.returncode != 0
    assert re.search(r"error: .*step_00000004 could not be written .*unchanged", process.stderr), process.stderr
    assert "Traceback" not in process.stderr
    assert [p.name for p in (tmp_path / "states").iterdir()] == ["step_00000002"]
    load_pipeline(str(tmp_path / "checkpoint"))
    tiny(tmp_path, "--total_steps", "4", "--resume", "latest")


def test_the_script_runs_without_a_launcher_and_shows_its_progress(tmp_path):
    words = [*TINY, "--output_dir", str(tmp_path), "--total_steps", "3"]
    process = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    shown = process.stderr.split("\r")[-1]
    assert re.search(r"3/3 .*<.*loss=[\d.]+", shown), shown  # steps, the time left, the loss
    assert re.search(r"images_per_s=\d+", shown), shown


def test_the_script_says_a_mistake_without_a_traceback(tmp_path):
    process = launch(tmp_path / "run", "--lrr", "1")
    assert process.returncode != 0
    assert "Traceback" not in process.stderr
    assert "error: unknown option --lrr; did you mean --lr?" in process.stderr


def test_facts_are_json(tmp_path):
    checkpoint = tiny(tmp_path, "--total_steps", "1")
    known = json.loads((checkpoint / "training.json").read_text())
    assert known["metrics"] == []
    assert known["last_loss"] > 0


# --- classes ---------------------------------------------------------------------------------------------------------


NAMES = tuple(str(k) for k in range(1, 13))


@pytest.fixture
def numbers(tmp_path):
    """A folder of twelve folders that are called by numbers."""
    for k, name in enumerate(NAMES):
        (tmp_path / "numbers" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 20 * k).save(tmp_path / "numbers" / name / "one.png")
    return str(tmp_path / "numbers")


@pytest.mark.parametrize(
    ("words", "null_class"),
    [
        ([], None),
        (["--num_class_embeds", "12"], None),
        (["--num_class_embeds", "13"], 12),
        (["--label_dropout", "0.5"], 12),
        (["--label_dropout", "0.5", "--num_class_embeds", "13"], 12),
    ],
)
def test_a_run_saves_the_names_of_its_classes_and_the_one_for_no_label(words, null_class, numbers, tmp_path):
    checkpoint = tiny(
        tmp_path / "run", "--data.source", numbers, "--label_column", "auto", *words, "--total_steps", "1"
    )
    pipeline = HFDDPMPipeline.from_pretrained(checkpoint)
    assert (pipeline.num_classes, pipeline.signature.null_class) == (12, null_class)
    assert pipeline.config["id2label"] == dict(enumerate(NAMES))
    facts = json.loads((checkpoint / "training.json").read_text())
    assert facts["classes"] == {"null_class": null_class, "id2label": {str(k): name for k, name in enumerate(NAMES)}}
    card = (checkpoint / "README.md").read_text()
    assert "| 9 | 10 |\n" in card
    assert ('Class 12 of the network stands for "no label"' in card) == (null_class is not None)


def test_the_classes_of_a_preset_are_not_taken_for_one_more():
    data, digits = ImageData(label_column="label"), {k: str(k) for k in range(10)}
    preset = {"num_class_embeds": 1000, "class_embed_type": None}  # adm-256
    assert classes_of(preset, {"preset": "adm-256"}, data) == {"null_class": None, "id2label": digits}
    uncounted = {"num_class_embeds": None, "class_embed_type": "timestep"}
    assert classes_of(uncounted, uncounted, data) == {"null_class": None, "id2label": digits}


@pytest.mark.parametrize("embedded", ["9", "12", "1000", "null"])
def test_another_number_of_classes_is_refused_before_images_are_read(embedded, tmp_path):
    words = ["--label_column", "label", "--num_class_embeds", embedded, "--output_dir", str(tmp_path / "run")]
    sentence = (
        "does not fit data with num_classes=10: leave it out, or set it to 11, for an additional class that stands"
    )
    with pytest.raises(SystemExit, match=sentence):
        main([*TINY, *words])
    assert not (tmp_path / "run").exists()


def test_a_run_of_the_version_before_is_not_resumed_with_classes_in_another_order(numbers, tmp_path):
    words = ["--data.source", numbers, "--label_column", "auto", "--decay", "constant"]
    for name in ("numbered", "words"):
        if name == "words":
            for k, old in enumerate(NAMES):
                (tmp_path / "numbers" / old).rename(tmp_path / "numbers" / "abcdefghijkl"[k])
        tiny(tmp_path / name, *words, "--total_steps", "1")
        file = tmp_path / name / "recipe.yaml"
        recipe = yaml.safe_load(file.read_text())
        del recipe["family"]
        if name == "numbered":
            tiny(tmp_path / name, *words, "--total_steps", "2", "--resume", "latest")  # a run of this version
            file.write_text(yaml.safe_dump(recipe))
            with pytest.raises(
                UserError, match=r"sorted its classes alphabetically, so that 1 is '10', but .* 1 is '2': "
            ):
                tiny(tmp_path / name, *words, "--total_steps", "3", "--resume", "latest")
        else:
            file.write_text(yaml.safe_dump(recipe))
            tiny(tmp_path / name, *words, "--total_steps", "2", "--resume", "latest")  # both orders are one
