"""Every kind of source yields the same images and labels."""

import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from image_files import png_bytes, random_image, write_folder, write_shards
from PIL import Image

from hf_ddpm.data import ImageData
from hf_ddpm.data.columns import label_coder, natural_order
from hf_ddpm.errors import UserError

NUM_IMAGES = 12


def rows() -> dict[str, list[object]]:
    return {
        "image": [random_image(number) for number in range(NUM_IMAGES)],
        "label": [n % 3 for n in range(NUM_IMAGES)],
    }


def dataset() -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    return datasets.Dataset.from_dict(rows(), features=features)


def make_parquet(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    dataset().to_parquet(folder / "all.parquet")
    return str(folder / "all.parquet")


def make_parquet_folder(folder: Path) -> str:
    for part in range(2):
        dataset().shard(2, part).to_parquet(folder / f"train-0000{part}-of-00002.parquet")
    return str(folder)


def make_glob(folder: Path) -> str:
    make_parquet_folder(folder)
    return str(folder / "*.parquet")


def make_arrow(folder: Path) -> str:
    dataset().save_to_disk(folder / "saved")
    shutil.copy(next((folder / "saved").glob("*.arrow")), folder / "alone.arrow")
    return str(folder / "alone.arrow")


def make_saved(folder: Path) -> str:
    dataset().save_to_disk(folder)
    return str(folder)


def make_saved_splits(folder: Path) -> str:
    datasets.DatasetDict({"train": dataset(), "test": dataset().select([0])}).save_to_disk(folder)
    return str(folder)


def make_shards(folder: Path) -> str:
    return str(write_shards(folder))


def make_shard_glob(folder: Path) -> str:
    return str(write_shards(folder) / "shard-*.tar")


def make_image_folder(folder: Path) -> str:
    return str(write_folder(folder, NUM_IMAGES, ("a", "b", "c")))


MAKERS = [
    make_parquet,
    make_parquet_folder,
    make_glob,
    make_arrow,
    make_saved,
    make_saved_splits,
    make_shards,
    make_shard_glob,
    make_image_folder,
]


def images_by_content(data: ImageData, num_images: int = NUM_IMAGES) -> dict[bytes, int]:
    batch = next(data.batches(batch_size=num_images, seed=0))
    assert batch.labels is not None
    return {image.numpy().tobytes(): int(label) for image, label in zip(batch.x_0, batch.labels, strict=True)}


def expected() -> dict[bytes, int]:
    pixels = [np.moveaxis(np.asarray(random_image(n)), -1, 0) for n in range(NUM_IMAGES)]
    return {(p.astype(np.float64) / 127.5 - 1).astype(np.float32).tobytes(): n % 3 for n, p in enumerate(pixels)}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_every_source_holds_the_same_images(make: object, streaming: bool, tmp_path: Path) -> None:
    source = make(tmp_path)
    data = ImageData(source, image_size=8, channels=3, label_column="auto", num_classes=3, streaming=streaming)
    assert data.num_images == (None if streaming else NUM_IMAGES)
    assert images_by_content(data) == expected()


def test_image_folder_names_its_classes(tmp_path: Path) -> None:
    data = ImageData(str(write_folder(tmp_path)), image_size=8, channels=3, label_column="label")
    assert (data.class_names, data.num_classes) == (("cat", "dog"), 2)


def test_a_flat_folder_of_mixed_modes_becomes_the_model_channels(tmp_path: Path) -> None:
    for number, mode in enumerate(["L", "LA", "RGB", "RGBA", "1", "P"]):
        random_image(number, (9, 8)).convert(mode).save(tmp_path / f"{number}.png")
    Image.fromarray(np.full((8, 9), 30000, dtype=np.uint16)).save(tmp_path / "6.png")
    data = ImageData(str(tmp_path), image_size=8, channels=3)
    batch = next(data.batches(batch_size=7, seed=0))
    assert batch.x_0.shape == (7, 3, 8, 8) and batch.labels is None
    assert data.bit_depth == 16
    deep = batch.x_0[batch.indices.tolist().index(6)]
    assert torch.equal(deep, torch.full_like(deep, (2 * 30000 - 65535) / 65535))
    assert "Grey repeated in every colour channel (images so far: 4)." in data.description


def test_a_folder_called_like_a_builder_is_still_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_parquet(tmp_path / "parquet")
    monkeypatch.chdir(tmp_path)
    assert ImageData("parquet", image_size=8, channels=3).num_images == NUM_IMAGES


def test_splits_and_slices(tmp_path: Path) -> None:
    source = make_saved_splits(tmp_path)
    sizes = {"train": 12, "test": 1, "train[:5]": 5, "train[50%:]": 6, "train+test": 13}
    assert {split: ImageData(source, split=split, image_size=8, channels=3).num_images for split in sizes} == sizes


@pytest.mark.parametrize("make", [make_parquet, make_parquet_folder, make_glob, make_saved])
def test_slices_hold_images_out(make: object, tmp_path: Path) -> None:
    source = make(tmp_path)
    parts = []
    for split, size in {"train": 12, "train[:9]": 9, "train[9:]": 3}.items():
        data = ImageData(source, split=split, image_size=8, channels=3)
        assert data.num_images == size
        batch = next(data.batches(batch_size=size, seed=0))
        parts.append(batch.x_0[batch.indices.argsort()])
    assert torch.equal(torch.cat(parts[1:]), parts[0])
    assert len(parts[0].unique(dim=0)) == 12


def test_max_images_takes_the_first(tmp_path: Path) -> None:
    source = make_parquet(tmp_path)
    first = {content: label for content, label in expected().items() if content in list(expected())[:5]}
    for streaming in (False, True):
        data = ImageData(source, image_size=8, channels=3, label_column="label", max_images=5, streaming=streaming)
        assert images_by_content(data, 5) == first


def test_raw_bytes_and_plain_structs_are_images_too(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [png_bytes(random_image(n)) for n in range(NUM_IMAGES)]
    columns = {"jpg": files, "content": [{"bytes": file, "path": None} for file in files]}
    labels = [n % 3 for n in range(NUM_IMAGES)]
    for name, values in columns.items():
        pq.write_table(pa.table({"key": labels, name: values, "label": labels}), tmp_path / f"{name}.parquet")
        data = ImageData(str(tmp_path / f"{name}.parquet"), image_size=8, channels=3, label_column="label")
        assert data.image_column == name and data.num_classes == 3
        assert images_by_content(data) == expected()


def test_string_labels_are_numbered_by_their_sorted_names() -> None:
    coder = label_coder(datasets.Value("string"), "kind", None, ["dog", "ant", "dog", "cat"])
    assert coder.names == ("ant", "cat", "dog")
    assert coder.encode(["dog", "ant", "cat"], range(3)).tolist() == [2, 0, 1]


def test_arrays_of_five_channels(tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (4, 5, 8, 8), dtype=np.uint8)
    features = datasets.Features({"cube": datasets.Array3D((5, 8, 8), "uint8")})
    datasets.Dataset.from_dict({"cube": list(arrays)}, features=features).save_to_disk(tmp_path)
    for cache in ("memory", "none"):
        data = ImageData(str(tmp_path), image_size=8, channels=5, cache=cache)
        batch = next(data.batches(batch_size=4, seed=0))
        pixels = ((batch.x_0.double() + 1) * 127.5).round().numpy()
        assert np.array_equal(pixels, arrays[batch.indices.numpy()])


def test_the_image_column_is_guessed_and_said(tmp_path: Path) -> None:
    images = [random_image(n) for n in range(4)]
    table = datasets.Dataset.from_dict({"mask": images, "image": images, "kind": ["x"] * 4})
    table.save_to_disk(tmp_path)
    data = ImageData(str(tmp_path), image_size=8, channels=3)
    assert data.image_column == "image"
    assert "Image column 'image' (guessed among mask, image)." in data.description
    assert ImageData(str(tmp_path), image_size=8, channels=3, image_column="mask").image_column == "mask"


def test_description_tells_what_happens(tmp_path: Path) -> None:
    data = ImageData(str(write_folder(tmp_path)), image_size=4, channels=1)
    assert "12 images" in data.description and "as 1x4x4, 8 bits" in data.description
    assert "The first image has 8x8 pixels in mode RGB (colours converted to luminance)." in data.description
    next(data.batches(batch_size=2, seed=0))
    assert "Colours converted to luminance (images so far: 12)." in data.description


TWELVE = tuple(str(k) for k in range(1, 13))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("glob", [False, True])
def test_folders_are_classes_in_natural_order(glob: bool, streaming: bool, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "numbers", 24, TWELVE)
    source = str(folder / "*" / "*.png") if glob else str(folder)
    data = ImageData(source, image_size=8, channels=3, label_column="auto", streaming=streaming)
    assert data.class_names == TWELVE and data.num_classes == 12
    pixels = [np.moveaxis(np.asarray(random_image(n)), -1, 0) for n in range(24)]
    classes = {(p.astype(np.float64) / 127.5 - 1).astype(np.float32).tobytes(): n % 12 for n, p in enumerate(pixels)}
    assert images_by_content(data, 24) == classes
    assert "12 classes in natural order: 0 is '1', 11 is '12'." in data.description
    assert data.facts.in_natural_order and data.facts.class_names == TWELVE


def test_folders_beyond_num_classes_are_named_by_their_class(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "numbers", 24, TWELVE)
    with pytest.raises(UserError, match=r"has label 9 in column 'label', but labels must be in 0\.\.8"):
        ImageData(str(folder), image_size=8, channels=3, label_column="auto", num_classes=9)


def test_classes_that_a_data_set_declares_keep_their_order(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["1", "10", "2"])})
    declared = datasets.Dataset.from_dict(rows(), features=features)
    declared.to_parquet(tmp_path / "all.parquet")
    folder = write_folder(tmp_path / "folder", 12, ("1", "10", "2"))
    datasets.load_dataset(str(folder), split="train").save_to_disk(tmp_path / "saved")
    for source in ("all.parquet", "saved"):
        data = ImageData(str(tmp_path / source), image_size=8, channels=3, label_column="auto")
        assert data.class_names == ("1", "10", "2") and "order" not in data.description
        assert not data.facts.in_natural_order
        assert images_by_content(data) == expected()


