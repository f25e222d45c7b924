"""`hf-ddpm evaluate` and `hf-ddpm sweep` as a user types them."""

import json
import os
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ddpm import HFVAE, HFDDPMPipeline, HFDDPMScheduler, HFVAEPipeline
from hf_ddpm.checkpoint import save_checkpoint
from hf_ddpm.cli import main
from hf_ddpm.commands import evaluate as evaluate_command
from hf_ddpm.data import ImageData, to_uint8
from hf_ddpm.evaluation.shards import Format
from hf_ddpm.metrics import digit_score
from hf_ddpm.metrics.inception import Preprocessing
from hf_ddpm.metrics.reference import mnist_test
from hf_ddpm.model_card_metrics import metrics_of

AGAINST = ["--reference", "mnist-test", "--device", "cpu"]
FEW = ["-n", "12", "--allow-few", "--steps", "2"]


@pytest.fixture(autouse=True)
def own_assets(tmp_path, monkeypatch):
    """A cache of statistics that is empty when the test begins."""
    monkeypatch.setattr("hf_ddpm.metrics.reference.cached_assets_path", lambda *_: tmp_path / "assets")


@pytest.fixture
def checkpoint(make_pipeline, tmp_path):
    """A network with three classes and random weights, which draws noise."""
    unet = make_pipeline(num_class_embeds=3, sample_size=28).unet
    pipeline = HFDDPMPipeline(unet, HFDDPMScheduler(), id2label={0: "0", 1: "1", 2: "2"})
    save_checkpoint(pipeline, tmp_path / "checkpoint", {"name": "one"}, Image.new("L", (28, 28)))
    return tmp_path / "checkpoint"


@pytest.fixture
def digits(tmp_path, own_cache):
    """A hundred real digits as PNG in a folder of each class."""
    data = ImageData("digits", label_column="auto")
    rows = torch.arange(0, 5000, 50)
    for i, (pixels, label) in enumerate(zip(data.pixels(rows), data.labels(rows), strict=True)):
        place = tmp_path / "digits" / str(label.item())
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(place / f"{i:03d}.png")
    return tmp_path / "digits"


def evaluated(*words, out):
    main(["evaluate", *map(str, words), "--out", str(out)])
    return json.loads(out.read_text())


def by_name(found):
    return {number["name"]: number["value"] for number in found["numbers"]}


def test_a_checkpoint(checkpoint, tmp_path, capsys):
    """The figures are those of `hf-ddpm sample`'s images; the record says how; the card takes it."""
    found = evaluated(checkpoint, *AGAINST, *FEW, out=tmp_path / "deep" / "one.json")
    main(["sample", str(checkpoint), "-n", "12", "--steps", "2", "--device", "cpu", "--out", str(tmp_path / "images")])
    images = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "images").iterdir())]
    score = digit_score(torch.from_numpy(np.stack(images))[:, None], mnist_test().pool)
    assert by_name(found)["digit distance"] == pytest.approx(score.distance, rel=1e-3)
    shown = capsys.readouterr().out
    assert (
        "| digit distance | " in shown and "12 images, UniPCMultistepScheduler with 2 steps, seed 0, against" in shown
    )
    assert "N = 12 is too few for 64 features" in shown

    conditions = found["conditions"]
    assert conditions["num_images"] == 12 and conditions["samples"]["seed"] == 0
    assert conditions["samples"]["call"]["num_inference_steps"] == 2
    assert conditions["samples"]["classes"] == "in-turn"
    assert conditions["extractor"]["extractor"] == "digits" and conditions["reference"]["num_images"] == 10_000
    assert found["network_calls"] == 2 and set(conditions["versions"]) == {"hf_ddpm", "torch", "diffusers", "python"}
    (distance, share) = metrics_of(tmp_path / "deep" / "one.json", checkpoint)
    assert (distance["type"], share["type"]) == ("digit_distance", "digit_share")
    assert distance["data"]["split"] == "test" and "12 images" in distance["how"]
    assert Image.open(tmp_path / "deep" / "one.png").width > 12 * 56
    assert "digit distance" in (tmp_path / "deep" / "one.md").read_text()


