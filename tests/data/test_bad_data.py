"""Each mistake a user can make is told in one sentence, before training where possible."""

import tarfile
from pathlib import Path

import datasets
import pytest
from image_files import add_file, png_bytes, random_image, write_folder, write_shards

from hf_ddpm.data import ImageData
from hf_ddpm.errors import UserError


def sentence(error: pytest.ExceptionInfo[UserError]) -> str:
    """The message, which must be one line."""
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    return message


def refuse(source: str = "digits", **options: object) -> str:
    with pytest.raises(UserError) as error:
        ImageData(source, **options)
    return sentence(error)


def save(folder: Path, **columns: list[object]) -> str:
    datasets.Dataset.from_dict(columns).save_to_disk(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image_size": 0}, "image_size is 0; it must be a positive number of pixels"),
        ({"image_size": (28, -1)}, "image_size is (28, -1)"),
        ({"image_size": "28"}, "image_size is '28'"),
        ({"channels": 0}, "channels is 0; it must be an integer of at least 1"),
        ({"channels": 5}, "channels is 5; it must be 1, 2, 3 or 4 for image files"),
        (
            {"resize": "croop"},
            "resize is 'croop'; it must be one of crop, pad, stretch, random_crop, none; did you mean crop?",
        ),
        ({"on_bad_image": "ignore"}, "on_bad_image is 'ignore'; it must be one of error, skip"),
        ({"cache": "disk"}, "cache is 'disk'; it must be one of auto, memory, device, none"),
        ({"cache": "memory", "streaming": True}, "cache is 'memory', but images of a stream are decoded each time"),
        ({"cache": "memory", "resize": "random_crop"}, "cache is 'memory', but images with resize 'random_crop'"),
        ({"crop_box": (0, 0, 5)}, "crop_box is (0, 0, 5)"),
        ({"crop_box": (4, 0, 4, 5)}, "crop_box [4, 0, 4, 5] is empty"),
        ({"crop_scale": (0.8,), "resize": "random_crop"}, "crop_scale is [0.8]; it must be [low, high] with 0 < low"),
        ({"crop_scale": (0.0, 1.0), "resize": "random_crop"}, "crop_scale is [0.0, 1.0]; it must be"),
        ({"crop_scale": (0.9, 0.8), "resize": "random_crop"}, "crop_scale is [0.9, 0.8]; it must be"),
        ({"crop_scale": (0.8, 1.1), "resize": "random_crop"}, "crop_scale is [0.8, 1.1]; it must be"),
        ({"crop_scale": (0.8, float("nan")), "resize": "random_crop"}, "crop_scale is [0.8, nan]; it must be"),
        ({"crop_scale": (0.8, 1.0)}, "but resize is 'crop'; use 'random_crop', or crop_scale [1,1]"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"max_images": 0}, "max_images is 0; it must be an integer of at least 1"),
        ({"num_classes": 10}, "num_classes is 10, but there are no labels"),
        ({"num_classes": 0, "label_column": "label"}, "num_classes is 0"),
        ({"split": "tran"}, "there is no split 'tran' in 'digits'; available: train; did you mean train?"),
        ({"config_name": "x"}, "config_name and revision are for datasets on the Hub"),
        ({"image_column": "imge"}, "image_column is 'imge', but the columns are 'image' (Image), 'label' (ClassLabel)"),
        ({"label_column": "lable"}, "did you mean label?"),
        (
            {"num_classes": 7, "label_column": "label"},
            "but labels must be in 0..6 (num_classes=7)",
        ),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], expected: str) -> None:
    assert expected in refuse(**options)


@pytest.mark.parametrize(
    "source", ["./pictures", "/nowhere/images", "~/no such folder", "a/b/c", "x.parquet", "s/*.tar"]
)
def test_missing_paths(source: str) -> None:
    assert refuse(source).startswith(f"the data path {source!r} does not exist")


def test_a_missing_path_names_its_neighbour(tmp_path: Path) -> None:
    write_folder(tmp_path / "flowers")
    assert refuse(str(tmp_path / "flower")).endswith(f"; did you mean {tmp_path / 'flowers'}?")
    assert "did you mean" not in refuse(str(tmp_path / "zzz"))


def test_a_hub_name_without_network() -> None:
    message = refuse("someone/pictures")
    assert message.startswith("the dataset 'someone/pictures' is not on this disk and the Hub cannot be reached")


def test_folders_without_images(tmp_path: Path) -> None:
    assert f"no images were found in {str(tmp_path)!r} (it is empty): pass a folder" in refuse(str(tmp_path))
    (tmp_path / "notes.txt").write_text("no picture")
    said = refuse(str(tmp_path))
    assert "(it contains only other files: 1 of type .txt): pass a folder, a file or an archive of images" in said


