"""The command line `cmb-jax`: one command per task; only the command that runs is imported.

Options are checked by `common.check` before a command runs; other mistakes that a user can correct raise
`UserError` where they are found.
"""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import cmb_jax
from cmb_jax.cli.common import run_cli
from cmb_jax.errors import UserError
from cmb_jax.progress import set_quiet

SECTIONS: dict[str, dict[str, str]] = {
    "Find microbleeds": {
        "predict": "find, locate and report the microbleeds of one scan",
        "bids": "the same for a BIDS data set (a BIDS App), and one table over all",
        "view": "scroll through a scan in the browser and judge its candidates",
        "compare": "two scans of one patient: what is new, resolved, stable",
        "demo": "all of it on a simulated subject that comes along",
    },
    "Prepare images": {
        "dicom": "list the DICOM series of a folder and which would be used",
        "swi": "make a susceptibility-weighted image from magnitude and phase",
        "data": "look into a data set: data check, data index",
    },
    "Readers and evaluation": {
        "review": "candidates to readers and back: review export, import, agreement",
        "evaluate": "score predictions against truth, or compare two of them",
        "calibrate": "calibrate scores to probabilities, choose an operating point",
        "weights": "how weights were trained, calibrated: weights show NAME",
    },
    "Simulate": {
        "simulate": "subjects with known microbleeds and mimics",
        "implant": "put microbleeds and mimics into a real scan",
        "benchmark-data": "a split of CMB-Phantom, the benchmark",
    },
    "Train": {
        "train": "train or fine-tune a detector; run again to resume",
        "eval": "evaluate a trained detector",
        "ablate": "train variants of the detector and compare them",
        "plan": "predict memory, messages and time on a mesh of devices",
        "benchmark": "time against PyTorch, MONAI and NumPy",
    },
}
"""Section -> command -> what it does; `cmb_jax.cli.COMMAND` has its options with their help, and `run`."""

COMMANDS = {name: text for section in SECTIONS.values() for name, text in section.items()}

GROUPS = {
    "data": ("check", "index"),
    "review": ("export", "import", "agreement"),
    "weights": ("show",),
}
"""Commands with subcommands of their own."""

HOMES = {
    "demo": "predict",
    "benchmark-data": "simulate",
    "implant": "simulate",
    "ablate": "research",
    "plan": "research",
    "benchmark": "research",
    "calibrate": "weights",
    "eval": "train",
}
"""Commands that live in the module of another, in a function of the command's name."""

OWN_PARSERS = ("train", "eval")
"""Commands that read a configuration with dotted overrides."""

RENAMED = {"predict-cohort": "cmb-jax bids DIR OUT participant"}
"""Earlier commands and what to type now."""

SHELLS = ("bash", "zsh", "fish")

EXAMPLES = """\
Examples:
  cmb-jax predict -i swi.nii.gz --phase phase.nii.gz -o result
  cmb-jax predict --dicom examination -o result --dicom-out
  cmb-jax bids study study/derivatives/cmb-jax participant
  cmb-jax view result
  cmb-jax evaluate --pred results --truth phantoms -o metrics.json
  cmb-jax train --config smoke --workdir runs/smoke
"""


def overview() -> str:
    """What `cmb-jax help` prints."""
    page = [
        "usage: cmb-jax COMMAND [OPTIONS]",
        "",
        "Finds cerebral microbleeds in susceptibility MRI and says where in the brain they are.",
        "Research use only; not a medical device.",
    ]
    for title, commands in SECTIONS.items():
        page += ["", f"{title}:", *(f"  {name:<15} {text}" for name, text in commands.items())]
    return "\n".join(
        [
            *page,
            "",
            "Help and setup:",
            "  help COMMAND    the options of a command, as COMMAND --help",
            "  completion SHELL  a script that completes commands (bash, zsh, fish)",
            "  --version       the version",
            "",
            EXAMPLES.rstrip(),
        ]
    )


