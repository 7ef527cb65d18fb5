"""Command lines from pydantic models: a field is an option, its docstring the option's help."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import cleandoc
from pathlib import Path
from pkgutil import resolve_name
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import AllowInfNan, BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from river_vllm.errors import REMOVED

REMOVED_OPTIONS = {
    **{f"--river-{name.replace('_', '-')}": instead for name, instead in REMOVED.items()},
    "--list-tokens": "leave it out: drafts are picked from every token",
    "--target-kl": "use --target-agreement",
    "--target-depth": "use --target-agreement, or --check FILE with settings of that depth",
}
"""Options of earlier versions, with their replacements."""

METAVARS = {int: "N", float: "X", str: "NAME", Path: "FILE"}

Commands = argparse._SubParsersAction
"""What ``add_subparsers`` returns."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A field's form on the command line, where its type does not give it."""

    metavar: str
    positional: bool = False


@dataclass(frozen=True, slots=True)
class FieldsOf:
    """Options for some fields of another model; the given values form a ``dict``."""

    model: type[BaseModel]
    names: tuple[str, ...]
    prefix: str
    """Start of the options' names, without the two dashes."""

    def add(self, parser: argparse._ActionsContainer, at: str = "") -> None:
        """Add an option for each field to ``parser``."""
        for name in self.names:
            flag = f"--{self.prefix}{name.replace('_', '-')}"
            add_option(parser, flag, self.model.model_fields[name], self._dest(name, at))

    def given(self, args: argparse.Namespace, at: str = "") -> dict[str, Any]:
        """The values of the options that were given, by field."""
        places = {name: self._dest(name, at) for name in self.names}
        return {name: getattr(args, dest) for name, dest in places.items() if hasattr(args, dest)}

    def _dest(self, name: str, at: str) -> str:
        return f"{at}{self.prefix.replace('-', '_')}{name}"


class Options(BaseModel):
    """The options of a command. A field of type ``Options`` is a group, titled by the docstring of
    its class."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports an error in one line without the usage; exit status 2."""

    model: type[Options] | None = None
    """Model of its options; the parsed namespace's ``options`` is an instance."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Refuse unknown arguments here; parsers above would report them differently."""
        found, unknown = super().parse_known_args(args, namespace)
        for name in (word.partition("=")[0] for word in unknown):
            if name in REMOVED_OPTIONS:
                self.error(f"{name} was removed; {REMOVED_OPTIONS[name]}")
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown)}")
        if self.model is not None:
            try:
                found.options = self.model.model_validate(_given(self.model, found))
            except ValidationError as error:
                self.error(_message(error.errors()[0]))
        return found, []

    def _meant(self, unknown: Sequence[str]) -> str:
        names = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        close = {name: get_close_matches(name, self._option_string_actions, 1) for name in names}
        meant = [found[0] for found in close.values() if found]
        return f" (did you mean {', '.join(meant)}?)" if meant else f" (see {self.prog} --help)"


def add_command(commands: Commands[Any], name: str, model: type[Options], run: str) -> None:
    """Register the command ``name`` with the fields of ``model``; its docstring describes it.

    The parsed namespace's ``run`` takes the namespace and returns an exit status.

    Args:
        run: function of an instance of ``model``, as ``module:name``; imported when it is called.
    """
    about = cleandoc(model.__doc__ or "")
    summary = about.partition("\n")[0].rstrip(".")
    parser = commands.add_parser(
        name,
        help=summary[:1].lower() + summary[1:],
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser, model)
    parser.set_defaults(run=lambda args: resolve_name(run)(args.options))


def add_options(parser: OneLineParser, model: type[Options]) -> None:
    """Add every field of ``model`` as an option; ``parser`` validates them together."""
    _add_fields(parser, model, "")
    parser.model = model