def test_an_empty_data_set(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": []}, features=features).save_to_disk(tmp_path)
    assert refuse(str(tmp_path)).endswith("split 'train', is empty")
    assert refuse(str(tmp_path), streaming=True).endswith("split 'train', is empty")


def test_files_that_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"this is no parquet file")
    assert "cannot be opened" in refuse(str(tmp_path / "a.parquet"))
    (tmp_path / "a.doc").write_bytes(b"")
    assert "(it contains only other files: 1 of type .doc): pass" in refuse(str(tmp_path / "a.doc"))


def test_missing_splits_are_listed(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"image": [random_image(0)]})
    for name in ("train", "test"):
        table.to_parquet(tmp_path / f"{name}.parquet")
    for streaming in (False, True):
        message = refuse(str(tmp_path), split="tests", streaming=streaming)
        assert message.endswith("available: test, train; did you mean test?")


@pytest.mark.parametrize("split", ["train[:abc]", "train[4", "train[:200%]", "train[1:2:3]", "train[3]", "train[]"])
def test_what_looks_like_a_slice_and_is_none(split: str, tmp_path: Path) -> None:
    save(tmp_path / "saved", image=[random_image(0)])
    datasets.Dataset.from_dict({"image": [random_image(0)]}).to_parquet(tmp_path / "parquet" / "train.parquet")
    for source in ("digits", str(tmp_path / "saved"), str(tmp_path / "parquet")):
        assert refuse(source, split=split).startswith(f"split {split!r} is not a valid slice; use 'train[:5000]'")


@pytest.mark.parametrize("split", ["train[4:]", "train[999999:]", "train[2:2]", "train[:-9]"])
def test_slices_without_images(split: str, tmp_path: Path) -> None:
    images = [random_image(n) for n in range(4)]
    save(tmp_path / "saved", image=images)
    datasets.Dataset.from_dict({"image": images}).to_parquet(tmp_path / "parquet" / "train.parquet")
    for source in (str(tmp_path / "saved"), str(tmp_path / "parquet")):
        reversed_slice = refuse(source, split="train[3:2]")  # `datasets` alone reads it to the end
        assert reversed_slice.startswith("split 'train[3:2]' begins at row 3 and ends before row 2 of 4;")
        assert refuse(source, split=split) == f"the dataset {source!r}, split {split!r}, is empty"


def test_data_without_labels(tmp_path: Path) -> None:
    source = save(tmp_path, image=[random_image(0)], caption=["a cat"])
    message = refuse(source, channels=3, label_column="auto")
    assert message.startswith("the dataset has no label column: its columns are 'image' (Image), 'caption' (string)")


@pytest.mark.parametrize("bad", [5, -1, None])
def test_labels_outside_the_range_are_named(bad: int | None, tmp_path: Path) -> None:
    source = save(tmp_path, image=[random_image(0)] * 4, label=[0, 1, bad, 1])
    message = refuse(source, channels=3, label_column="label", num_classes=2)
    remedies = {5: "fix the label or set a larger num_classes", -1: "fix the label, or remove the image"}
    remedy = remedies.get(bad, "add a label to the image")
    assert (
        message == f"image 2 has label {bad!r} in column 'label', but labels must be in 0..1 (num_classes=2); {remedy}"
    )


def parquet_of_which_one_has_no_labels(folder: Path) -> str:
    images = [random_image(n) for n in range(6)]
    datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2] * 2}).to_parquet(folder / "a.parquet")
    datasets.Dataset.from_dict({"image": images}).to_parquet(folder / "b.parquet")
    return str(folder)


def a_shard_whose_last_image_has_no_label(folder: Path) -> str:
    (shard,) = write_shards(folder, 6, 1).iterdir()
    with tarfile.open(shard, "a") as tar:
        add_file(tar, "00006.png", png_bytes(random_image(6)))
    return str(folder)


@pytest.mark.parametrize(
    ("make", "column"), [(parquet_of_which_one_has_no_labels, "label"), (a_shard_whose_last_image_has_no_label, "cls")]
)
def test_images_of_a_stream_without_a_label_are_named(make: object, column: str, tmp_path: Path) -> None:
    data = ImageData(
        make(tmp_path), channels=3, label_column=column, num_classes=3, streaming=True, shuffle_buffer=0, image_size=8
    )
    batches = data.batches(batch_size=4, seed=0)
    assert next(batches).labels.tolist() == [0, 1, 2, 0]
    with pytest.raises(UserError) as error:
        next(batches)
    assert sentence(error).startswith(
        f"image 6 has label None in column {column!r}, but labels must be in 0..2 (num_classes=3); add"
    )


