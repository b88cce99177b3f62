"""Installing simulators in environments of their own, with a small pretended simulator in place of a real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from command_line import z1
from z1.errors import SimulatorError
from z1.files import write_json
from z1.sims import catalogue, environments, registry
from z1.sims.catalogue import Assets, Installation, PackageStep, installation_of
from z1.sims.environments import InstallRequest, examine, install, link_assets, remove
from z1.sims.registry import home, interpreter_of, registered
from z1.sims.stand_in_files import MANIFEST, StandIns, manifest_content

VERSION = (sys.version_info[0], sys.version_info[1])


def toy(*, version: str = "1.0", packages: tuple[str, ...] = ()) -> Installation:
    return Installation(
        simulator="toysim",
        pythons=((VERSION, (PackageStep(name="packages", packages=packages),) if packages else ()),),
        source=("toysim.py",),
        source_advice="the folder of toysim",
        imports=("toysim",),
        pins={"toysim": (version,)},
        assets=Assets(folder="assets", needed=("meshes/*.obj",), advice="nobody"),
    )


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of the pretended simulator; z1's data folder is a temporary one."""
    monkeypatch.setenv("Z1_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(catalogue.INSTALLATIONS, "toysim", toy())
    source = tmp_path / "checkout"
    source.mkdir()
    (source / "toysim.py").write_text("print('noise on stdout')\n__version__ = '1.0'\n")
    return source


def request(source: Path | None, **more: object) -> InstallRequest:
    return InstallRequest(simulator="toysim", source=source, **more)  # type: ignore[arg-type]


def test_install_twice_examine_and_remove(checkout: Path) -> None:
    said: list[str] = []
    entry = install(request(checkout), said.append)
    assert entry.versions["toysim"] == "1.0"
    assert (entry.source, entry.folder) == (str(checkout), str(home() / "sims" / "toysim"))
    assert registered() == {"toysim": entry}
    assert interpreter_of("toysim", "") == entry.python
    assert interpreter_of("toysim", "/other/python") == "/other/python"
    assert interpreter_of("metaworld", "") == ""
    assert any(line.startswith("environment: ") for line in said)

    again: list[str] = []
    assert install(request(checkout), again.append) == entry
    assert not any(line.startswith("environment: ") for line in again)

    rows = {row.name: row for row in examine("toysim")}
    assert [rows[name].status for name in ("installed", "imports and pins", "source", "assets")] == [
        "ok",
        "ok",
        "ok",
        "missing",
    ]
    assert "z1 sims stand-ins toysim" in rows["assets"].fix

    (checkout / "toysim.py").write_text("__version__ = '2.0'\n")
    assert "toysim is 2.0" in {row.name: row for row in examine("toysim")}["imports and pins"].detail

    assert remove("toysim") == entry.folder
    assert not Path(entry.folder).exists()
    assert checkout.exists()
    assert registered() == {}
    with pytest.raises(SimulatorError, match="toysim is not installed; nothing to remove"):
        remove("toysim")


def test_a_failed_step_is_told_and_gone_on_from(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalogue.INSTALLATIONS, "toysim", toy(packages=("there-is-no-such-package==1",)))
    monkeypatch.setattr(environments.shutil, "which", lambda name: "/bin/false" if name == "uv" else sys.executable)
    with pytest.raises(SimulatorError) as caught:
        install(request(checkout), lambda line: None)
    text = str(caught.value)
    assert text.startswith("step 'packages' of installing toysim failed with exit code 1; the whole output is in ")
    assert "run the same command again, it goes on from here" in text
    assert "no-such-package" in text
    assert registered() == {}

    monkeypatch.setitem(catalogue.INSTALLATIONS, "toysim", toy())
    said: list[str] = []
    install(request(checkout), said.append)
    assert not any(line.startswith("environment: ") for line in said)  # the half-made one is used


def test_what_a_user_can_get_wrong(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match="is installed from the folder of toysim; give its folder: --source"):
        install(request(None), print)
    with pytest.raises(SimulatorError, match=r"--source .* holds no toysim.py; expected the folder of toysim"):
        install(request(tmp_path), print)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "letter.txt").write_text("keep me")
    with pytest.raises(SimulatorError, match="was not made by z1 sims install; choose another place with --folder"):
        install(request(checkout, folder=strange), print)
    with pytest.raises(SimulatorError, match=r"the interpreter '/no/python' cannot be run"):
        install(request(checkout, python="/no/python"), print)
    assert registered() == {}
    assert (strange / "letter.txt").exists()


