"""What happens to a run that is killed, signalled, out of disk space, damaged, diverged, or started twice.

    python -m benchmarks.faults

Writes benchmarks/faults.md. Every fault is applied to a real run of a tiny network in its own process; afterwards, the
run continues with `--resume auto` and must end with the same weights as an undisturbed run, bit for bit.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from benchmarks.ours import recipe_with, start
from benchmarks.report import machine, table
from benchmarks.timing import Rounds
from hf_ddpm.training import train as training
from hf_ddpm.training.states import check_finite, damage_of, save_state, write_manifest

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path(__file__).parent / "faults.md"
STEPS, EVERY = 24, 3
TINY = ["--preset", "tiny", "--image_size", "8", "--batch_size", "8", "--warmup_steps", "0", "--log_every", "1"]
TINY += ["--num_images", "2", "--num_inference_steps", "2", "--sampling.every", "null", "--tracker", "none"]
TINY += ["--max_images", "64", "--cpu_threads", "1", "--samples", "0", "--total_steps", str(STEPS)]
TINY += ["--checkpoints.every", str(EVERY), "--checkpoints.keep", "3"]
SURVIVED, REFUSED, LOST = "survived", "rejected with an error", "lost"
SENTENCE = re.compile(r"^(error: |stopped at step )[^\n]+$", re.M)


class Trial:
    """One run in its own folder, in processes that are forks of this one."""

    def __init__(self, folder: Path, words: Sequence[str] = TINY) -> None:
        self.run, self.said, self.words = folder / "run", folder / "said.txt", words

    def start(self, *words: str, before: Callable[[], None] | None = None) -> int:
        """Start or continue it; return its process ID."""
        child = os.fork()
        if child:
            return child
        with self.said.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = 1
        try:
            if before is not None:
                before()
            training.main([*self.words, "--output_dir", str(self.run), *words])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def finished(self, *words: str) -> int:
        """Run it to its end and return the exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(*words), 0)[1])

    def reached(self, child: int, step: int) -> None:
        """Wait until the log contains a step, or until the process has ended."""
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        self.logged(step, while_running=lambda: os.waitid(os.P_PID, child, ended) is None)

    def logged(self, step: int, *, while_running: Callable[[], bool]) -> None:
        """Wait until the log contains a step, or until the run has ended."""
        log = self.run / "log.jsonl"
        while while_running():
            if log.is_file() and log.read_text().count("\n") >= step:
                return
            time.sleep(0.002)

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.run / "states" / f"step_{STEPS:08d}" / "model.safetensors")


def outcome(trial: Trial, wanted: dict[str, torch.Tensor], *words: str) -> str:
    """Continue the run, and compare its weights."""
    trial.said.write_text("")
    code = trial.finished("--resume", "auto", *words)
    said = trial.said.read_text()
    if code == 0:
        found = trial.weights()
        return SURVIVED if all(torch.equal(found[name], weight) for name, weight in wanted.items()) else LOST
    return REFUSED if code in (1, 75) and SENTENCE.search(said) and "Traceback" not in said else LOST


def killed(trial: Trial, wanted: Any, chance: random.Random, number: int) -> str:
    """Send SIGKILL before, during or after a save."""
    child = trial.start()
    trial.reached(child, chance.randrange(STEPS))
    time.sleep(chance.random() * 0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return outcome(trial, wanted)


def signalled(trial: Trial, wanted: Any, chance: random.Random, number: int) -> str:
    """Send one of the four signals, twice, at any step."""
    child = trial.start()
    trial.reached(child, chance.randrange(STEPS - 2))
    asked = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)[number % 4]
    for _ in range(2):
        os.kill(child, asked)
        time.sleep(0.01)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (75, 0):  # 0 if the run was finished already
        return LOST
    return outcome(trial, wanted)


def full_disk(trial: Trial, wanted: Any, chance: random.Random, number: int) -> str:
    """Limit the size of files, so that the recipe, the log, the weights or the optimizer is the first to exceed it."""
    limit = (200, 900, 8_000, 30_000, 70_000, 105_000)[number % 6]

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.dont_write_bytecode = True

    trial.said.write_text("")
    child = trial.start(before=no_room)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (1, -signal.SIGXFSZ):
        return LOST
    return outcome(trial, wanted)


