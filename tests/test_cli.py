"""`hf-ddpm` as a user types it."""

import os
import subprocess
import sys

import diffusers
import numpy as np
import pytest
from PIL import Image

from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler
from hf_ddpm.checkpoint import load_pipeline, save_checkpoint
from hf_ddpm.cli import main
from hf_ddpm.errors import exit_with_a_sentence
from hf_ddpm.sampling import image_generator, image_grid, sample_images
from hf_ddpm.version import __version__


@pytest.fixture
def checkpoint(make_pipeline, tmp_path):
    save_checkpoint(make_pipeline(), tmp_path / "checkpoint", {"name": "one"}, Image.new("L", (8, 8)))
    return tmp_path / "checkpoint"


def sample(checkpoint, out, *words):
    main(["sample", str(checkpoint), "--steps", "3", "--device", "cpu", "--out", str(out), *words])


def test_a_grid(checkpoint, tmp_path, capsys):
    sample(checkpoint, tmp_path / "deep" / "grid.png", "-n", "6")
    assert Image.open(tmp_path / "deep" / "grid.png").size == (3 * 8, 2 * 8)
    assert "(images: 6, sampler: UniPC, network calls per image: 3)" in capsys.readouterr().out


def test_the_default_sampler(checkpoint, make_pipeline, tmp_path, capsys):
    """UniPC in 20 trailing steps; DDIM for a network that UniPC does not know; all steps of training are Algorithm 2.

    A scheduler that is not ours stays.
    """
    pipeline = load_pipeline(str(checkpoint))
    main(["sample", str(checkpoint), "-n", "4", "--device", "cpu", "--out", str(tmp_path / "default.png")])
    assert "(images: 4, sampler: UniPC, network calls per image: 20)" in capsys.readouterr().out
    unipc = diffusers.UniPCMultistepScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.scheduler = unipc
    images = sample_images(pipeline, range(4), seed=0, num_inference_steps=20)
    assert np.abs(np.asarray(Image.open(tmp_path / "default.png"), dtype=int) - grid(images)).max() <= 1

    make_pipeline({"prediction_type": "mean", "variance_type": "fixed_small"}).save_pretrained(tmp_path / "mean")
    sample(tmp_path / "mean", tmp_path / "mean.png", "-n", "1")
    assert "(images: 1, sampler: DDIM, network calls per image: 3)" in capsys.readouterr().out
    make_pipeline({"num_train_timesteps": 6}).save_pretrained(tmp_path / "short")
    main(["sample", str(tmp_path / "short"), "-n", "1", "--device", "cpu", "--out", str(tmp_path / "short.png")])
    assert "(images: 1, sampler: Algorithm 2 of DDPM, network calls per image: 6)" in capsys.readouterr().out
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(unipc.config)
    pipeline.save_pretrained(tmp_path / "euler")
    sample(tmp_path / "euler", tmp_path / "euler.png", "-n", "1")
    assert "(images: 1, sampler: EulerDiscrete, network calls per image: 3)" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--device", "meta"), ("--out", "")])
def test_no_device_and_no_place_are_refused(words, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"error: {words[0]} {words[1]}"):
        sample(checkpoint, tmp_path / "x.png", *words)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("error", [MemoryError("3 TiB"), RuntimeError("CUDA out of memory.\nTried to allocate 3 TiB")])
def test_full_memory_is_one_sentence(error):
    said = r"there is not enough memory, use a smaller batch or fewer images: .*3 TiB"
    with pytest.raises(SystemExit, match=said) as caught, exit_with_a_sentence():
        raise error
    assert "\n" not in str(caught.value)


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes"), exit_with_a_sentence():
        raise RuntimeError("shapes do not fit")


def test_a_folder_of_images_does_not_depend_on_the_batch(checkpoint, tmp_path):
    sample(checkpoint, tmp_path / "one", "-n", "5", "--batch-size", "5")
    sample(checkpoint, tmp_path / "two", "-n", "5", "--batch-size", "2")
    names = [p.name for p in sorted((tmp_path / "one").iterdir())]
    assert names == [f"{i:06d}.png" for i in range(5)]
    for name in names:
        one, two = (np.asarray(Image.open(tmp_path / folder / name), dtype=int) for folder in ("one", "two"))
        assert np.abs(one - two).max() <= 1


