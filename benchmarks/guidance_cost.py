"""The cost of guidance: time per image and memory, compared with the same sampling without it."""

import json
import statistics
import subprocess
import sys

from benchmarks.options import Options
from benchmarks.report import Result, table

TITLE = "Time and memory of guidance"
ABOUT = """64 digits are drawn with 20 DDIM steps by the network of `mnist-conditional-cfg`, with random weights, in a
separate process for each row and on one thread. The classifier is that of `mnist-classifier`; the image classifier is a
ViT from `transformers` with about as many weights, which sees the predicted x_0. The times are medians of the rounds,
which take turns. The memory is the peak memory of the process, minus that of the same process before sampling."""
CALLS = {
    "unguided": {},
    "classifier-free, scale 2": {"guidance_scale": 2.0},
    "a noisy classifier": {"classifier_scale": 1.0},
    "both": {"guidance_scale": 2.0, "classifier_scale": 1.0},
    "an image classifier": {"classifier_scale": 1.0},
}
ROUNDS = 5
SIDE = """
import json, resource, sys, time, torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil
from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler, unet_preset
from hf_ddpm.models import classifier_preset

torch.set_num_threads(1)
torch.manual_seed(0)
name, call, count = json.loads(sys.argv[1])
schedule = {"num_train_timesteps": 1000, "beta_schedule": "cosine"}
parts = {"null_class": 10}
if name == "an image classifier":
    size = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 384}
    vit = ViTConfig(image_size=28, patch_size=7, num_labels=10, **size)
    parts["classifier"] = ViTForImageClassification(vit).eval()
    parts["image_processor"] = ViTImageProcessorPil(size={"height": 28, "width": 28})
elif call.get("classifier_scale"):
    parts["classifier"] = classifier_preset("mnist", noise_schedule=schedule)
unet = unet_preset("mnist", num_class_embeds=11)
pipeline = HFDDPMPipeline(unet, HFDDPMScheduler(**schedule, prediction_type="sample"), **parts)
pipeline.set_progress_bar_config(disable=True)
walk = {"num_inference_steps": 20, "eta": 0.0, "timestep_spacing": "trailing", "output_type": "pt", **call}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pipeline(count, class_labels=7, **walk)  # the first call makes what is kept
started = time.perf_counter()
pipeline(count, class_labels=7, **walk)
seconds = time.perf_counter() - started
print(json.dumps([seconds / count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]))
"""


def measure(options: Options) -> Result:
    rounds, count = (1, 2) if options.quick else (ROUNDS, 64)
    found: dict[str, list[list[float]]] = {name: [] for name in CALLS}
    for _ in range(rounds):
        for name, call in CALLS.items():
            words = [sys.executable, "-c", SIDE, json.dumps([name, call, count])]
            ended = subprocess.run(words, check=True, capture_output=True, text=True)
            found[name].append(json.loads(ended.stdout.splitlines()[-1]))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    return {"rounds": rounds, "images": count, "seconds_and_mib": medians}


def render(result: Result) -> str:
    medians = result["seconds_and_mib"]
    first, _ = medians["unguided"]
    rows = [
        [name, f"{1000 * seconds:.1f}", f"{seconds / first:.2f}", f"{mib:.0f}"]
        for name, (seconds, mib) in medians.items()
    ]
    return table(["guidance", "ms per image", "ratio to unguided", "additional MiB"], rows)
