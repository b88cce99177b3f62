"""The command line: ``z1 COMMAND --setting value``. Settings are the fields of the frozen config of each command."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import tyro
from rich.console import Console

from z1 import __version__
from z1.errors import ConfigError, UnknownNameError, Z1Error

Config = TypeVar("Config")
USER_ERROR = 2


RESUME_HELP = "--resume: continue the run in --out with its stored settings, to the same numbers as without the stop."


def recipe_help(names: Iterable[str], default: str) -> str:
    """What a command's help says about recipes."""
    return f"--recipe NAME: settings to start from, one of {', '.join(names)} (default: {default})."


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One subcommand.

    Attributes:
        help: One line.
        run: Gets the arguments after the command's name and returns the exit code.
    """

    help: str
    run: Callable[[list[str]], int]


def parse(
    cls: type[Config], name: str, arguments: Sequence[str], default: Config | None = None, *, also: str = ""
) -> Config:
    """The config that arguments describe; tyro answers mistakes with exit code 2 and the nearest settings.

    Args:
        cls: The config of the command.
        name: The command.
        arguments: What follows the command.
        default: Where unnamed settings come from; None: the class.
        also: Settings that are read before the config exists, for the help text.

    Raises:
        ConfigError: A value is not allowed.
    """
    several = [name for name, hint in typing.get_type_hints(cls).items() if typing.get_origin(hint) is tuple]
    given = spread_values(arguments, [f"--{option}" for option in several])
    if default is not None:  # named values replace those of the recipe or the stored run instead of adding to them
        renamed = [option for option in several if f"--{option}" in given]
        default = dataclasses.replace(default, **dict.fromkeys(renamed, tyro.MISSING))  # type: ignore[type-var]
    config = tyro.cli(
        cls,
        prog=f"z1 {name}",
        description="\n\n".join(filter(None, ((cls.__doc__ or "").strip(), also))),
        args=given,
        default=tyro.MISSING_NONPROP if default is None else default,
        config=(tyro.conf.UseAppendAction,),
    )
    refuse_infinite(config)
    return config


def spread_values(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """Arguments in which options of several values, ``--task A B``, stand once before each of them."""
    spread: list[str] = []
    current = ""
    for token in arguments:
        if current and not token.startswith("-"):
            spread += [current, token] if spread[-1] != current else [token]
        else:
            current = token if token in options else ""
            spread.append(token)
    return spread


def refuse_infinite(config: object, prefix: str = "") -> None:
    """Refuses numbers that are not finite, in all nested settings.

    Raises:
        ConfigError: Names the setting.
    """
    assert dataclasses.is_dataclass(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            refuse_infinite(value, f"{prefix}{field.name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{prefix}{field.name} is {value}; it must be a finite number")


def resumed_folder(arguments: list[str], recipe_name: str | None) -> Path | None:
    """The run folder that ``--resume`` continues; None when only help is asked for.

    Args:
        arguments: What follows the command, without ``--resume``.
        recipe_name: What ``--recipe`` says.

    Raises:
        ConfigError: ``--out`` is missing, or a recipe is given that could have no effect.
    """
    if {"-h", "--help"} & set(arguments):
        return None
    out, _ = take_option(arguments, "--out")
    if out is None:
        raise ConfigError("--resume needs --out, the run folder to continue")
    if recipe_name is not None:
        raise ConfigError("--recipe has no effect with --resume, which takes the run's own settings; leave it out")
    return Path(out)


def take_option(arguments: list[str], option: str) -> tuple[str | None, list[str]]:
    """Removes ``--option value`` (or ``--option=value``) from arguments.

    Raises:
        ConfigError: The value is missing.
    """
    rest: list[str] = []
    value: str | None = None
    tokens = iter(arguments)
    for token in tokens:
        if token == option:
            value = next(tokens, None)
            if value is None:
                raise ConfigError(f"{option} needs a value")
        elif token.startswith(option + "="):
            value = token[len(option) + 1 :]
        else:
            rest.append(token)
    return value, rest


def take_flag(arguments: list[str], flag: str) -> tuple[bool, list[str]]:
    """Removes ``--flag`` from arguments."""
    return flag in arguments, [token for token in arguments if token != flag]


def recipe(recipes: dict[str, Callable[..., Config]], name: str) -> Callable[..., Config]:
    """A recipe by name.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in recipes:
        raise UnknownNameError("recipe", name, recipes)
    return recipes[name]


