"""What lies on this disk is opened whole, whatever it is called, and what is not used is said."""

import json
import sys
import tarfile
import zipfile
from pathlib import Path

import datasets
import pytest
from image_files import add_file, png_bytes, random_image, write_folder

from hf_ddpm.data import ImageData
from hf_ddpm.data.listing import by_split, classes_of
from hf_ddpm.errors import UserError

CLASSES = ("train", "bus", "2", "10")


def opened(source: object, **options: object) -> ImageData:
    return ImageData(str(source), image_size=8, channels=3, **options)


def refused(source: object, **options: object) -> str:
    with pytest.raises(UserError) as error:
        opened(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def pictures(data: ImageData, count: int) -> dict[int, tuple[bytes, int | None]]:
    """By its row, the bytes of each image and its label."""
    batch = next(data.batches(batch_size=count, seed=0))
    labels = [None] * count if batch.labels is None else batch.labels.tolist()
    found = zip(batch.indices.tolist(), batch.x_0, labels, strict=True)
    return {row: (x_0.numpy().tobytes(), label) for row, x_0, label in found}


def zipped(folder: Path, inside: str = "") -> Path:
    file = folder.with_suffix(".zip")
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):  # the order in an archive is not that of the names
            archive.write(path, inside + path.relative_to(folder).as_posix())
    return file


def tarred(folder: Path, suffix: str = ".tar", inside: str = "") -> Path:
    file = folder.with_suffix(suffix)
    with tarfile.open(file, "w:gz" if suffix.endswith("gz") else "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.add(path, inside + path.relative_to(folder).as_posix(), recursive=False)
    return file


def in_parquet(folder: Path) -> Path:
    paths = sorted(folder.rglob("*.png"))
    names = ["2", "10", "bus", "train"]
    rows = {"image": [str(path) for path in paths], "label": [names.index(path.parent.name) for path in paths]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder.with_suffix(".parquet"))
    return folder.with_suffix(".parquet")


WAYS = {
    "zip": zipped,
    "zip with a folder": lambda folder: zipped(folder, "all of them/"),
    "tar": tarred,
    "tar with ./": lambda folder: tarred(folder, inside="./"),
    "tar.gz": lambda folder: tarred(folder, ".tar.gz"),
    "tgz": lambda folder: tarred(folder, ".tgz"),
    "parquet": in_parquet,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_an_archive_and_a_table_of_the_same_images_are_the_same_data(way: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "vehicles", 12, CLASSES)
    loose, packed = opened(folder, label_column="auto"), opened(WAYS[way](folder), label_column="auto")
    assert loose.class_names == packed.class_names == ("2", "10", "bus", "train")
    assert pictures(loose, 12) == pictures(packed, 12)
    stream = opened(WAYS[way](folder), label_column="auto", streaming=True)
    assert {*pictures(stream, 12).values()} == {*pictures(loose, 12).values()}


def test_several_archives_are_one_data_set(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", 12, ("cat", "dog"))
    (tmp_path / "packed").mkdir()
    for name in ("cat", "dog"):
        with zipfile.ZipFile(tmp_path / "packed" / f"{name}.zip", "w") as archive:
            for path in (folder / name).iterdir():
                archive.write(path, f"{name}/{path.name}")
    data = opened(tmp_path / "packed", label_column="auto")
    assert data.class_names == ("cat", "dog")
    assert {*pictures(data, 12).values()} == {*pictures(opened(folder, label_column="auto"), 12).values()}


@pytest.mark.parametrize(
    "names",
    [
        ["photo of a train.png", "test tubes.png", "dev board.png", "evening.png", "validation.png"],
        ["train.png", "test.png", "val.png"],
        ["bus/train-1.png", "ship/test-1.png"],
        ["train/1.png", "bus/1.png", "ship/test.png"],
        ["test/1.png", "dev/1.png", "eval/1.png"],
        ["a*b/1.png", "a?b/2.png", "[2024]/3.png"],
        ["parquet/1.png", "csv/2.png", "text.png", "json/metadata.png"],
    ],
)
def test_words_in_names_are_words(names: list[str], tmp_path: Path) -> None:
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        random_image(number).save(tmp_path / name)
    data = opened(tmp_path)
    assert data.num_images == len(names) and not data.facts.left_out
    assert len({*pictures(data, len(names)).values()}) == len(names)


@pytest.mark.parametrize("folder", ["photos [2024]", "a*b", "what?", "{x,y}", "50%", "#1 & co", "naïve"])
def test_a_path_is_no_pattern(folder: str, tmp_path: Path) -> None:
    write_folder(tmp_path / folder, 3)
    write_folder(tmp_path / "aXXb", 5)
    assert opened(tmp_path / folder).num_images == 3
    table = datasets.Dataset.from_dict({"image": [random_image(0)]})
    table.to_parquet(tmp_path / "tables" / folder / "train.parquet")
    assert opened(tmp_path / "tables" / folder).num_images == 1
    assert opened(tmp_path / "tables" / folder / "train.parquet").num_images == 1


def test_splits_are_folders_or_tables_that_are_all_called_so(tmp_path: Path) -> None:
    for split, count in {"train": 8, "val": 4, "test": 2}.items():
        write_folder(tmp_path / "folders" / split, count)
        rows = {"image": [random_image(n) for n in range(count)]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "tables" / "data" / f"{split}-00000-of-00001.parquet")
    for source in (tmp_path / "folders", tmp_path / "tables"):
        sizes = {split: opened(source, split=split).num_images for split in ("train", "validation", "test[:1]")}
        assert sizes == {"train": 8, "validation": 4, "test[:1]": 1}
        assert opened(source, split="all").num_images == 14
        assert "there is no split 'tests' in" in refused(source, split="tests")
    data = opened(tmp_path / "folders", label_column="auto")
    assert data.class_names == ("cat", "dog")
    assert "Files that are not used: 2 of split 'test', 4 of split 'validation'." in data.description
    packed = opened(zipped(tmp_path / "folders"), label_column="auto", split="test")
    assert (packed.num_images, packed.class_names) == (2, ("cat", "dog"))
    (tmp_path / "tables" / "data" / "extra.parquet").write_bytes(
        next((tmp_path / "tables").rglob("test-*")).read_bytes()
    )
    assert opened(tmp_path / "tables").num_images == 16  # not all are called so: these are parts of one data set


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/a", "test/b"], ["train", "test"]),
        (["x/Train/a", "x/VAL/b"], ["train", "validation"]),
        (["train/a", "bus/b"], ["train", "train"]),
        (["train/a", "b"], ["train", "train"]),
        (["val/a", "test/b"], ["train", "train"]),
        ([], []),
    ],
)
def test_by_split(names: list[str], splits: list[str]) -> None:
    assert by_split(names, folders=True) == splits


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["cat/1", "dog/1"], ["cat", "dog"]),
        (["all/cat/1", "all/dog/1"], ["cat", "dog"]),
        (["2023/cat/1", "2024/cat/1", "2024/dog/1"], ["cat", "cat", "dog"]),
        (["cat/1", "cat/more/2", "dog/1"], ["cat", "cat", "dog"]),
        (["cat/1", "2"], None),
        (["all/1", "all/2"], None),
        ([], None),
    ],
)
def test_classes_of(names: list[str], classes: list[str] | None) -> None:
    assert classes_of(names) == classes


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", 6)
    for n in range(6):
        (folder / "cat" / f"{n}.txt").write_text("a photo")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._1.png").write_bytes(b"x")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "again").symlink_to(folder, target_is_directory=True)
    (folder / "Makefile").write_text("all:")
    data = opened(folder)
    assert data.num_images == 6
    assert data.facts.left_out == {
        "of type .txt": 6,
        "hidden": 2,
        "broken links": 1,
        "links to a folder that is already listed": 1,
        "without a suffix": 1,
    }
    assert str(tmp_path) not in json.dumps(dict(data.facts.left_out))


