"""The embedded digits: 5,000 real MNIST images, 500 of each class, and nothing else imported before they are used."""

import hashlib
import subprocess
import sys

import torch

from hf_ddpm.data import ImageData
from hf_ddpm.data.sources import DIGITS_FILE

SHA256_OF_FILE = "57cafe525bffe4209215f44da602eef4a49ba7e6442a2377b715cdfa99e8fbb3"
FIRST_LABELS = [3, 7, 1, 8, 1, 5, 0, 8, 7, 1]


def test_the_file_is_the_documented_one() -> None:
    content = DIGITS_FILE.read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256_OF_FILE
    assert len(content) < 1_000_000
    readme = (DIGITS_FILE.parent / "README.md").read_text()
    assert SHA256_OF_FILE in readme and "CC BY-SA 3.0" in readme


def test_default_data_are_balanced_labelled_digits() -> None:
    data = ImageData(label_column="auto")
    assert (data.num_images, data.num_classes, data.bit_depth) == (5000, 10, 8)
    assert data.class_names == tuple("0123456789")
    batch = next(data.batches(batch_size=5000, seed=0))
    assert batch.x_0.shape == (5000, 1, 28, 28) and batch.x_0.dtype == torch.float32
    assert batch.labels is not None
    assert batch.labels.bincount().tolist() == [500] * 10
    assert batch.labels[batch.indices.argsort()][:10].tolist() == FIRST_LABELS


def test_ink_is_white_on_black_with_the_mean_of_mnist() -> None:
    x_0 = next(ImageData().batches(batch_size=5000, seed=0)).x_0
    mean = (x_0.mean().item() + 1) / 2
    assert abs(mean - 0.1307) < 0.003  # MNIST's well-known mean
    assert x_0[:, :, 0, 0].max() == -1 and x_0.max() == 1


def test_a_slice_of_the_digits_is_disjoint_from_the_rest() -> None:
    train, held_out = ImageData(split="train[:4500]"), ImageData(split="train[4500:]")
    assert (train.num_images, held_out.num_images) == (4500, 500)
    images = [next(data.batches(batch_size=n, seed=0)).x_0 for data, n in ((train, 4500), (held_out, 500))]
    as_bytes = [{image.numpy().tobytes() for image in part} for part in images]
    assert not as_bytes[0] & as_bytes[1]


def test_importing_the_data_layer_imports_no_heavy_package() -> None:
    program = (
        "import sys, diffusers; before = set(sys.modules); import hf_ddpm.data; "
        "print({'datasets', 'pyarrow', 'pandas'} & (set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "set()"
