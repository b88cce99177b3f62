"""What each command does, from a config to files, with progress displays. Parsing lives in ``cli.py``."""

from z1.commands.base import (
    ProgressLines,
    console,
    open_pool,
    policy_folder,
    policy_place,
    recipe_for_policy,
    simulator_record,
)
from z1.commands.data import run_demos, run_import
from z1.commands.evaluation import record_videos, run_eval
from z1.commands.rl import run_rl
from z1.commands.sft import run_sft, tiny_sizes

__all__ = [
    "ProgressLines",
    "console",
    "open_pool",
    "policy_folder",
    "policy_place",
    "recipe_for_policy",
    "record_videos",
    "run_demos",
    "run_eval",
    "run_import",
    "run_rl",
    "run_sft",
    "simulator_record",
    "tiny_sizes",
]