def test_neither_batches_nor_processes_change_a_number(checkpoint, digits, on_two_processes, tmp_path):
    words = [checkpoint, "--data", digits, "--split", "train", "--steps", "2", "--device", "cpu", "-n", "140"]
    words += ["--metrics", "fd,kid,is,prdc,memorisation", "--training-data", digits, "--draws", "2"]
    words += ["--labels", "balanced"]
    one = evaluated(*words, "--batch-size", "50", out=tmp_path / "one.json")
    done = on_two_processes("-m", "hf_ddpm.cli", "evaluate", *map(str, words), "--out", str(tmp_path / "two.json"))
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    assert (one["processes"], two["processes"]) == (1, 2)
    assert done.stdout.count("| digit distance |") == 1
    for name, value in by_name(one).items():
        assert by_name(two)[name] == pytest.approx(value, rel=1e-4, abs=1e-9), name
    errors = [number["standard_error"] for number in one["numbers"] if number["name"] == "digit distance"]
    assert errors[0] > 0


def test_a_stopped_command_goes_on(checkpoint, tmp_path, monkeypatch):
    """The images that were kept are not drawn again, and the number is the same."""
    words = [checkpoint, *AGAINST, "-n", "300", "--steps", "2", "--samples", tmp_path / "kept"]
    whole = evaluated(*words[:-1], tmp_path / "whole", out=tmp_path / "whole.json")
    draw, drawn = HFDDPMPipeline.__call__, []

    def stopped(self, batch_size, *arguments, **keywords):
        if len(drawn) == 4:
            raise KeyboardInterrupt
        drawn.append(batch_size)
        return draw(self, batch_size, *arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(HFDDPMPipeline, "__call__", stopped)
        with pytest.raises(SystemExit, match="stopped"):
            evaluated(*words, out=tmp_path / "one.json")
    assert len([*(tmp_path / "kept").glob("*.png")]) == 256
    drawn.clear()
    monkeypatch.setattr(HFDDPMPipeline, "__call__", stopped)
    again = evaluated(*words, out=tmp_path / "one.json")
    assert sum(drawn) == 44
    assert by_name(again) == pytest.approx(by_name(whole))
    with pytest.raises(SystemExit, match="were made with seed=0, but 1 is requested"):
        evaluated(*words, "--seed", "1", out=tmp_path / "one.json")


def test_images_of_others(digits, tmp_path, capsys):
    """A folder against itself: no distance, every image is a copy."""
    words = [digits, "--data", digits, "--split", "train", "--training-data", digits, "--device", "cpu"]
    found = evaluated(*words, "--metrics", "fd,prdc,memorisation,classes", out=tmp_path / "one.json")
    numbers = by_name(found)
    assert numbers["digit distance"] == pytest.approx(0, abs=1e-6)
    assert (numbers["precision"], numbers["recall"], numbers["coverage"]) == (1, 1, 1)
    assert (numbers["memorised"], numbers["class accuracy"]) == (1, 1)
    assert numbers["class accuracy, real images"] < 1
    assert f"100 images, {digits}, against 100 images" in capsys.readouterr().out
    assert Image.open(tmp_path / "one.png").height > 600


def test_a_vae_and_its_reconstructions(digits, tmp_path):
    torch.manual_seed(0)
    vae = HFVAE(sample_size=28, in_channels=1, hidden_sizes=[8], latent_channels=2)
    save_checkpoint(HFVAEPipeline(vae), tmp_path / "vae", {"family": "vae"}, Image.new("L", (28, 28)))
    words = [tmp_path / "vae", "--data", digits, "--split", "train", "-n", "80", "--device", "cpu"]
    found = evaluated(*words, "--metrics", "fd,kid", out=tmp_path / "one.json")
    numbers = by_name(found)
    assert {"digit distance", "digit distance, reconstructions", "KID (digits), reconstructions"} <= numbers.keys()
    data = ImageData(str(digits))
    rows = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:80]
    again = HFVAEPipeline(vae).reconstruct(data.pixels(rows), output_type="pt").images * 2 - 1
    error = (again - (data.pixels(rows).float() / 127.5 - 1)).square().mean().item()
    assert numbers["mean squared error, reconstructions"] == pytest.approx(error, abs=1e-3)
    assert to_uint8(again).dtype == torch.uint8


