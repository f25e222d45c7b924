"""The three doors to a saved checkpoint, each opened in a fresh process, by the images that come out."""

import ast
import json
import re
import sys

import diffusers
import numpy as np
import pytest
import torch

from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler
from hf_ddpm.pipelines.doors import GENERATED, relative_imports

DRAW = """
import numpy as np, torch
pipe.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(5)
images = pipe(batch_size=2, num_inference_steps={steps}, generator=generator, output_type="np").images
np.save({out!r}, images)
"""
DOORS = {
    1: "from hf_ddpm import HFDDPMPipeline\npipe = HFDDPMPipeline.from_pretrained({folder!r})",
    2: "from diffusers import DiffusionPipeline\npipe = DiffusionPipeline.from_pretrained({folder!r})",
    3: "from diffusers import DiffusionPipeline\n"
    "pipe = DiffusionPipeline.from_pretrained({folder!r}, custom_pipeline={folder!r}, trust_remote_code=True)",
}

BOTH_REFUSE = """
import diffusers
for kind in (diffusers.DiffusionPipeline, diffusers.DDPMPipeline):
    try:
        kind.from_pretrained({folder!r})
    except Exception as error:
        print(" ".join(str(error).split()))
"""

# Every config that door 2 claims, and the stock class it is claimed for.
STOCK = [
    {},
    {"variance_type": "fixed_large"},
    {"beta_schedule": "cosine", "prediction_type": "v_prediction"},
    {"beta_schedule": "sigmoid", "prediction_type": "sample", "variance_type": "fixed_small_log"},
    {"beta_schedule": "linear_rescaled", "num_train_timesteps": 200},
    {"beta_schedule": "sigmoid_cumprod"},
    {"beta_schedule": "const", "timestep_spacing": "linspace", "variance_type": "fixed_large"},
    {"beta_schedule": "jsd", "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    {
        "beta_schedule": "const",
        "rescale_betas_zero_snr": True,
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
    },
    {"thresholding": True, "sample_max_value": 1.5},
    {"clip_sample": False, "beta_schedule": "quad"},
    {"beta_schedule": "laplace"},
    {"trained_betas": np.geomspace(1e-4, 0.02, 1000).tolist()},
    {"steps_offset": 1},
]
# What stock would sample wrongly or not at all.
OURS_ONLY = [
    {"variance_type": "fixed_large_log"},
    {"prediction_type": "mean"},
    {"variance_type": "fixed_large", "timestep_spacing": "trailing"},
    {"variance_type": "fixed_large", "steps_offset": 1},
    {"variance_type": "learned"},
    {"variance_type": "learned_range", "timestep_spacing": "trailing"},
]


@pytest.fixture
def draw_through(run_python, tmp_path):
    def draw(door, folder, steps=10):
        out = str(tmp_path / f"door{door}.npy")
        code = (DOORS[door] + DRAW).replace("{steps}", str(steps)).replace("{out!r}", repr(out))
        run_python(code.replace("{folder!r}", repr(str(folder))), without_hf_ddpm=door != 1)
        return np.load(out)

    return draw


def draw(pipeline, steps=10):
    generator = torch.Generator().manual_seed(5)
    return pipeline(batch_size=2, num_inference_steps=steps, generator=generator, output_type="np")[0]


def test_all_doors_show_the_same_images(make_pipeline, draw_through, tmp_path):
    pipeline = make_pipeline({"beta_schedule": "cosine", "prediction_type": "v_prediction"})
    pipeline.save_pretrained(tmp_path / "checkpoint")
    expected = draw(pipeline)
    assert expected.std() > 0.1
    assert np.array_equal(draw_through(1, tmp_path / "checkpoint"), expected)
    assert np.abs(draw_through(2, tmp_path / "checkpoint") - expected).max() < 1e-4
    assert np.array_equal(draw_through(3, tmp_path / "checkpoint"), expected)


@pytest.mark.parametrize("config", STOCK, ids=str)
def test_door_2_is_the_same_images_wherever_it_is_open(config, make_pipeline, tmp_path):
    pipeline = make_pipeline(config)
    pipeline.save_pretrained(tmp_path)
    stock = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    stock.set_progress_bar_config(disable=True)
    assert type(stock) is diffusers.DDPMPipeline
    assert type(stock.scheduler) is diffusers.DDPMScheduler
    assert np.abs(draw(stock) - draw(pipeline)).max() < 1e-4


