"""The script for Slurm queues a run again until it is finished; `srun` and `scontrol` are stand-ins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import SCRIPT

SLURM = SCRIPT.parent / "launch" / "slurm.sh"
SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit
SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS_PER_NODE='1(x1)' exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> scontrol.txt
[ "$1" = show ] && echo localhost
exit 0
"""
WORDS = ["--preset", "tiny", "--image_size", "8", "--batch_size", "8", "--total_steps", "2", "--num_images", "1"]
WORDS += ["--num_inference_steps", "2", "--sampling.every", "null", "--samples", "0", "--tracker", "none"]
WORDS += ["--cpu_threads", "1", "--max_images", "64", "--output_dir", "run"]


@pytest.mark.slow
def test_a_job_is_queued_again_until_it_is_finished(tmp_path):
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    places = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a[1-2]", "SLURM_NTASKS": "1", "PATH": places}

    def start(*words):
        command = ["bash", str(SLURM), *WORDS, *words]
        return subprocess.run(command, cwd=tmp_path, env={**os.environ, **job}, capture_output=True, text=True)

    first = start("--max_hours", "1e-9")
    assert first.returncode == 75, first.stderr
    assert "requeue 7" in (tmp_path / "scontrol.txt").read_text()
    (tmp_path / "scontrol.txt").unlink()
    second = start()
    assert second.returncode == 0, second.stderr
    assert "requeue" not in (tmp_path / "scontrol.txt").read_text()
    assert (tmp_path / "run" / "checkpoint" / "model_index.json").is_file()
    third = start("--preset", "tinny")
    assert third.returncode == 1 and "requeue" not in (tmp_path / "scontrol.txt").read_text()