def test_a_path_may_begin_at_home_wherever_it_is_written(checkpoint, tmp_path, monkeypatch):
    """The shell leaves `--out=~/x` and quoted words as they are."""
    monkeypatch.setenv("HOME", str(tmp_path))
    sample("~/checkpoint", "~/one.png", "-n", "1")
    main(["sample", "~/checkpoint", "--steps", "3", "--device", "cpu", "-n", "1", "--out=~/two.png"])
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_seed_and_eta_change_the_images(checkpoint, tmp_path):
    grids = []
    for i, words in enumerate(([], ["--seed", "1"], ["--eta", "0"])):
        sample(checkpoint, tmp_path / f"{i}.png", "-n", "4", *words)
        grids.append(np.asarray(Image.open(tmp_path / f"{i}.png")))
    assert not np.array_equal(grids[0], grids[1])
    assert not np.array_equal(grids[0], grids[2])


def drawn(checkpoint, tmp_path, *words):
    sample(checkpoint, tmp_path / "drawn.png", "-n", "4", *words)
    return np.asarray(Image.open(tmp_path / "drawn.png"), dtype=int)


def grid(images):
    return np.asarray(image_grid(images), dtype=int)


def expected(pipeline, **sampling):
    """By the checkpoint's own scheduler, as `--solver ddpm` draws, unless told otherwise."""
    return grid(sample_images(pipeline, range(4), seed=0, num_inference_steps=3, **sampling))


@pytest.fixture(params=["learned_range", "fixed_small"])
def ddim_checkpoint(request, make_pipeline, tmp_path):
    """A checkpoint that samples by DDIM unless told otherwise, with and without learned variances."""
    learned = request.param == "learned_range"
    pipeline = make_pipeline({"variance_type": request.param}, **({"out_channels": 2} if learned else {}))
    pipeline.register_to_config(default_eta=0.0)
    save_checkpoint(pipeline, tmp_path / "ddim", {"name": "one"}, Image.new("L", (8, 8)))
    return tmp_path / "ddim"


def test_algorithm_2_of_a_checkpoint_that_samples_by_ddim(ddim_checkpoint, tmp_path):
    pipeline = load_pipeline(str(ddim_checkpoint))
    assert np.abs(drawn(ddim_checkpoint, tmp_path, "--solver", "ddim") - expected(pipeline)).max() <= 1
    pipeline.register_to_config(default_eta=None)
    algorithm_2 = expected(pipeline)
    for words in (["--eta", "none"], ["--solver", "ddpm"]):
        assert np.abs(drawn(ddim_checkpoint, tmp_path, *words) - algorithm_2).max() <= 1
    assert np.abs(algorithm_2 - expected(pipeline, eta=0.0)).max() > 10


def test_sigma_hat_is_algorithm_2_with_the_larger_variance(ddim_checkpoint, tmp_path):
    pipeline = load_pipeline(str(ddim_checkpoint))
    pipeline.register_to_config(default_eta=None)
    pipeline.scheduler = HFDDPMScheduler.from_config(pipeline.scheduler.config, variance_type="fixed_large")
    assert np.abs(drawn(ddim_checkpoint, tmp_path, "--eta", "sigma-hat") - expected(pipeline)).max() <= 1
    assert np.abs(expected(pipeline) - expected(pipeline, eta=1.0)).max() > 10