def not_finite(trial: Trial, wanted: Any, chance: random.Random, number: int) -> str:
    """Write a NaN to the weights, the average or the optimizer, at the step of a save or at another one."""
    at = chance.randrange(EVERY, STEPS - 1)

    def spoil() -> None:
        step = training.optimizer_step

        def spoiled(run: Any, batch: Any) -> Any:
            said = step(run, batch)
            if run.step == at:
                player = run.players["model"]
                numbers = next(iter(player.optimizer.state.values())).values()
                moment = next(n for n in numbers if isinstance(n, torch.Tensor) and n.numel() > 1)
                tensors = (next(player.model.parameters()), next(player.ema.model.parameters()), moment)
                tensors[number % 3].data.flatten()[0] = torch.nan
            return said

        training.optimizer_step = spoiled

    trial.said.write_text("")
    os.waitpid(trial.start(before=spoil), 0)
    if not SENTENCE.search(trial.said.read_text()):
        return LOST
    return outcome(trial, wanted)


def started_twice(trial: Trial, wanted: Any, chance: random.Random, number: int) -> str:
    """Start the run a second time while it is running."""
    child = trial.start()
    trial.reached(child, 2)
    second = Trial(trial.run.parent, trial.words)
    second.said = trial.run.parent / "second.txt"
    code = second.finished("--resume", "auto")
    os.waitpid(child, 0)
    refused = code == 1 and "is in use by process" in second.said.read_text()
    return outcome(trial, wanted) if refused else LOST


