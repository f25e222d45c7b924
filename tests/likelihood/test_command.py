"""`hf-ddpm likelihood` as a user types it, and `evaluate` behind it."""

import hashlib
import json
import math
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler
from hf_ddpm.checkpoint import save_checkpoint
from hf_ddpm.cli import main
from hf_ddpm.errors import UserError
from hf_ddpm.likelihood import bound_terms, evaluate, grid_images
from hf_ddpm.likelihood.network import Network
from hf_ddpm.likelihood.report import diffusion_report
from hf_ddpm.progress import ProgressBar
from hf_ddpm.weights import weights_sha256

T = 8


@pytest.fixture
def checkpoint(make_pipeline, tmp_path):
    pipeline = make_pipeline({"num_train_timesteps": T, "beta_schedule": "cosine"}, num_class_embeds=10)
    save_checkpoint(pipeline, tmp_path / "checkpoint", {"name": "one"}, Image.new("L", (8, 8)))
    return tmp_path / "checkpoint"


def words(checkpoint, out, *more):
    return [
        "likelihood",
        str(checkpoint),
        "--data",
        "digits",
        "--ode-steps",
        "2",
        "--device",
        "cpu",
        "--out",
        str(out),
        *more,
    ]


ENDS = """
import sys
from torch.distributed import is_initialized
from hf_ddpm.cli import main

main(sys.argv[1:])
print("in a process group at the end:", is_initialized(), flush=True)
"""


