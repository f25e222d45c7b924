"""States know whether they are whole; a run goes on from the newest that is, and changes what it may."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_ddpm import HFDDPMPipeline
from hf_ddpm.errors import UserError
from hf_ddpm.training.command_line import parse_command_line
from hf_ddpm.training.states import MANIFEST, damage_of, remove_old_states, write_manifest
from hf_ddpm.training.stopping import RunStopped, StopRequests
from hf_ddpm.training.train import train

TINY = ["--preset", "tiny", "--image_size", "8", "--batch_size", "8", "--warmup_steps", "0", "--log_every", "1"]
TINY += ["--num_images", "4", "--num_inference_steps", "2", "--sampling.every", "null", "--checkpoints.every", "2"]
TINY += ["--tracker", "none", "--max_images", "64", "--cpu_threads", "1", "--samples", "0", "--decay", "constant"]


def tiny(folder, *words):
    return train(*parse_command_line([*TINY, "--output_dir", str(folder), "--total_steps", "6", *words]))


def weights(folder, step=6):
    return load_file(Path(folder) / "states" / f"step_{step:08d}" / "model.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of six steps with its states 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    tiny(folder, "--checkpoints.keep", "3")
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


def flip(file, share):
    content = bytearray(file.read_bytes())
    place = min(int(share * len(content)), len(content) - 1)
    content[place] ^= 1
    file.write_bytes(content)


FILES = ["model.safetensors", "optimizer.bin", "ema/diffusion_pytorch_model.safetensors", "random_states_0.pkl"]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("file", FILES)
def test_no_flipped_bit_is_loaded(file, share, whole, tmp_path):
    state = Path(shutil.copytree(whole / "states" / "step_00000006", tmp_path / "state"))
    assert damage_of(state) is None
    flip(state / file, share)
    assert damage_of(state) == f"{file} has another checksum than when it was saved"
    (state / file).write_bytes(b"")
    assert damage_of(state, thorough=False).startswith(f"{file} has 0 bytes but was saved with")
    (state / file).unlink()
    assert damage_of(state, thorough=False) == f"{file} is missing"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"step": 6}', b'{"step": 6, "files": {"x": 1}}', b"\xff\xfe"])
def test_a_damaged_manifest_is_damage(content, copy):
    state = copy / "states" / "step_00000006"
    (state / MANIFEST).write_bytes(content)
    if content != b'{"step": 6}':  # which has no files to compare, as version 0.1 wrote it
        assert damage_of(state) is not None


def test_of_a_damaged_state_the_one_before_is_taken_and_said(copy, whole, capsys):
    flip(copy / "states" / "step_00000006" / "optimizer.bin", 0.5)
    flip(copy / "states" / "step_00000004" / "model.safetensors", 0.9)
    tiny(copy, "--resume", "latest")
    said = capsys.readouterr().out
    for step in (6, 4):
        assert f"step_{step:08d} is damaged (" in said
    assert said.count(": using ") == 2 and "step_00000002 at step 2" in said
    assert same(weights(copy), weights(whole))


def test_a_damaged_state_that_is_named_is_refused(copy):
    flip(copy / "states" / "step_00000006" / "optimizer.bin", 0.5)
    with pytest.raises(
        UserError, match=r"step_00000006 is damaged \(optimizer.bin has another checksum .*\): use --resume latest"
    ):
        tiny(copy, "--resume", str(copy / "states" / "step_00000006"))
    shutil.rmtree(copy / "states" / "step_00000004")
    shutil.rmtree(copy / "states" / "step_00000002")
    for resume in ("auto", "latest", str(copy / "states" / "step_00000006")):
        with pytest.raises(
            UserError, match=r"damaged .*: there is no other one, start a new run in .*without --resume"
        ):
            tiny(copy, "--resume", resume)
    tiny(copy.parent / "new", "--total_steps", "1")


def test_rotation_keeps_what_is_whole(tmp_path):
    states = []
    for step in range(5):
        states.append(tmp_path / f"step_{step}")
        states[-1].mkdir()
        (states[-1] / "weights").write_bytes(bytes(100))
        write_manifest(states[-1], {"step": step})
    for damaged in states[3:]:
        (damaged / "weights").write_bytes(b"")
    remove_old_states(states, keep=1)
    assert [state.exists() for state in states] == [False, False, True, True, True]
    remove_old_states(states, keep=1)  # some of which have vanished
    assert states[2].exists()


def test_auto_begins_and_continues(tmp_path, whole, capsys):
    tiny(tmp_path / "run", "--resume", "auto", "--total_steps", "2")
    assert ", new" in capsys.readouterr().out
    tiny(tmp_path / "run", "--resume", "auto")
    assert "step_00000002 at step 2" in capsys.readouterr().out
    assert same(weights(tmp_path / "run"), weights(whole))
    tiny(tmp_path / "run", "--resume", "auto")  # a finished run finishes again
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine")
    for resume in ("auto", "latest"):
        with pytest.raises(UserError, match="contains other files but no run: start a new run in another"):
            tiny(tmp_path / "other", "--resume", resume)


@pytest.mark.parametrize("recipe", ["whole", "", "family: [", "\x00"])
def test_a_run_that_saved_nothing_begins_at_step_0(recipe, copy, whole, capsys):
    """Of a full disk, or of a kill before the first state."""
    shutil.rmtree(copy / "states")
    if recipe != "whole":
        (copy / "recipe.yaml").write_text(recipe)
    with pytest.raises(UserError, match="contains another run: continue it with --resume auto"):
        tiny(copy)
    tiny(copy, "--resume", "auto")
    assert ", new" in capsys.readouterr().out
    assert same(weights(copy), weights(whole))
    assert [json.loads(line)["step"] for line in (copy / "log.jsonl").read_text().splitlines()] == [*range(1, 7)]
    assert yaml.safe_load((copy / "recipe.yaml").read_text())["family"] == "diffusion"


def test_a_resumed_run_changes_its_rates_and_says_so(copy, capsys):
    tiny(copy, "--resume", "latest", "--lr", "1e-5", "--total_steps", "8", "--log_every", "2")
    said = capsys.readouterr().out
    assert "changed: optimization.lr is 1e-05, and was 0.002 until step 6" in said
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    assert recipe["optimization"]["lr"] == 1e-5
    (entry,) = recipe["history"]
    assert entry["step"] == 6 and entry["changed"]["training.total_steps"] == [6, 8]
    words = ["--recipe", str(copy / "recipe.yaml"), "--resume", "latest", "--total_steps", "9"]
    train(*parse_command_line(words))
    assert len(yaml.safe_load((copy / "recipe.yaml").read_text())["history"]) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--preset", "mnist"],
        ["--batch_size", "4"],
        ["--seed", "1"],
        ["--max_images", "32"],
        ["--beta_schedule", "scaled_linear"],
        ["--optimizer", "adam"],
        ["--max_decay", "0.5"],
    ],
)
def test_what_would_change_data_or_model_is_refused(words, copy):
    with pytest.raises(UserError, match=r"--resume: .* but the run began with .*: resume with the same"):
        tiny(copy, "--resume", "latest", *words)


def test_a_default_that_is_written_out_is_no_change(copy):
    words = ["--label_column", "null", "--eta", "null", "--data.num_workers", "0", "--checkpoints.keep", "3"]
    tiny(copy, "--resume", "latest", *words)
    assert "history" not in yaml.safe_load((copy / "recipe.yaml").read_text())


def test_data_that_changed_are_mentioned(tmp_path, capsys):
    from image_files import write_folder

    write_folder(tmp_path / "images", 16)
    words = ["--data.source", str(tmp_path / "images"), "--channels", "3", "--max_images", "null"]
    tiny(tmp_path / "run", *words, "--total_steps", "2")
    tiny(tmp_path / "run", *words, "--total_steps", "3", "--resume", "auto")
    assert "has changed" not in capsys.readouterr().out
    (tmp_path / "images").rename(tmp_path / "moved")
    (tmp_path / "moved" / "cat" / "000.png").unlink()
    (tmp_path / "moved").rename(tmp_path / "images")
    tiny(tmp_path / "run", *words, "--total_steps", "4", "--resume", "auto")
    assert "the dataset has changed since step 3 of this run (16 images then, 15 images now)" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["weights", "optimizer state", "averaged weights"])
def test_what_is_not_finite_is_not_saved(what, tmp_path, monkeypatch):
    from hf_ddpm.training import train as module

    def spoil(run, batch, step=module.optimizer_step):
        said = step(run, batch)
        if run.step == 3:  # after which the step counts 4, and the state of 4 is due
            player = run.players["model"]
            tensors = {"weights": player.model, "averaged weights": player.ema.model}
            numbers = next(iter(player.optimizer.state.values())).values()
            first = next(number for number in numbers if isinstance(number, torch.Tensor) and number.numel() > 1)
            tensor = first if what == "optimizer state" else next(tensors[what].parameters())
            tensor.data.flatten()[0] = torch.nan
        return said

    monkeypatch.setattr(module, "optimizer_step", spoil)
    with pytest.raises(
        UserError, match=f"values in the {what} at step 4: continue from the last state, .*step_00000002"
    ):
        tiny(tmp_path)
    assert [state.name for state in (tmp_path / "states").glob("step_*")] == ["step_00000002"]
    monkeypatch.undo()
    tiny(tmp_path, "--resume", "latest", "--lr", "1e-4")  # the advice works


def test_tensorboard_has_no_step_twice_after_a_resume(tmp_path):
    tiny(tmp_path, "--tracker", "tensorboard", "--checkpoints.keep", "3")
    tiny(tmp_path, "--tracker", "tensorboard", "--resume", str(tmp_path / "states" / "step_00000002"))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("lost", ["log.jsonl", "samples"])
def test_what_is_not_essential_does_not_end_a_run(lost, tmp_path, monkeypatch, capsys):
    from hf_ddpm.training import train as module

    def lose(run, batch, step=module.optimizer_step):
        if run.step == 1:
            path = tmp_path / "run" / lost
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            path.mkdir() if lost == "log.jsonl" else path.write_text("no folder")
        return step(run, batch)

    monkeypatch.setattr(module, "optimizer_step", lose)
    checkpoint = tiny(tmp_path / "run", "--sampling.every", "2")
    said = capsys.readouterr().err
    assert said.count("the run continues") == (2 if lost == "samples" else 1), said  # also the last grid
    assert (tmp_path / "run" / "states" / "step_00000006").is_dir()
    assert (checkpoint / "samples.png").is_file()


def test_images_that_cannot_be_drawn_do_not_end_a_run(tmp_path, monkeypatch, capsys):
    """Nor does the checkpoint's own grid, of which the card then says nothing."""

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory, in a word")

    monkeypatch.setattr("hf_ddpm.training.diffusion.sample_images", fail)
    checkpoint = tiny(tmp_path / "run", "--sampling.every", "2")
    said = capsys.readouterr().err
    assert "a grid of samples failed at step 2 (out of memory, in a word); the run continues" in said
    assert "the grid of a checkpoint failed at step 6" in said
    card = (checkpoint / "README.md").read_text()
    assert not (checkpoint / "samples.png").exists() and "samples.png" not in card and "samples above" not in card
    HFDDPMPipeline.from_pretrained(checkpoint)


