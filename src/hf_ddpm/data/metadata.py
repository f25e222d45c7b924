"""Read metadata.csv, metadata.jsonl and metadata.parquet next to images: a row for each image, by its `file_name`."""

import csv
import io
import json
from typing import Any

from hf_ddpm.errors import UserError, quoted

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"


def metadata_rows(name: str, content: bytes) -> dict[str, dict[str, Any]] | None:
    """Return the other columns of such a file by the path of the image; None without a column `file_name`.

    The paths of images begin where the path `name` of the file begins.

    Raises:
        UserError: If the file cannot be read.
    """
    try:
        rows = _rows(name, content)
    except (ValueError, csv.Error, OSError) as error:
        raise UserError(f"{name} cannot be read ({quoted(error)}): fix it, or remove it from the folder") from error
    if not rows or FILE_NAME not in rows[0]:
        return None
    folder = name.rpartition("/")[0]
    return {
        "/".join([*([folder] if folder else []), str(row[FILE_NAME])]): {k: v for k, v in row.items() if k != FILE_NAME}
        for row in rows
        if row.get(FILE_NAME)
    }


def _rows(name: str, content: bytes) -> list[dict[str, Any]]:
    if name.endswith(".parquet"):
        import pyarrow.parquet as pq

        table: list[dict[str, Any]] = pq.read_table(io.BytesIO(content)).to_pylist()
        return table
    text = content.decode("utf-8-sig")
    if name.endswith(".csv"):
        return list(csv.DictReader(io.StringIO(text, newline="")))
    return [json.loads(line) for line in text.splitlines() if line.strip()]
