"""Fresh processes that start quickly: forks of one that has imported what takes long and reads no setting.

A new interpreter needs five seconds for the imports of diffusers and two for its own end. What reads the environment as
it is imported, such as huggingface_hub, transformers and diffusers, is imported by the fork.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

READ_NO_SETTING = "import numpy, scipy.stats, torch, torch._dynamo, torch.distributed.fsdp, torch.distributed.tensor"
READ_NO_SETTING += ", PIL.Image, requests, yaml"
SERVER = """
import json, os, resource, signal, sys, traceback, types
{imports}
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        os.environ.clear()
        os.environ.update(job["environment"])
        os.chdir(job["folder"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(os.open(job["said"][stream - 1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
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
            if status and end.code is not status:
                print(end, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # the end of an interpreter takes two seconds
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
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
        code = SERVER.replace("{imports}", imports)
        self._server = subprocess.Popen(
            [sys.executable, "-c", code],
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
        said = [str(Path(self._folder.name) / name) for name in ("stdout", "stderr")]
        environment = {**environment, "OMP_NUM_THREADS": "1"}
        job = {"code": code, "folder": str(folder), "environment": environment, "said": said, "limits": limits}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return Ended(int(self._server.stdout.readline()), *(Path(file).read_text() for file in said))
