"""Training on a data set of the Hub, `data.source` its name, and on a VAE of the Hub, `latents.vae` its name."""

import ast
import io
import json
import tarfile
import textwrap

import pytest
import torch
from datasets import Dataset, Image
from image_files import png_bytes, random_image

from hf_ddpm import HFVAE, HFVAEPipeline
from hf_ddpm.checkpoint import save_checkpoint
from hf_ddpm.hub import push_checkpoint

WORDS = ["--preset", "tiny", "--image_size", "8", "--batch_size", "4", "--total_steps", "2", "--warmup_steps", "1"]
WORDS += ["--num_images", "1", "--num_inference_steps", "1", "--tracker", "none", "--cpu_threads", "1"]


@pytest.fixture
def digits(hub):
    """A data set of 12 images with labels."""
    rows = {"image": [random_image(i, mode="L") for i in range(12)], "label": [i % 3 for i in range(12)]}
    file = io.BytesIO()
    Dataset.from_dict(rows).cast_column("image", Image()).to_parquet(file)
    hub.add_repo("ada/digits", {"data/train-00000-of-00001.parquet": file.getvalue()}, repo_type="dataset")


@pytest.fixture
def train(run_python, tmp_path):
    def run(*words):
        command = ["train", *WORDS, "--output_dir", str(tmp_path / "run"), *words]
        return run_python(f"from hf_ddpm.cli import main\nmain({command!r})", check=False)

    return run


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_a_name_on_the_hub_is_trained_on(streaming, hub, digits, train, tmp_path):
    done = train("--data.source", "ada/digits", "--streaming", streaming)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "run" / "checkpoint" / "training.json").read_text())
    assert (facts["data"]["source"], facts["data"]["origin"]) == ("ada/digits", "hub")
    assert facts["num_images"] == (12 if streaming == "false" else None)
    assert hub.requests("GET", "datasets/ada/digits/resolve")


def test_a_data_set_that_is_not_there_is_one_sentence(hub, train, tmp_path):
    done = train("--data.source", "ada/nothing")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "ada/nothing" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_vae_of_the_hub_makes_the_latents(hub, digits, train, tmp_path):
    torch.manual_seed(0)
    vae = HFVAE(sample_size=16, latent_channels=2, network="conv", block_out_channels=(8, 8), likelihood="gaussian")
    save_checkpoint(HFVAEPipeline(vae), tmp_path / "vae", {"name": "vae"}, random_image(0))
    push_checkpoint(str(tmp_path / "vae"), "ada/vae", private=True)
    latent = ["--latents.vae", "ada/vae", "--clip_sample", "false", "--image_size", "16", "--data.source", "ada/digits"]
    done = train(*latent, "--channels", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "checkpoint" / "training.json").read_text())["latents"]["class"] == "HFVAE"


# --- repositories whose page declares no data -----------------------------------------------------------------------


def opened(run_python, source, **options):
    """What a fresh process sees of a dataset: the number of its images, its classes, and what it left out."""
    code = textwrap.dedent(f"""
        from hf_ddpm.data import ImageData
        data = ImageData({source!r}, image_size=8, channels=1, **{options!r})
        labels = next(data.batches(batch_size=12, seed=0)).labels
        print([data.num_images, data.facts.class_names and list(data.facts.class_names), dict(data.facts.left_out)])
        print(labels if labels is None else sorted(labels.tolist()))
    """)
    done = run_python(code)
    return [ast.literal_eval(line) for line in done.stdout.splitlines()[-2:]]


@pytest.fixture
def pictures():
    """Twelve PNG files by names that `datasets` takes for splits and classes of its own."""
    folders = ("cats", "test subjects", "dev dogs")
    return {f"{folders[i % 3]}/{i:02d}.png": png_bytes(random_image(i, mode="L")) for i in range(12)}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("card", [None, "---\nlicense: mit\n---\n# Pictures\n"])
def test_a_repository_is_opened_like_a_folder(streaming, card, hub, pictures, run_python):
    files = pictures | {"notes.txt": b"about"} | ({} if card is None else {"README.md": card.encode()})
    hub.add_repo("ada/pictures", files, repo_type="dataset")
    (count, classes, left_out), labels = opened(run_python, "ada/pictures", label_column="auto", streaming=streaming)
    assert (count, classes) == (None if streaming else 12, ["cats", "dev dogs", "test subjects"])
    assert labels == sorted(i for i in (0, 1, 2) for _ in range(4))
    assert left_out["of type .txt"] == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_tables_and_shards_are_all_read_whatever_they_are_called(streaming, hub, run_python):
    rows = {"image": [random_image(i, mode="L") for i in range(6)]}
    table, shard = io.BytesIO(), io.BytesIO()
    Dataset.from_dict(rows).cast_column("image", Image()).to_parquet(table)
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for i in range(6):
            content = png_bytes(random_image(i, mode="L"))
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    hub.add_repo("ada/tables", {f"{name}.parquet": table.getvalue() for name in ("a", "dev-b")}, repo_type="dataset")
    hub.add_repo("ada/shards", {f"{name}.tar": shard.getvalue() for name in ("a", "dev-b")}, repo_type="dataset")
    for source in ("ada/tables", "ada/shards"):
        (count, _, _), _ = opened(run_python, source, streaming=streaming, on_bad_image="skip")
        assert count == (None if streaming else 12)


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_whose_shards_end_in_a_hash_stay_apart(streaming, hub, run_python):
    """`push_to_hub` wrote such names until 2023, and no `configs` in the page."""
    files = {}
    for split, count in (("train", 6), ("test", 3)):
        rows = {"image": [random_image(i, mode="L") for i in range(count)], "label": [count] * count}
        file = io.BytesIO()
        Dataset.from_dict(rows).cast_column("image", Image()).to_parquet(file)
        files[f"data/{split}-00000-of-00001-566cc9b19d7203f8.parquet"] = file.getvalue()
    hub.add_repo("ada/older", files, repo_type="dataset")
    for split, count in (("train", 6), ("test", 3)):
        options = {"split": split, "label_column": "label", "num_classes": 10, "streaming": streaming}
        (found, _, _), labels = opened(run_python, "ada/older", **options)
        assert found == (None if streaming else count)
        assert set(labels) == {count}


def test_a_downloaded_repository_opens_without_the_hub(hub, pictures, run_python, monkeypatch):
    hub.add_repo("ada/pictures", pictures, repo_type="dataset")
    before = opened(run_python, "ada/pictures")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert opened(run_python, "ada/pictures") == before