def test_two_records(checkpoint, tmp_path, capsys):
    """The comparison reports what differs, and whether the numbers can be compared."""
    one, two, three = (tmp_path / f"{i}.json" for i in range(3))
    evaluated(checkpoint, *AGAINST, *FEW, out=one)
    evaluated(checkpoint, *AGAINST, *FEW, "--solver", "ddim", out=two)
    evaluated(checkpoint, *AGAINST, *FEW, "-n", "13", out=three)
    capsys.readouterr()
    main(["evaluate", "--compare", str(one), str(two)])
    shown = capsys.readouterr().out
    assert "These numbers can be compared; their conditions differ in:" in shown
    assert "| samples.scheduler.class | UniPCMultistepScheduler | HFDDPMScheduler |" in shown
    assert "| samples.call.eta | not recorded | 0.0 |" in shown
    main(["evaluate", "--compare", str(one), str(three)])
    shown = capsys.readouterr().out
    assert "These numbers cannot be compared, because they were measured with a different num_images." in shown
    main(["evaluate", "--compare", str(one), str(one)])
    assert "The conditions are the same." in capsys.readouterr().out
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"other\.json is not a record of an evaluation"):
        main(["evaluate", "--compare", str(one), str(tmp_path / "other.json")])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "there is nothing to evaluate: pass a checkpoint"),
        (["{checkpoint}"], "exactly one of .* is needed: pass --data .* or --reference"),
        (
            ["{checkpoint}", "--data", "digits", "--reference", "mnist-test"],
            "exactly one of --data and --reference is needed",
        ),
        (["{checkpoint}", "--data", "digits"], "there is no split 'test' in 'digits'; available: train"),
        (["{checkpoint}", *AGAINST, "-n", "12"], "12 images are fewer than the network's 64 features.*--allow-few"),
        (
            ["{checkpoint}", *AGAINST, "-n", "2"],
            "the number of images, 2, is less than the number of the network's classes, 3",
        ),
        (["{checkpoint}", *AGAINST, "-n", "1", "--class", "1"], "num_images=1 must be at least 2"),
        (["{checkpoint}", *AGAINST, *FEW, "--class", "1", "--labels", "balanced"], "--class 1 sets the class of all"),
        (
            ["{checkpoint}", *AGAINST, *FEW, "--labels", "data"],
            "--labels data needs the labels of real images: pass --data",
        ),
        (["{checkpoint}", *AGAINST, *FEW, "--metrics", "kid"], "--metrics kid needs real images"),
        (["{checkpoint}", *AGAINST, *FEW, "--metrics", " ,"], "--metrics ' ,' has no metric"),
        (["{checkpoint}", *AGAINST, *FEW, "--metrics", "fid"], "is defined only for the Inception network of 2015"),
        (["{checkpoint}", *AGAINST, *FEW, "--extractor", "nowhere.pth"], "nowhere.pth"),
        (["{checkpoint}", *AGAINST, *FEW, "--preprocessing", "pytorch-fid"], "is only for Inception"),
        (["{checkpoint}", "--reference", "nowhere.npz", *FEW], "or their number: pass --reference-by"),
        (["{checkpoint}", "--reference", "nowhere.safetensors", *FEW], "does not contain the statistics of a dataset"),
        (["{checkpoint}", *AGAINST, *FEW, "--samples-format", "npz"], "--samples-format npz needs --samples"),
        (["{checkpoint}", *AGAINST, *FEW, "--draws", "0"], "--draws 0 must be at least 1"),
        (["{checkpoint}", *AGAINST, *FEW, "--out", "one.txt"], "--out one.txt must be a .json file"),
        (["{checkpoint}/..", *AGAINST], "is not a checkpoint: did you mean .*checkpoint"),
        (["{digits}", *AGAINST, "--steps", "3"], "--steps needs a checkpoint, and .* contains images"),
        (["{digits}", *AGAINST, "--samples", "kept"], "--samples needs a checkpoint, and .* contains images"),
        (["{digits}", *AGAINST, "-n", "101"], "101 images are requested, but the source has only 100"),
        (
            ["{digits}", "--data", "{digits}", "--split", "train", "-n", "4", "--metrics", "prdc"],
            "4 images are too few",
        ),
        (["{empty}", *AGAINST], "no images were found in"),
        (["nowhere.npz", *AGAINST], "nowhere.npz does not contain images"),
        (["{colour}", *AGAINST], "images with channels=3 and size 40x40, only for digits: choose one with --extractor"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, checkpoint, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"checkpoint": checkpoint, "digits": digits, "empty": tmp_path / "empty", "colour": tmp_path / "colour"}
    for name in ("empty", "colour"):
        places[name].mkdir()
    for i in range(3):
        Image.new("RGB", (40, 40), "red").save(places["colour"] / f"{i}.png")
    with pytest.raises(SystemExit, match=sentence) as stop:
        main(["evaluate", *(word.format(**places) for word in words)])
    assert str(stop.value.code).startswith("error: ") and "\n" not in str(stop.value.code)