def launched(trial: Trial, *words: str) -> subprocess.Popen[bytes]:
    """Start or continue the run in two processes by `accelerate launch`, on the CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "-q", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["training/train.py", *trial.words, "--output_dir", str(trial.run), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with trial.said.open("w") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)


def killed_while_launched(trial: Trial, chance: random.Random, which: str) -> str:
    """Send SIGKILL to the launcher or to one of its two processes; continue with one command, in two processes."""
    reference = Trial(trial.run.parent.parent / "undisturbed")  # shared by all trials
    if not reference.run.is_dir():
        reference.run.parent.mkdir()
        assert launched(reference).wait() == 0, reference.said.read_text()
    launcher = launched(trial)
    trial.logged(chance.randrange(1, STEPS - 2), while_running=lambda: launcher.poll() is None)
    ranks = psutil.Process(launcher.pid).children()
    os.kill(launcher.pid if which == "launcher" else ranks[chance.randrange(len(ranks))].pid, signal.SIGKILL)
    launcher.wait()
    psutil.wait_procs(ranks, timeout=60)
    said = trial.said.read_text()
    if any(rank.is_running() for rank in ranks) or (which == "launcher" and "its launcher has ended" not in said):
        return LOST
    if launched(trial, "--resume", "auto").wait() != 0:
        return REFUSED if SENTENCE.search(trial.said.read_text()) else LOST
    wanted, found = reference.weights(), trial.weights()
    return SURVIVED if all(torch.equal(found[name], weight) for name, weight in wanted.items()) else LOST


def rank_killed(trial: Trial, wanted: Any, chance: random.Random, number: int) -> str:
    """Send SIGKILL to one of two processes of a run."""
    return killed_while_launched(trial, chance, "rank")


def launcher_killed(trial: Trial, wanted: Any, chance: random.Random, number: int) -> str:
    """Send SIGKILL to the launcher of two processes."""
    return killed_while_launched(trial, chance, "launcher")


FAULTS: dict[str, tuple[Callable[..., str], int]] = {
    "kill -9 before, during and after saves": (killed, 30),
    "signals, each sent twice": (signalled, 20),
    "full disk": (full_disk, 6),
    "NaN in weights, average or optimizer": (not_finite, 6),
    "started twice": (started_twice, 5),
    "kill -9 of one of two processes": (rank_killed, 5),
    "kill -9 of the launcher of two processes": (launcher_killed, 5),
}


def flips(folder: Path, count: int, chance: random.Random) -> Iterator[str]:
    """Flip bits and truncate files of a state of the `mnist` network, at random bytes."""
    trial = Trial(folder, ["--total_steps", "2", "--num_images", "1", "--sampling.every", "null", "--samples", "0"])
    trial.words += ["--num_inference_steps", "2", "--tracker", "none", "--cpu_threads", "1", "--max_images", "256"]
    assert trial.finished() == 0, trial.said.read_text()
    state = trial.run / "states" / "step_00000002"
    files = [path for path in sorted(state.rglob("*")) if path.is_file()]
    for number in range(count):
        file = chance.choices(files, [path.stat().st_size for path in files])[0]
        whole = file.read_bytes()
        place = chance.randrange(len(whole))
        if number % 5 == 4:
            file.write_bytes(whole[:place])
        else:
            file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :])
        yield REFUSED if damage_of(state) is not None else LOST
        file.write_bytes(whole)


def costs_of_a_save(folder: Path) -> dict[str, float]:
    """Measure the median seconds of what a save of the `mnist` recipe does, and of a training step."""
    run, step = start(recipe_with("mnist", {"training": {"cpu_threads": 1}}), folder / "run", total_steps=100_000)
    step()
    save_state(run)
    state = run.folder.state_of(run.step)
    manifest = json.loads((state / "state.json").read_text())
    times = Rounds(
        {
            "checksums": lambda: write_manifest(state, manifest),
            "finiteness": lambda: check_finite(run),
            "step": step,
        },
        rounds=15,
    )
    found = {name: times.median(name) for name in times.seconds}
    return found | {"steps": run.checkpoints.every or 0}


def main(argv: Sequence[str] | None = None) -> None:
    """Try every fault and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="share of the trials of each fault (default: 1)")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(argv)
    about, rows = machine(), []
    with tempfile.TemporaryDirectory() as place:
        reference = Trial(Path(place))
        assert reference.finished() == 0, reference.said.read_text()
        wanted = reference.weights()
        for name, (fault, most) in FAULTS.items():
            found: Counter[str] = Counter()
            for number in range(max(1, round(options.share * most))):
                folder = Path(place) / f"{fault.__name__}-{number}"
                folder.mkdir()
                found[fault(Trial(folder), wanted, random.Random(number), number)] += 1
                shutil.rmtree(folder)
            rows.append([name, sum(found.values()), *(found[result] for result in (SURVIVED, REFUSED, LOST))])
            print(rows[-1], flush=True)
        folder = Path(place) / "flips"
        folder.mkdir()
        found = Counter(flips(folder, max(1, round(options.share * 50)), random.Random(0)))
        name = "a flipped bit or a truncated file in a state of the mnist network"
        rows.append([name, sum(found.values()), *(found[result] for result in (SURVIVED, REFUSED, LOST))])
        costs = costs_of_a_save(folder / "cost")
    options.out.write_text(page(rows, costs, about))
    print(f"wrote {options.out}")


def page(rows: Sequence[Sequence[object]], costs: dict[str, float], about: dict[str, Any]) -> str:
    """Return the page in Markdown."""
    interval = costs["steps"] * costs["step"]
    checksums, finiteness = (
        f"{1000 * costs[name]:.0f} ms, {100 * costs[name] / interval:.3f}%" for name in ("checksums", "finiteness")
    )
    found = table(["fault", "trials", SURVIVED, REFUSED, LOST], rows)
    return f"""# What happens to an interrupted run

`python -m benchmarks.faults`, {about["date"]}, {about["cpu"]}, {about["cores"]} cores, torch {about["torch"]}.

A run of {STEPS} steps of a tiny network, with a state every {EVERY} steps, has a fault, and continues with
`--resume auto`. It survives if it ends with the same weights as an undisturbed run, bit for bit. A damaged state is
detected by its checksum, and the previous one is used.

{found}

Of the time between two saves of the `mnist` recipe ({costs["steps"]:,.0f} steps of {1000 * costs["step"]:.0f} ms
each, one thread), the checksums of a state take {checksums}, and the check that all weights, averages and
optimizer states are finite takes {finiteness}.
"""


if __name__ == "__main__":
    main()
