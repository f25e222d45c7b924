"""Push a checkpoint to a Hub on this machine and pull it: seconds, bytes and requests, compared with plain diffusers.

The server is that of the tests; every call is made in a fresh process, which times it without its imports.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.options import Options
from benchmarks.report import Result, table
from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler, unet_preset

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests" / "hub"))  # the folder of the server

TITLE = "The Hub: push and pull"
ABOUT = """The checkpoint of the `mnist` recipe is pushed to the local Hub server of the tests and pulled from it. The
values are medians over rounds in which the programs take turns; there is no network in between, so only the time of the
programs is measured. diffusers' own push does not include a card with measured results, raw weights (without
averaging), samples or a log."""
ROUNDS = 3
OPEN = "from {library} import {name}; import time; a = time.perf_counter(); p = {name}"
TIMED = "; print(time.perf_counter() - a)"
PULL = {
    "hf_ddpm": OPEN.format(library="hf_ddpm", name="HFDDPMPipeline") + ".from_pretrained('ada/{repo}')" + TIMED,
    "diffusers": OPEN.format(library="diffusers", name="DDPMPipeline") + ".from_pretrained('ada/{repo}')" + TIMED,
}
PUSH = {
    "hf_ddpm": "from hf_ddpm.hub import push_checkpoint; import time; a = time.perf_counter(); "
    "push_checkpoint({folder!r}, 'ada/{repo}')" + TIMED,
    "diffusers": "from diffusers import DDPMPipeline; import time; p = DDPMPipeline.from_pretrained({folder!r}); "
    "a = time.perf_counter(); p.push_to_hub('ada/{repo}')" + TIMED,
}


def measure(options: Options) -> Result:
    from hub_server import hub_server

    checkpoint = untrained_checkpoint(options.out) if options.quick else options.checkpoint
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for round_ in range(1 if options.quick else ROUNDS):
        with hub_server() as hub, tempfile.TemporaryDirectory() as folder:
            for name in list(PUSH)[: 1 if options.quick else None]:
                home, where = Path(folder) / name, {"folder": str(checkpoint), "repo": f"{name}-{round_}"}
                calls = {
                    "push": PUSH[name],
                    "push again": PUSH[name],
                    "pull, cold": PULL[name],
                    "pull, warm": PULL[name],
                }
                for call, code in list(calls.items())[:: 2 if options.quick else 1]:
                    row = timed(hub, home, code.format(**where))
                    found.setdefault(call, {}).setdefault(name, []).append(row)
    medians = {
        call: {
            name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in ways.items()
        }
        for call, ways in found.items()
    }
    return {"rounds": 1 if options.quick else ROUNDS, "calls": medians}


def untrained_checkpoint(out: Path) -> Path:
    """Save a checkpoint of an untrained network and return its folder."""
    folder = out / "untrained"
    torch.manual_seed(0)
    HFDDPMPipeline(unet_preset("mnist"), HFDDPMScheduler()).save_pretrained(folder)
    return folder


def timed(hub: Any, home: Path, code: str) -> dict[str, float]:
    """Run one call in a fresh process; return its seconds, its bytes in both directions, and its requests."""
    before = len(hub.log)
    environment = {**os.environ, **hub.environment(home, "hf_ada")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    new = hub.log[before:]
    sent = sum(request.received + request.sent for request in new)
    return {"seconds": float(done.stdout.split()[-1]), "bytes": sent, "requests": len(new)}


def render(result: Result) -> str:
    rows = [
        [call, name, f"{row['seconds']:.2f}", f"{row['bytes'] / 1e6:.2f}", int(row["requests"])]
        for call, ways in result["calls"].items()
        for name, row in ways.items()
    ]
    return f"{result['rounds']} rounds.\n\n" + table(["", "by", "seconds", "MB", "requests"], rows)
