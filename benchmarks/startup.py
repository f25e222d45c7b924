"""The start-up time of commands: imports, --help and the launcher, in fresh processes."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.options import Options
from benchmarks.report import Result, table, verdict

TITLE = "Start-up"
ABOUT = """Seconds of a fresh process, as wall-clock time and as CPU time; medians, with the commands taking turns.
Commands that do not need torch take at most half a second of CPU time. The diffusers imports are the public names that
hf_ddpm builds on."""
ROOT = Path(__file__).resolve().parent.parent
DIFFUSERS = (
    "from diffusers import DDIMScheduler, DDPMParallelScheduler, DDPMScheduler, DiffusionPipeline, SchedulerMixin, "
    "UNet2DModel"
)
LAUNCH = ["accelerate.commands.launch", "--num_processes=1", "--num_machines=1", "--mixed_precision=no"]
LATE = ("datasets", "matplotlib", "tensorboard", "scipy")  # must be imported only when they are used
TELL = f"; import sys, json; print(json.dumps([m for m in {LATE!r} if m in sys.modules]))"
CLI = ["-m", "hf_ddpm.cli"]
COMMANDS = ("sample", "edit", "evaluate", "sweep", "likelihood", "figure", "push", "space", "demo")  # all but train
LIGHT = {  # commands that do not need torch
    "python, nothing imported": ["-c", "pass"],
    "import hf_ddpm": ["-c", "import hf_ddpm"],
    "hf-ddpm --version": [*CLI, "--version"],
    "hf-ddpm --help": [*CLI, "--help"],
    **{f"hf-ddpm {name} --help": [*CLI, name, "--help"] for name in COMMANDS},
    "hf-ddpm sample --nmu-images 4": [*CLI, "sample", "runs/mnist", "--nmu-images", "4"],
}
HEAVY = {
    "the diffusers imports that hf_ddpm needs": ["-c", DIFFUSERS + TELL],
    "from hf_ddpm import *": ["-c", "from hf_ddpm import *" + TELL],
    "python training/train.py --help": ["training/train.py", "--help"],
    "accelerate launch training/train.py --help": ["-m", *LAUNCH, "--dynamo_backend=no", "training/train.py", "--help"],
}
THEIRS, OURS = list(HEAVY)[:2]
BOUND = 0.5  # CPU seconds of a light command


class Times(NamedTuple):
    """The seconds of one fresh process."""

    clock: float
    cpu: float


def measure(options: Options) -> Result:
    light = dict(list(LIGHT.items())[:4]) if options.quick else LIGHT
    heavy = {name: HEAVY[name] for name in (THEIRS, OURS)} if options.quick else HEAVY
    times: dict[str, list[Times]] = {name: [] for name in light | heavy}
    imported: dict[str, list[str]] = {}
    for _ in range(1 if options.quick else 6):  # the first round is not counted
        for name, words in (light | heavy).items():
            took, printed = _run(words)
            times[name].append(took)
            if name in (THEIRS, OURS):
                imported[name] = json.loads(printed.splitlines()[-1])
    counted = {name: took[1:] or took for name, took in times.items()}
    pairs = zip(counted[OURS], counted[THEIRS], strict=True)
    return {
        "seconds": {name: median(t.clock for t in took) for name, took in counted.items()},
        "cpu_seconds": {name: median(t.cpu for t in took) for name, took in counted.items()},
        "more_for_hf_ddpm": median(ours.clock - theirs.clock for ours, theirs in pairs),
        "imported": {"diffusers": imported[THEIRS], "hf_ddpm": imported[OURS]},
    }


def _run(words: list[str]) -> tuple[Times, str]:
    """Run Python with arguments; return its times and its output. One command has a misspelt option by intention."""
    before, started = _cpu_of_children(), time.perf_counter()
    printed = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return Times(time.perf_counter() - started, _cpu_of_children() - before), printed


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def render(result: Result) -> str:
    seconds, cpu, imported = result["seconds"], result["cpu_seconds"], result["imported"]
    more, slowest = result["more_for_hf_ddpm"], max(cpu[name] for name in LIGHT if name in cpu)
    lines = [
        table(["command", "seconds", "CPU seconds"], [[name, value, cpu[name]] for name, value in seconds.items()]),
        "",
        f"- the slowest command that does not need torch: {slowest:.2f} CPU seconds "
        f"({verdict(slowest, BOUND, at_most=True)})",
        f"- `from hf_ddpm import *` beyond the diffusers imports: {more:.2f} s ({verdict(more, 0.3, at_most=True)})",
        f"- of {', '.join(LATE)}, diffusers imports {_listed(imported['diffusers'])}, "
        f"hf_ddpm {_listed(imported['hf_ddpm'])}",
    ]
    return "\n".join(lines)


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