def test_a_reference_of_another_size_or_network_is_refused(digits, tmp_path):
    from hf_ddpm.metrics.extractors import digit_extractor
    from hf_ddpm.metrics.reference import reference_of, save_reference

    small = reference_of(ImageData(str(digits), image_size=30, resize="stretch"), digit_extractor())
    save_reference(small, tmp_path / "small.safetensors")
    with pytest.raises(SystemExit, match=r"made with image_size=\[30, 30\] but the samples .*\[28, 28\]"):
        evaluated(digits, "--reference", tmp_path / "small.safetensors", "--device", "cpu", out=tmp_path / "o.json")
    other = small._replace(conditions=small.conditions | {"weights_sha256": "0" * 64, "image_size": [28, 28]})
    save_reference(other, tmp_path / "other.safetensors")
    with pytest.raises(SystemExit, match="the reference was made with weights_sha256="):
        evaluated(digits, "--reference", tmp_path / "other.safetensors", "--device", "cpu", out=tmp_path / "o.json")


def test_a_sweep(checkpoint, tmp_path, capsys, monkeypatch):
    """A row for each cell, which is not measured again; other options need another folder."""
    words = ["sweep", str(checkpoint), "--over", "steps=2,3", "--over", "solver=ddim,unipc", *AGAINST, *FEW[:3]]
    words += ["--out", str(tmp_path / "sweep")]
    main(words)
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    cells = [cell["cell"] for cell in found["cells"]]
    assert cells == [{"steps": a, "solver": b} for a in ("2", "3") for b in ("ddim", "unipc")]
    assert [cell["network_calls"] for cell in found["cells"]] == [2, 2, 3, 3]
    alone = evaluated(checkpoint, *AGAINST, *FEW[:3], "--steps", "3", "--solver", "ddim", out=tmp_path / "alone.json")
    assert by_name(found["cells"][2]) == pytest.approx(by_name(alone), rel=1e-6)
    assert "| 3 | ddim | " in shown and Image.open(tmp_path / "sweep" / "sweep.png").width > 600

    file = tmp_path / "sweep" / "steps=3,solver=ddim.json"
    os.unlink(file)
    capsys.readouterr()
    main(words)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("cell ")] == [
        "cell steps=3,solver=ddim"
    ]
    with pytest.raises(SystemExit, match="was measured with seed=0, not with seed=1: choose a new --out"):
        main([*words, "--seed", "1"])


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        ([], "there is nothing to sweep over: pass --over"),
        (["steps"], "--over steps must be an option and its values"),
        (["steps=2,,3"], "must be an option and its values"),
        (["stepps=2,3"], "there is no option --stepps to vary; did you mean --steps?"),
        (["out=a,b"], "there is no option --out to vary"),
        (["steps=2,2"], "repeats an option or a value"),
        (["steps=two"], "invalid int value: 'two'"),
        (["solver=ddim,unipc", "eta=0"], "--eta 0.0 cannot be combined with --solver ddim"),
    ],
)
def test_sweeps_that_cannot_be(over, sentence, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word for one in over for word in ("--over", one)]
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(checkpoint), *words, *AGAINST])
    assert sentence in str(stop.value.code) and "\n" not in str(stop.value.code)


def test_the_parser_knows_the_choices_of_what_it_does_not_import():
    assert get_args(Format) == evaluate_command.FORMATS
    assert get_args(Preprocessing) == evaluate_command.RESIZERS


def test_a_record_is_whole_or_not_there(checkpoint, tmp_path, monkeypatch):
    """A sweep takes a cell for done when its record is there."""
    measured = evaluate_command.Measured({"numbers": [], "conditions": {}}, Image.new("L", (8, 8)))
    monkeypatch.setattr("hf_ddpm.evaluation.report.markdown", lambda _: "")
    monkeypatch.setattr(json, "dumps", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        measured.write(tmp_path / "cell.json")
    assert not (tmp_path / "cell.json").exists() and not [*tmp_path.glob(".cell*")]
