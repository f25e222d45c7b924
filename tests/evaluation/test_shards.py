"""Images kept in a folder, of which a stopped command goes on."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from hf_ddpm.data import ImageData
from hf_ddpm.errors import UserError
from hf_ddpm.evaluation.images import Found, Pictures
from hf_ddpm.evaluation.shards import CONDITIONS, join_npz, keep

FORMATS = ["png", "npz", "parquet"]


class Counted:
    """Images that are their index, and how often each was asked for."""

    def __init__(self, seed=0, stop_at=None):
        self.conditions, self.num_images = {"seed": seed, "channels": 1}, None
        self.asked, self.stop_at = [], stop_at

    def class_of(self, i):
        return i % 3

    def pictures(self, indices):
        for i in indices:
            if i == self.stop_at:
                raise KeyboardInterrupt
            self.asked.append(i)
            yield Pictures(torch.full((1, 1, 4, 6), i, dtype=torch.uint8), torch.tensor([i % 3]))


def read(kept, *runs):
    parts = [part for run in runs for part in kept.pictures(run)]
    return torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts])


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_kept_is_read_again(format, tmp_path):
    runs = range(5), range(5, 8)
    first, again = Counted(), Counted()
    drawn = read(keep(first, tmp_path / "kept", format, Accelerator(cpu=True)), *runs)
    found = read(keep(again, tmp_path / "kept", format, Accelerator(cpu=True)), *runs)
    assert torch.equal(drawn[0], found[0]) and drawn[0][:, 0, 0, 0].tolist() == [*range(8)]
    assert torch.equal(drawn[1], found[1])
    assert first.asked == [*range(8)] and again.asked == []


@pytest.mark.parametrize("format", FORMATS)
def test_a_stopped_command_goes_on(format, tmp_path):
    """Only whole runs are there, and they are not drawn again."""
    folder = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        read(keep(Counted(stop_at=6), folder, format, Accelerator(cpu=True)), range(4), range(4, 8))
    assert not [file for file in folder.iterdir() if "unfinished" in file.name]
    second = Counted()
    pixels, _ = read(keep(second, folder, format, Accelerator(cpu=True)), range(4), range(4, 8))
    assert second.asked == [4, 5, 6, 7] and pixels[:, 0, 0, 0].tolist() == [*range(8)]


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_a_longer_run_takes_the_place_of_a_shorter_one(format, tmp_path):
    accelerator = Accelerator(cpu=True)
    read(keep(Counted(), tmp_path / "kept", format, accelerator), range(3))
    longer = Counted()
    read(keep(longer, tmp_path / "kept", format, accelerator), range(5))
    assert longer.asked == [*range(5)]
    assert [file.name for file in (tmp_path / "kept").glob("shard*")] == [f"shard-0000000-0000005.{format}"]
    shorter = Counted()
    pixels, labels = read(keep(shorter, tmp_path / "kept", format, accelerator), range(2))
    assert shorter.asked == [] and pixels[:, 0, 0, 0].tolist() == [0, 1] and labels.tolist() == [0, 1]


@pytest.mark.parametrize("format", FORMATS)
def test_others_can_read_what_is_kept(format, tmp_path, own_cache):
    folder = tmp_path / "kept"
    read(keep(Counted(), folder, format, Accelerator(cpu=True)), range(4), range(4, 6))
    if format == "npz":
        joined = join_npz(folder, 6)
        assert joined.name == "samples_6x4x6x3.npz"
        with np.load(joined, allow_pickle=False) as arrays:
            assert arrays["arr_0"].shape == (6, 4, 6, 3) and arrays["arr_0"].dtype == np.uint8
            assert (arrays["arr_0"] == np.arange(6)[:, None, None, None]).all()
            assert arrays["arr_1"].tolist() == [0, 1, 2, 0, 1, 2]
        source, channels = str(joined), 1
    else:
        source, channels = str(folder), 1
        labels = {} if format == "png" else {"label_column": "label"}
        data = ImageData(source, image_size=(4, 6), **labels)
        assert data.num_images == 6 and (format == "png" or data.num_classes == 3)
    (pictures,) = Found(source, channels=channels).pictures(range(6))
    assert pictures.pixels[:, 0, 0, 0].tolist() == [*range(6)]


def test_a_folder_of_other_images_is_refused(tmp_path):
    folder, accelerator = tmp_path / "kept", Accelerator(cpu=True)
    keep(Counted(seed=1), folder, "png", accelerator)
    assert json.loads((folder / CONDITIONS).read_text()) == {"seed": 1, "channels": 1, "format": "png"}
    with pytest.raises(UserError, match="were made with seed=1, but 2 is requested: use another folder"):
        keep(Counted(seed=2), folder, "png", accelerator)
    with pytest.raises(UserError, match="format='png', but 'npz' is requested"):
        keep(Counted(seed=1), folder, "npz", accelerator)
    (tmp_path / "other").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "other" / "holiday.png")
    with pytest.raises(UserError, match=r"is not empty and has no conditions.json: use a new folder"):
        keep(Counted(), tmp_path / "other", "png", accelerator)


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_file_is_named(format, tmp_path):
    folder, accelerator = tmp_path / "kept", Accelerator(cpu=True)
    read(keep(Counted(), folder, format, accelerator), range(3))
    file = next(file for file in folder.iterdir() if file.suffix == f".{format}")
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(UserError, match=f"{file.name} is damaged .*: delete it and run the command again"):
        read(keep(Counted(), folder, format, accelerator), range(3))