def test_labels_of_a_stream_are_checked_when_they_are_read(tmp_path: Path) -> None:
    source = str(write_shards(tmp_path))
    assert "set num_classes to the number of classes" in refuse(source, channels=3, label_column="cls", streaming=True)
    data = ImageData(source, channels=3, label_column="cls", num_classes=2, streaming=True)
    with pytest.raises(UserError) as error:
        next(data.batches(batch_size=12, seed=0))
    assert "has label 2 in column 'cls', but labels must be in 0..1 (num_classes=2)" in sentence(error)


def test_whole_numbers_that_are_no_classes_are_refused_unless_their_number_is_given(tmp_path: Path) -> None:
    source = save(tmp_path, image=[random_image(n) for n in range(4)], label=[0, 4, 1, 10**12])
    message = refuse(source, channels=3, label_column="auto")
    assert message.startswith(
        "label column 'label' contains integers up to 1,000,000,000,000, which are more classes than images (4)"
    )
    save(tmp_path / "few", image=[random_image(n) for n in range(4)], label=[0, 4, 1, 2])
    assert "set num_classes to the number of classes" in refuse(str(tmp_path / "few"), channels=3, label_column="auto")
    assert ImageData(str(tmp_path / "few"), channels=3, label_column="auto", num_classes=5).num_classes == 5


def test_labels_that_are_no_labels(tmp_path: Path) -> None:
    source = save(tmp_path, image=[random_image(0)], label=[0.5])
    assert "contains float64; it must contain integers, strings or ClassLabel" in refuse(
        source, channels=3, label_column="label"
    )


def test_a_label_of_webdataset_without_its_image(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add_file(tar, "0.png", png_bytes(random_image(0)))
        add_file(tar, "1.cls", b"1")
    data = ImageData(str(tmp_path / "a.tar"), channels=3)
    assert "Files that are not used: 1 of type .cls without an image." in data.description
    assert "the dataset has no label column" in refuse(str(tmp_path / "a.tar"), channels=3, label_column="auto")


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(UserError) as error:
        ImageData().batches(batch_size=10, seed=0, world_size=4)  # before the first step
    assert "the global batch size 10 cannot be divided equally by 4 process(es)" in sentence(error)


WAYS = {
    "memory": {"cache": "memory"},
    "workers": {"cache": "none", "num_workers": 1},
    "stream": {"streaming": True},
    "stream, threads": {"streaming": True, "num_workers": 1},
}


def damaged_folder(folder: Path, *names: str) -> str:
    """Twelve images, some of them cut short."""
    write_folder(folder, 12, ("cat",))
    for name in names:
        file = folder / "cat" / name
        file.write_bytes(file.read_bytes()[:60])
    return str(folder)


@pytest.mark.parametrize("way", WAYS)
def test_a_corrupt_image_is_named_and_fatal(way: str, tmp_path: Path) -> None:
    data = ImageData(damaged_folder(tmp_path, "005.png"), image_size=8, channels=3, **WAYS[way])
    with pytest.raises(UserError) as error:
        next(data.batches(batch_size=12, seed=0))
    assert "cannot be decoded" in sentence(error) and "cat/005.png" in sentence(error)
    assert way.startswith("stream") or sentence(error).startswith("image 5 of")


@pytest.mark.parametrize("way", WAYS)
def test_corrupt_images_are_skipped_and_counted(way: str, tmp_path: Path) -> None:
    source = damaged_folder(tmp_path, "000.png", "005.png", "006.png")
    data = ImageData(source, image_size=8, channels=3, on_bad_image="skip", **WAYS[way])
    batch = next(data.batches(batch_size=12, seed=0))
    assert data.skipped == 3
    assert "Could not be decoded and are replaced by the next readable image: 3, such as image" in data.description
    assert "005.png" in data.description
    contents = {image.numpy().tobytes() for image in batch.x_0}
    assert len(contents) == 9


def test_the_replacement_is_the_same_in_memory_and_in_workers(tmp_path: Path) -> None:
    source = damaged_folder(tmp_path, "000.png", "005.png", "006.png", "011.png")
    batches = [
        next(
            ImageData(source, image_size=8, channels=3, on_bad_image="skip", **WAYS[way]).batches(batch_size=12, seed=0)
        )
        for way in ("memory", "workers")
    ]
    assert batches[0].indices.tolist() == batches[1].indices.tolist()
    assert set(batches[0].indices.tolist()) == {1, 2, 3, 4, 7, 8, 9, 10}
    assert batches[0].x_0.equal(batches[1].x_0)


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_a_data_set_of_corrupt_images_only(on_bad_image: str, tmp_path: Path) -> None:
    source = damaged_folder(tmp_path, *(f"{n:03d}.png" for n in range(12)))
    message = refuse(source, channels=3, on_bad_image=on_bad_image)
    assert "cannot be decoded" in message or "(10) cannot be decoded" in message
    assert "000.png" in message