def _overview_of(group: str) -> str:
    """What `cmb-jax GROUP --help` prints."""
    subcommands = [
        f"  {each:<11} {(command_of(group, each).__doc__ or '').splitlines()[0]}" for each in GROUPS[group]
    ]
    usage = f"usage: cmb-jax {group} {{{','.join(GROUPS[group])}}} [OPTIONS]"
    return "\n".join([usage, "", *subcommands, "", f"cmb-jax {group} COMMAND --help lists the options."])


def apply(common: Any) -> None:
    """Apply the options that all commands share; JAX reads its platform when it is imported."""
    set_quiet(common.quiet)
    if common.device != "auto":
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(common.device, common.device)
    if common.verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        logging.getLogger("cmb_jax").setLevel(logging.DEBUG)
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's alarm about slow compilation


def function_of(name: str, subcommand: str | None = None) -> Callable[..., None]:
    """The function that is a command, or a subcommand of a group."""
    # `import` is a keyword and `eval` a built-in function: their names end with an underscore
    module = importlib.import_module(f"cmb_jax.cli.{HOMES.get(name, name)}")
    word = (subcommand or (name if name in HOMES else "run")).replace("-", "_")
    function: Callable[..., None] = getattr(module, f"{word}_" if word in ("import", "eval") else word)
    return function


def command_of(name: str, subcommand: str | None = None) -> Callable[..., None]:
    """What tyro parses for a command, or for a subcommand of a group."""
    from cmb_jax.cli.present import presented

    return presented(function_of(name, subcommand), apply)


def all_commands() -> dict[str, Callable[..., None]]:
    """Every command that tyro parses, by what is typed after `cmb-jax`."""
    found: dict[str, Callable[..., None]] = {}
    for name in COMMANDS:
        if name in GROUPS:
            found |= {f"{name} {each}": command_of(name, each) for each in GROUPS[name]}
        elif name not in OWN_PARSERS:
            found[name] = command_of(name)
    return found


def dispatch(arguments: Sequence[str]) -> None:
    """Run what is typed after `cmb-jax`."""
    # help and the version come before any import of tyro, which takes longer than printing them
    if not arguments or arguments[0] in ("-h", "--help") or list(arguments) == ["help"]:
        print(overview())
        return
    if "--version" in arguments:
        print(f"cmb-jax {cmb_jax.__version__} (research use only)")
        return
    if arguments[0] == "help":
        dispatch([*arguments[1:], "--help"])
        return
    if arguments[0] == "completion":
        _completion(arguments[1:])
        return
    name, rest = arguments[0].replace("_", "-"), list(arguments[1:])
    if now := RENAMED.get(name):
        raise UserError(f"the command {name} is now: {now}")
    from cmb_jax.cli.present import closest, run

    if name not in COMMANDS:
        near = closest(name, [*COMMANDS, "help", "completion"])
        raise UserError(f"there is no command {name}{near or ''}; cmb-jax help lists them")
    if name in OWN_PARSERS:
        function_of(name)(rest, apply)
        return
    if name not in GROUPS:
        run(command_of(name), f"cmb-jax {name}", rest or (["--help"] if name != "demo" else []))
        return
    if not rest or rest[0] in ("-h", "--help"):
        print(_overview_of(name))
        return
    if rest[0] not in GROUPS[name]:
        near = closest(rest[0], GROUPS[name])
        raise UserError(f"there is no command {name} {rest[0]}{near}; {name} has {', '.join(GROUPS[name])}")
    run(command_of(name, rest[0]), f"cmb-jax {name} {rest[0]}", rest[1:] or ["--help"])


def _completion(shell: Sequence[str]) -> None:
    """Print the script for a shell."""
    if len(shell) != 1 or shell[0] not in SHELLS:
        raise UserError(f"cmb-jax completion: name the shell, one of {', '.join(SHELLS)}")
    import tyro

    # one level of commands: subcommands of groups are not completed
    flat = {name: command for name, command in all_commands().items() if " " not in name}
    tyro.extras.subcommand_cli_from_dict(
        flat,
        prog="cmb-jax",
        args=["--tyro-print-completion", shell[0]],
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("cmb_jax").setLevel(logging.NOTSET)  # a call before this one may have been verbose
    run_cli(lambda: dispatch(given))
