"""How commands look on the command line: options in groups, aliases, plain metavars, errors of one line.

A command is a function of one frozen dataclass, `options`. `presented` turns it into a function that tyro can
parse; `one_line_errors` turns tyro's errors into a `UserError`.
"""

import contextlib
import dataclasses
import difflib
import inspect
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import docstring_parser
import tyro

from cmb_jax.cli.common import check
from cmb_jax.cli.settings import SETTINGS
from cmb_jax.errors import UserError

BOXES = {
    "scans": (
        *("participant_label", "session_label", "acq_label", "bids_filter_file"),
        *("process", "distributed"),
    ),
    "input": ("swi", "dicom", "series", "phase", "magnitude", "regions", "region_labels", "brain_mask"),
    "phase_storage": ("phase_sign", "phase_range", "te_ms", "echo", "b0_t"),
    "network": ("weights", "flips", "threshold", "precision"),
    "output": (
        *("out", "dicom_out", "viewer", "save_regions", "report", "labels", "json"),
        *("overwrite", "keep_identifiers"),
    ),
}
"""Box of --help -> its options; all other options stand in the command's own box."""

ALIASES = {"out": ("-o",), "swi": ("-i",), "pred": ("-i",)}

Device = Literal["auto", "cpu", "gpu", "tpu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Options that every command takes."""

    device: Device = "auto"
    """what to compute on; auto takes an accelerator if there is one."""
    quiet: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """print results, warnings and errors, but no progress."""
    verbose: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """print what the libraries log too, and a traceback with an error."""


_WANTED = {"INT": "a whole number", "FLOAT": "a number"}


def _metavar(annotation: Any) -> str | None:
    """A plain metavar for an option that may be None, where tyro would write {None}|..."""
    parts = [part for part in typing.get_args(annotation) if part is not types.NoneType]
    if types.NoneType not in typing.get_args(annotation):
        return None
    words = []
    for part in parts:
        choices = typing.get_args(part) if typing.get_origin(part) is Literal else ()
        if typing.get_origin(part) is tuple:
            words.append(" ".join(each.__name__.upper() for each in typing.get_args(part)))
        elif choices:
            words.append(f"{{{','.join(map(str, choices))}}}")
        else:
            words.append({"str": "TEXT", "Path": "PATH"}.get(part.__name__, part.__name__.upper()))
    return "|".join(words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Option:
    """One field of a command's dataclass."""

    name: str
    annotation: Any
    default: Any  # `dataclasses.MISSING`: it must be given
    text: str | None

    @property
    def positional(self) -> bool:
        return tyro.conf.Positional in typing.get_args(self.annotation)

    @property
    def shown(self) -> Any:
        """The annotation with help, alias and a plain metavar."""
        # A flag that is on by default is shown as --no-FLAG, so that its help must say the opposite.
        annotation = self.annotation
        bare = annotation.__origin__ if typing.get_origin(annotation) is Annotated else annotation
        extras: dict[str, Any] = {}
        if self.text:
            text = " ".join(self.text.split())
            extras["help"] = f"do not {text}" if self.default is True else text
        if self.name in ALIASES and not self.positional:
            extras["aliases"] = ALIASES[self.name]
        if metavar := _metavar(bare):
            extras["metavar"] = metavar
        if self.default is None or self.default == () or isinstance(self.default, bool):
            extras["help_behavior_hint"] = ""
        return Annotated[(annotation, tyro.conf.arg(**extras))] if extras else annotation

    @property
    def field(self) -> tuple[str, Any, Any]:
        """As `dataclasses.make_dataclass` takes it."""
        return self.name, self.shown, dataclasses.field(default=self.default)


def options_class(command: Callable[..., None]) -> type:
    """The dataclass that a command takes."""
    annotation = inspect.signature(command).parameters["options"].annotation
    # not get_type_hints: the signature may name types of modules that --help must not import
    return command.__globals__[annotation] if isinstance(annotation, str) else annotation


def _options(owner: type) -> list[_Option]:
    """The fields of a dataclass, its own before those of the classes that it shares with other commands."""
    hints = typing.get_type_hints(owner, include_extras=True)
    texts: dict[str, str | None] = {}
    names: dict[str, None] = {}
    for each in filter(dataclasses.is_dataclass, owner.__mro__):
        for parameter in docstring_parser.parse_from_object(each).params:
            texts.setdefault(parameter.arg_name, parameter.description)
        names |= dict.fromkeys(vars(each).get("__annotations__", ()))
    fields = {each.name: each for each in dataclasses.fields(owner)}
    return [
        _Option(name=name, annotation=hints[name], default=fields[name].default, text=texts.get(name))
        for name in names
        if name != "verbose"  # every command has that
    ]


def presented(command: Callable[..., None], apply: Callable[[Common], None]) -> Callable[..., None]:
    """The function that tyro parses in place of a command.

    Args:
        command: a function of `options`, a dataclass whose fields become options; help is its docstring.
        apply: called with the options that every command takes, before the command runs.
    """
    # tyro shows one box per dataclass, but a command has one dataclass for all options. So a dataclass is
    # made for each box, and `parsed` puts their values together again.
    owner = options_class(command)
    box_of = {name: box for box, names in BOXES.items() for name in names}
    boxed: dict[str, list[_Option]] = {}
    loose: list[_Option] = []
    for option in _options(owner):
        if option.positional or option.name not in box_of:
            loose.append(option)
        else:
            boxed.setdefault(box_of[option.name], []).append(option)
    groups = {
        name: dataclasses.make_dataclass(name, [option.field for option in boxed[name]], kw_only=True)
        for name in BOXES
        if name in boxed
    }

    def parsed(*, common: Common, **given: Any) -> None:
        apply(common)
        for box in [vars(given.pop(name)) for name in groups]:
            given |= box
        check(given)
        if "verbose" in typing.get_type_hints(owner):
            given["verbose"] = common.verbose
        command(owner(**given))

    # tyro reads signature, annotations and docstring of what it parses: `parsed` is given those of the
    # command
    kind, must = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
    shown = [
        *(
            inspect.Parameter(
                option.name,
                kind,
                annotation=option.shown,
                default=must if option.default is dataclasses.MISSING else option.default,
            )
            for option in loose
        ),
        *(
            inspect.Parameter(name, kind, annotation=Annotated[group, tyro.conf.OmitArgPrefixes])
            for name, group in groups.items()
        ),
        inspect.Parameter("common", kind, annotation=tyro.conf.OmitArgPrefixes[Common], default=Common()),
    ]
    doc = docstring_parser.parse(owner.__doc__ or "")
    parsed.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    parsed.__annotations__ = {each.name: each.annotation for each in shown}
    parsed.__doc__ = "\n\n".join(filter(None, (doc.short_description, doc.long_description)))
    parsed.__name__ = parsed.__qualname__ = command.__name__
    return parsed


_RENAMED = {"--compute-dtype": "--precision"}
"""Earlier options -> their names today."""


def closest(word: str, known: Sequence[str]) -> str:
    """ "; did you mean ...?" if a known word is similar, otherwise nothing."""
    # without the dashes, which would make all options similar
    by_bare = {name.lstrip("-"): name for name in known}
    near = difflib.get_close_matches(word.lstrip("-"), by_bare, n=1, cutoff=0.6)
    return f"; did you mean {by_bare[near[0]]}?" if near else ""


def run(command: Callable[..., None], prog: str, arguments: Sequence[str]) -> None:
    """Parse and run a presented command."""
    with one_line_errors(command, prog, arguments):
        tyro.cli(
            command,
            prog=prog,
            args=list(arguments),
            config=(tyro.conf.FlagCreatePairsOff,),
        )


@contextlib.contextmanager
def one_line_errors(command: Callable[..., Any], prog: str, arguments: Sequence[str]) -> Iterator[None]:
    """Turn tyro's boxes of errors into one line; errors that are not known here keep tyro's words."""
    # a private module of tyro: if another version lacks it, tyro's own boxes are printed
    try:
        from tyro import _errors
    except ImportError:
        yield
        return

    def refuse(event: Any) -> None:
        help_line = f"{prog} --help lists what it takes"
        known = option_names(command)
        # a misspelled option often makes tyro complain about another one, so it is looked for first
        unknown = [
            word
            for word in arguments
            if word.startswith("--") and word.split("=")[0].replace("_", "-") not in known
        ] or getattr(event, "tokens", None)
        name = getattr(getattr(event, "argument", None), "lowered", None)
        shown = name.name_or_flags[-1] if name is not None and name.name_or_flags else "a value"
        if unknown:
            raise UserError(f"{_unknown(unknown[0], known)}; {help_line}")
        if isinstance(event, _errors.MissingArgs):
            names = ", ".join(each.arg.display_name().split(" ")[0] for each in event.missing_arguments)
            raise UserError(f"{prog}: {names} must be given; {help_line}")
        if isinstance(event, _errors.InvalidChoice):
            choices = [choice for choice in event.choices if choice != "None"]
            near = closest(event.value, choices)
            raise UserError(f"{shown} {event.value}: give one of {', '.join(choices)}{near}")
        if isinstance(event, _errors.BadValue):
            raise UserError(f"{shown}: a value is missing, or one too many is there; {help_line}")
        if isinstance(event, _errors.InstantiationFailure):
            # the event holds the value only in its text
            value = re.search(r"(?:from \[|arguments: \[|: )'(.*?)'\]?(?:\n|\.|$)", event.message)
            metavar = getattr(name, "metavar", None) or ""
            wanted = next((words for word, words in _WANTED.items() if word in metavar), metavar)
            if value and wanted:
                raise UserError(f"{shown} {value[1]}: give {wanted}; {help_line}")
            raise UserError(f"{shown}: {' '.join(event.message.split())}; {help_line}")

    with _errors.on_parse_error(refuse):
        yield


def _unknown(token: str, known: Sequence[str]) -> str:
    """What is wrong with a token that the command does not know."""
    if not token.startswith("-"):
        like = f", such as --swi {token}" if "--swi" in known else ""
        return f"{token}: not expected here; images and folders are given by options{like}"
    name = token.split("=")[0]
    dashed = name.replace("_", "-")
    if (now := _RENAMED.get(dashed)) in known:
        return f"the option {name} is now {now}"
    return f"there is no option {name}{closest(dashed, known)}"


def option_names(command: Callable[..., Any]) -> list[str]:
    """All options of a presented command, or of a dataclass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it has no other way to list options
        parser = tyro.extras.get_parser(command, config=(tyro.conf.FlagCreatePairsOff,), registry=SETTINGS)
    return [name for name in parser._option_string_actions if name.startswith("--")]
