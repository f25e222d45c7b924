"""`--resize` and `--crop-box`, which replace the cropping that training recorded, as a user types them."""

import numpy as np
import pytest
from PIL import Image

from hf_ddpm.checkpoint import save_checkpoint
from hf_ddpm.cli import main
from hf_ddpm.commands.options import cropping

FULL = [0, 40, 178, 218]  # of the photos that the model was trained on; those of the tests are already cropped


@pytest.fixture
def checkpoint(make_pipeline, tmp_path):
    """A model of 28x28 images that was trained on crops of larger photos."""
    recipe = {"data": {"source": "photos", "crop_box": FULL, "resize": "stretch"}}
    pipeline = make_pipeline({"num_train_timesteps": 4}, sample_size=28)
    save_checkpoint(pipeline, tmp_path / "checkpoint", {"name": "one", "recipe": recipe}, Image.new("L", (8, 8)))
    return tmp_path / "checkpoint"


@pytest.fixture
def photos(tmp_path):
    """A folder with images of 36x40 pixels."""
    (tmp_path / "photos").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (256, 40, 36), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:03d}.png")
    return tmp_path / "photos"


@pytest.fixture(params=["evaluate", "likelihood", "figure"])
def words(request, checkpoint, photos, tmp_path, monkeypatch):
    """The words of a command that reads the photos."""
    monkeypatch.setattr("hf_ddpm.metrics.reference.cached_assets_path", lambda *_: tmp_path / "assets")
    data = ["--data", str(photos), "--split", "train", "--device", "cpu"]
    return {
        "evaluate": ["evaluate", str(checkpoint), *data, "-n", "4", "--allow-few", "--extractor", "digits"],
        "likelihood": ["likelihood", str(checkpoint), *data, "--method", "bound"],
        "figure": ["figure", "reconstruction", str(checkpoint), *data, "-n", "2"],
    }[request.param] + ["--out", str(tmp_path / ("one.png" if request.param == "figure" else "one.json"))]


def test_the_box_of_training_is_left_out_as_the_message_says(words, tmp_path):
    with pytest.raises(SystemExit, match=r"crop_box .* is not inside its 36x40 pixels: .*--crop-box none in a command"):
        main(words)
    main([*words, "--crop-box", "none"])
    main([*words, "--crop-box", "1,2,29,30", "--resize", "none"])
    with pytest.raises(SystemExit, match="it has 40x36 pixels, but must have 28x28: use another resize"):
        main([*words, "--crop-box", "none", "--resize", "none"])


@pytest.mark.parametrize("command", ["evaluate", "sweep", "likelihood", "figure"])
def test_a_box_is_four_edges(command):
    for box in ("1,2,3", "a,b,c,d", "-1,2,9,10", ""):
        with pytest.raises(SystemExit, match=f"'{box}' must be four edges in pixels, such as 0,20,178,198, or none"):
            main([command, "anything", f"--crop-box={box}"])


def test_what_is_not_given_changes_nothing():
    from argparse import Namespace

    assert cropping(Namespace(resize=None, crop_box=None)) == {}
    assert cropping(Namespace(resize="pad", crop_box=())) == {"resize": "pad", "crop_box": None}