@pytest.mark.parametrize("suffix", [".txt", "", ".jpg_large", ".PNG", ".data"])
def test_images_are_found_by_their_content(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Python is no portable pixmap, though it begins with P.")
    for n in range(3):
        (tmp_path / f"picture {n}{suffix}").write_bytes(png_bytes(random_image(n)))
    data = opened(tmp_path)
    assert data.num_images == 3 and data.facts.left_out == {"of type .txt": 1}
    assert opened(zipped(tmp_path)).num_images == 3


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "real", 4)
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(folder / name, target_is_directory=True)
    data = opened(tmp_path / "linked", label_column="auto")
    assert (data.num_images, data.class_names) == (4, ("cat", "dog"))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_beside_images_are_columns(kind: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "birds", 4, ("pictures",))
    rows = {"file_name": [f"pictures/{n:03d}.png" for n in range(3)], "species": ["owl 10", "owl 9", "owl 10"]}
    table = datasets.Dataset.from_dict(rows)
    {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[kind](folder / f"metadata.{kind}")
    table = opened(folder, max_images=3, label_column="species")
    assert table.class_names == ("owl 9", "owl 10")
    assert [label for _, label in dict(sorted(pictures(table, 3).items())).values()] == [1, 0, 1]
    assert "image 3 has label None in column 'species'" in refused(folder, label_column="species")
    assert pictures(opened(zipped(folder), max_images=3, label_column="species"), 3) == pictures(table, 3)


def test_metadata_that_cannot_be_read_or_are_something_else(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 2)
    (folder / "metadata.csv").write_text("name,species\na,b\n")
    assert opened(folder).facts.left_out == {"of type .csv": 1}
    (folder / "metadata.jsonl").write_text('{"file_name": "cat/000.png", "size": 1}\n{')
    assert refused(folder).startswith("metadata.jsonl cannot be read (")
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "cat/000.png", "size": 1}\n{"file_name": "dog/001.png", "size": "big"}'
    )
    assert "the metadata column 'size' has values of different types" in refused(folder)


