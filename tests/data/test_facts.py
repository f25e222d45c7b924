"""Facts of a data set: fields for JSON, and the sentences that the log makes of them."""

import dataclasses
import json
from pathlib import Path

import datasets
import pytest
from image_files import random_image, write_folder

from hf_ddpm.data import ImageData
from hf_ddpm.data.decode import ImageDecoder, UndecodableError
from hf_ddpm.data.facts import describe


def test_facts_are_json_and_tell_what_was_opened() -> None:
    data = ImageData(split="train[:40]", label_column="auto", binarize="static", binarize_seed=4)
    facts = data.facts
    told = json.loads(json.dumps(facts.to_dict()))
    assert told["source"] == "digits" and told["origin"] == "package" and told["split"] == "train[:40]"
    assert (told["num_images"], told["channels"], told["image_size"], told["bit_depth"]) == (40, 1, [28, 28], 8)
    assert told["image_column"] == {"name": "image", "found": "only", "among": []}
    assert told["label_column"] == {"name": "label", "found": "guessed", "among": ["label"]}
    assert told["num_classes"] == 10 and told["class_names"] == [str(k) for k in range(10)]
    assert told["binarization"] == {"kind": "static", "seed": 4}
    assert told["first"] == {"width": 28, "height": 28, "mode": "L", "notes": []}
    assert told["kept"] == "in memory" and told["num_bytes"] == 40 * 28 * 28
    assert (told["converted"], told["skipped"], told["skipped_images"], told["latents"]) == ({}, 0, [], None)
    assert describe(facts) == data.description
    with pytest.raises(dataclasses.FrozenInstanceError):
        facts.source = "x"  # type: ignore[misc]


def test_what_was_converted_and_skipped_is_counted_and_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "o'brien", classes=("cat",))
    (folder / "cat" / "005.png").write_bytes(b"no picture")
    data = ImageData(str(folder), image_size=4, on_bad_image="skip")
    next(data.batches(batch_size=2, seed=0))
    facts = data.facts
    assert (facts.origin, facts.skipped) == ("local", 1)
    assert facts.converted == {"colours turned into luminance": 11}
    (image,) = facts.skipped_images
    assert (image.row, image.file) == (5, str(folder / "cat" / "005.png"))
    assert image.reason == "it is not an image that Pillow recognises"
    assert f"image 5 ({image.file}: {image.reason})." in data.description


def test_streams_and_arrays(tmp_path: Path) -> None:
    stream = ImageData(streaming=True).facts
    assert (stream.num_images, stream.kept, stream.num_bytes) == (None, "streamed", 0)
    features = datasets.Features({"a": datasets.Array2D((4, 4), "uint8")})
    datasets.Dataset.from_dict({"a": [[[1] * 4] * 4] * 3}, features=features).save_to_disk(tmp_path / "arrays")
    arrays = ImageData(str(tmp_path / "arrays"), image_size=4)
    assert (arrays.facts.array_dtype, arrays.facts.first) == ("uint8", None)
    assert "Column 'a' holds arrays of uint8." in arrays.description


@pytest.mark.parametrize("damage", ["missing", "a folder", "cut", "text"])
def test_the_reason_names_no_place(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "o'brien" / "x.png"
    file.parent.mkdir()
    random_image(0, (64, 64)).save(file)
    if damage in ("missing", "a folder"):
        file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes(file.read_bytes()[:200] if damage == "cut" else b"no picture")
    with pytest.raises(UndecodableError) as caught:
        ImageDecoder((8, 8), 3)(str(file))
    assert "/" not in str(caught.value) and "brien" not in str(caught.value)
    said = {"missing": "No such file or directory", "a folder": "Is a directory"}
    assert said.get(damage, "") in str(caught.value)