def test_door_2_with_learned_range(make_pipeline, tmp_path):
    pipeline = make_pipeline({"variance_type": "learned_range"}, out_channels=2)
    pipeline.save_pretrained(tmp_path)
    stock = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    stock.set_progress_bar_config(disable=True)
    assert np.abs(draw(stock) - draw(pipeline)).max() < 1e-4


@pytest.mark.parametrize("config", OURS_ONLY, ids=str)
def test_door_2_is_shut_where_stock_is_wrong(config, make_pipeline, run_python, tmp_path):
    learned = config.get("variance_type", "").startswith("learned")
    pipeline = make_pipeline(config, **({"out_channels": 2} if learned else {}))
    folder = tmp_path / "checkpoint"
    pipeline.save_pretrained(folder)
    said = run_python(BOTH_REFUSE.format(folder=str(folder)), without_hf_ddpm=True).stdout.splitlines()
    assert len(said) == 2 and "HFDDPMPipeline" in said[0]


@pytest.mark.parametrize(
    ("scheduler", "unet"),
    [({"prediction_type": "mean"}, {}), ({"variance_type": "learned"}, {"out_channels": 2})],
    ids=["mean", "learned"],
)
def test_door_3_carries_what_stock_lacks(scheduler, unet, make_pipeline, draw_through, tmp_path):
    pipeline = make_pipeline(scheduler, **unet)
    pipeline.save_pretrained(tmp_path / "checkpoint")
    assert np.array_equal(draw_through(1, tmp_path / "checkpoint"), draw(pipeline))
    assert np.array_equal(draw_through(3, tmp_path / "checkpoint"), draw(pipeline))


def test_2c_outputs_without_a_learned_variance_shut_door_2(make_pipeline, tmp_path):
    make_pipeline(out_channels=2).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "HFDDPMPipeline"


def test_class_labels_shut_door_2_and_survive_door_1(make_pipeline, tmp_path):
    pipeline = make_pipeline(num_class_embeds=3)
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "HFDDPMPipeline"
    loaded = HFDDPMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    one, two = (
        p(2, 5, class_labels=[0, 2], generator=torch.Generator().manual_seed(0), output_type="pt")[0]
        for p in (pipeline, loaded)
    )
    assert torch.equal(one, two)


def test_a_checkpoint_opened_by_door_3_saves_itself_whole(run_python, make_pipeline, draw_through, tmp_path):
    pipeline = make_pipeline({"prediction_type": "mean"})
    pipeline.save_pretrained(tmp_path / "checkpoint")
    code = DOORS[3].format(folder=str(tmp_path / "checkpoint")) + f"\npipe.save_pretrained({str(tmp_path / 'again')!r})"
    run_python(code, without_hf_ddpm=True)
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == sorted(
        p.name for p in (tmp_path / "checkpoint").iterdir()
    )
    assert np.array_equal(draw_through(3, tmp_path / "again"), draw(pipeline))
    # the scheduler by its class, not by its place in the cache of that process
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "HFDDPMScheduler"]
    assert np.array_equal(draw_through(1, tmp_path / "again"), draw(pipeline))


BOTH_DOORS = """
import sys, torch
from diffusers import DiffusionPipeline

def door_1():
    import hf_ddpm
    return hf_ddpm.HFDDPMPipeline.from_pretrained("pipe")

def door_3():
    return DiffusionPipeline.from_pretrained("pipe", custom_pipeline="pipe", trust_remote_code=True)

first, second = {order}
opened = [first(), second()]
one, three = opened if first is door_1 else opened[::-1]
images = [p(2, 5, generator=torch.Generator().manual_seed(0), output_type="pt").images for p in opened]
assert torch.equal(*images)
import hf_ddpm
from hf_ddpm.models import HFVAE
assert type(one) is hf_ddpm.HFDDPMPipeline and type(one).__module__ == "hf_ddpm.pipelines.pipeline_hf_ddpm"
assert type(one.scheduler) is hf_ddpm.HFDDPMScheduler
assert type(one.scheduler).__module__ == "hf_ddpm.schedulers.scheduling_hf_ddpm"
assert type(three).__module__.startswith("diffusers_modules.")
assert HFVAE.__module__ == "hf_ddpm.models.vae"
one.save_pretrained("again_1")
three.save_pretrained("again_3")
hf_ddpm.HFDDPMPipeline.from_pretrained("again_3")
print("both")
"""


