"""How commands look on the command line: options in groups, aliases, plain metavars, errors of one line.

Commands are plain functions; this turns one into what tyro parses, and what tyro refuses into a `UserError`.
"""

from __future__ import annotations

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

from cmb_jax.arguments.checks import check
from cmb_jax.config_load import SETTINGS
from cmb_jax.errors import UserError

BOXES = {
    "input": ("swi", "dicom", "series", "phase", "magnitude", "regions", "region_labels", "brain_mask"),
    "phase_storage": ("phase_sign", "phase_range", "te_ms", "echo", "b0_t"),
    "network": ("weights", "flips", "threshold", "precision"),
    "output": ("out", "dicom_out", "viewer", "report", "labels", "json", "overwrite", "keep_identifiers"),
}
"""Which box of --help an option stands in; the others stand in that of the command."""

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


def _metavar(annotation: Any) -> str | None:
    """A plain word for a value that may be left out, where tyro would write {None}|..."""
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
    """One option of a command, wherever its function has it."""

    name: str
    annotation: Any
    default: Any  # `inspect.Parameter.empty`: it must be given
    text: str | None
    owner: str | None = None  # parameter of the function that is a dataclass with this field

    @property
    def positional(self) -> bool:
        return tyro.conf.Positional in typing.get_args(self.annotation)

    @property
    def shown(self) -> Any:
        """The annotation with help, alias and a plain metavar."""
        annotation = self.annotation
        bare = annotation.__origin__ if typing.get_origin(annotation) is Annotated else annotation
        extras: dict[str, Any] = {}
        if self.text:
            told = " ".join(self.text.split())
            extras["help"] = f"do not {told}" if self.default is True else told
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
        if self.default is inspect.Parameter.empty:
            return self.name, self.shown, dataclasses.field()
        return self.name, self.shown, dataclasses.field(default=self.default)


def _options(function: Callable[..., None]) -> tuple[list[_Option], dict[str, type]]:
    """The options of a function, those of its dataclass parameters too, and these dataclasses."""
    hints = typing.get_type_hints(function, include_extras=True)
    helps = {
        each.arg_name: each.description for each in docstring_parser.parse(function.__doc__ or "").params
    }
    options: list[_Option] = []
    owners: dict[str, type] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(parameter.default):
            owner = owners[name] = type(parameter.default)
            inner = typing.get_type_hints(owner, include_extras=True)
            told = {
                each.arg_name: each.description for each in docstring_parser.parse_from_object(owner).params
            }
            options += [
                _Option(
                    name=each.name,
                    annotation=inner[each.name],
                    default=getattr(parameter.default, each.name),
                    text=told.get(each.name),
                    owner=name,
                )
                for each in dataclasses.fields(parameter.default)
            ]
        elif name != "verbose":  # every command has that
            options.append(
                _Option(name=name, annotation=hints[name], default=parameter.default, text=helps.get(name))
            )
    return options, owners


def presented(function: Callable[..., None], apply: Callable[[Common], None]) -> Callable[..., None]:
    """What tyro parses in place of a command.

    Args:
        function: its parameters, or fields of dataclasses among them, become options; help from docstrings.
        apply: is given the options that every command takes, before the command runs.
    """
    options, owners = _options(function)
    box_of = {name: box for box, names in BOXES.items() for name in names}
    boxed: dict[str, list[_Option]] = {}
    loose: list[_Option] = []
    for option in options:
        if option.positional or (option.name not in box_of and option.owner is None):
            loose.append(option)
        else:
            boxed.setdefault(box_of.get(option.name, option.owner or ""), []).append(option)
    groups = {
        name: dataclasses.make_dataclass(name, [option.field for option in boxed[name]], kw_only=True)
        for name in sorted(boxed, key=[*owners, *BOXES].index)
    }

    def command(*, common: Common, **given: Any) -> None:
        apply(common)
        boxes = [vars(given.pop(name)) for name in groups]
        for box in boxes:
            given |= box
        check(given)
        for name, owner in owners.items():
            given[name] = owner(
                **{option.name: given.pop(option.name) for option in options if option.owner == name}
            )
        if "verbose" in inspect.signature(function).parameters:
            given["verbose"] = common.verbose
        function(**given)

    kind = inspect.Parameter.KEYWORD_ONLY
    shown = [
        *(
            inspect.Parameter(option.name, kind, annotation=option.shown, default=option.default)
            for option in loose
        ),
        *(
            inspect.Parameter(name, kind, annotation=Annotated[group, tyro.conf.OmitArgPrefixes])
            for name, group in groups.items()
        ),
        inspect.Parameter("common", kind, annotation=tyro.conf.OmitArgPrefixes[Common], default=Common()),
    ]
    doc = docstring_parser.parse(function.__doc__ or "")
    command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in shown}
    command.__doc__ = "\n\n".join(filter(None, (doc.short_description, doc.long_description)))
    command.__name__ = command.__qualname__ = function.__name__
    return command


def closest(word: str, known: Sequence[str]) -> str:
    """ "; did you mean ...?" for something near, else nothing."""
    by_bare = {
        name.lstrip("-"): name for name in known
    }  # the dashes, which all options share, make none alike
    near = difflib.get_close_matches(word.lstrip("-"), by_bare, n=1, cutoff=0.6)
    return f"; did you mean {by_bare[near[0]]}?" if near else ""


def run(command: Callable[..., None], prog: str, arguments: Sequence[str]) -> None:
    """Parse and run a presented command.

    Raises:
      UserError: an option or a value that the command does not take.
    """
    with one_line_errors(command, prog, arguments):
        tyro.cli(
            command,
            prog=prog,
            args=list(arguments),
            config=(tyro.conf.FlagCreatePairsOff,),
        )


@contextlib.contextmanager
def one_line_errors(command: Callable[..., Any], prog: str, arguments: Sequence[str]) -> Iterator[None]:
    """tyro's boxes of errors as one line; its own words for errors that are not known here."""
    try:
        from tyro import _errors
    except ImportError:
        yield
        return

    def refuse(event: Any) -> None:
        help_line = f"{prog} --help lists what it takes"
        known = option_names(command)
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
            value = re.search(r"from \['(.*?)'\]", event.message)
            wanted = getattr(name, "metavar", None)
            if value and wanted:
                raise UserError(f"{shown} {value[1]}: this is no {wanted}; {help_line}")
            raise UserError(f"{shown}: {' '.join(event.message.split())}; {help_line}")

    with _errors.on_parse_error(refuse):
        yield


def _unknown(token: str, known: Sequence[str]) -> str:
    """What is wrong with a token that the command does not know."""
    if not token.startswith("-"):
        like = f", such as --swi {token}" if "--swi" in known else ""
        return f"{token}: not expected here; images and folders are given by options{like}"
    name = token.split("=")[0]
    return f"there is no option {name}{closest(name.replace('_', '-'), known)}"


def option_names(command: Callable[..., Any]) -> list[str]:
    """All options of a presented command, or of a dataclass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it has no other way to list options
        parser = tyro.extras.get_parser(command, config=(tyro.conf.FlagCreatePairsOff,), registry=SETTINGS)
    return [name for name in parser._option_string_actions if name.startswith("--")]