def test_string_labels_are_numbered_in_natural_order(tmp_path: Path) -> None:
    images, kinds = [random_image(n) for n in range(4)], ["item 10", "item 9", None, "Item 2"]
    datasets.Dataset.from_dict({"image": images[:2], "kind": kinds[:2]}).save_to_disk(tmp_path / "saved")
    data = ImageData(str(tmp_path / "saved"), image_size=8, channels=3, label_column="kind")
    assert data.class_names == ("item 9", "item 10") and data.facts.in_natural_order
    coder = label_coder(datasets.Value("string"), "kind", None, kinds)
    assert coder.names == ("Item 2", "item 9", "item 10")
    assert coder.encode(["item 10", "Item 2"], range(2)).tolist() == [2, 0]


def test_natural_order() -> None:
    names = ["b", "a10", "a9", "a09", "a1b2", "a1b10", "", "10", "9" * 5000, "9", "a", "é2", "é10", "Z"]
    assert sorted(names, key=natural_order) == [
        "", "9", "10", "9" * 5000, "Z", "a", "a1b2", "a1b10", "a09", "a9", "a10", "b", "é2", "é10",
    ]  # fmt: skip


def test_another_order_of_classes_is_another_fingerprint(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "numbers", 12, ("1", "2", "10"))
    plain, labelled = (
        ImageData(str(folder), image_size=8, channels=3, label_column=column).fingerprint for column in (None, "label")
    )
    assert labelled.startswith(plain) and "'1', '2', '10'" in labelled