def test_two_starts_do_not_meet(tmp_path, monkeypatch, ready_forks):
    from hf_ddpm.training import train as module

    words = [*TINY, "--output_dir", str(tmp_path / "run"), "--total_steps", "1"]
    met = []

    def start_another(run, batch, step=module.optimizer_step):
        if not met:
            code = f"from hf_ddpm.training.train import main\nmain({[*words, '--resume', 'auto']!r})"
            met.append(ready_forks.run(code, tmp_path))
        return step(run, batch)

    monkeypatch.setattr(module, "optimizer_step", start_another)
    tiny(tmp_path / "run")
    assert met[0].returncode == 1
    assert "is in use by process " in met[0].stderr and "Traceback" not in met[0].stderr


def test_a_limit_of_hours_stops_and_goes_on(tmp_path, whole):
    with pytest.raises(RunStopped, match=r"stopped at step \d+ \(max_hours=1e-09\)"):
        tiny(tmp_path, "--max_hours", "1e-9")
    assert not [*(tmp_path / "states").glob("step_*")]
    tiny(tmp_path, "--resume", "auto")
    assert same(weights(tmp_path), weights(whole))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_every_signal_is_a_request(name, tmp_path, monkeypatch):
    from hf_ddpm.training import train as module

    def ask(run, batch, step=module.optimizer_step):
        if run.step == 2:
            signal.raise_signal(getattr(signal, name))
        return step(run, batch)

    monkeypatch.setattr(module, "optimizer_step", ask)
    with pytest.raises(RunStopped, match=rf"stopped at step 3 \({name}\): step_00000003 is saved") as stopped:
        tiny(tmp_path)
    assert stopped.value.state == tmp_path / "states" / "step_00000003" and damage_of(stopped.value.state) is None
    with pytest.raises(SystemExit) as ended:
        module.main([*TINY, "--output_dir", str(tmp_path / "other"), "--total_steps", "6"])
    assert ended.value.code == 75


