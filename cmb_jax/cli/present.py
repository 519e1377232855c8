"""How commands look on the command line: options in groups, aliases, plain metavars, errors of one line.

A command is a function of one frozen dataclass, `options`; this turns it into what tyro parses, and what tyro
refuses into a `UserError`. `cmb-jax train` and `eval` take a configuration, overridden field by field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import docstring_parser
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from cmb_jax.cli.common import check
from cmb_jax.config import Config, PrototypeLoss, prototype_losses
from cmb_jax.config_load import build, loss_name
from cmb_jax.errors import UserError
from cmb_jax.io.outside import shortened

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


_WANTED = {"INT": "a whole number", "FLOAT": "a number"}


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
        return self.name, self.shown, dataclasses.field(default=self.default)


def options_class(command: Callable[..., None]) -> type:
    """The dataclass that a command takes."""
    annotation = inspect.signature(command).parameters["options"].annotation
    # only this name is looked up: others in the signature may be of modules that --help does not import
    return command.__globals__[annotation] if isinstance(annotation, str) else annotation


def _options(owner: type) -> list[_Option]:
    """The fields of a dataclass, its own before those that it shares with other commands."""
    hints = typing.get_type_hints(owner, include_extras=True)
    texts: dict[str, str | None] = {}
    own: dict[str, None] = {}
    for each in filter(dataclasses.is_dataclass, owner.__mro__):
        for told in docstring_parser.parse_from_object(each).params:
            texts.setdefault(told.arg_name, told.description)
        own |= dict.fromkeys(vars(each).get("__annotations__", ()))
    fields = {each.name: each for each in dataclasses.fields(owner)}
    return [
        _Option(name=name, annotation=hints[name], default=fields[name].default, text=texts.get(name))
        for name in own
        if name != "verbose"  # every command has that
    ]


def presented(command: Callable[..., None], apply: Callable[[Common], None]) -> Callable[..., None]:
    """What tyro parses in place of a command.

    Args:
        command: a function of `options`, a dataclass whose fields become options; help is its docstring's.
        apply: is given the options that every command takes, before the command runs.
    """
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


def closest(word: str, known: Sequence[str]) -> str:
    """ "; did you mean ...?" for something near, else nothing."""
    by_bare = {
        name.lstrip("-"): name for name in known
    }  # the dashes, which all options share, make none alike
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
            value = re.search(r"(?:from \[|arguments: \[|: )'(.*?)'\]?(?:\n|\.|$)", event.message)
            metavar = getattr(name, "metavar", None) or ""
            wanted = next((told for word, told in _WANTED.items() if word in metavar), metavar)
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
    return f"there is no option {name}{closest(name.replace('_', '-'), known)}"


def option_names(command: Callable[..., Any]) -> list[str]:
    """All options of a presented command, or of a dataclass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it has no other way to list options
        parser = tyro.extras.get_parser(command, config=(tyro.conf.FlagCreatePairsOff,), registry=SETTINGS)
    return [name for name in parser._option_string_actions if name.startswith("--")]


SETTINGS = ConstructorRegistry()
"""How settings are shown and read that tyro has no short form for."""


@SETTINGS.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """What may be left out is shown as its type, where tyro would put {None}| before it."""
    parts = [part for part in typing.get_args(info.type) if part is not types.NoneType]
    if types.NoneType not in typing.get_args(info.type) or len(parts) != 1:
        return None
    inner = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(parts[0], info.markers))
    if not isinstance(inner, PrimitiveConstructorSpec):
        return None
    none = ["None"]
    return dataclasses.replace(
        inner,
        instance_from_str=lambda words: None if words == none else inner.instance_from_str(words),
        is_instance=lambda value: value is None or inner.is_instance(value),
        str_from_instance=lambda value: none if value is None else inner.str_from_instance(value),
    )


@SETTINGS.primitive_rule
def _prototype(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A prototype loss is one option: its name and what differs from its defaults."""
    if PrototypeLoss not in typing.get_args(info.type):
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME [SETTING=VALUE ...]",
        instance_from_str=loss_from_words,
        is_instance=lambda value: value is None or dataclasses.is_dataclass(value),
        str_from_instance=_words_of_loss,
    )


def _plain(text: str) -> bool | int | float | str:
    """A setting as it is typed: true, false, a number, or a word."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def loss_from_words(words: Sequence[str]) -> PrototypeLoss | None:
    """The prototype loss of words such as proxy_anchor scale=16; module:Class is imported; None for none."""
    name, *settings = words or [""]
    if name == "none" and not settings:
        return None
    kind = _own_loss(name) if ":" in name else prototype_losses().get(name)
    if kind is None:
        names = ", ".join([*prototype_losses(), "none"])
        raise UserError(f"--loss.prototype {name}: give one of {names}, or module:Class for one of your own")
    values = {}
    for setting in settings:
        field, _, text = setting.partition("=")
        values[field] = _plain(text)
    try:
        loss: PrototypeLoss = build(kind, values, "loss.prototype")
    except (ValueError, TypeError) as error:
        takes = ", ".join(f"{field.name}=..." for field in dataclasses.fields(kind)) or "no settings"  # type: ignore[arg-type]
        raise UserError(f"--loss.prototype {' '.join(words)}: {error}; {name} takes {takes}") from error
    return loss


def _words_of_loss(loss: Any) -> list[str]:
    if loss is None:
        return ["none"]
    return [loss_name(loss), *(f"{name}={value}" for name, value in dataclasses.asdict(loss).items())]


def _own_loss(name: str) -> type[PrototypeLoss]:
    """The class that module:Class names; the module is code, and is run."""
    module, _, inside = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # an installed command does not look where it is started
    try:
        kind = getattr(importlib.import_module(module), inside)
    except Exception as error:
        raise UserError(
            f"--loss.prototype {name}: cannot be imported ({type(error).__name__}: {shortened(str(error))}); "
            f"start the command in the folder of {module}.py"
        ) from error
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and "__call__" in dir(kind)):
        raise UserError(f"--loss.prototype {name}: must be a dataclass with __call__ (docs/losses.md)")
    return typing.cast("type[PrototypeLoss]", kind)


_PART_OF_THE_LOSS = frozenset(
    f"--loss.{name}"
    for name in (
        "prototype-loss",
        "prototype-gamma",
        "prototype-pull",
        "supcon-temperature",
        "proxy-scale",
        "proxy-margin",
        "triplet-margin",
    )
)


def override(config: Config, arguments: Sequence[str], prog: str) -> Config:
    """The configuration with dotted overrides, e.g. `--train.steps 500`; help comes from the dataclasses."""
    for word in arguments:
        if word.split("=")[0].replace("_", "-") in _PART_OF_THE_LOSS:
            raise UserError(
                f"{word}: is part of --loss.prototype NAME [SETTING=VALUE ...] now, "
                "such as --loss.prototype proxy_anchor scale=16"
            )
    return tyro.cli(Config, default=config, args=list(arguments), prog=prog, registry=SETTINGS)
