"""Fresh processes that start quickly: forks of one that has imported what takes long and reads no setting.

A new interpreter needs five seconds for the imports of diffusers and two for its own end. What reads the environment as
it is imported, such as huggingface_hub, transformers and diffusers, is imported by the fork.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

READ_NO_SETTING = "import numpy, scipy.stats, torch, torch._dynamo, torch.distributed.fsdp, torch.distributed.tensor"
READ_NO_SETTING += ", PIL.Image, requests, yaml"
SERVER = """
import json, os, resource, signal, sys, time, traceback, types
{imports}

def run(job, environment, said):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(job["folder"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, file in zip((1, 2), said):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    for limit, value in job["limits"].items():
        resource.setrlimit(getattr(resource, limit), (value, value))
    signal.alarm(300)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    status = 1
    try:
        exec(job["code"], vars(main))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code not in (None, status):
            print(end, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the end of an interpreter takes two seconds

def ends(children):
    # The exit code of each; those that go on when another has failed are ended, as a launcher does, and have 0.
    codes, ended = {}, set()
    while len(codes) < len(children):
        child, status = os.wait()
        codes[child] = 0 if child in ended else os.waitstatus_to_exitcode(status)
        if codes[child]:
            time.sleep(0.1)
            for other in {*children} - {*codes} - ended:
                os.kill(other, signal.SIGTERM)
                ended.add(other)
    return [codes[child] for child in children]

for line in sys.stdin:
    job = json.loads(line)
    children = []
    for environment, said in zip(job["environments"], job["said"]):
        children.append(os.fork())
        if children[-1] == 0:
            run(job, environment, said)
    print(json.dumps(ends(children)), flush=True)
"""


class Ended(NamedTuple):
    """How a process ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Forks:
    """A process that forks for every call of `run`; a context manager.

    Args:
        imports: what it has imported; the forks have it too.
        environment: in which it does so.
    """

    def __init__(self, imports: str = READ_NO_SETTING, environment: Mapping[str, str] = os.environ) -> None:
        self._folder = tempfile.TemporaryDirectory()  # of what the forks print
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER.replace("{imports}", imports)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stdin.close()
        self._folder.cleanup()
        assert self._server.wait(timeout=60) == 0

    def run(self, code: str, folder: Path, environment: Mapping[str, str] = os.environ, **limits: int) -> Ended:
        """Run code in a fork, in a folder; `limits` are names of `resource` and their values."""
        (ended,) = self._run(code, folder, [environment], limits)
        return ended

    def run_together(self, code: str, processes: int) -> Ended:
        """Run code in forks that find each other as those of `accelerate launch` do, on the CPU.

        Returns:
            Ended: with the return code of a process that failed, if one did, and what all of them printed.
        """
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        ranks = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(processes)]
        environments = [{**os.environ, **{name: str(value) for name, value in own.items()}} for own in ranks]
        codes, *said = zip(*self._run(code, Path.cwd(), environments, {}), strict=True)
        return Ended(max(codes, key=abs), *map("".join, said))

    def _run(
        self, code: str, folder: Path, environments: Sequence[Mapping[str, str]], limits: Mapping[str, int]
    ) -> list[Ended]:
        said = [[f"{self._folder.name}/{i}.{stream}" for stream in ("out", "err")] for i in range(len(environments))]
        environments = [{**own, "OMP_NUM_THREADS": "1"} for own in environments]
        job = {"code": code, "folder": str(folder), "environments": environments, "said": said, "limits": limits}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        codes = json.loads(self._server.stdout.readline())
        return [
            Ended(code, *(Path(file).read_text() for file in files)) for code, files in zip(codes, said, strict=True)
        ]
