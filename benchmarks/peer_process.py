"""Runs optimisers of other packages (peer_packages.py) in an environment of their own, which is made when it is needed."""

from __future__ import annotations

import json
import math
import subprocess
import venv
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from models.architecture import Architecture
from search import UserError
from search.files import sha256
from search.space.space import Space

PACKAGES = ("pymoo", "DeepHyper", "Ax")
SCRIPT = Path(__file__).with_name("peer_packages.py")
REQUIREMENTS = SCRIPT.with_suffix(".txt")
Proposals = Generator[Architecture, tuple[float, float], None]
"""Networks to evaluate; takes the accuracy and the latency of each, in ms."""


@contextmanager
def package_proposals(space: Space, seed: int, name: str) -> Iterator[Proposals]:
    """Start an optimiser, which is asked for every dimension, whether or not it matters beside the others.

    Args:
        space: What it searches; it begins with the known networks.
        seed: Of what it draws.
        name: One of `PACKAGES`.

    Yields:
        What it proposes.

    Raises:
        UserError: If its environment cannot be made.
        RuntimeError: If it ends.
    """
    choices = {dimension: list(values) for dimension, values in space.searched_dimensions().items()}
    known = [
        [values.index(parameters.get(dimension, values[0])) for dimension, values in choices.items()]
        for parameters in space.baselines().values()
    ]
    command = [str(environment()), str(SCRIPT), name]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:

        def request(body: object) -> list[int]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{json.dumps(body)}\n")
            process.stdin.flush()
            if not (line := process.stdout.readline()):
                raise RuntimeError(f"{name} has ended; run {SCRIPT.name} by hand to see why")
            answer: list[int] = json.loads(line)
            return answer

        first = request({"sizes": [len(values) for values in choices.values()], "known": known, "seed": seed})

        def proposals() -> Proposals:
            indices = first
            while True:
                chosen = {name: values[index] for (name, values), index in zip(choices.items(), indices, strict=True)}
                accuracy, latency_ms = yield space.architecture(chosen)
                indices = request([accuracy, math.log(latency_ms)])

        try:
            yield proposals()
        finally:
            process.kill()


def environment() -> Path:
    """Return the Python of the packages' environment, and make it if there is none. Raises: UserError if that fails."""
    folder = Path("outputs") / f".peers-{sha256(REQUIREMENTS)[:8]}"
    done, python = folder / "installed", folder / "bin" / "python"
    if not done.exists():
        venv.create(folder, clear=True, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)]
        if subprocess.run(install, check=False).returncode != 0:
            raise UserError(f"the packages of {REQUIREMENTS} cannot be installed; leave {', '.join(PACKAGES)} out of --arms")
        done.touch()
    return python.absolute()
