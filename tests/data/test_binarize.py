"""Grey images become black and white with the right probability, by draws that belong to the row or to the position."""

import itertools
import math
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from image_files import random_image, write_folder

from hf_ddpm.data import Batch, ImageData, binarized, to_float
from hf_ddpm.data.binarize import row_uniforms, run_uniforms
from hf_ddpm.errors import UserError

ROW_WAYS = {
    "memory": {"cache": "memory"},
    "device": {"cache": "device"},
    "this process": {"cache": "none"},
    "workers": {"cache": "none", "num_workers": 2},
}
STREAM_WAYS = {
    "stream": {"streaming": True, "shuffle_buffer": 5},
    "stream, threads": {"streaming": True, "shuffle_buffer": 5, "num_workers": 2},
}
WAYS = ROW_WAYS | STREAM_WAYS
WHITE = [80, 148, 51, 86, 41, 146, 75, 121, 84, 53, 96, 135, 70, 84, 78, 48, 157, 59, 115, 106]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eleven images: a prime number, so that epochs end inside batches."""
    return str(write_folder(tmp_path_factory.mktemp("images"), 11))


def open_data(source: str, way: str, **options: object) -> ImageData:
    return ImageData(source, image_size=(6, 8), channels=3, **(WAYS[way] | options))


def take(data: ImageData, count: int, **options: object) -> list[Batch]:
    return list(itertools.islice(data.batches(**({"batch_size": 4, "seed": 7} | options)), count))


def stacked(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.x_0 for batch in batches])


def images_by_row(batches: list[Batch]) -> dict[int, bytes]:
    """What each row looked like; it must have looked the same every time."""
    seen: dict[int, bytes] = {}
    for batch in batches:
        for row, image in zip(batch.indices.tolist(), batch.x_0, strict=True):
            assert seen.setdefault(row, image.numpy().tobytes()) == image.numpy().tobytes()
    return seen


def assert_drawn_from(x_0: torch.Tensor, y: torch.Tensor) -> None:
    """n draws (n, ...) of the same grey y (...): the mean of each element within 5 standard errors of y.

    Their squares average 1 if draws are independent; that average is held to 5 of its own standard errors.
    """
    assert torch.isin(x_0, torch.tensor([-1.0, 1.0])).all()
    share = (x_0.double() + 1).mean(0) / 2
    grey = (y > 0) & (y < 1)
    assert torch.equal(share[~grey], y[~grey])
    z = (share - y)[grey] / (y * (1 - y) / len(x_0)).sqrt()[grey]
    assert z.abs().max() < 5
    fourth = (1 / (y * (1 - y)) - 6)[grey] / len(x_0) + 2  # variance of z^2 for a binomial share
    assert abs(float(z.square().mean()) - 1) < 5 * math.sqrt(float(fourth.mean()) / len(z))


def test_an_element_is_white_below_its_intensity_and_only_there() -> None:
    levels = to_float(torch.arange(256, dtype=torch.uint8))
    y = (levels + 1) / 2
    assert torch.equal(binarized(levels, y), -torch.ones(256))
    below = torch.nextafter(y[1:], torch.tensor(0.0))
    assert torch.equal(binarized(levels[1:], below), torch.ones(255))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-24])
def test_black_and_white_stay_for_every_uniform(u: float, dtype: torch.dtype) -> None:
    ends = to_float(torch.tensor([0, torch.iinfo(dtype).max], dtype=torch.int64).to(dtype))
    assert torch.equal(binarized(ends, torch.full_like(ends, u)), ends)
    assert torch.equal(binarized(ends.double(), torch.full_like(ends, u)), ends.double())


def test_uniforms_are_the_24_bit_numbers_of_numpy() -> None:
    def reference(use: int, counter: int, count: int) -> np.ndarray:
        philox = np.random.Philox(key=np.array([5, use], dtype=np.uint64), counter=counter)
        return np.random.Generator(philox).random(count, dtype=np.float32)

    size, blocks = 147, 19  # 19 blocks of 8 numbers hold 147
    for row in (0, 3, 10**9):
        assert np.array_equal(row_uniforms(5, [row], size)[0], reference(0x0B15, row * blocks, size))
        assert np.array_equal(run_uniforms(5, row, 1, size)[0], reference(0x0B1D, row * blocks, size))
    units = run_uniforms(5, 0, 1000, size).astype(np.float64) * 2**24
    assert np.array_equal(units, np.floor(units)) and units.max() < 2**24
    assert abs((units % 2).mean() - 0.5) < 5 * 0.5 / math.sqrt(units.size)  # the last bit is a fair coin


def test_uniforms_belong_to_the_row_and_to_the_position() -> None:
    rows = row_uniforms(5, range(200), 50)
    assert np.array_equal(row_uniforms(5, [7, 199, 7], 50), rows[[7, 199, 7]])
    positions = run_uniforms(5, 0, 200, 50)
    assert np.array_equal(run_uniforms(5, 117, 30, 50), positions[117:147])
    for whole in (rows, positions):  # neighbours, and the two uses of one seed, have nothing in common
        assert abs(np.corrcoef(whole[:-1].ravel(), whole[1:].ravel())[0, 1]) < 5 / math.sqrt(199 * 50)
        assert len(np.unique(whole)) > 0.999 * whole.size
    assert abs(np.corrcoef(rows.ravel(), positions.ravel())[0, 1]) < 5 / math.sqrt(200 * 50)


def test_dynamic_draws_average_to_the_grey_image() -> None:
    grey = next(ImageData(max_images=1).batches(batch_size=1, seed=0)).x_0[0]
    draws = stacked(take(ImageData(max_images=1, binarize="dynamic"), 4, batch_size=1000))
    assert_drawn_from(draws, (grey.double() + 1) / 2)


def test_static_draws_of_equal_images_average_to_the_grey_image(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (1, 12, 12), dtype=np.uint8)
    features = datasets.Features({"grey": datasets.Array3D((1, 12, 12), "uint8")})
    datasets.Dataset.from_dict({"grey": [grey] * 1000}, features=features).save_to_disk(tmp_path)
    (batch,) = take(ImageData(str(tmp_path), image_size=12, binarize="static"), 1, batch_size=1000)
    assert_drawn_from(batch.x_0, torch.from_numpy(grey).double() / 255)


def test_static_draws_of_many_seeds_average_to_the_grey_image() -> None:
    x_0 = to_float(torch.from_numpy(np.array(random_image(0, (24, 24), "L"))))
    draws = [binarized(x_0, torch.from_numpy(row_uniforms(seed, [3], 576)).view(24, 24)) for seed in range(1000)]
    assert_drawn_from(torch.stack(draws), (x_0.double() + 1) / 2)


def test_static_is_one_set_of_images(folder: str) -> None:
    known = images_by_row(take(open_data(folder, "memory", binarize="static"), 1, batch_size=11))
    assert len(known) == len(set(known.values())) == 11
    for way in ROW_WAYS:
        data = open_data(folder, way, binarize="static")
        assert images_by_row(take(data, 9)) == known  # three epochs
        assert images_by_row(take(data, 3, batch_size=7, seed=1, start_step=5)) == known
        parts = [take(data, 5, batch_size=6, rank=rank, world_size=2) for rank in range(2)]
        assert images_by_row(parts[0] + parts[1]) == known


def test_static_seeds_differ_where_elements_are_grey(folder: str) -> None:
    plain, *sets = (
        stacked(take(open_data(folder, "memory", **options), 1, batch_size=11))
        for options in [{}, {"binarize": "static"}, {"binarize": "static", "binarize_seed": 2**63 - 1}]
    )
    y = (plain.double() + 1) / 2
    chance = 2 * y * (1 - y)
    expected, error = chance.sum(), (chance * (1 - chance)).sum().sqrt()
    assert abs((sets[0] != sets[1]).sum() - expected) < 5 * error


def test_the_static_digits_stay_what_they_are() -> None:
    """Published likelihoods are of this set: a change of it is a change of every one of them."""
    data = ImageData(max_images=20, binarize="static", binarize_seed=3)
    (batch,) = take(data, 1, batch_size=20)
    white = dict(zip(batch.indices.tolist(), (batch.x_0 > 0).flatten(1).sum(1).tolist(), strict=True))
    assert [white[row] for row in range(20)] == WHITE


def test_the_mirrored_static_image_is_the_mirror_of_its_binary_image(folder: str) -> None:
    plain = take(open_data(folder, "memory", binarize="static"), 30)
    flipped = take(open_data(folder, "memory", binarize="static", horizontal_flip=True), 30)
    mirrored = [
        not torch.equal(one, maybe)
        for one, maybe in zip(stacked(plain), stacked(flipped), strict=True)
        if torch.equal(maybe, one.flip(-1)) or torch.equal(maybe, one)
    ]
    assert len(mirrored) == 120 and 38 < sum(mirrored) < 82  # fair coins: 60 +- 4 * 5.5


def test_a_stand_in_brings_its_own_bits(tmp_path: Path) -> None:
    source = write_folder(tmp_path, 12, ("cat",))
    (source / "cat" / "005.png").write_bytes(b"no image")
    known = images_by_row(take(open_data(str(source), "memory", binarize="static", on_bad_image="skip"), 9))
    assert set(known) == set(range(12)) - {5}
    assert images_by_row(take(open_data(str(source), "workers", binarize="static", on_bad_image="skip"), 9)) == known


@pytest.mark.parametrize("way", WAYS)
def test_dynamic_resumed_equals_uninterrupted(way: str, folder: str) -> None:
    options = {"binarize": "dynamic", "horizontal_flip": True}
    whole = stacked(take(open_data(folder, way, **options), 10))
    for start in (1, 6):
        rest = take(open_data(folder, way, **options), 10 - start, start_step=start)
        assert torch.equal(stacked(rest), whole[4 * start :])


@pytest.mark.parametrize("way", WAYS)
def test_dynamic_is_the_same_in_two_processes_and_other_batches(way: str, folder: str) -> None:
    data = open_data(folder, way, binarize="dynamic")
    alone = stacked(take(data, 6, batch_size=8))
    parts = [take(data, 6, batch_size=8, rank=rank, world_size=2) for rank in range(2)]
    together = torch.cat([torch.cat([one.x_0, other.x_0]) for one, other in zip(*parts, strict=True)])
    assert torch.equal(together, alone)
    assert torch.equal(stacked(take(data, 4, batch_size=12)), alone)


def test_dynamic_is_the_same_in_every_cache_and_for_every_binarize_seed(folder: str) -> None:
    known = stacked(take(open_data(folder, "memory", binarize="dynamic"), 9))
    for way in ROW_WAYS:
        assert torch.equal(stacked(take(open_data(folder, way, binarize="dynamic", binarize_seed=5), 9)), known)


def test_dynamic_draws_anew_in_every_epoch_and_run(tmp_path: Path) -> None:
    random_image(0).save(tmp_path / "one.png")
    data = open_data(str(tmp_path), "memory", binarize="dynamic")
    draws = [image.numpy().tobytes() for seed in (0, 1) for image in stacked(take(data, 5, seed=seed))]
    assert len(set(draws)) == 40


def test_random_crops_may_be_dynamic(folder: str) -> None:
    options = {"resize": "random_crop", "cache": "none", "binarize": "dynamic"}
    whole = stacked(take(open_data(folder, "this process", **options), 6))
    assert torch.equal(stacked(take(open_data(folder, "workers", **options), 6)), whole)


@pytest.mark.parametrize("kind", ["static", "dynamic"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_black_and_white_image_stays_itself(kind: str, deep: bool, tmp_path: Path) -> None:
    for number in range(4):
        image = random_image(number, (8, 8), "L").point(lambda k: 255 * (k > 127))
        (image.convert("I;16").point(lambda k: k * 257) if deep else image).save(tmp_path / f"{number}.png")
    plain, binary = (
        ImageData(str(tmp_path), image_size=8, channels=1, **options) for options in ({}, {"binarize": kind})
    )
    assert plain.bit_depth == binary.bit_depth == (16 if deep else 8)
    assert torch.equal(stacked(take(binary, 3)), stacked(take(plain, 3)))


def test_description_says_how_images_were_binarised() -> None:
    told = "an element is white with its intensity as the probability, drawn"
    assert f"Binarised (dynamic): {told} again each time it is used." in ImageData(binarize="dynamic").description
    static = ImageData(binarize="static", binarize_seed=4).description
    assert f"Binarised (static): {told} once for each image, seed 4." in static
    assert "Binarised" not in ImageData().description


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"binarize": "statc"}, "binarize is 'statc'; it must be one of static, dynamic; did you mean static?"),
        ({"binarize": "static", "binarize_seed": -1}, "binarize_seed is -1; it must be an integer of at least 0"),
        ({"binarize": "static", "binarize_seed": 2**63}, f"binarize_seed is {2**63}; it must be below 2**63"),
        ({"binarize_seed": 0.5}, "binarize_seed is 0.5; it must be an integer of at least 0"),
        (
            {"binarize": "static", "streaming": True, "shuffle_buffer": 0},
            "a stream does not number its images; set streaming to false, or use 'dynamic'",
        ),
        (
            {"binarize": "static", "resize": "random_crop"},
            "resize 'random_crop' changes them each time; set another resize, or use 'dynamic'",
        ),
    ],
)
def test_binarisations_that_cannot_be(options: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError) as error:
        ImageData(**options)
    assert expected in str(error.value) and "\n" not in str(error.value)
