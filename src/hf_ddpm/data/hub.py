"""Datasets of the Hugging Face Hub whose page does not declare which files are their data.

`datasets` guesses the data of such a repository from words in the names of its files. Here they are found like the data
of a folder of this machine.
"""

from pathlib import Path
from typing import NamedTuple

from hf_ddpm.data.listing import ARCHIVES, TABLES, by_split, suffix_of

BUILDERS = {**TABLES, ".tar": "webdataset"}  # of `datasets`, for addresses


class Addresses(NamedTuple):
    """Files that are read from the Hub while they are used: their format and, for each split, their addresses."""

    builder: str
    files: dict[str, list[str]]


def declares_its_data(card: Path) -> bool:
    """Return whether a README.md says which files are the data of its folder, as those of datasets on the Hub do."""
    from huggingface_hub.repocard import metadata_load

    try:
        return card.is_file() and "configs" in (metadata_load(card) or {})
    except (ValueError, OSError):  # a page of another kind
        return False


def undeclared(source: str, revision: str | None) -> bool:
    """Return whether `source` is a dataset on the Hub, or in its cache on this machine, that declares no files.

    What cannot be reached is left to `datasets`, which has a cache of its own and says what is wrong.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError

    try:
        return not declares_its_data(Path(hf_hub_download(source, "README.md", repo_type="dataset", revision=revision)))
    except LocalEntryNotFoundError:  # the Hub cannot be reached
        try:
            folder = snapshot_download(source, repo_type="dataset", revision=revision, local_files_only=True)
        except (OSError, ValueError):
            return False
        return not declares_its_data(Path(folder) / "README.md")
    except EntryNotFoundError:
        return True
    except (HTTPError, OSError, ValueError):
        return False


def addresses(source: str, revision: str | None) -> Addresses | None:
    """Return the addresses of the data if they are tables or tar archives alone, which can be read as a stream."""
    from huggingface_hub import HfApi

    names = HfApi().list_repo_files(source, repo_type="dataset", revision=revision)
    data = [name for name in names if suffix_of(name) in (*TABLES, *ARCHIVES)]
    others = [name for name in names if name not in data and name not in ("README.md", ".gitattributes")]
    suffixes = {suffix_of(name) for name in data}
    if others or len(suffixes) != 1 or not suffixes <= BUILDERS.keys():
        return None
    at = f"@{revision.replace('/', '%2F')}" if revision else ""
    files: dict[str, list[str]] = {}
    for name, split in zip(data, by_split(data, folders=False), strict=True):
        files.setdefault(split, []).append(f"hf://datasets/{source}{at}/{name}")
    return Addresses(BUILDERS[suffixes.pop()], files)


def download(source: str, revision: str | None) -> Path:
    """Return the folder of all files of a dataset, downloaded into the cache of the Hub if they are not there yet."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, repo_type="dataset", revision=revision))
