"""What becomes of a run that is killed, signalled, short of disk, damaged, diverged, or started twice.

    python -m benchmarks.faults

Writes benchmarks/faults.md. Every fault meets a real run of a tiny network in a process of its own; afterwards the run
goes on with `--resume auto` and must end in the weights of the run that nothing happened to, bit for bit.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.report import machine, table
from hf_ddpm.training import train as training
from hf_ddpm.training.states import damage_of, write_manifest

PAGE = Path(__file__).parent / "faults.md"
STEPS, EVERY = 24, 3
TINY = ["--preset", "tiny", "--image_size", "8", "--batch_size", "8", "--warmup_steps", "0", "--log_every", "1"]
TINY += ["--num_images", "2", "--num_inference_steps", "2", "--sampling.every", "null", "--tracker", "none"]
TINY += ["--max_images", "64", "--cpu_threads", "1", "--samples", "0", "--total_steps", str(STEPS)]
TINY += ["--checkpoints.every", str(EVERY), "--checkpoints.keep", "3"]
SURVIVED, REFUSED, LOST = "survived", "refused in a sentence", "lost"
SENTENCE = re.compile(r"^(error: |stopped at step )[^\n]+$", re.M)


class Trial:
    """One run in a folder of its own, in processes that are forks of this one."""

    def __init__(self, folder: Path, words: Sequence[str] = TINY) -> None:
        self.run, self.said, self.words = folder / "run", folder / "said.txt", words

    def start(self, *words: str, before: Callable[[], None] | None = None) -> int:
        """Start it, or go on; the number of its process."""
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
        """Run it to its end; the exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(*words), 0)[1])

    def reached(self, child: int, step: int) -> None:
        """Wait until the log has a step, or the process has ended."""
        log = self.run / "log.jsonl"
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if log.is_file() and log.read_text().count("\n") >= step:
                return
            time.sleep(0.002)

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.run / "states" / f"step_{STEPS:08d}" / "model.safetensors")


def outcome(trial: Trial, wanted: dict[str, torch.Tensor], *words: str) -> str:
    """Go on, and compare what comes out."""
    trial.said.write_text("")
    code = trial.finished("--resume", "auto", *words)
    said = trial.said.read_text()
    if code == 0:
        found = trial.weights()
        return SURVIVED if all(torch.equal(found[name], weight) for name, weight in wanted.items()) else LOST
    return REFUSED if code in (1, 75) and SENTENCE.search(said) and "Traceback" not in said else LOST


def killed(trial: Trial, wanted: Any, chance: random.Random, number: int) -> str:
    """SIGKILL before, in and after a save."""
    child = trial.start()
    trial.reached(child, chance.randrange(STEPS))
    time.sleep(chance.random() * 0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return outcome(trial, wanted)


def signalled(trial: Trial, wanted: Any, chance: random.Random, number: int) -> str:
    """One of the four signals, twice, at any step."""
    child = trial.start()
    trial.reached(child, chance.randrange(STEPS - 2))
    asked = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)[number % 4]
    for _ in range(2):
        os.kill(child, asked)
        time.sleep(0.01)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (75, 0):  # 0 of a run that was at its end
        return LOST
    return outcome(trial, wanted)


def full_disk(trial: Trial, wanted: Any, chance: random.Random, number: int) -> str:
    """No file may grow beyond a size, which the recipe, the log, the weights or the optimizer reach first."""
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
    """A NaN in the weights, the average or the optimizer, in the step of a save or another one."""
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
    """A second start while the first one runs."""
    child = trial.start()
    trial.reached(child, 2)
    second = Trial(trial.run.parent, trial.words)
    second.said = trial.run.parent / "second.txt"
    code = second.finished("--resume", "auto")
    os.waitpid(child, 0)
    refused = code == 1 and "is in use by process" in second.said.read_text()
    return outcome(trial, wanted) if refused else LOST


FAULTS: dict[str, tuple[Callable[..., str], int]] = {
    "kill -9 before, in and after saves": (killed, 30),
    "signals, each twice": (signalled, 20),
    "disk full": (full_disk, 6),
    "NaN in weights, average or optimizer": (not_finite, 6),
    "two starts": (started_twice, 5),
}


def flips(folder: Path, count: int, chance: random.Random) -> Iterator[str]:
    """Bits flipped and files cut at places that follow the bytes of a state of the `mnist` network."""
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


def cost(folder: Path) -> dict[str, float]:
    """Seconds of the checksums of a state of the `mnist` network, and of a step of it."""
    state = folder / "run" / "states" / "step_00000002"
    seconds = [time_of(lambda: write_manifest(state, json.loads((state / "state.json").read_text()))) for _ in range(5)]
    facts = json.loads((folder / "run" / "checkpoint" / "training.json").read_text())
    return {"checksums": statistics.median(seconds), "step": facts["seconds"] / facts["steps"]}


def time_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> None:
    """Try every fault and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the number of trials of each fault")
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
        name = "a bit flipped or a file cut, of a state of the mnist network"
        rows.append([name, sum(found.values()), *(found[result] for result in (SURVIVED, REFUSED, LOST))])
        costs = cost(folder)
    options.out.write_text(page(rows, costs, about))
    print(f"wrote {options.out}")


def page(rows: Sequence[Sequence[object]], costs: dict[str, float], about: dict[str, Any]) -> str:
    """The page in Markdown."""
    share = costs["checksums"] / (1000 * costs["step"])
    found = table(["fault", "trials", SURVIVED, REFUSED, LOST], rows)
    return f"""# What becomes of a run

`python -m benchmarks.faults`, {about["date"]}, {about["cpu"]}, {about["cores"]} cores, torch {about["torch"]}.

A run of {STEPS} steps of a tiny network with a state every {EVERY} steps meets a fault, and goes on with
`--resume auto`. It survives if it ends in the weights of the run that nothing happened to, bit for bit. A damaged
state is refused by its checksum, and the one before it is taken.

{found}

The checksums of a state of the `mnist` network take {1000 * costs["checksums"]:.0f} ms, {100 * share:.2f}% of the
thousand steps between two states ({1000 * costs["step"]:.0f} ms each, one thread).
"""


if __name__ == "__main__":
    main()