def demos(arguments: list[str]) -> int:
    """Record scripted experts' demonstrations as a LeRobot dataset."""
    from z1.commands import run_demos
    from z1.data.record import DemoConfig

    run_demos(parse(DemoConfig, "demos", arguments))
    return 0


def import_data(arguments: list[str]) -> int:
    """Bring RoboCasa's HDF5 demonstrations or LeRobot datasets into a dataset for z1 sft."""
    from z1.commands import run_import
    from z1.data.importing import ImportConfig

    run_import(parse(ImportConfig, "import", arguments))
    return 0


def sft(arguments: list[str]) -> int:
    """Train a policy on demonstrations."""
    from z1.commands import run_sft
    from z1.config import SftConfig
    from z1.recipes import SFT_RECIPES
    from z1.train.resume import stored_config

    name, arguments = take_option(arguments, "--recipe")
    resume, arguments = take_flag(arguments, "--resume")
    folder = resumed_folder(arguments, name) if resume else None
    if folder is not None:
        default = stored_config(folder, SftConfig, "sft")
    else:
        default = recipe(SFT_RECIPES, name or "tiny")(tyro.MISSING, tyro.MISSING)
    also = recipe_help(SFT_RECIPES, "tiny") + " " + RESUME_HELP
    run_sft(parse(SftConfig, "sft", arguments, default, also=also), resume=resume)
    return 0


def rl(arguments: list[str]) -> int:
    """Improve a policy on a task in the simulator."""
    from z1.commands import recipe_for_policy, run_rl
    from z1.config import RlConfig
    from z1.recipes import RL_RECIPES
    from z1.train.resume import stored_config

    name, arguments = take_option(arguments, "--recipe")
    resume, arguments = take_flag(arguments, "--resume")
    folder = resumed_folder(arguments, name) if resume else None
    if folder is not None:
        default = stored_config(folder, RlConfig, "rl")
    else:
        policy, _ = take_option(arguments, "--policy")
        chosen = name or (recipe_for_policy(policy) if policy else "tiny")
        default = recipe(RL_RECIPES, chosen)(tyro.MISSING, tyro.MISSING, tyro.MISSING)
    also = recipe_help(RL_RECIPES, "the one made for the size of the policy") + " " + RESUME_HELP
    run_rl(parse(RlConfig, "rl", arguments, default, also=also), resume=resume)
    return 0


def evaluate(arguments: list[str]) -> int:
    """Success of one or several policies on the same scenes, with intervals."""
    from z1.commands import run_eval
    from z1.config import EvalConfig

    run_eval(parse(EvalConfig, "eval", arguments))
    return 0


def ablate(arguments: list[str]) -> int:
    """Compare named variants on the same tasks, seeds and budgets of env steps."""
    from z1.ablate.command import AblateConfig, run_ablate
    from z1.ablate.explain import study_help

    return run_ablate(parse(AblateConfig, "ablate", arguments, also=study_help()))


def suite(arguments: list[str]) -> int:
    """Train and evaluate all tasks of a suite; report on one; list suites."""
    from z1.suite.command import (
        SuiteReportConfig,
        SuiteRunConfig,
        list_suites,
        run_report,
        run_suite,
        suite_help,
    )

    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb == "run":
        return run_suite(parse(SuiteRunConfig, "suite run", rest, also=suite_help()))
    if verb == "report":
        run_report(parse(SuiteReportConfig, "suite report", rest))
        return 0
    if verb == "list" and not rest:
        list_suites()
        return 0
    if verb in ("-h", "--help"):
        print("usage: z1 suite {run,report,list}\n\nEach has a --help of its own.")
        return 0
    raise UnknownNameError("verb of z1 suite", verb, ("run", "report", "list"))


def convert(arguments: list[str]) -> int:
    """Bring a policy from or to the layouts of LeRobot and openpi."""
    from z1.convert import ConvertConfig, run_convert

    run_convert(parse(ConvertConfig, "convert", arguments))
    return 0


def inspect(arguments: list[str]) -> int:
    """Show what a checkpoint of z1, LeRobot or openpi holds and what it leaves open."""
    from z1.convert import InspectConfig, run_inspect

    return 0 if run_inspect(parse(InspectConfig, "inspect", arguments)) else 1


def report(arguments: list[str]) -> int:
    """Make one HTML file of a run folder."""
    from z1.eval.report import write_report

    @dataclass(frozen=True, slots=True, kw_only=True)
    class ReportConfig:
        """``z1 report RUN``."""

        run: Annotated[str, tyro.conf.Positional]
        """Run folder of z1 sft, z1 rl or z1 demo."""

    config = parse(ReportConfig, "report", arguments)
    Console().print(f"Report: {write_report(Path(config.run))}")
    return 0


