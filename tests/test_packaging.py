"""What is built is whole, what is installed works far from the checkout, and importing it costs next to nothing."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = ("sample", "edit", "evaluate", "sweep", "likelihood", "figure", "push", "space", "demo")
PACKAGE = ROOT / "src" / "hf_ddpm"
NEEDED_FROM_DIFFUSERS = (
    "from diffusers.pipelines.pipeline_utils import DiffusionPipeline\n"
    "from diffusers.models.unets.unet_2d import UNet2DModel\n"
    "from diffusers import DDPMParallelScheduler, DDPMScheduler, DDIMScheduler\n"
    "from diffusers.utils.torch_utils import randn_tensor\n"
)


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    copy = folder / "copy"  # the build writes beside the sources
    for name in ("pipelines", "training", "src"):
        left_behind = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=left_behind)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "model_card.md"):
        shutil.copy(ROOT / name, copy)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, copy], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def files_of_the_package():
    """Paths that a wheel must hold, as read from the checkout: every file in or linked into src/hf_ddpm."""
    found = set()
    for folder, folders, files in os.walk(PACKAGE, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found |= {(Path(folder) / name).relative_to(PACKAGE.parent).as_posix() for name in files}
    return found


def test_the_wheel_holds_every_file_of_the_package(dist):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        inside = {name for name in wheel.namelist() if not re.match(r"hf_ddpm-[^/]*\.dist-info/", name)}
        assert inside == files_of_the_package()
        assert wheel.read("hf_ddpm/model_card.md") == (ROOT / "model_card.md").read_bytes()
        assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_the_source_distribution_holds_what_the_wheel_needs(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"setup.cfg", "pyproject.toml", "LICENSE", "README.md"} <= inside
    assert {"pipelines/pipeline_hf_ddpm.py", "training/train.py", "training/recipes/mnist.yaml"} <= inside
    assert {"src/hf_ddpm/model_card.md", "src/hf_ddpm/data/digits/digits.parquet"} <= inside


def test_it_requires_the_six_packages_and_no_other():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = setup["options"]["install_requires"].split()
    assert [re.match(r"[\w-]+", name)[0] for name in required] == [
        "accelerate",
        "datasets",
        "diffusers",
        "huggingface-hub",
        "torch",
        "transformers",
    ]


def test_every_folder_of_the_package_is_installed():
    """In this checkout a forgotten one can be imported, in a wheel it cannot."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    source = ROOT / "src" / "hf_ddpm"
    folders = {folder.name for folder in source.iterdir() if any(folder.glob("*.py"))}
    assert set(setup["options"]["packages"].split()) == {"hf_ddpm", *(f"hf_ddpm.{name}" for name in folders)}


def test_the_constraints_pin_everything_that_the_extras_name():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = setup["options"]["install_requires"] + "".join(setup["options.extras_require"].values())
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    assert pinned["torch"] == "2.13.0"
    assert {re.match(r"[\w-]+", name)[0].lower() for name in named.split()} <= set(pinned)


