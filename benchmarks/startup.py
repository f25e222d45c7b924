"""How long a user waits before anything happens: imports, --help and the launcher, in fresh processes."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.options import Options
from benchmarks.report import Result, table, verdict
from benchmarks.timing import Rounds

TITLE = "Start-up"
ABOUT = """Seconds of a fresh process, medians, the commands taking turns. The diffusers imports are the public
names that hf_ddpm builds on."""
ROOT = Path(__file__).resolve().parent.parent
DIFFUSERS = (
    "from diffusers import DDIMScheduler, DDPMParallelScheduler, DDPMScheduler, DiffusionPipeline, SchedulerMixin, "
    "UNet2DModel"
)
LAUNCH = ["accelerate.commands.launch", "--num_processes=1", "--num_machines=1", "--mixed_precision=no"]
LATE = ("datasets", "matplotlib", "tensorboard", "scipy")  # to be imported where they are used, not before
TELL = f"; import sys, json; print(json.dumps([m for m in {LATE!r} if m in sys.modules]))"
COMMANDS = {
    "python": ["-c", "pass"],
    "diffusers": ["-c", DIFFUSERS + TELL],
    "hf_ddpm": ["-c", "from hf_ddpm import *" + TELL],
    "bare": ["-c", "import hf_ddpm"],
    "command": ["-m", "hf_ddpm.cli", "sample", "--help"],
    "help": ["training/train.py", "--help"],
    "launched help": ["-m", *LAUNCH, "--dynamo_backend=no", "training/train.py", "--help"],
}
LABELS = {
    "python": "python, nothing imported",
    "diffusers": "the diffusers imports that hf_ddpm needs",
    "hf_ddpm": "from hf_ddpm import *",
    "bare": "import hf_ddpm, which imports names when they are asked for",
    "command": "hf-ddpm sample --help",
    "help": "python training/train.py --help",
    "launched help": "accelerate launch training/train.py --help",
}


def measure(options: Options) -> Result:
    names = ["diffusers", "hf_ddpm"] if options.quick else list(COMMANDS)
    printed: dict[str, str] = {}

    def runner(name: str) -> Callable[[], None]:
        def run() -> None:
            command = [sys.executable, *COMMANDS[name]]
            printed[name] = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

        return run

    runners = {name: runner(name) for name in names}
    times = Rounds(runners, rounds=1 if options.quick else 5, warm_up=not options.quick)
    return {
        "seconds": {name: times.median(name) for name in names},
        "more_for_hf_ddpm": statistics.median(
            ours - theirs for ours, theirs in zip(times.seconds["hf_ddpm"], times.seconds["diffusers"], strict=True)
        ),
        "imported": {name: json.loads(printed[name].splitlines()[-1]) for name in ("diffusers", "hf_ddpm")},
    }


def render(result: Result) -> str:
    seconds, imported = result["seconds"], result["imported"]
    more = result["more_for_hf_ddpm"]
    lines = [
        table(["command", "seconds"], [[LABELS[name], value] for name, value in seconds.items()]),
        "",
        f"- `from hf_ddpm import *` beyond the diffusers imports: {more:.2f} s ({verdict(more, 0.3, at_most=True)})",
        f"- of {', '.join(LATE)}, diffusers imports {_listed(imported['diffusers'])}, "
        f"hf_ddpm {_listed(imported['hf_ddpm'])}",
    ]
    if "launched help" in seconds:
        lines.append(f"- `accelerate launch` itself: {seconds['launched help'] - seconds['help']:.2f} s")
    return "\n".join(lines)


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
