"""Making, checking and removing the environments of simulators that cannot share z1's own.

Each step of an installation is noted in the environment's folder once it is done, so that an installation that was
interrupted goes on where it stopped. Nothing outside that folder, the registry and, for assets, the checkout's asset
folder is written.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from z1.errors import SimulatorError
from z1.files import read_json, write_json
from z1.sims.catalogue import Assets, Installation, PackageStep, installation_of
from z1.sims.registry import Registered, default_folder, install_command, register, registered, unregister
from z1.sims.stand_in_files import MANIFEST, read_manifest

_PROGRESS = "z1-install.json"
_LOG = "z1-install.log"
_LOG_LINES = 12
_CHECK_TIMEOUT_S = 300.0

_PROBE = """
import importlib, json, os, sys
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
names, packages = json.loads(sys.argv[1])
found = {"python": "%d.%d.%d" % sys.version_info[:3]}
for name in names:
    try:
        module = importlib.import_module(name)
    except BaseException as problem:
        found["problem"] = "%s cannot be imported: %s: %s" % (name, type(problem).__name__, problem)
        break
    if name in packages:
        found[name] = str(getattr(module, "__version__", ""))
print(json.dumps(found), file=out, flush=True)
"""
"""Imports modules under the simulator's interpreter and tells their versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimRow:
    """One finding about an installed simulator.

    Attributes:
        name: What was checked.
        status: ``ok``, ``warning`` or ``missing``.
        detail: What was found.
        fix: What to do about it; empty when there is nothing to do.
    """

    name: str
    status: str
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallRequest:
    """What a user asks for.

    Attributes:
        simulator: Short name.
        source: Checkout of the source; None: none was given.
        python: Interpreter to make the environment with; empty: one is looked for.
        folder: The environment's folder; None: the default.
        assets: Folder with real assets to link into the checkout; None: none.
    """

    simulator: str
    source: Path | None = None
    python: str = ""
    folder: Path | None = None
    assets: Path | None = None


def install(request: InstallRequest, say: Callable[[str], None]) -> Registered:
    """Makes an environment for a simulator, or goes on with one that is half made, checks it and registers it.

    Args:
        request: What is wanted.
        say: Gets a line per step.

    Raises:
        UnknownNameError: No such simulator.
        SimulatorError: Something is missing or a step failed; the message says how to go on.
    """
    recipe = installation_of(request.simulator)
    source = _checked_source(recipe, request.source)
    folder = (request.folder or default_folder(recipe.simulator)).expanduser().absolute()
    if request.assets is not None and recipe.assets is None:
        raise SimulatorError(f"--assets has no effect with {recipe.simulator}, which brings its own; leave it out")
    environment = _Environment(folder, recipe, say)
    environment.make(request.python)
    for step in recipe.steps(environment.version()):
        environment.install(step)
    if source is not None:
        environment.link_source(source)
    if request.assets is not None and source is not None and recipe.assets is not None:
        count = link_assets(recipe.assets, source, request.assets)
        say(f"assets: {count} files of {request.assets} linked into {source / recipe.assets.folder}")
    say("check: importing the simulator")
    versions = probe(recipe, str(environment.python))
    entry = Registered(
        simulator=recipe.simulator,
        python=str(environment.python),
        folder=str(folder),
        source=str(source or ""),
        versions=versions,
    )
    register(entry)
    return entry


def _checked_source(recipe: Installation, source: Path | None) -> Path | None:
    """The checkout as an absolute path, if it is one.

    Raises:
        SimulatorError: It is missing or something else.
    """
    if not recipe.source:
        if source is not None:
            raise SimulatorError(f"--source has no effect with {recipe.simulator}, which comes from packages")
        return None
    if source is None:
        raise SimulatorError(f"{recipe.simulator} is installed from {recipe.source_advice}; give its folder: --source")
    source = source.expanduser().absolute()
    for name in recipe.source:
        if not (source / name).is_file():
            raise SimulatorError(f"--source {source} holds no {name}; expected {recipe.source_advice}")
    return source


