"""Simulators that need an environment of their own, as data: interpreter, packages, source, check.

To add one, write an ``Installation`` here and an adapter beside the others; docs/simulators.md explains each field.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from z1.errors import UnknownNameError


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageStep:
    """One call of the package installer.

    Attributes:
        name: What the step is called in messages.
        packages: Requirements, each pinned as far as it must be.
        dependencies: Whether the packages' own requirements are installed with them.
    """

    name: str
    packages: tuple[str, ...]
    dependencies: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Assets:
    """Files that a simulator needs and its source does not hold.

    Attributes:
        folder: Where they belong, below the source.
        needed: Folders and glob patterns below ``folder``; each must match something for scenes to be built.
        advice: Where the real ones come from.
    """

    folder: str
    needed: tuple[str, ...]
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """How an environment for a simulator is made and recognised.

    Attributes:
        simulator: Short name, as in ``simulator/task``.
        pythons: Versions of Python it runs under, the preferred one first, each with the steps for that version.
        source: Files that a checkout of the source must hold; empty: the simulator comes from packages alone.
        source_advice: What to get, for the message when there is no checkout.
        imports: Modules that must import, in order.
        pins: Versions that must be found, by package name.
        assets: What the source does not hold; None: nothing.
    """

    simulator: str
    pythons: tuple[tuple[tuple[int, int], tuple[PackageStep, ...]], ...]
    source: tuple[str, ...] = ()
    source_advice: str = ""
    imports: tuple[str, ...]
    pins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    assets: Assets | None = None

    def steps(self, python: tuple[int, int]) -> tuple[PackageStep, ...]:
        """The steps for a version of Python that is among ``pythons``."""
        return dict(self.pythons)[python]


def _robocasa_steps(numpy: str, numba: str) -> tuple[PackageStep, ...]:
    return (
        PackageStep(name="build tools", packages=("pip", "setuptools<81", "wheel")),
        PackageStep(
            name="pinned packages",
            packages=(
                *(f"numpy=={numpy}", f"numba=={numba}", "scipy<1.12", "mujoco==3.2.6"),
                *("pygame", "Pillow", "opencv-python<4.11", "pyyaml", "pynput", "tqdm", "termcolor"),
                *("imageio", "imageio-ffmpeg", "h5py", "lxml", "hidapi", "qpsolvers<5"),
            ),
        ),
        # A resolver goes back and forth without end between these and what they ask for.
        PackageStep(
            name="robosuite", packages=("robosuite==1.5.1", "mink==0.0.5", "tianshou==0.4.10"), dependencies=False
        ),
    )


ROBOCASA = Installation(
    simulator="robocasa",
    pythons=(
        ((3, 10), _robocasa_steps(numpy="1.23.3", numba="0.56.4")),
        ((3, 11), _robocasa_steps(numpy="1.23.5", numba="0.57.1")),
    ),
    source=("setup.py", "robocasa/__init__.py", "robocasa/environments/kitchen/single_stage/kitchen_drawer.py"),
    source_advice="a checkout of RoboCasa v0.2: git clone --branch v0.2 https://github.com/robocasa/robocasa",
    imports=("numpy", "mujoco", "robosuite", "robocasa"),
    pins={"numpy": ("1.23.3", "1.23.5"), "mujoco": ("3.2.6",), "robosuite": ("1.5.1",), "robocasa": ("0.2.0",)},
    assets=Assets(
        folder="robocasa/models/assets",
        needed=("textures/flat/*.png", "fixtures/*/*/visuals/*.obj", "objects/objaverse/*/*/model.xml"),
        advice="RoboCasa's own downloader: PYTHON CHECKOUT/robocasa/scripts/download_kitchen_assets.py",
    ),
)

INSTALLATIONS: dict[str, Installation] = {installation.simulator: installation for installation in (ROBOCASA,)}


def installation_of(simulator: str) -> Installation:
    """How a simulator is installed.

    Raises:
        UnknownNameError: No simulator of that name needs an environment of its own.
    """
    if simulator not in INSTALLATIONS:
        raise UnknownNameError("simulator with an environment of its own", simulator, INSTALLATIONS)
    return INSTALLATIONS[simulator]