def test_images_in_two_ways_are_refused_and_the_remedy_works(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 4, ("preview",))
    rows = {"image": [random_image(n) for n in range(3)]}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "data" / "all.parquet")
    message = refused(folder)
    assert message.startswith(f"{str(folder)!r} contains 4 image file(s) and 1 parquet file(s), but a dataset has")
    assert opened(message.split("such as ")[1].split("'")[1]).num_images == 3
    assert opened(folder / "preview").num_images == 4
    assert opened(folder / "**" / "*.png").num_images == 4


def test_damaged_archives(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", 12)
    for file in (zipped(folder), tarred(folder), tarred(folder, ".tgz")):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert refused(file).startswith(f"the archive {str(file)!r} cannot be read (")
        file.write_bytes(b"no archive")
        assert f"the archive {str(file)!r} cannot be read (" in refused(file)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("notes.txt", "none")
    assert "(it contains only other files: 1 of type .txt)" in refused(tmp_path / "empty.zip")


def test_an_archive_that_changes_is_read_anew(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", 4)
    before = pictures(opened(zipped(folder)), 4)
    random_image(99).save(folder / "cat" / "000.png")
    after = pictures(opened(zipped(folder)), 4)
    assert before.keys() == after.keys() and before[0] != after[0] and before[1] == after[1]


def test_a_changed_file_is_another_fingerprint(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 4)
    first, again = opened(folder).fingerprint, opened(folder).fingerprint
    random_image(99, (9, 9)).save(folder / "cat" / "000.png")
    assert first == again != opened(folder).fingerprint


def test_a_readme_may_declare_the_files(tmp_path: Path) -> None:
    for name, count in {"small": 2, "large": 5}.items():
        rows = {"image": [random_image(n) for n in range(count)]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / name / "part.parquet")
    configs = [{"config_name": name, "data_files": f"{name}/*.parquet"} for name in ("small", "large")]
    (tmp_path / "README.md").write_text("---\nconfigs: " + json.dumps(configs) + "\n---\n# Digits\n")
    assert opened(tmp_path, config_name="small").num_images == 2
    assert opened(tmp_path, config_name="large").num_images == 5


@pytest.mark.parametrize("streaming", [False, True])
def test_an_archive_behind_an_address_has_its_folders_as_classes(streaming: bool, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "vehicles", 12, CLASSES)
    data = opened(zipped(folder).as_uri(), label_column="auto", streaming=streaming)
    assert data.class_names == ("2", "10", "bus", "train")
    assert {*pictures(data, 12).values()} == {*pictures(opened(folder, label_column="auto"), 12).values()}


def test_an_address_that_cannot_be_opened_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    for name in ("images.zip", "images.parquet"):
        assert "pip install aiohttp" in refused(f"https://localhost:1/{name}")


def test_webdataset_labels_count_in_folders_too(tmp_path: Path) -> None:
    for n in range(6):
        (tmp_path / f"{n}.png").write_bytes(png_bytes(random_image(n)))
        (tmp_path / f"{n}.cls").write_text(str(n % 3))
    data = opened(tmp_path, label_column="auto")
    assert data.num_classes == 3
    labels = [label for _, label in dict(sorted(pictures(data, 6).items())).values()]
    assert labels == [n % 3 for n in range(6)]


def test_a_member_that_comes_twice_counts_once(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n in (0, 1, 0):
            add_file(tar, f"{n}.png", png_bytes(random_image(n)))
    assert opened(tmp_path / "a.tar").num_images == 2


@pytest.mark.parametrize("name", ["0.cls", "picture", "metadata.csv"])
def test_a_file_that_is_damaged_inside_an_archive_is_one_sentence(name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("0.png", png_bytes(random_image(0)))
        archive.writestr(name, b"file_name,kind\n0.png,owl\n")
    file.write_bytes(file.read_bytes().replace(b"0.png,owl", b"0.png,ow!"))
    assert refused(file).startswith(f"the archive {str(file)!r} cannot be read (Bad CRC-32 for file {name!r})")


def test_what_is_left_out_of_folders_that_a_pattern_names_is_said_too(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_folder(tmp_path / name, 2)
        (tmp_path / name / "gone.png").symlink_to("nowhere.png")
    assert opened(tmp_path / "*").facts.left_out == {"broken links": 2}