@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize("order", ["(door_1, door_3)", "(door_3, door_1)"])
def test_doors_1_and_3_open_in_either_order_in_one_process(order, imported, make_pipeline, run_python, tmp_path):
    make_pipeline({"variance_type": "learned"}, out_channels=2).save_pretrained(tmp_path / "pipe")
    code = ("import hf_ddpm\n" if imported else "") + BOTH_DOORS.format(order=order)
    assert run_python(code).stdout.splitlines()[-1] == "both"


def test_old_stock_layout_opens(make_pipeline, draw_through, tmp_path):
    """google/ddpm-cifar10-32: everything in the root, a scheduler under its old name, T under its old key."""
    pipeline = make_pipeline({"variance_type": "fixed_large", "num_train_timesteps": 500, "beta_end": 0.04})
    pipeline.unet.save_pretrained(tmp_path)
    scheduler = {
        "_class_name": "GaussianDDPMScheduler",
        "beta_end": 0.04,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "clip_sample": True,
        "timesteps": 500,
        "variance_type": "fixed_large",
        "trained_betas": None,
    }
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert np.array_equal(draw_through(1, tmp_path), draw(pipeline))


def test_a_ddim_repository_samples_with_eta_0(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    stock = diffusers.DDIMPipeline(pipeline.unet, diffusers.DDIMScheduler())
    stock.save_pretrained(tmp_path)
    loaded = HFDDPMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.scheduler, HFDDPMScheduler)
    generator = torch.Generator().manual_seed(0)
    (deterministic,) = pipeline(2, 10, eta=0.0, generator=generator, output_type="np", return_dict=False)
    (default,) = loaded(2, 10, generator=torch.Generator().manual_seed(0), output_type="np", return_dict=False)
    (told,) = loaded(2, 10, eta=1.0, generator=torch.Generator().manual_seed(0), output_type="np", return_dict=False)
    assert np.array_equal(default, deterministic)
    assert not np.allclose(told, deterministic)
    loaded.save_pretrained(
        tmp_path / "again"
    )  # eta stays with the checkpoint, and stock, which would drop it, is shut out
    assert json.loads((tmp_path / "again" / "model_index.json").read_text())["_class_name"] == "HFDDPMPipeline"
    assert HFDDPMPipeline.from_pretrained(tmp_path / "again").config["default_eta"] == 0.0


def test_other_schedulers_stay_what_they_are(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path)
    loaded = HFDDPMPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is diffusers.DPMSolverMultistepScheduler
    assigned = diffusers.DDIMScheduler()
    loaded.scheduler = assigned
    assert loaded.scheduler is assigned


