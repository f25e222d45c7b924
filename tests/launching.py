"""Training as a user starts it, and what a run left."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "training" / "train.py"


def launch_script(script, *words, processes=1, config_file=None):
    """`accelerate launch` of a script; `on_two_processes` is faster where the launcher is not what is tested.

    Without MPI its `--cpu` and MULTI_CPU start a single process, whatever `--num_processes` says, so two are asked for
    as two GPUs are, and the environment sends them to the CPU.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "-q"]
    if config_file is None:
        command += ["--cpu"] if processes == 1 else ["--multi_gpu"]
        command += ["--num_processes", str(processes), "--num_machines", "1", "--main_process_port", "0"]  # a free one
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", str(script)]
    else:
        command += ["--config_file", str(config_file), str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run([*command, *words], capture_output=True, text=True, timeout=300, env=environment)


def losses(folder):
    return [json.loads(line)["loss"] for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def difference(one, two):
    """The largest, of two dictionaries of weights."""
    return max((one[k] - two[k]).abs().max().item() for k in one)