def test_importing_it_costs_little_beyond_the_diffusers_classes(run_python):
    needed = run_python(f"{NEEDED_FROM_DIFFUSERS}\nimport sys\nprint(*sys.modules)", fresh=True)
    command = [sys.executable, "-X", "importtime", "-c", "from hf_ddpm import *\nimport sys\nprint(*sys.modules)"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    beyond = set(process.stdout.split()) - set(needed.stdout.split())
    assert "hf_ddpm.schedulers.scheduling_hf_ddpm" in beyond
    assert {name for name in beyond if name.split(".")[0] != "hf_ddpm"} == set()

    lines = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", process.stderr)
    taken = {name: int(microseconds) for microseconds, name in lines}
    own = {name: microseconds for name, microseconds in taken.items() if name in beyond}
    assert len(own) > 10
    assert sum(own.values()) < 0.1 * sum(taken.values()), own  # 0.3 of 5 seconds, on an idle machine


def test_what_needs_no_torch_does_not_wait_for_it(run_python):
    code = "import sys, hf_ddpm, hf_ddpm.cli\nassert {*hf_ddpm.__all__} <= {*dir(hf_ddpm)}\nprint(*sys.modules)"
    found = {*run_python(code, fresh=True).stdout.split()}
    assert "hf_ddpm.kinds" in found
    assert not [name for name in found if name.split(".")[0] in {"diffusers", "transformers", "accelerate", "datasets"}]
    assert not [
        name for name in found if name.startswith(("hf_ddpm.models", "hf_ddpm.pipelines", "hf_ddpm.schedulers"))
    ]


WORDS = ["--version", "--help", "sampel", "sample --hepl", *(f"{command} --help" for command in COMMANDS)]


@pytest.mark.parametrize("words", WORDS)
def test_commands_that_compute_nothing_answer_at_once(words):
    code = "import sys, resource\nfrom hf_ddpm.cli import main\nsys.argv = ['hf-ddpm', *sys.argv[1:]]\n"
    code += "try:\n    main()\nfinally:\n    used = resource.getrusage(resource.RUSAGE_SELF)\n"
    code += "    print('CPU', used.ru_utime + used.ru_stime, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True)
    _, seconds, torch = done.stdout.strip().splitlines()[-1].split()
    assert torch == "False" and float(seconds) < 0.5
    assert "Traceback" not in done.stderr


def test_the_commands_import_heavy_packages_only_when_they_use_them(run_python):
    heavy = {"datasets", "matplotlib", "tensorboard", "pyarrow", "pandas", "torchvision"}
    code = "import sys, hf_ddpm.cli, hf_ddpm.training.train\nprint(*sys.modules)"
    assert heavy & set(run_python(code, fresh=True).stdout.split()) == set()


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """The wheel in a fresh environment that sees this one's packages, but not this checkout; returns its folder."""
    venv = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = next(venv.glob("lib/python*/site-packages"))
    # A line of a .pth adds a folder without reading the .pth files in it, so an editable install stays unseen.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--no-index", "--ignore-installed", next(dist.glob("*.whl"))], check=True)
    return venv


@pytest.fixture
def run_installed(installed, tmp_path):
    """Run a program of the fresh environment in an empty folder."""

    def run(*words, check=True):
        process = subprocess.run(
            [installed / "bin" / words[0], *map(str, words[1:])],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"},
        )
        assert not check or process.returncode == 0, process.stdout + process.stderr
        return process

    return run


@pytest.mark.slow
def test_the_wheel_trains_samples_and_writes_the_card_far_from_the_checkout(run_installed, installed, tmp_path):
    where = run_installed("python", "-c", "import hf_ddpm; print(hf_ddpm.__file__)").stdout
    assert Path(where.strip()).is_relative_to(installed)

    short = "--total_steps 3 --batch_size 4 --num_images 4 --sampling.num_inference_steps 3 --log_every 1 --samples 20"
    trained = run_installed("hf-ddpm", "train", *short.split(), "--tracker", "none", "--output_dir", "run")
    checkpoint = tmp_path / "run" / "checkpoint"
    assert str(Path("run/checkpoint")) in trained.stdout
    card = (checkpoint / "README.md").read_text()
    assert "| optimizer steps | 3, batch size: 4 |" in card
    assert "| images seen | 12 |" in card
    assert "not measured" not in card.split("## What was measured")[0]
    assert (checkpoint / "samples.png").is_file()

    run_installed("hf-ddpm", "sample", "run/checkpoint", "-n", 2, "--steps", 2, "--out", "two.png")
    from PIL import Image

    with Image.open(tmp_path / "two.png") as image:
        assert image.size == (56, 28)


def test_a_mistake_in_an_installed_command_is_one_sentence(run_installed):
    failed = run_installed("hf-ddpm", "sample", "nowhere/at/all", check=False)
    assert failed.returncode != 0
    assert failed.stderr.startswith("error: there is no checkpoint folder at 'nowhere/at/all'")
    assert "Traceback" not in failed.stderr