def _add_fields(parser: argparse._ActionsContainer, model: type[Options], at: str) -> None:
    for name, field in _fields(model):
        group = _group(field)
        if others := _others(field):
            others.add(parser, at)
        elif group is None:
            add_option(parser, f"--{name.replace('_', '-')}", field, f"{at}{name}")
        else:
            title = parser.add_argument_group((group.__doc__ or "").strip().rstrip("."))
            _add_fields(title, group, f"{at}{name}/")


def add_option(parser: argparse._ActionsContainer, flag: str, field: FieldInfo, dest: str) -> None:
    """Add one field as an option; the namespace lacks an option that is not given.

    A list is an option that may be repeated, or any number of positional words; a tuple is an
    option with a word per type. The help names the default, unless the docstring does.
    """
    whole, metadata = _unwrapped(field.annotation, field.metadata)
    kind, origin = whole, get_origin(whole)
    if origin in (list, tuple):
        kind, metadata = _unwrapped(get_args(whole)[0], metadata)
    text = " ".join((field.description or "").split()).replace("``", "")
    told = "default:" in text or field.is_required()
    if not told and field.default is not None and field.default is not False:
        text += f" (default: {field.default})"
    options: dict[str, Any] = {"help": text.replace("%", "%%")}
    shown = next((item for item in metadata if isinstance(item, Shown)), None)
    if kind is bool:
        options["action"] = "store_true"
    elif get_origin(kind) is Literal:
        options |= {"choices": get_args(kind), "type": type(get_args(kind)[0])}
    else:
        if kind is float:
            metadata.append(AllowInfNan(False))
        options["type"] = _reader(Annotated[(kind, *metadata)] if metadata else kind)
        options["metavar"] = shown.metavar if shown else _metavar(kind)
    positional = shown is not None and shown.positional
    if origin is tuple:
        options["nargs"] = len(get_args(whole))
    elif origin is list:
        options |= {"nargs": "*"} if positional else {"action": "append"}
    if positional:
        parser.add_argument(dest, default=argparse.SUPPRESS, **options)
    else:
        parser.add_argument(flag, dest=dest, default=argparse.SUPPRESS, **options)


def _unwrapped(kind: Any, metadata: Sequence[Any] = ()) -> tuple[Any, list[Any]]:
    """A type without ``None``, and all of its annotations."""
    found = list(metadata)
    if get_origin(kind) in (Union, UnionType):
        parts = [part for part in get_args(kind) if part is not type(None)]
        kind = Union[tuple(parts)]  # noqa: UP007
    if get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        found += more
    return kind, found


def _metavar(kind: Any) -> str:
    kind, _ = _unwrapped(kind)
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is Union:
        return "|".join(map(_metavar, get_args(kind)))
    return METAVARS.get(kind, "VALUE")


def _reader(kind: Any) -> Callable[[str], Any]:
    adapter = TypeAdapter(kind)

    def read(text: str) -> Any:
        try:
            return adapter.validate_python(text)
        except ValidationError as error:
            # A union has one error per type.
            reasons = " or ".join(map(_message, error.errors()))
            raise argparse.ArgumentTypeError(f"{text!r}: {reasons}") from None

    return read


def _message(error: Any) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return str(error["msg"][:1].lower() + error["msg"][1:])


def _given(model: type[Options], args: argparse.Namespace, at: str = "") -> dict[str, Any]:
    """The values given on the command line, in the shape of ``model``."""
    found: dict[str, Any] = {}
    for name, field in _fields(model):
        group = _group(field)
        if others := _others(field):
            found[name] = others.given(args, at)
        elif group is not None:
            found[name] = _given(group, args, f"{at}{name}/")
        elif hasattr(args, f"{at}{name}"):
            found[name] = getattr(args, f"{at}{name}")
    return found


def _fields(model: type[Options]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield field.alias or name, field


def _group(field: FieldInfo) -> type[Options] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Options) else None


def _others(field: FieldInfo) -> FieldsOf | None:
    return next((item for item in field.metadata if isinstance(item, FieldsOf)), None)