@pytest.mark.parametrize(
    ("name", "solver", "calls"),
    [
        ("dpm-solver++", diffusers.DPMSolverMultistepScheduler, 3),
        ("unipc", diffusers.UniPCMultistepScheduler, 3),
        ("heun", diffusers.HeunDiscreteScheduler, 5),  # two a step but for the last
        ("euler", diffusers.EulerDiscreteScheduler, 3),
    ],
)
def test_solvers_of_diffusers(name, solver, calls, ddim_checkpoint, tmp_path, capsys):
    pipeline = load_pipeline(str(ddim_checkpoint))
    changed = {"variance_type": None} if name == "dpm-solver++" else {}
    for words, spacing in (([], "leading"), (["--spacing", "trailing"], "trailing")):
        pipeline.scheduler = solver.from_config(pipeline.scheduler.config, timestep_spacing=spacing, **changed)
        found = drawn(ddim_checkpoint, tmp_path, "--solver", name, "--batch-size", "3", *words)
        assert np.abs(found - expected(pipeline)).max() <= 1
        assert f", network calls per image: {calls})" in capsys.readouterr().out


def test_images_that_are_done_stay_when_a_run_is_stopped(checkpoint, tmp_path, monkeypatch):
    batches, draw = [], HFDDPMPipeline.__call__

    def stopped_at_the_second(*arguments, **keywords):
        batches.append(keywords)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return draw(*arguments, **keywords)

    monkeypatch.setattr(HFDDPMPipeline, "__call__", stopped_at_the_second)
    with pytest.raises(SystemExit, match="stopped"):
        sample(checkpoint, tmp_path / "some", "-n", "4", "--batch-size", "2")
    assert sorted(p.name for p in (tmp_path / "some").iterdir()) == ["000000.png", "000001.png"]


def test_a_folder_of_another_run_is_refused(checkpoint, tmp_path):
    sample(checkpoint, tmp_path / "one", "-n", "2")
    with pytest.raises(SystemExit, match="one is not empty: choose a new one"):
        sample(checkpoint, tmp_path / "one", "-n", "1")


