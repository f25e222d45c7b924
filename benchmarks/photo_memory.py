"""The memory that a process needs to open a dataset of large photos."""

import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.memory import Growth
from benchmarks.options import Options
from benchmarks.report import Result, table

TITLE = "Memory while opening photos"
ABOUT = """Photos of 3 MB (JPEG files of noise) are opened with `ImageData` and read for one epoch in a fresh process:
the largest increase of the memory of the process, without the pages of files that it maps, which the system takes back
when it needs them, and the seconds. Cached photos are decoded once to 64x64 and kept."""
ROOT = Path(__file__).resolve().parent.parent
WAYS = {
    "folder, cached": {"source": "photos"},
    "parquet, cached": {"source": "photos.parquet"},
    "parquet, streamed": {"source": "photos.parquet", "streaming": True},
    "parquet, streamed in order": {"source": "photos.parquet", "streaming": True, "shuffle_buffer": 0},
}


def measure(options: Options) -> Result:
    count = 4 if options.quick else 256
    with tempfile.TemporaryDirectory() as folder:
        num_bytes = _write(Path(folder), count)
        rows = {}
        for name, keywords in WAYS.items():
            told = {**keywords, "source": f"{folder}/{keywords['source']}", "image_size": 64, "channels": 3}
            command = [sys.executable, "-m", "benchmarks.photo_memory", json.dumps(told), str(count)]
            out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            rows[name] = json.loads(out.splitlines()[-1])
    return {"photos": count, "mib": num_bytes / 2**20, "rows": rows}


def _write(folder: Path, count: int) -> int:
    """Write the photos as files and as parquet; return the bytes of the files."""
    rng, files = np.random.default_rng(0), []
    (folder / "photos").mkdir()
    for i in range(count):
        content = io.BytesIO()
        Image.fromarray(rng.integers(256, size=(1400, 2000, 3), dtype=np.uint8)).save(content, "JPEG", quality=83)
        (folder / "photos" / f"{i:03d}.jpg").write_bytes(content.getvalue())
        files.append({"bytes": content.getvalue(), "path": f"{i:03d}.jpg"})
    pq.write_table(pa.table({"image": files}), folder / "photos.parquet", row_group_size=16)
    return sum(len(file["bytes"]) for file in files)


def render(result: Result) -> str:
    rows = [[name, row["mib"], row["seconds"]] for name, row in result["rows"].items()]
    first = f"{result['photos']} photos, {result['mib']:,.0f} MiB in all."
    return f"{first}\n\n" + table(["opened as", "additional MiB", "seconds"], rows)


def main() -> None:
    """Open a dataset, read one epoch of it, and print how much the memory grew."""
    from hf_ddpm.data import ImageData

    keywords, count = json.loads(sys.argv[1]), int(sys.argv[2])
    next(ImageData("digits").batches(batch_size=4, seed=0))  # imports the modules that every dataset needs
    started = time.perf_counter()
    with Growth() as memory:
        batches = ImageData(**keywords).batches(batch_size=4, seed=0)
        for _ in range(count // 4):
            next(batches)
    print(json.dumps({"mib": memory.mib, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
