"""What others report on suites, with their protocols. Never measured here; averages of different protocols do not
compare.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A reported average.

    Attributes:
        name: Model or method.
        average: Success, %, over the suite's tasks.
        protocol: What is known of how it was trained and evaluated.
        source: Where it was reported.
    """

    name: str
    average: float
    protocol: str
    source: str


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "robocasa24": (
        Published(
            name="Z-1, RL",
            average=80.6,
            protocol="from SFT at 67.4 on 1,199 public demonstrations (about 50 a task)",
            source="arXiv 2606.31846",
        ),
        Published(
            name="X-WAM",
            average=79.2,
            protocol="100 episodes a task, 5,900 hours of pretraining",
            source="its Table 1, second-hand",
        ),
        Published(name="Z-1, SFT", average=67.4, protocol="1,199 public demonstrations", source="arXiv 2606.31846"),
        Published(name="GR00T N1.6", average=66.2, protocol="horizon 720 for all tasks", source="its repository"),
        Published(name="GR00T N1.5", average=64.1, protocol="not recorded; Z-1 lists 59.7", source="second-hand"),
        Published(name="pi0", average=62.5, protocol="not recorded", source="second-hand"),
        Published(
            name="BC-Transformer",
            average=28.8,
            protocol="50 human demonstrations a task; 47.6 with 3,000 generated ones",
            source="RoboCasa, RSS 2024",
        ),
    ),
    "metaworld-mt50": (
        Published(name="pi0, Flow-Noise RL", average=85.8, protocol="from SFT at 50.8", source="piRL (RLinf docs)"),
        Published(name="pi0, Flow-SDE PPO", average=78.1, protocol="from SFT at 50.8", source="piRL (RLinf docs)"),
        Published(name="pi0.5, Flow-SDE PPO", average=70.7, protocol="from SFT at 43.8", source="piRL (RLinf docs)"),
        Published(name="pi0, SFT", average=50.8, protocol="not recorded", source="piRL (RLinf docs)"),
        Published(name="pi0.5, SFT", average=43.8, protocol="not recorded", source="piRL (RLinf docs)"),
    ),
}
"""By suite, best first."""

CAVEAT = (
    "Protocols differ: 50 to 200 episodes a task, seen or unseen scenes, horizons of 300 to 1,000 env steps, other "
    "action spaces. Compare RL with the SFT that it started from, on the same scenes; not averages of different papers."
)
