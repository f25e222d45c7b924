"""One stream of samples, whatever the process count, the cache, the workers, and wherever the run began."""

import itertools
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from image_files import png_bytes, random_image, write_folder, write_shards
from PIL import Image

import hf_ddpm.data.stream
from hf_ddpm.data import Batch, ImageData

WAYS = {
    "memory": {"cache": "memory"},
    "device": {"cache": "device"},
    "this process": {"cache": "none"},
    "workers": {"cache": "none", "num_workers": 2},
    "stream": {"streaming": True, "shuffle_buffer": 5},
    "stream, threads": {"streaming": True, "shuffle_buffer": 5, "num_workers": 2},
    "stream in order": {"streaming": True, "shuffle_buffer": 0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eleven images: a prime number, so that epochs end inside batches."""
    return str(write_folder(tmp_path_factory.mktemp("images"), 11))


def open_data(source: str, way: str, **options: object) -> ImageData:
    return ImageData(source, **({"image_size": (6, 8), "channels": 3, "label_column": "label"} | WAYS[way] | options))


def take(data: ImageData, count: int, **options: object) -> list[Batch]:
    batches = data.batches(**({"batch_size": 4, "seed": 7} | options))
    return list(itertools.islice(batches, count))


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.x_0, other.x_0)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("way", WAYS)
def test_resumed_equals_uninterrupted(way: str, folder: str) -> None:
    whole = take(open_data(folder, way, horizontal_flip=True), 12)
    for start in (1, 3, 8):  # within the first epoch, and in later ones
        rest = take(open_data(folder, way, horizontal_flip=True), 12 - start, start_step=start)
        assert_same(rest, whole[start:])


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_see_the_samples_of_one(way: str, folder: str) -> None:
    data = open_data(folder, way, horizontal_flip=True)
    alone = take(data, 6, batch_size=8)
    parts = [take(data, 6, batch_size=8, rank=rank, world_size=2) for rank in range(2)]
    together = [
        Batch(*(torch.cat(tensors) for tensors in zip(first[:3], second[:3], strict=True)))
        for first, second in zip(*parts, strict=True)
    ]
    assert_same(together, alone)


@pytest.mark.parametrize("side", [8, 80])  # files of half a kilobyte, decoded without threads, and of 19, with them
def test_small_and_large_files_are_decoded_as_they_are(side: int, tmp_path: Path) -> None:
    files = [{"bytes": png_bytes(random_image(i, (side, side))), "path": None} for i in range(9)]
    datasets.Dataset.from_dict({"image": files}).to_parquet(tmp_path / "train.parquet")
    seen = ImageData(str(tmp_path), image_size=side, channels=3, cache="memory").pixels(torch.arange(9))
    assert [np.array_equal(one.permute(1, 2, 0), random_image(i, (side, side))) for i, one in enumerate(seen)] == [
        True
    ] * 9


@pytest.mark.parametrize("way", ["device", "this process", "workers"])
@pytest.mark.parametrize("bits", [8, 16])
def test_every_way_agrees_with_memory_bit_for_bit(way: str, bits: int, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 11)
    if bits == 16:
        random_image(99, (8, 8), "L").convert("I;16").point(lambda k: k * 200).save(folder / "cat" / "004.png")
    assert_same(
        take(open_data(str(folder), way, horizontal_flip=True), 9),
        take(open_data(str(folder), "memory", horizontal_flip=True), 9),
    )


@pytest.mark.parametrize("way", ["this process", "workers"])
def test_random_crops_belong_to_the_position(way: str, folder: str) -> None:
    options = {"resize": "random_crop", "cache": "none"}
    whole = take(open_data(folder, way, **options), 10)
    assert_same(take(open_data(folder, way, **options), 4, start_step=6), whole[6:])
    assert_same(whole, take(open_data(folder, "this process", **options), 10))
    crops = {image.numpy().tobytes() for batch in whole for image in batch.x_0}
    assert len(crops) > 11  # one image has three possible windows
    assert_same(whole, take(open_data(folder, "this process", crop_scale=[1, 1], **options), 10))


@pytest.mark.parametrize("way", ["this process", "workers", "stream", "stream, threads"])
def test_smaller_crops_of_images_of_the_size_belong_to_the_position_too(way: str, folder: str) -> None:
    options = {"image_size": 8, "resize": "random_crop", "crop_scale": [0.8, 1.0], "horizontal_flip": True}
    whole = take(open_data(folder, way, **options), 10)
    assert_same(take(open_data(folder, way, **options), 4, start_step=6), whole[6:])
    parts = [take(open_data(folder, way, **options), 10, rank=rank, world_size=2) for rank in range(2)]
    for one, *two in zip(whole, *parts, strict=True):
        assert torch.equal(one.x_0, torch.cat([part.x_0 for part in two]))
    if way == "workers":
        assert_same(whole, take(open_data(folder, "this process", **options), 10))
    x_0 = torch.cat([batch.x_0 for batch in whole])
    assert len({image.numpy().tobytes() for image in x_0}) == 40  # no two are alike
    assert torch.isin(x_0, (torch.arange(256).double() / 127.5 - 1).float()).all()
    assert x_0.std() < torch.cat([batch.x_0 for batch in take(open_data(folder, way, image_size=8), 10)]).std()


@pytest.mark.parametrize("way", WAYS)
def test_an_epoch_shows_every_image_once_even_when_smaller_than_a_batch(way: str, folder: str) -> None:
    (batch,) = take(open_data(folder, way), 1, batch_size=33)
    contents = [image.numpy().tobytes() for image in batch.x_0]
    epochs = [contents[start : start + 11] for start in (0, 11, 22)]
    assert all(len(set(epoch)) == 11 for epoch in epochs)
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    shuffled = epochs[0] != epochs[1] and epochs[1] != epochs[2]
    assert shuffled == (way != "stream in order")


@pytest.mark.parametrize("way", ["memory", "stream"])
def test_seeds_change_the_order(way: str, folder: str) -> None:
    one, other = (take(open_data(folder, way), 1, batch_size=11, seed=seed)[0] for seed in (0, 1))
    assert not torch.equal(one.x_0, other.x_0)


def test_flips_mirror_about_half_of_the_images(folder: str) -> None:
    plain = take(open_data(folder, "memory"), 50)
    flipped = take(open_data(folder, "memory", horizontal_flip=True), 50)
    mirrored = 0
    for one, other in zip(plain, flipped, strict=True):
        for image, maybe in zip(one.x_0, other.x_0, strict=True):
            is_mirrored = torch.equal(maybe, image.flip(-1))
            assert is_mirrored or torch.equal(maybe, image)
            mirrored += is_mirrored
    assert 72 < mirrored < 128  # 200 fair coins: 100 +- 4 * 7.07


@pytest.mark.parametrize("way", WAYS)
def test_values_lie_exactly_on_the_grid_after_resizing(way: str, folder: str) -> None:
    x_0 = torch.cat([batch.x_0 for batch in take(open_data(folder, way), 3)])
    grid = (torch.arange(256).double() / 127.5 - 1).float()
    assert torch.isin(x_0, grid).all()
    assert x_0.unique().numel() > 100


def test_the_global_random_state_is_left_alone(folder: str) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy())
    for way in WAYS:
        take(open_data(folder, way, horizontal_flip=True), 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_stopping_early_ends_the_workers(folder: str) -> None:
    import multiprocessing
    import threading

    for way in ("workers", "stream, threads"):
        batches = open_data(folder, way).batches(batch_size=4, seed=0)
        next(batches)
        batches.close()
    del batches
    assert not multiprocessing.active_children()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_large_sets_are_not_cached(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_ddpm.data import image_data

    assert "kept in memory" in open_data(folder, "memory", cache="auto").description
    monkeypatch.setattr(image_data, "_AUTO_CACHE_BYTES", 11 * 3 * 6 * 8 - 1)
    data = open_data(folder, "memory", cache="auto")
    assert "decoded in each epoch" in data.description
    assert_same(take(data, 5), take(open_data(folder, "memory"), 5))


def test_stream_of_shards_has_exact_epochs_and_labels(tmp_path: Path) -> None:
    shards = str(write_shards(tmp_path, num_images=13, num_shards=3))
    data = ImageData(shards, image_size=8, channels=3, label_column="cls", num_classes=3, streaming=True)
    (batch,) = take(data, 1, batch_size=26)
    known = {np.asarray(random_image(n)).tobytes(): n for n in range(13)}
    pixels = ((batch.x_0.double() + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    numbers = [known[image.numpy().tobytes()] for image in pixels]
    assert sorted(numbers[:13]) == sorted(numbers[13:]) == list(range(13))
    assert batch.labels.tolist() == [number % 3 for number in numbers]
    assert batch.indices.tolist() == list(range(26))


def test_streaming_the_embedded_digits() -> None:
    data = ImageData(streaming=True, label_column="label", max_images=20, num_workers=1)
    known = next(ImageData(label_column="label", max_images=20).batches(batch_size=20, seed=0))
    (batch,) = take(data, 1, batch_size=20)
    assert sorted(map(float, batch.x_0.sum((1, 2, 3)))) == pytest.approx(sorted(map(float, known.x_0.sum((1, 2, 3)))))
    assert batch.labels.bincount().tolist() == known.labels.bincount().tolist()


def test_parquet_stream_resumes_across_row_groups(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"image": [random_image(n) for n in range(23)], "label": list(range(23))})
    table.to_parquet(tmp_path / "a.parquet", batch_size=5)
    options = {"streaming": True, "num_classes": 23, "shuffle_buffer": 6}
    whole = take(open_data(str(tmp_path), "memory", cache="auto", **options), 15)
    for start in (2, 7, 12):
        assert_same(
            take(open_data(str(tmp_path), "memory", cache="auto", **options), 2, start_step=start), whole[start:][:2]
        )


@pytest.mark.parametrize("images_that_fit", [1, 3, 100])
def test_a_shuffle_buffer_is_bounded_in_bytes(images_that_fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is shown no earlier than the buffer allows, and every epoch shows each image once."""
    pixels = np.random.default_rng(0).integers(256, size=(40, 16, 16, 3), dtype=np.uint8)
    files = [png_bytes(Image.fromarray(image)) for image in pixels]
    table = datasets.Dataset.from_dict({"image": files, "label": list(range(40))})
    table.to_parquet(tmp_path / "train.parquet")
    monkeypatch.setattr(hf_ddpm.data.stream, "BUFFER_BYTES", images_that_fit * max(map(len, files)))
    data = ImageData(
        str(tmp_path),
        image_size=16,
        channels=3,
        streaming=True,
        shuffle_buffer=20,
        label_column="label",
        num_classes=40,
    )
    shown = torch.cat([batch.labels for batch in take(data, 16, batch_size=5)]).tolist()
    assert sorted(shown[:40]) == sorted(shown[40:]) == list(range(40))
    early = max(label - position for position, label in enumerate(shown[:40]))
    assert early <= min(images_that_fit, 20)
    assert (early > 5) == (images_that_fit == 100)