def test_pins_are_checked_before_anything_is_registered(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalogue.INSTALLATIONS, "toysim", toy(version="3.0"))
    with pytest.raises(SimulatorError, match=r"toysim is 1\.0 in .*, toysim needs 3\.0; repair it with: "):
        install(request(checkout), lambda line: None)
    assert registered() == {}


def test_a_lost_interpreter_and_a_damaged_registry_are_told(checkout: Path) -> None:
    entry = install(request(checkout), lambda line: None)
    Path(entry.python).unlink()
    with pytest.raises(
        SimulatorError, match=r"toysim was installed in .* has gone; install it again with: z1 sims install"
    ):
        interpreter_of("toysim", "")
    (home() / "simulators.json").write_text('{"schema": "other"}')
    with pytest.raises(SimulatorError, match=r"the list of installed simulators, .*, is damaged"):
        registered()


def test_real_assets_are_linked_and_never_over_a_file(tmp_path: Path) -> None:
    source, real = tmp_path / "checkout", tmp_path / "real"
    for path, text in (
        (source / "assets/meshes/a.obj", "mine"),
        (real / "meshes/a.obj", "real"),
        (real / "meshes/b.obj", "real"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assets = toy().assets
    assert assets is not None
    assert link_assets(assets, source, real) == 1
    assert link_assets(assets, source, real) == 0
    assert (source / "assets/meshes/a.obj").read_text() == "mine"
    assert (source / "assets/meshes/b.obj").is_symlink()
    with pytest.raises(SimulatorError, match=r"--assets .* holds none of the folders meshes"):
        link_assets(assets, source, tmp_path)
    write_json(source / "assets" / MANIFEST, manifest_content(StandIns(generator=1, files=())))
    with pytest.raises(SimulatorError, match="holds generated stand-ins; remove them before real assets are linked"):
        link_assets(assets, source, real)


def test_robocasa_is_described_for_two_versions_of_python() -> None:
    recipe = installation_of("robocasa")
    pinned = dict(recipe.pythons)
    assert set(pinned) == {(3, 10), (3, 11)}
    for version, numpy, numba in (((3, 10), "1.23.3", "0.56.4"), ((3, 11), "1.23.5", "0.57.1")):
        packages = [package for step in pinned[version] for package in step.packages]
        assert {f"numpy=={numpy}", f"numba=={numba}", "mujoco==3.2.6", "robosuite==1.5.1"} <= set(packages)
        assert [step.dependencies for step in pinned[version]] == [True, True, False]


def test_the_command_line(checkout: Path, capsys: pytest.CaptureFixture[str], refused) -> None:
    assert z1("sims", "list") == 0
    assert "toysim      not installed" in capsys.readouterr().out
    assert refused("sims", "instal", "toysim").startswith("unknown z1 sims command 'instal'; did you mean 'install'")
    assert refused("sims", "install", "robocas").startswith(
        "unknown simulator with an environment of its own 'robocas'"
    )
    assert refused("sims", "stand-ins", "robocasa").startswith("robocasa is not installed; name its checkout")
    assert z1("sims", "install", "toysim", "--source", checkout) == 0
    assert "Installed: toysim in " in capsys.readouterr().out
    assert z1("sims", "doctor") == 1  # its assets are missing
    assert z1("sims", "remove", "toysim") == 0


def test_nothing_but_z1s_folder_is_written(checkout: Path, tmp_path: Path) -> None:
    before = subprocess.run(["find", str(checkout)], capture_output=True, text=True, check=True).stdout
    install(request(checkout), lambda line: None)
    for cache in checkout.rglob("__pycache__"):
        assert cache.parent == checkout
    after = subprocess.run(
        ["find", str(checkout), "-not", "-path", "*__pycache__*"], capture_output=True, text=True, check=True
    ).stdout
    assert after == before
    assert registry.home() == tmp_path / "home"