def test_one_process_and_two_say_the_same(checkpoint, on_two_processes, tmp_path, capsys):
    """Classes, both methods, another batch size: the same numbers to a millionth, in the file of the main process."""
    main(words(checkpoint, tmp_path / "deep" / "one.json", "--batch-size", "100"))
    shown = capsys.readouterr().out
    (tmp_path / "ends.py").write_text(ENDS)
    done = on_two_processes(tmp_path / "ends.py", *words(checkpoint, tmp_path / "two.json", "--batch-size", "64"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("in a process group at the end: False") == 2
    assert done.stdout.count("variational bound") == 1
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("deep/one.json", "two.json"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for method in ("bound", "ode"):
        for key in ("mean", "standard_error"):
            values = [found[method]["bits_per_dim"][key] for found in (one, two)]
            assert values[0] == pytest.approx(values[1], rel=1e-6)
            assert f"{values[0]:.4f}" in shown
    for key in ("bits_per_dim", "x_0_mse", "epsilon_mse"):
        np.testing.assert_allclose(one["bound"]["per_t"][key], two["bound"]["per_t"][key], rtol=1e-5)
    with Image.open(tmp_path / "deep" / "one.png") as picture:
        assert picture.width > 600 and len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_the_report_adds_up(make_pipeline, random_images, tmp_path):
    pipeline = make_pipeline({"num_train_timesteps": T, "prediction_type": "v_prediction"})
    images = random_images(256)
    found = diffusion_report(
        evaluate(pipeline.unet, pipeline.scheduler, images, seed=5, ode_steps=2, clip=False),
        pipeline.unet,
        pipeline.scheduler,
        checkpoint="one",
    )
    assert next(iter(found)) == "checkpoint"
    expected = {"T": T, "variance_type": "fixed_small", "prediction_type": "v_prediction", "n": 256, "seed": 5}
    assert expected.items() <= found.items()
    assert (found["bit_depth"], found["shape"], found["clip"]) == (8, [1, 8, 8], False)
    assert set(found["versions"]) == {"hf_ddpm", "torch", "diffusers", "python"}
    assert found["seconds"].keys() == {"bound", "ode"}

    terms = bound_terms(Network(pipeline.unet, pipeline.scheduler), images, torch.arange(256), seed=5, clip=False)
    bound, per_t = found["bound"], found["bound"]["per_t"]
    mean, error = bound["bits_per_dim"]["mean"], bound["bits_per_dim"]["standard_error"]
    assert mean == pytest.approx(terms.total.mean().item(), rel=1e-6)
    assert error == pytest.approx(np.std(terms.total.numpy(), ddof=1) / 16, rel=1e-6)
    assert mean == pytest.approx(bound["prior"]["mean"] + sum(per_t["bits_per_dim"]), rel=1e-9)
    assert bound["kl"]["mean"] == pytest.approx(sum(per_t["bits_per_dim"][1:]), rel=1e-9)

    split, curve = bound["codelength"], bound["rate_distortion"]
    assert split["rate"] + split["distortion"] == pytest.approx(mean, rel=1e-9)
    assert curve["rate"][-1] == pytest.approx(bound["prior"]["mean"])
    assert curve["rate"][2] - curve["rate"][3] == pytest.approx(per_t["bits_per_dim"][3])
    assert curve["rate"][0] == split["rate"] and curve["rmse"][0] == split["rmse"]
    assert curve["rmse"][4] == pytest.approx(127.5 * math.sqrt(per_t["x_0_mse"][4]))
    assert found["ode"]["network_calls"] == 8 and found["ode"]["halving"]["n"] == 16
    json.dumps(found, allow_nan=False)

    pipeline.save_pretrained(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    assert found["weights_sha256"] == weights_sha256(pipeline.unet) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_too_few_images_are_no_figure(make_pipeline, random_images):
    pipeline = make_pipeline({"num_train_timesteps": T})
    with pytest.raises(UserError, match=r"a likelihood needs at least 256 images, not 255"):
        evaluate(pipeline.unet, pipeline.scheduler, random_images(255))
    with pytest.raises(UserError, match=r"method='bond' must be one of .*did you mean bound"):
        evaluate(pipeline.unet, pipeline.scheduler, random_images(256), method="bond")
    with pytest.raises(UserError, match="ode_steps=1 must be at least 2"):  # half of which would be itself
        evaluate(pipeline.unet, pipeline.scheduler, random_images(256), ode_steps=1)
    with pytest.raises(UserError, match="seed=-1 must be at least 0"):
        evaluate(pipeline.unet, pipeline.scheduler, random_images(256), seed=-1)
    with pytest.raises(UserError, match="images must be GridImages, not Tensor: create them with draw_images or"):
        evaluate(pipeline.unet, pipeline.scheduler, torch.zeros(256, 1, 8, 8))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["-n", "255"], "at least 256 images, not 255"),
        (["-n", "6000"], "6000 images are requested, but 'digits', split 'train', has 5,000"),
        (["--split", "test"], "there is no split 'test' in 'digits'; available: train"),
        (["--data", "./nowhere"], "the data path './nowhere' does not exist"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["--ode-steps", "1"], "--ode-steps 1 must be at least 2"),
        (["--seed", "-1"], "--seed -1 must be from 0 to 9223372036854775807"),
        (["--seed", str(2**63)], "--seed 9223372036854775808 must be from 0 to 9223372036854775807"),
        (["--method", "elbo"], "invalid choice: 'elbo'"),
        (["--out", "likelihood.txt"], "--out likelihood.txt must be a .json file"),
        (["--out", "/dev/null/x.json"], "): free disk space or choose another path"),
        (["--label-column", "names"], "label_column is 'names', but the columns are"),
        (["--device", "gpu"], "--device gpu: "),
    ],
)
def test_mistakes_are_one_sentence(more, sentence, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(words(checkpoint, tmp_path / "x.json", *more))
    assert str(stop.value.code).startswith("error: ")
    assert sentence in str(stop.value.code)
    assert "\n" not in str(stop.value.code)


def test_a_place_that_cannot_be_written_is_known_before_the_measuring(checkpoint, tmp_path, monkeypatch):
    """The JSON or the picture; what is there is not touched, and nothing is left behind."""

    def measured(*_, **__):
        raise AssertionError("measured first")

    monkeypatch.setattr("hf_ddpm.likelihood.evaluate", measured)
    for suffix in (".json", ".png"):
        (tmp_path / suffix[1:] / "x").with_suffix(suffix).mkdir(parents=True)
        with pytest.raises(SystemExit, match=rf"x\{suffix} could not be written"):
            main(words(checkpoint, tmp_path / suffix[1:] / "x.json"))
    (tmp_path / "old.json").write_text("old")
    with pytest.raises(AssertionError, match="measured first"):
        main(words(checkpoint, tmp_path / "old.json"))
    assert (tmp_path / "old.json").read_text() == "old" and not (tmp_path / "old.png").exists()


def test_a_checkpoint_whose_network_does_not_fit_its_scheduler(make_pipeline, tmp_path):
    save_checkpoint(make_pipeline({"num_train_timesteps": T}), tmp_path / "c", {"name": "x"}, Image.new("L", (8, 8)))
    config = tmp_path / "c" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("fixed_small", "learned_range"))
    with pytest.raises(
        SystemExit, match=r"variance_type='learned_range' requires 2 output channels, .* has 1: use the"
    ):
        main(words(tmp_path / "c", tmp_path / "x.json"))


def test_labels_for_a_network_without_classes(make_pipeline, tmp_path):
    save_checkpoint(make_pipeline(), tmp_path / "c", {"name": "x"}, Image.new("L", (8, 8)))
    with pytest.raises(SystemExit, match="--label-column label needs a network with classes"):
        main(words(tmp_path / "c", tmp_path / "x.json", "--label-column", "label"))


def test_images_without_labels_for_a_network_with_classes(make_pipeline, tmp_path):
    save_checkpoint(make_pipeline(num_class_embeds=3), tmp_path / "c", {"name": "x"}, Image.new("L", (8, 8)))
    (tmp_path / "photos").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "photos" / "one.png")
    sentence = (
        "has no label column.* and this network has 3 classes: pass the name of the label column with --label-col"
    )
    with pytest.raises(SystemExit, match=sentence):
        main(words(tmp_path / "c", tmp_path / "x.json", "--data", str(tmp_path / "photos")))