def test_what_cannot_be_written_is_said_before_the_work(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ddpm.sampling.sample_images", lambda *_, **__: pytest.fail("it sampled first"))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "grid.png", tmp_path / "file" / "folder"):
        with pytest.raises(SystemExit, match="could not be written"):
            sample(checkpoint, out)


def test_nobody_left_to_read_the_output_is_no_error(checkpoint, tmp_path):
    script = f"from hf_ddpm.cli import main; main(['sample', {str(checkpoint)!r}, '-n', '1', '--steps', '2'])"
    command = f'{sys.executable} -c "{script}" 2> errors | true'
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert "Traceback" not in (tmp_path / "errors").read_text()
    assert "BrokenPipe" not in (tmp_path / "errors").read_text()
    assert (tmp_path / "grid.png").exists()


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"hf_ddpm {__version__}\n"


def test_corrector_steps_are_network_calls(checkpoint, tmp_path, capsys):
    found = drawn(checkpoint, tmp_path, "--corrector-steps", "2", "--batch-size", "3")
    assert (
        "(images: 4, sampler: Algorithm 2 of DDPM, network calls per image: 7)" in capsys.readouterr().out
    )  # 3, and 2 at each of the 2 levels between
    generators = [image_generator(0, i) for i in range(4)]
    pipeline = load_pipeline(str(checkpoint))
    assert np.abs(found - grid(pipeline(4, 3, generator=generators, corrector_steps=2).images)).max() <= 1


def test_an_ending_in_capitals_is_a_grid(checkpoint, tmp_path):
    sample(checkpoint, tmp_path / "grid.PNG", "-n", "4")
    assert Image.open(tmp_path / "grid.PNG").size == (16, 16)


@pytest.mark.parametrize("words", [["--steps", "20"], ["--steps", "0"]])
def test_a_solver_needs_fewer_steps_than_training_had(words, make_pipeline, tmp_path):
    """With all of them diffusers' leading spacing repeats a timestep, and DPM-Solver++ ends in an IndexError."""
    make_pipeline({"num_train_timesteps": 20}).save_pretrained(tmp_path / "short")
    with pytest.raises(SystemExit, match=r"needs --steps from 1 to 19, not 20|--steps 0 must be"):
        main(["sample", str(tmp_path / "short"), "--solver", "dpm-solver++", *words])


@pytest.mark.parametrize("solver", ["dpm-solver++", "unipc", "euler"])
def test_solvers_of_a_curve_that_ends_at_0(solver, make_pipeline, tmp_path):
    end = {"beta_schedule": "jsd", "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    make_pipeline(end).save_pretrained(tmp_path / "end")
    assert drawn(tmp_path / "end", tmp_path, "--solver", solver).std() > 1  # NaN would be drawn as black


@pytest.mark.parametrize(
    ("scheduler", "unet", "words", "sentence"),
    [
        ({}, {"in_channels": 5, "out_channels": 5}, [], "the network has 5 channels, and a PNG has 1 to 4"),
        ({"prediction_type": "mean"}, {}, ["--solver", "euler"], "solver euler does not support .*'mean'"),
        ({"beta_schedule": "cosine"}, {}, ["--solver", "heun"], "schedule starts at sigma = 20,29., and Heun's first"),
        ({"prediction_type": "sample"}, {}, ["--solver", "heun"], "solver heun does not support .*'sample'"),
        (
            {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
            {},
            ["--solver", "heun"],
            "solver heun does not support a noise schedule that ends at alpha_bar = 0 .* use another",
        ),
    ],
)
def test_checkpoints_that_cannot_be_sampled_so(scheduler, unet, words, sentence, make_pipeline, tmp_path):
    make_pipeline(scheduler, **unet).save_pretrained(tmp_path / "odd")
    with pytest.raises(SystemExit, match=sentence) as stop:
        sample(tmp_path / "odd", tmp_path / "grid.png", *words)
    assert "\n" not in str(stop.value.code)


def test_the_folder_one_stands_in(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(checkpoint)
    main(["sample", ".", "--steps", "2", "-n", "1", "--out", str(tmp_path / "one.png")])
    assert Image.open(tmp_path / "one.png").size == (8, 8)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sample", "./nowhere"], "there is no checkpoint folder at './nowhere'"),
        (["sample", "{checkpoint}", "--steps", "-3"], "--steps -3 must be from 1 to 1000"),
        (["sample", "{checkpoint}", "--steps", "5000"], "--steps 5000 must be from 1 to 1000"),
        (
            ["sample", "{checkpoint}", "--eta", "7"],
            "argument --eta: '7' must be a number from 0 to 1, sigma-hat or none",
        ),
        (
            ["sample", "{checkpoint}", "--eta", "x"],
            "argument --eta: 'x' must be a number from 0 to 1, sigma-hat or none",
        ),
        (
            ["sample", "{checkpoint}", "--eta", "1", "--solver", "heun"],
            "--eta 1.0 cannot be combined with --solver heun",
        ),
        (["sample", "{checkpoint}", "--steps", "3", "--solver", "hein"], "unipc, heun, euler; did you mean heun?"),
        (
            ["sample", "{checkpoint}", "--steps", "3", "--solver", "heun", "--spacing", "quadratic"],
            "'quadratic' must be one of",
        ),
        (["sample", "{checkpoint}", "--solver", "heun", "--corrector-steps", "1"], "leave one of them out"),
        (["sample", "{checkpoint}", "--corrector-steps", "-1"], "corrector_steps=-1 must be a whole number, 0 or more"),
        (["sample", "{checkpoint}", "--seed", "-1"], "--seed -1 must be from 0 to"),
        (["sample", "{checkpoint}", "--seed", "9" * 23], "must be from 0 to"),
        (["sample", "{checkpoint}", "-n", "0"], "--num-images 0 must be at least 1"),
        (
            ["sample", "{checkpoint}", "--class", "1", "--steps", "2"],
            "--class 1 must be omitted: this network was trained without classes",
        ),
        (["sample", "{checkpoint}", "--out", "grid.gif"], "must be a .png file or a folder"),
        (["sample", "{checkpoint}", "--stepps", "3"], "unrecognized arguments: --stepps"),
        (["sampel"], "invalid choice: 'sampel'"),
        ([], "COMMAND"),
        (["sample", "{checkpoint}", "--steps", "2", "-n", "1", "--out", "/dev/null/x.png"], "could not be written"),
        (["sample", "{checkpoint}", "--steps", "2", "--device", "gpu"], "--device gpu: "),
        (["train", "--preset", "nothing"], "tiny"),
        (["train", "--recipe", "nothing"], "no recipe 'nothing'"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([word.replace("{checkpoint}", str(checkpoint)) for word in words])
    assert str(stop.value.code).startswith("error: ")
    assert sentence in str(stop.value.code)
    assert "\n" not in str(stop.value.code)


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert {"train", "sample"} <= set(capsys.readouterr().out.split())


@pytest.fixture
def named_checkpoint(make_pipeline, tmp_path):
    """Three classes, of which the last is called by the number of the first, and one for no label."""
    names = {0: "cat", 1: "dog", 2: "0"}
    unet = make_pipeline(num_class_embeds=4).unet
    pipeline = HFDDPMPipeline(unet, HFDDPMScheduler(), null_class=3, id2label=names)
    save_checkpoint(pipeline, tmp_path / "named", {"name": "one"}, Image.new("L", (8, 8)))
    return tmp_path / "named"


def tile(grid, i, columns):
    """Image i, of 8x8 pixels."""
    row, column = divmod(i, columns)
    return grid[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]


def test_a_class_by_name_or_number(named_checkpoint, tmp_path):
    pipeline = load_pipeline(str(named_checkpoint))
    for word, label in {"dog": 1, "1": 1, "0": 2, "cat": 0}.items():
        assert (
            np.abs(
                drawn(named_checkpoint, tmp_path, "--class", word, "--solver", "ddpm")
                - expected(pipeline, class_label=label)
            ).max()
            <= 1
        )
    in_turn = [expected(pipeline, class_label=label) for label in (0, 1, 2, 0)]
    grid_of_all = drawn(named_checkpoint, tmp_path, "--solver", "ddpm")  # with a column for each of the three classes
    assert grid_of_all.shape == (16, 24, 3)
    differences = [np.abs(tile(grid_of_all, i, 3) - tile(in_turn[i], i, 2)).max() for i in range(4)]
    assert max(differences) <= 1
    assert (tile(grid_of_all, 4, 3) == 255).all() and (tile(grid_of_all, 5, 3) == 255).all()


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("dgo", "--class dgo is not the name of a class; did you mean 'dog'?"),
        ("3", '--class 3 must be from 0 to 2, the network\'s classes (3 stands for "no label" and is never drawn)'),
        ("-1", "--class -1 must be from 0 to 2"),
        ("", "--class  is not the name of a class; the names are 'cat', 'dog', '0'"),
    ],
)
@pytest.mark.parametrize("command", ["sample", "edit", "figure"])
def test_a_class_that_is_not_there(command, word, sentence, named_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("a.png")
    start = {"sample": ["sample"], "edit": ["edit", "vary"], "figure": ["figure", "progressive"]}[command]
    images = ["a.png"] if command == "edit" else []
    with pytest.raises(SystemExit) as stop:
        main([*start, str(named_checkpoint), *images, "--steps", "2", "--class", word])
    assert sentence in str(stop.value.code) and "\n" not in str(stop.value.code)


def test_edits_and_figures_take_a_name(named_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8), 90).save("a.png")
    for word in ("dog", "1", "cat"):
        main(
            ["edit", "vary", str(named_checkpoint), "a.png", "--steps", "3", "--class", word, "--out", f"e-{word}.png"]
        )
        figure = ["figure", "progressive", str(named_checkpoint), "-n", "2", "--steps", "3"]
        main([*figure, "--class", word, "--out", f"f-{word}.png"])
    for kind in "ef":
        dog, one, cat = (Image.open(f"{kind}-{word}.png").tobytes() for word in ("dog", "1", "cat"))
        assert dog == one != cat
    assert "--class dog" in Image.open("f-dog.png").text["command"]