class _Environment:
    """The folder of an environment and what has been done in it."""

    def __init__(self, folder: Path, recipe: Installation, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self._recipe = recipe
        self._say = say
        self._uv = shutil.which("uv")

    def _done(self) -> list[Any]:
        path = self.folder / _PROGRESS
        return list(read_json(path, SimulatorError)["steps"]) if path.exists() else []

    def _note(self, step: Any) -> None:
        content = {"simulator": self._recipe.simulator, "steps": [*self._done(), step]}
        write_json(self.folder / _PROGRESS, content)

    def make(self, chosen: str) -> None:
        """Makes the virtual environment, unless it is there."""
        if self.folder.exists() and not (self.folder / _PROGRESS).exists() and any(self.folder.iterdir()):
            raise SimulatorError(
                f"{self.folder} exists and was not made by z1 sims install; choose another place with --folder"
            )
        if "environment" in self._done() and self.python.exists():
            if chosen:
                _refuse_other_version(self._recipe, chosen, self.version(), self.folder)
            return
        base = find_python(self._recipe, chosen)
        self._say(f"environment: {self.folder}, made with {base}")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / _PROGRESS, {"simulator": self._recipe.simulator, "steps": []})
        needs_pip = bool(self._recipe.steps(python_version(base))) and not self._uv
        self._run("environment", [base, "-m", "venv", *([] if needs_pip else ["--without-pip"]), str(self.folder)])
        self._note("environment")

    def version(self) -> tuple[int, int]:
        """Version of the environment's Python."""
        return python_version(str(self.python))

    def install(self, step: PackageStep) -> None:
        """Installs packages, unless that is done."""
        note = [step.name, list(step.packages), step.dependencies]
        if note in self._done():
            self._say(f"{step.name}: done before")
            return
        self._say(f"{step.name}: {', '.join(step.packages)}")
        if self._uv:
            command = [self._uv, "pip", "install", "--python", str(self.python)]
        else:
            command = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check"]
        command += [] if step.dependencies else ["--no-deps"]
        self._run(step.name, [*command, *step.packages])
        self._note(note)

    def link_source(self, source: Path) -> None:
        """Makes the packages of a checkout importable; nothing is written into it."""
        packages = next((self.folder / "lib").glob("python*/site-packages"))
        path = packages / f"z1-{self._recipe.simulator}.pth"
        self._say(f"source: {source}")
        path.write_text(f"{source}\n", encoding="utf-8")

    def _run(self, name: str, command: list[str]) -> None:
        log = self.folder / _LOG
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            try:
                code = subprocess.run(
                    command, stdout=file, stderr=subprocess.STDOUT, check=False, env=clean_environment()
                ).returncode
            except OSError as problem:
                raise SimulatorError(f"step '{name}' cannot be run: {problem}") from problem
        if code:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
            raise SimulatorError(
                f"step '{name}' of installing {self._recipe.simulator} failed with exit code {code}; "
                f"the whole output is in {log}; mend it and run the same command again, it goes on from here. "
                f"The end of the output:\n{tail}"
            )