def tasks(arguments: list[str]) -> int:
    """List the task ids."""
    from z1.sims.suites import all_tasks, category, instruction

    if arguments:
        parse(_NoSettings, "tasks", arguments)
    width = max(len(task) for task in all_tasks())
    for task in all_tasks():
        print(f"{task:{width}}  {category(task):16}  {instruction(task)}")
    return 0


def check_sim(arguments: list[str]) -> int:
    """Check a simulator's contract on a task: scenes, images, exact snapshots."""
    from z1.sims.check import check_sim as run_check
    from z1.sims.check import check_table
    from z1.sims.pool import SimSpec
    from z1.sims.suites import simulator_of

    @dataclass(frozen=True, slots=True, kw_only=True)
    class CheckConfig:
        """``z1 check-sim TASK``."""

        task: Annotated[str, tyro.conf.Positional]
        """Task id."""
        python: str = ""
        """Interpreter of the simulator processes. Empty: this one."""
        image_size: int = 64
        """Pixels."""

    config = parse(CheckConfig, "check-sim", arguments)
    spec = SimSpec(simulator=simulator_of(config.task), image_size=config.image_size, python=config.python)
    rows = run_check(spec, config.task)
    Console().print(check_table(rows, config.task))
    return 0 if all(row.passed for row in rows) else 1


def sims(arguments: list[str]) -> int:
    """Install, list, examine and remove simulators that need an environment of their own."""
    from z1.sims import command

    verbs: dict[str, Callable[[list[str]], int | None]] = {
        "install": lambda rest: command.run_install(parse(command.SimsInstallConfig, "sims install", rest)),
        "list": lambda rest: command.run_list() if parse(command.SimsListConfig, "sims list", rest) else None,
        "doctor": lambda rest: command.run_doctor() if parse(command.SimsListConfig, "sims doctor", rest) else None,
        "remove": lambda rest: command.run_remove(parse(command.SimsNameConfig, "sims remove", rest)),
        "stand-ins": lambda rest: command.run_stand_ins(parse(command.SimsStandInsConfig, "sims stand-ins", rest)),
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: z1 sims {{{','.join(verbs)}}} [settings]\n\n{sims.__doc__}")
        return 0 if arguments else USER_ERROR
    if arguments[0] not in verbs:
        raise UnknownNameError("z1 sims command", arguments[0], verbs)
    return verbs[arguments[0]](arguments[1:]) or 0


def doctor(arguments: list[str]) -> int:
    """Tell what works on this machine and how to fix what does not."""
    from z1.doctor import doctor_table, is_healthy, run_doctor

    if arguments:
        parse(_NoSettings, "doctor", arguments)
    rows = run_doctor()
    Console().print(doctor_table(rows))
    return 0 if is_healthy(rows) else 1


def demo(arguments: list[str]) -> int:
    """The whole loop on real simulation in minutes: demonstrations, SFT, RL, evaluation, report."""
    from z1.demo import DemoRunConfig, run_demo

    run_demo(parse(DemoRunConfig, "demo", arguments))
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _NoSettings:
    """This command has no settings."""


COMMANDS: dict[str, Command] = {
    name: Command(help=(function.__doc__ or "").strip(), run=function)
    for name, function in {
        "demo": demo,
        "demos": demos,
        "import": import_data,
        "sft": sft,
        "rl": rl,
        "eval": evaluate,
        "ablate": ablate,
        "suite": suite,
        "convert": convert,
        "inspect": inspect,
        "report": report,
        "tasks": tasks,
        "check-sim": check_sim,
        "sims": sims,
        "doctor": doctor,
    }.items()
}


def usage() -> str:
    """The text of ``z1 --help``."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"z1 {__version__}: RL post-training of vision-language-action policies",
            "",
            "usage: z1 COMMAND [settings]      z1 COMMAND --help explains every setting",
            "",
            *lines,
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. A user's mistake is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if given else USER_ERROR
    if given[0] == "--version":
        print(__version__)
        return 0
    try:
        if given[0] not in COMMANDS:
            raise UnknownNameError("command", given[0], COMMANDS)
        code = COMMANDS[given[0]].run(given[1:])
        sys.stdout.flush()
        return code
    except Z1Error as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; a run folder can be continued with --resume", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has gone, as in: z1 tasks | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
