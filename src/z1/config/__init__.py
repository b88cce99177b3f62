"""Every setting of the commands, as frozen dataclasses, documented field by field and checked once when built.

Level 0: no torch, no simulator.
"""

from z1.config.base import ActingConfig, Precision, SimConfig, TrainingMode, require
from z1.config.evaluation import EvalConfig
from z1.config.rl import RlConfig, ValidationConfig
from z1.config.rollout import RolloutConfig
from z1.config.sft import SftConfig
from z1.config.stored import config_from_dict, config_to_dict
from z1.config.update import UpdateConfig

__all__ = [
    "ActingConfig",
    "EvalConfig",
    "Precision",
    "RlConfig",
    "RolloutConfig",
    "SftConfig",
    "SimConfig",
    "TrainingMode",
    "UpdateConfig",
    "ValidationConfig",
    "config_from_dict",
    "config_to_dict",
    "require",
]