def clean_environment() -> dict[str, str]:
    """This process's environment without what ties it to this interpreter."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def python_version(python: str) -> tuple[int, int]:
    """Version of an interpreter.

    Raises:
        SimulatorError: It cannot be run.
    """
    code = "import sys; print(sys.version_info[0], sys.version_info[1])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, env=clean_environment())
        major, minor = done.stdout.split()
        return int(major), int(minor)
    except (OSError, ValueError, subprocess.CalledProcessError) as problem:
        raise SimulatorError(f"the interpreter {python!r} cannot be run: {problem}") from problem


def _versions(recipe: Installation) -> str:
    return " or ".join(f"{major}.{minor}" for (major, minor), _ in recipe.pythons)


def _refuse_other_version(recipe: Installation, chosen: str, found: tuple[int, int], folder: Path) -> None:
    wanted = python_version(chosen)
    if wanted != found:
        raise SimulatorError(
            f"{folder} was made with Python {found[0]}.{found[1]}, --python {chosen} is {wanted[0]}.{wanted[1]}; "
            f"remove it first: z1 sims remove {recipe.simulator}"
        )


def find_python(recipe: Installation, chosen: str) -> str:
    """An interpreter that a simulator runs under.

    Args:
        recipe: The simulator.
        chosen: What the user asks for; empty: the first that is found.

    Raises:
        SimulatorError: There is none.
    """
    allowed = [version for version, _ in recipe.pythons]
    if chosen:
        path = shutil.which(os.path.expanduser(chosen)) or chosen
        version = python_version(path)
        if version not in allowed:
            raise SimulatorError(
                f"--python {chosen} is Python {version[0]}.{version[1]}; {recipe.simulator} needs {_versions(recipe)}"
            )
        return path
    for major, minor in allowed:
        found = shutil.which(f"python{major}.{minor}")
        if found:
            with_this = (major, minor)
            try:
                if python_version(found) == with_this:
                    return found
            except SimulatorError:  # a name that leads nowhere
                continue
        if sys.version_info[:2] == (major, minor):
            return sys.executable
    raise SimulatorError(
        f"{recipe.simulator} needs Python {_versions(recipe)} and none was found; install one and name it with --python"
    )


def probe(recipe: Installation, python: str) -> dict[str, str]:
    """Imports a simulator under its interpreter.

    Returns:
        Versions by package, and of Python.

    Raises:
        SimulatorError: A module cannot be imported or has another version than is needed.
    """
    arguments = json.dumps([recipe.imports, list(recipe.pins)])
    environment = clean_environment() | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    again = f"repair it with: {install_command(recipe.simulator)}"
    try:
        done = subprocess.run(
            [python, "-c", _PROBE, arguments],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            timeout=_CHECK_TIMEOUT_S,
        )
        found: dict[str, str] = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.CalledProcessError as problem:
        raise SimulatorError(f"{python} failed while it imported {recipe.simulator}: {problem.stderr[-500:]}") from None
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as problem:
        raise SimulatorError(f"{python} cannot import {recipe.simulator}: {problem}; {again}") from problem
    if "problem" in found:
        raise SimulatorError(f"under {python}, {found['problem']}; {again}")
    for package, versions in recipe.pins.items():
        if found[package] not in versions:
            raise SimulatorError(
                f"{package} is {found[package]} in {python}, {recipe.simulator} needs {' or '.join(versions)}; {again}"
            )
    return found


def link_assets(assets: Assets, source: Path, real: Path) -> int:
    """Links real assets into a checkout, never over a file that is there.

    Args:
        assets: Which they are.
        source: The checkout.
        real: A folder laid out like the checkout's asset folder.

    Returns:
        How many files were linked.

    Raises:
        SimulatorError: The folder holds no assets, or the checkout holds stand-ins.
    """
    target, real = source / assets.folder, real.expanduser().absolute()
    if (target / MANIFEST).exists():
        raise SimulatorError(
            f"{target} holds generated stand-ins; remove them before real assets are linked: "
            "z1 sims stand-ins NAME --remove"
        )
    wanted = {pattern.split("/", 1)[0] for pattern in assets.needed}
    if not any((real / name).is_dir() for name in wanted):
        raise SimulatorError(
            f"--assets {real} holds none of the folders {', '.join(sorted(wanted))}; expected a folder laid out like "
            f"{assets.folder}, as made by {assets.advice}"
        )
    count = 0
    for path in sorted(real.rglob("*")):
        place = target / path.relative_to(real)
        if not path.is_file() or place.exists() or place.is_symlink():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
        count += 1
    return count


def examine(simulator: str) -> list[SimRow]:
    """What is there of a simulator: environment, pins, source, assets.

    Raises:
        UnknownNameError: No such simulator.
    """
    recipe, entry = installation_of(simulator), registered().get(simulator)
    if entry is None:
        return [SimRow(name="installed", status="missing", detail="no", fix=install_command(simulator))]
    rows = [SimRow(name="installed", status="ok", detail=entry.folder)]
    try:
        versions = probe(recipe, entry.python)
    except SimulatorError as problem:
        rows.append(SimRow(name="imports and pins", status="missing", detail=str(problem), fix=""))
    else:
        detail = ", ".join(f"{name} {version}" for name, version in versions.items())
        rows.append(SimRow(name="imports and pins", status="ok", detail=detail))
    if entry.source:
        missing = [name for name in recipe.source if not (Path(entry.source) / name).is_file()]
        if missing:
            fix = install_command(simulator)
            rows.append(SimRow(name="source", status="missing", detail=f"{entry.source} lacks {missing[0]}", fix=fix))
        else:
            rows.append(SimRow(name="source", status="ok", detail=entry.source))
    if recipe.assets is not None:
        rows.append(_examine_assets(recipe.assets, Path(entry.source), simulator))
    return rows


def _examine_assets(assets: Assets, source: Path, simulator: str) -> SimRow:
    folder = source / assets.folder
    missing = [pattern for pattern in assets.needed if next(folder.glob(pattern), None) is None]
    if missing:
        fix = f"get them with {assets.advice}, or generate stand-ins with z1 sims stand-ins {simulator}"
        return SimRow(name="assets", status="missing", detail=f"nothing matches {missing[0]} in {folder}", fix=fix)
    manifest = read_manifest(folder)
    if manifest is None:
        return SimRow(name="assets", status="ok", detail=f"real, in {folder}")
    detail = f"{len(manifest.files)} files are generated stand-ins: not for results"
    return SimRow(name="assets", status="warning", detail=detail, fix=f"the real ones: {assets.advice}")


def remove(simulator: str) -> str:
    """Removes a simulator's environment, which z1 made, and its registration; the source stays.

    Returns:
        The folder that was removed.

    Raises:
        SimulatorError: It is not installed, or its folder was not made by z1.
    """
    installation_of(simulator)
    entry = registered().get(simulator)
    folder = Path(entry.folder) if entry is not None else default_folder(simulator)
    if not folder.exists() and entry is None:
        raise SimulatorError(f"{simulator} is not installed; nothing to remove")
    if folder.exists():
        if not (folder / _PROGRESS).exists():
            raise SimulatorError(f"{folder} was not made by z1 sims install; remove it yourself")
        shutil.rmtree(folder)
    unregister(simulator)
    return str(folder)