def test_a_request_is_one_for_two_seconds_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequests() as requests:
        assert requests.reason is None
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert requests.reason == "SIGUSR1"
        with requests:
            assert requests.reason == "SIGUSR1"
    assert signal.getsignal(signal.SIGUSR1) is before
    with requests:
        assert requests.reason is None  # of another run in this process


START = """
import sys
from hf_ddpm.training.train import main
main(sys.argv[1:])
"""


def started(folder, *words):
    """A run in a process, at a step of many."""
    command = [sys.executable, "-c", START, *TINY, "--output_dir", str(folder), "--total_steps", "100000", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "log.jsonl").exists() or len((folder / "log.jsonl").read_text().splitlines()) < 4:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)
    return process


def test_a_signal_saves_and_ends_with_75(tmp_path):
    name = "SIGTERM"
    process = started(tmp_path / "run", "--checkpoints.every", "null")
    for _ in range(2):  # as launchers do
        process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    last = said.strip().splitlines()[-1]
    (state,) = (tmp_path / "run" / "states").glob("step_*")
    step = int(state.name.removeprefix("step_"))
    how = "run the same command with --resume auto to continue"
    assert last == f"stopped at step {step} ({name}): {state.name} is saved; {how}"
    assert damage_of(state) is None
    tiny(tmp_path / "run", "--checkpoints.every", "null", "--resume", "auto", "--total_steps", str(step + 1))


@pytest.mark.slow
def test_no_fault_is_lost(tmp_path):
    """One trial of each kind of `python -m benchmarks.faults`, five of damaged bytes."""
    command = [sys.executable, "-m", "benchmarks.faults", "--share", "0.1", "--out", str(tmp_path / "faults.md")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [
        line.split("|")[2:-1] for line in (tmp_path / "faults.md").read_text().splitlines() if line.startswith("| ")
    ]
    assert len(rows) == 10  # with the header and its line
    for trials, survived, refused, lost in (map(int, row) for row in rows[2:]):
        assert trials == survived + refused and lost == 0
