"""Which simulator a pool runs, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from z1.errors import ConfigError, UnknownNameError
from z1.sims.adapter import MAX_IMAGE_SIZE, MIN_IMAGE_SIZE, PERTURBATIONS, QUALITIES, SIMULATORS


@dataclass(frozen=True, slots=True, kw_only=True)
class SimSpec:
    """Which simulator, and what the policy sees of it.

    Attributes:
        simulator: Short name, ``metaworld`` or ``robocasa``.
        cameras: Cameras of the images, in order; empty: the adapter's own (MetaWorld: corner2, gripperPOV; RoboCasa:
            left, right, wrist).
        image_size: Height and width of an image in pixels.
        horizon: Env steps of an episode; 0: the simulator's own (MetaWorld: 500; RoboCasa: 300 to 1000 by task).
        python: Interpreter of the hosts; empty: the one installed with ``z1 sims install``, or this one for simulators
            that share it.
        quality: ``fast`` (no shadows, reflections, multisampling; less mesh detail in small images) or ``default``;
            empty: the simulator's usual one (MetaWorld: fast; RoboCasa: default, the images of public data sets).
        perturbation: How images differ from the simulator's own: ``camera`` (every camera turned) or ``colours``
            (red, green and blue exchanged); empty: they do not. Physics and states are the same.
        perturbation_strength: How much: cameras are turned by 10 degrees times this; of the exchanged colours this
            share is mixed into the true ones.
    """

    simulator: str
    cameras: tuple[str, ...] = ()
    image_size: int = 64
    horizon: int = 0
    python: str = ""
    quality: str = ""
    perturbation: str = ""
    perturbation_strength: float = 1.0

    def __post_init__(self) -> None:
        if self.simulator not in SIMULATORS:
            raise UnknownNameError("simulator", self.simulator, SIMULATORS)
        if self.quality and self.quality not in QUALITIES:
            raise UnknownNameError("rendering quality", self.quality, QUALITIES)
        if self.perturbation and self.perturbation not in PERTURBATIONS:
            raise UnknownNameError("perturbation", self.perturbation, PERTURBATIONS)
        if self.perturbation == "colours" and not 0 < self.perturbation_strength <= 1:
            raise ConfigError(
                f"perturbation_strength is {self.perturbation_strength:g}; of colours it must be above 0, at most 1"
            )
        if not MIN_IMAGE_SIZE <= self.image_size <= MAX_IMAGE_SIZE:
            raise ConfigError(
                f"image_size is {self.image_size}; it must be between {MIN_IMAGE_SIZE} and {MAX_IMAGE_SIZE} pixels"
            )
        if self.horizon < 0:
            raise ConfigError(
                f"horizon is {self.horizon}; it must be a number of env steps, or 0 for the simulator's own"
            )
        if len(set(self.cameras)) < len(self.cameras):
            raise ConfigError(f"cameras are {', '.join(self.cameras)}; each may be named once")


@dataclass(slots=True, kw_only=True)
class SimCounters:
    """What a pool and its hosts did so far. What was done again after a host was lost counts in seconds only.

    Attributes:
        env_steps: Env steps executed.
        renders: Images rendered.
        snapshots: States taken out of a simulation.
        restores: States put into one.
        scene_builds: Scenes built.
        host_restarts: Hosts replaced.
        recovered_members: Members put back to where they were after their host was lost.
        invalid_members: Members lost.
        sim_s: Seconds of stepping, measured in the hosts and added up.
        render_s: Seconds of rendering, likewise.
        snapshot_s: Seconds of taking states out and putting them in, likewise.
        build_s: Seconds of building scenes, likewise.
        host_busy_s: Seconds from a request to its answer, likewise.
        wait_s: Seconds this process waited for hosts.
    """

    env_steps: int = 0
    renders: int = 0
    snapshots: int = 0
    restores: int = 0
    scene_builds: int = 0
    host_restarts: int = 0
    recovered_members: int = 0
    invalid_members: int = 0
    sim_s: float = 0.0
    render_s: float = 0.0
    snapshot_s: float = 0.0
    build_s: float = 0.0
    host_busy_s: float = 0.0
    wait_s: float = 0.0

    def copy(self) -> SimCounters:
        """The counts as they are now."""
        return replace(self)
