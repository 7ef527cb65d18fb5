"""Command lines from pydantic models: a field is an option, its docstring the option's help."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import AllowInfNan, BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from server.cli.removed import REMOVED_OPTIONS

METAVARS = {int: "N", float: "X", str: "NAME", Path: "FILE"}

Commands = argparse._SubParsersAction
"""What ``add_subparsers`` returns."""


@dataclass(frozen=True, slots=True)
class Shown:
    """How a field appears on the command line, where its type does not say it."""

    metavar: str
    positional: bool = False


@dataclass(frozen=True, slots=True)
class FieldsOf:
    """What a ``dict`` of options holds: some fields of another model, where they were given."""

    model: type[BaseModel]
    names: tuple[str, ...]
    prefix: str
    """Of the options' names, without the two dashes."""

    def add(self, parser: argparse._ActionsContainer, at: str = "") -> None:
        """Their options."""
        for name in self.names:
            flag = f"--{self.prefix}{name.replace('_', '-')}"
            add_option(parser, flag, self.model.model_fields[name], self._dest(name, at))

    def given(self, args: argparse.Namespace, at: str = "") -> dict[str, Any]:
        """The values of those that were given."""
        places = {name: self._dest(name, at) for name in self.names}
        return {name: getattr(args, dest) for name, dest in places.items() if hasattr(args, dest)}

    def _dest(self, name: str, at: str) -> str:
        return f"{at}{self.prefix.replace('-', '_')}{name}"


class Options(BaseModel):
    """The options of a command. A field that is ``Options`` itself is a group of them, under the
    docstring of its class."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


M = TypeVar("M", bound=Options)


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it; exit status 2."""

    model: type[Options] | None = None
    """Of its options; the parsed namespace's ``options`` is one."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Nothing unknown is left to parsers above, which would answer in their own way."""
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
                self.error(_reason(error))
        return found, []

    def _meant(self, unknown: Sequence[str]) -> str:
        names = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        close = {name: get_close_matches(name, self._option_string_actions, 1) for name in names}
        meant = [found[0] for found in close.values() if found]
        return f" (did you mean {', '.join(meant)}?)" if meant else f" (see {self.prog} --help)"


def add_command(
    commands: Commands[Any],
    name: str,
    model: type[M],
    run: Callable[[M], int],
    about: str = "",
) -> None:
    """Register the command ``name``: its options are the fields of ``model``, whose docstring is
    its summary. The parsed namespace's ``run`` takes the namespace, and returns an exit status.

    Args:
        about: more of its description, shown as it is written.
    """
    summary = (model.__doc__ or "").strip().rstrip(".")
    parser = commands.add_parser(
        name,
        help=summary[:1].lower() + summary[1:],
        description="\n\n".join(filter(None, (f"{summary}.", about))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser, model)
    parser.set_defaults(run=lambda args: run(args.options))


def add_options(parser: OneLineParser, model: type[Options]) -> None:
    """Every field of ``model`` as an option, and a parser that validates them together."""
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
    """One field as an option; what is not given is not in the namespace.

    A list is an option that may be repeated, or any number of positional words; a tuple is an
    option with a word for each of its types. Its default is told where the docstring does not tell
    one.
    """
    whole, metadata = _unwrapped(field.annotation, field.metadata)
    kind, origin = whole, get_origin(whole)
    if origin in (list, tuple):
        kind, metadata = _unwrapped(get_args(whole)[0], metadata)
    text = _text(field)
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
    """A type without ``None``, and everything that it is annotated with."""
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
            # Of a union one for each of its types.
            reasons = " or ".join(map(_message, error.errors()))
            raise argparse.ArgumentTypeError(f"{text!r}: {reasons}") from None

    return read


def _reason(error: ValidationError) -> str:
    """The first of the errors."""
    return _message(error.errors()[0])


def _message(error: Any) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return str(error["msg"][:1].lower() + error["msg"][1:])


def _given(model: type[Options], args: argparse.Namespace, at: str = "") -> dict[str, Any]:
    """What the command line said, in the shape of ``model``."""
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


def _text(field: FieldInfo) -> str:
    """The docstring without its marks."""
    return " ".join((field.description or "").split()).replace("``", "")
