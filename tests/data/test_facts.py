"""Facts of a data set: fields for JSON, and the sentences that the log makes of them."""

import dataclasses
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from image_files import random_image, write_folder
from PIL import Image

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
    assert (told["empty"], told["empty_classes"]) == (0, [])
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
    assert facts.converted == {"colours converted to luminance": 11}
    (image,) = facts.skipped_images
    assert (image.row, image.file) == (5, str(folder / "cat" / "005.png"))
    assert image.reason == "it is not an image that Pillow recognises"
    assert f"image 5 ({image.file}: {image.reason})." in data.description


def test_streams_and_arrays(tmp_path: Path) -> None:
    stream = ImageData(streaming=True).facts
    assert (stream.num_images, stream.kept, stream.num_bytes) == (None, "streamed", 0)
    assert ImageData(streaming=True, label_column="auto").facts.empty is None
    features = datasets.Features({"a": datasets.Array2D((4, 4), "uint8")})
    datasets.Dataset.from_dict({"a": [[[1] * 4] * 4] * 3}, features=features).save_to_disk(tmp_path / "arrays")
    arrays = ImageData(str(tmp_path / "arrays"), image_size=4)
    assert (arrays.facts.array_dtype, arrays.facts.first) == ("uint8", None)
    assert "Column 'a' contains arrays of uint8." in arrays.description


def labelled(folder: Path, feature: object, labels: list[object], **options: object) -> ImageData:
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    images = [random_image(n, (4, 4)) for n in range(len(labels))]
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).save_to_disk(folder)
    return ImageData(str(folder), image_size=4, channels=3, label_column="label", **options)


LEARNS_NOTHING = "A model learns nothing about them."


@pytest.mark.parametrize(
    ("feature", "labels", "empty", "said"),
    [
        (datasets.Value("int64"), [0, 3, 1, 1], (2,), "Of the 4 classes, 1 has no image: 2."),
        (
            datasets.Value("int64"),
            [k for k in (10, 20, 30) for _ in range(11)],
            tuple(k for k in range(30) if k not in (10, 20, 30))[:20],
            "Of the 31 classes, 28 have no image: 0, 1, 2 and 25 more.",
        ),
        (
            datasets.ClassLabel(names=["ant", "bee", "cat"]),
            [0, 2],
            (1,),
            "Of the 3 classes, 1 has no image: 1 ('bee').",
        ),
    ],
)
def test_a_class_without_an_image_is_counted_and_said(
    feature: object, labels: list[object], empty: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    data = labelled(tmp_path, feature, labels)
    assert data.facts.empty_classes == empty
    assert data.facts.empty == data.num_classes - len(set(labels))
    assert f"{said} {LEARNS_NOTHING}" in data.description
    assert ("number the labels without gaps" in data.description) == (data.class_names is None)


def test_nothing_is_said_where_every_class_has_an_image(tmp_path: Path) -> None:
    data = labelled(tmp_path, datasets.Value("string"), ["b", "a", "b"])
    assert (data.facts.empty, data.facts.empty_classes) == (0, ())
    assert LEARNS_NOTHING not in data.description


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


@pytest.mark.parametrize(("scale", "dark"), [(1, True), (31, True), (255, False)])
def test_images_that_are_scaled_otherwise_are_mentioned(scale: int, dark: bool, tmp_path: Path) -> None:
    for number in range(3):
        bits = np.random.default_rng(number).integers(0, 2, (8, 8), dtype=np.uint8)
        Image.fromarray(bits * np.uint8(scale)).save(tmp_path / f"{number}.png")
    data = ImageData(str(tmp_path), image_size=8, channels=1)
    assert "nearly black" not in data.description  # not all of them were seen
    next(data.batches(batch_size=3, seed=0))
    assert data.facts.brightest == scale
    assert (f"No value is above {scale} of 255, so all images are nearly black" in data.description) == dark


def test_batches_know_their_bit_depth(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "0.png")
    batch = next(ImageData(str(tmp_path), image_size=8, channels=1).batches(batch_size=1, seed=0))
    assert batch.bit_depth == batch.part(slice(0, 1)).bit_depth == 16
    assert next(ImageData(max_images=2).batches(batch_size=1, seed=0)).bit_depth == 8


def test_labels_that_are_not_used_are_mentioned(tmp_path: Path) -> None:
    assert (
        "No labels are used; a model with classes would use column 'label' (--label_column auto)."
        in ImageData().description
    )
    assert "No labels are used" not in ImageData(label_column="auto").description
    random_image(0).save(tmp_path / "0.png")
    assert "No labels are used." in ImageData(str(tmp_path), image_size=8, channels=3).description
    assert ImageData(label_column="auto").class_names == tuple("0123456789")
