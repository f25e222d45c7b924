"""Small parts that many tests share. Tiny networks are fastest on one thread."""

import os
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from forking import READ_NO_SETTING, Forks
from hub_server import hub_server
from huggingface_hub import constants

from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler, unet_preset
from hf_ddpm.models import NoisyClassifier

os.environ.setdefault("HF_HUB_OFFLINE", "1")

DIFFUSERS = (
    "import diffusers.utils.dynamic_modules_utils, diffusers.models.unets.unet_2d, diffusers.pipelines.pipeline_utils"
)
OTHER_MODULES = """import diffusers.utils.constants, diffusers.utils.dynamic_modules_utils
diffusers.utils.constants.HF_MODULES_CACHE = diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE = {modules!r}
del diffusers
"""
IMPORTS = "import accelerate, datasets, hf_ddpm.cli, hf_ddpm.checkpoint, hf_ddpm.training.train, tensorboard"
WITHOUT_HF_DDPM = "import sys; sys.modules['hf_ddpm'] = None\n"  # importing it now fails, as if it were not installed


@pytest.fixture(autouse=True)
def fresh_process():
    """Accelerate keeps one state a process, and training sets its threads; each test starts as a new process would."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache of `datasets` that is empty when the test begins."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def make_pipeline():
    """A pipeline with a tiny random UNet whose output is not zero: (scheduler keywords, UNet keywords) -> pipeline."""

    def make(scheduler=None, seed=0, **unet):
        torch.manual_seed(seed)
        network = unet_preset("tiny", **unet).eval()
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        pipeline = HFDDPMPipeline(network, HFDDPMScheduler(**(scheduler or {})))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture
def make_classifier():
    """A tiny random noisy classifier with a gradient that is seen in images: (scheduler keywords, its own) -> network.

    It fits the networks of `make_pipeline`.
    """

    def make(scheduler=None, seed=0, **config):
        torch.manual_seed(seed)
        sizes = {"sample_size": 8, "num_classes": 3, "block_out_channels": (8, 8), "attention_head_dim": 8}
        sizes |= {"down_block_types": ("ResnetDownsampleBlock2D",) * 2, "noise_schedule": scheduler or {}}
        network = NoisyClassifier(**sizes | {"pool": "spatial"} | config).eval()
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        return network

    return make


@pytest.fixture
def make_gaussian_pipeline(make_pipeline):
    """A pipeline whose network knows the truth for independent pixels N(mean, std^2), between the levels too.

    (mean, std, scheduler keywords) -> pipeline.
    """

    def make(mean, std, **scheduler):
        pipeline = make_pipeline({"clip_sample": False} | scheduler)
        abar = pipeline.scheduler.alphas_cumprod

        class Exact(type(pipeline.unet)):
            def forward(self, x, t, class_labels=None):
                position = torch.as_tensor(t, dtype=torch.float64).clamp(0, len(abar) - 1)
                a = torch.lerp(abar[position.long()], abar[position.ceil().long()], position.frac())
                eps = (1 - a).sqrt() * (x - a.sqrt() * mean) / (a * std**2 + 1 - a)
                return type("Output", (), {"sample": eps.to(x.dtype)})

        pipeline.unet.__class__ = Exact
        return pipeline

    return make


@pytest.fixture(scope="session")
def forks():
    """Fresh processes in which no package of ours or of Hugging Face is imported yet."""
    with Forks() as server:
        yield server


@pytest.fixture(scope="session")
def diffusers_forks():
    """Fresh processes in which diffusers is imported, and nothing of ours."""
    with Forks(f"{READ_NO_SETTING}\n{DIFFUSERS}") as server:
        yield server


@pytest.fixture
def run_python(request, tmp_path):
    """Run code in a fresh process and return what it printed; `env` adds to the environment.

    `fresh` has nothing of Hugging Face imported yet, as have tests with a Hub and other settings of theirs.
    """
    modules = str(tmp_path / "modules")

    def run(code, without_hf_ddpm=False, check=True, fresh=False, **env):
        fresh = fresh or "hub" in request.fixturenames or any(name.startswith("HF_") for name in env)
        server = request.getfixturevalue("forks" if fresh else "diffusers_forks")
        env = {**os.environ, "HF_MODULES_CACHE": modules, **env}
        first = (WITHOUT_HF_DDPM if without_hf_ddpm else "") + ("" if fresh else OTHER_MODULES.format(modules=modules))
        ended = server.run(first + code, tmp_path, env)
        assert not check or ended.returncode == 0, ended.stderr
        return ended

    return run


@pytest.fixture(scope="session")
def ready_forks():
    """Fresh processes in which everything is imported already, with the settings of this process."""
    with Forks(IMPORTS) as server:
        yield server


@pytest.fixture
def on_two_processes(request):
    """Run a script, or `-m` and a module, on two processes that find each other by gloo; `launch_script` is slower.

    The client of the Hub reads its settings as it is imported, so those of a test with a Hub import it themselves.
    """
    server = request.getfixturevalue("forks" if "hub" in request.fixturenames else "ready_forks")

    def run(script, *words):
        name, *words = words if script == "-m" else (str(script), *words)
        how = "module" if script == "-m" else "path"
        places = [str(Path(name).parent), str(Path(__file__).parent)]  # of a script that runs a test file
        code = f"import runpy, sys\nsys.argv, sys.path = {[name, *words]!r}, {places!r} + sys.path\n"
        return server.run_together(f"{code}runpy.run_{how}({name!r}, run_name='__main__')", processes=2)

    return run


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub, for this process and for those that it starts; the user is ada."""
    with hub_server() as server:
        for name, value in server.environment(tmp_path / "home", "hf_ada").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)  # the client keeps it from its import on
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("hf_ddpm.gate.hub_access.WAITS", (0.01, 0.01, 0.01))
        yield server