def test_saved_code_differs_from_the_package_in_its_imports_only(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    import hf_ddpm.models.image_size as image_size
    import hf_ddpm.models.pushing as pushing
    import hf_ddpm.models.savable as savable
    import hf_ddpm.pipelines.call_checks as checks
    import hf_ddpm.pipelines.classifiers as classifiers
    import hf_ddpm.pipelines.doors as doors
    import hf_ddpm.pipelines.editing as editing
    import hf_ddpm.pipelines.evaluating as evaluating
    import hf_ddpm.pipelines.guidance as guidance
    import hf_ddpm.pipelines.guiding as guiding
    import hf_ddpm.pipelines.image_inputs as inputs
    import hf_ddpm.pipelines.image_processors as image_processors
    import hf_ddpm.pipelines.image_space as image_space
    import hf_ddpm.pipelines.interpolation as interpolation
    import hf_ddpm.pipelines.network_signature as network_signature
    import hf_ddpm.pipelines.opening as opening
    import hf_ddpm.pipelines.pipeline_hf_ddpm as pipeline
    import hf_ddpm.pipelines.walk as pipeline_walk
    import hf_ddpm.schedulers.annotations as annotations
    import hf_ddpm.schedulers.beta_schedules as betas
    import hf_ddpm.schedulers.chain_tables as chain_tables
    import hf_ddpm.schedulers.clipping as clipping
    import hf_ddpm.schedulers.coefficient_tables as tables
    import hf_ddpm.schedulers.config_files as config_files
    import hf_ddpm.schedulers.reverse_walk as walk
    import hf_ddpm.schedulers.scheduling_hf_ddpm as scheduling
    import hf_ddpm.schedulers.timestep_spacing as spacing
    import hf_ddpm.schedulers.training_chain as chain
    import hf_ddpm.schedulers.transition as transition

    siblings = (
        annotations,
        config_files,
        image_size,
        image_space,
        pushing,
        savable,
        network_signature,
        pipeline_walk,
        opening,
        doors,
        editing,
        evaluating,
        checks,
        classifiers,
        guidance,
        guiding,
        image_processors,
        inputs,
        interpolation,
        betas,
        chain_tables,
        clipping,
        tables,
        walk,
        scheduling,
        spacing,
        chain,
        transition,
    )
    files = {p.name for p in tmp_path.glob("*.py")}
    assert files == {
        "pipeline.py",
        *(f"{m.__name__.split('.')[-1]}.py" for m in siblings),
    }
    siblings = sorted(file[:-3] for file in files - {"pipeline.py"})
    added = "\n".join([GENERATED.rstrip("\n"), *(f"from .{name} import __name__ as _" for name in siblings), ""])
    for module, name in (
        (pipeline, "pipeline"),
        (doors, "doors"),
        (scheduling, "scheduling_hf_ddpm"),
        (transition, "transition"),
    ):
        with open(module.__file__) as file:
            source = file.read()
        saved = (tmp_path / f"{name}.py").read_text()
        expected = re.sub(r"^from hf_ddpm\.(schedulers|pipelines|models|gate)\.", "from .", source, flags=re.M)
        assert expected + (added if name == "pipeline" else "") == saved
    assert not list(tmp_path.glob("*/*.py"))  # code in a component's folder would ask door 1 for trust


BELOW_DIFFUSERS = {"torch", "diffusers", "huggingface_hub", "safetensors"}  # the last two are its own requirements


def test_an_index_of_modules_opens(make_pipeline, draw_through, tmp_path):
    """As it was written before the Hub was tried."""
    pipeline = make_pipeline({"prediction_type": "mean"})
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["scheduler"] = ["hf_ddpm.schedulers.scheduling_hf_ddpm", "HFDDPMScheduler"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert np.array_equal(draw_through(1, tmp_path), draw(pipeline))
    assert np.array_equal(draw_through(3, tmp_path), draw(pipeline))


def test_saved_files_import_only_torch_diffusers_and_themselves(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    pipeline_imports = set()
    for path in tmp_path.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                assert (tmp_path / f"{node.module}.py").is_file()
                pipeline_imports |= {node.module} if path.name == "pipeline.py" else set()
            elif isinstance(node, ast.ImportFrom):
                root = node.module.split(".")[0]
                assert root in set(sys.stdlib_module_names) | BELOW_DIFFUSERS, node.module
    # diffusers copies first-level imports of pipeline.py alone
    assert pipeline_imports == {p.stem for p in tmp_path.glob("*.py")} - {"pipeline"}


def test_relative_imports_leave_other_lines_alone():
    source = "import hf_ddpm\nfrom hf_ddpm.schedulers.transition import a\nx = 'from hf_ddpm.a.b import c'\n"
    assert relative_imports(source) == "import hf_ddpm\nfrom .transition import a\nx = 'from hf_ddpm.a.b import c'\n"


def test_saved_equals_loaded_bit_for_bit(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path)
    loaded = HFDDPMPipeline.from_pretrained(tmp_path)
    for name, weight in pipeline.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], weight)
    assert torch.equal(loaded.scheduler.alphas_cumprod, pipeline.scheduler.alphas_cumprod)
    saved, read = ({k: v for k, v in p.scheduler.config.items() if k[0] != "_"} for p in (pipeline, loaded))
    assert saved == read
