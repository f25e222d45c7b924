"""Damage and size while rows are read: one sentence wherever it lies, and a bound on the memory."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import png_bytes, random_image

from hf_ddpm.data import ImageData
from hf_ddpm.data.reading import reading
from hf_ddpm.errors import UserError

NUM_IMAGES = 400


def table(folder: Path) -> Path:
    rows = [{"bytes": png_bytes(random_image(n)), "path": None} for n in range(NUM_IMAGES)]
    pq.write_table(
        pa.table({"image": rows, "label": [n % 3 for n in range(NUM_IMAGES)]}),
        folder / "all.parquet",
        row_group_size=50,
    )
    return folder / "all.parquet"


def damaged(file: Path, where: float) -> None:
    content = bytearray(file.read_bytes())
    start = int(where * len(content))
    content[start : start + 300] = b"\xff" * min(300, len(content) - start)
    file.write_bytes(content)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("where", [0.0, 0.01, 0.3, 0.6, 0.9, 0.97, 0.999])
def test_a_damaged_table_is_one_sentence_wherever_the_damage_is(where: float, streaming: bool, tmp_path: Path) -> None:
    file = table(tmp_path)
    damaged(file, where)
    options = {"label_column": "label", "num_classes": 3, "streaming": streaming, "shuffle_buffer": 20}
    with pytest.raises(UserError) as error:
        batches = ImageData(str(file), image_size=8, channels=3, **options).batches(batch_size=100, seed=0)
        for _ in range(8):
            next(batches)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert str(file) in str(error.value)


def test_full_memory_and_sentences_stay_what_they_are() -> None:
    for error in (RuntimeError("can't allocate memory"), UserError("a sentence"), TypeError("a bug")):
        with pytest.raises(type(error), match=str(error)), reading("digits"):
            raise error


MEMORY = """
import threading, time
from hf_ddpm.data import ImageData

def in_use():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def watch():
    while True:
        most.append(in_use())
        time.sleep(0.002)

next(ImageData("digits").batches(batch_size=4, seed=0))
before, most = in_use(), []
threading.Thread(target=watch, daemon=True).start()
batches = ImageData({source!r}, image_size=8, channels=3, streaming={streaming}, shuffle_buffer=0)
batches = batches.batches(batch_size=4, seed=0)
for _ in range(30):
    next(batches)
print((max(most) - before) // 1024)
"""


@pytest.mark.parametrize("streaming", [False, True])
def test_opening_photos_is_bounded_by_their_bytes(streaming: bool, run_python, tmp_path: Path) -> None:
    photo = png_bytes(random_image(0)) + bytes(3_000_000)  # decoded in no time; what follows the image is ignored
    rows = pa.table({"image": [{"bytes": photo, "path": None}] * 120})
    pq.write_table(rows, tmp_path / "photos.parquet", row_group_size=8)
    code = MEMORY.format(source=str(tmp_path / "photos.parquet"), streaming=streaming)
    grown = int(run_python(code, HF_DATASETS_CACHE=str(tmp_path / "cache")).stdout)
    assert grown < 280, grown  # MiB, where the photos together have 343