def test_the_bar_is_quiet_in_a_file(capsys):
    with ProgressBar("bound", 50, Accelerator(cpu=True)) as bar:
        for _ in range(50):
            time.sleep(0.02)
            bar.update(1)
    assert 1 <= capsys.readouterr().err.count("bound:") <= 3


def test_without_the_extra_the_sentence_names_it(checkpoint, tmp_path, monkeypatch):
    from hf_ddpm.commands import options

    monkeypatch.setattr(options, "find_spec", lambda name: None)
    for method, package in (("bound", "matplotlib"), ("ode", "torchdiffeq")):
        with pytest.raises(SystemExit, match=rf"needs {package}: install it with pip install 'hf_ddpm\[measure\]'"):
            main(words(checkpoint, tmp_path / "x.json", "--method", method))


def test_images_are_cut_as_in_training(make_pipeline, tmp_path):
    from hf_ddpm.commands.options import cut_of_training

    block = {"source": "photos", "crop_box": [0, 40, 178, 218], "resize": "random_crop", "horizontal_flip": True}
    block |= {"crop_scale": [0.8, 1.0]}
    save_checkpoint(make_pipeline(), tmp_path / "c", {"name": "x", "recipe": {"data": block}}, Image.new("L", (8, 8)))
    assert cut_of_training(str(tmp_path / "c")) == {"crop_box": [0, 40, 178, 218], "resize": "crop"}
    assert cut_of_training("google/ddpm") == {}


def test_no_image_is_of_the_class_for_no_label(make_pipeline):
    pipeline = make_pipeline({"num_train_timesteps": T}, num_class_embeds=4)
    images = grid_images(torch.ones(256, 1, 8, 8), labels=torch.full((256,), 3))
    Network(pipeline.unet, pipeline.scheduler).check(images)
    sentence = r"the images' labels 3\.\.3 must lie within 0\.\.2, the network's classes \(3 stands for"
    with pytest.raises(UserError, match=sentence):
        Network(pipeline.unet, pipeline.scheduler, null_class=3).check(images)
    with pytest.raises(UserError, match=sentence):
        evaluate(pipeline.unet, pipeline.scheduler, images, method="bound", null_class=3)


def test_folders_are_the_classes_of_the_network_by_name(make_pipeline, tmp_path):
    for i, name in enumerate(("1", "2", "10", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("L", (8, 8), i).save(tmp_path / "photos" / name / "one.png")
    unet, scheduler = make_pipeline({"num_train_timesteps": T}, num_class_embeds=4).unet, HFDDPMScheduler(T)
    more = ["--data", str(tmp_path / "photos"), "-n", "256"]
    for names, null_class, sentence in (
        ({0: "1", 1: "2", 2: "10", 3: "dog"}, None, "256"),  # too few images, no more
        ({0: "1", 1: "10", 2: "2", 3: "dog"}, None, "class 1 of the data is '2', which is class 2 of the network"),
        (None, None, r"has no class names, so .* \('1', '2', ...\): rename those of the data"),
        (None, 3, r"has label 3 in column 'label', but labels must be in 0\.\.2 .* and this network has 3 classes"),
    ):
        pipeline = HFDDPMPipeline(unet, scheduler, null_class=null_class, id2label=names)
        save_checkpoint(pipeline, tmp_path / "c", {"name": "x"}, Image.new("L", (8, 8)))
        with pytest.raises(SystemExit, match=sentence):
            main(words(tmp_path / "c", tmp_path / "x.json", *more))
