"""Configuration of every entry point: typed dataclasses, a YAML recipe, dotted overrides.

``main`` is what each entry point calls. It gives all of them the same manners: ``--config``,
``--field.of.recipe value``, ``--help``, one line of JSON at the end of standard output, and one
clear sentence with a non-zero exit code when something is wrong with what was asked.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import jsonargparse

from infra.errors import USER_ERRORS, space_for

Config = TypeVar("Config")


def parse(
    config_class: type[Config],
    argv: Sequence[str] | None = None,
    *,
    recipe: Path | None = None,
    description: str | None = None,
) -> Config:
    """Read a configuration from a recipe and the command line.

    Args:
        config_class: a frozen keyword-only dataclass whose fields carry docstrings.
        argv: the arguments; ``sys.argv[1:]`` by default.
        recipe: the YAML that holds when no ``--config`` is given.

    An unknown key, a missing field or a value of the wrong type ends the program with exit
    code 2 and a sentence that names it.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    arguments = list(sys.argv[1:] if argv is None else argv)
    # A recipe that is named replaces the default one: no field comes from two recipes.
    named = any(a == "--config" or a.startswith("--config=") for a in arguments)
    parser = jsonargparse.ArgumentParser(
        description=description,
        default_config_files=[str(recipe)] if recipe and not named else [],
        default_env=False,
        # A key that is cut short is a typing error, and --conf would not replace the recipe.
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="a YAML recipe; flags override it")
    parser.add_class_arguments(config_class)
    fields = _fields(config_class)
    switches = {name for name, hint in fields.items() if hint is bool}
    try:
        namespace = parser.parse_args(_spelled(arguments, switches))
        instance = parser.instantiate(namespace)
    except jsonargparse.ArgumentError as error:
        # Left to itself the parser would print all options first, which is some fifty lines.
        parser.exit(2, f"error: {_sentence(error, fields)}\n")
    values = {f.name: getattr(instance, f.name) for f in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    return config_class(**values)


def _fields(config_class: type[Any]) -> dict[str, Any]:
    """The types of all fields by their dotted names."""
    found: dict[str, Any] = {}
    hints = get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        hint = found[field.name] = hints[field.name]
        for kind in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                found |= {f"{field.name}.{name}": type_ for name, type_ in _fields(kind).items()}
    return found


def _sentence(error: jsonargparse.ArgumentError, fields: Collection[str]) -> str:
    """What is wrong with the arguments, in one line and without the library's own types."""
    text = " ".join(str(error).split())
    if key := re.match(r'Parser key "([\w.]+)": .*Option \'([\w.]+)\' is not accepted', text):
        text = f"unrecognized arguments: --{key[1]}.{key[2]}"
    if key := re.match(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text):
        text = f"unrecognized arguments: --{key[1]}.{key[2]}"
    if key := re.match(r'Parser key "([\w.]+)": Unable to load config', text):
        inner = ", ".join(f"--{name}" for name in fields if name.startswith(f"{key[1]}."))
        text = f"--{key[1]} takes no value of its own: give its fields ({inner})"
    if key := re.match(r"unrecognized arguments: --([\w.]+)", text):
        meant = difflib.get_close_matches(key[1], fields, 1)
        text += f" (is --{meant[0]} meant?)" if meant else ""
    return f"{text}; --help explains every field"


def _spelled(arguments: Sequence[str], switches: set[str]) -> list[str]:
    """``--dry-run`` as ``--dry_run=true``: with dashes, and a switch alone, as people write it."""
    spelled = []
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue="--"):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            if name in switches and not equals and following.startswith("-"):
                equals, value = "=", "true"
            argument = f"--{name}{equals}{value}"
        spelled.append(argument)
    return spelled


def main(
    job: Callable[[Config], dict[str, Any]],
    config_class: type[Config],
    *,
    recipe: Path | None = None,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Run ``job`` as an entry point; its summary is the last line of standard output."""
    set_up_logging()
    try:
        config = parse(config_class, argv, recipe=recipe, description=job.__doc__)
        with space_for("what this job writes"):
            summary = job(config)
    except USER_ERRORS as error:
        if os.environ.get("SAVE_TRACEBACK"):
            raise
        # One sentence: libraries underneath like to wrap theirs over many lines.
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("error: interrupted: run the same command again to go on", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    print(json.dumps(summary, sort_keys=True), flush=True)
    sys.exit(0)


def set_up_logging() -> None:
    """Log lines go to standard error, so that standard output ends with the summary."""
    logging.basicConfig(
        level=os.environ.get("SAVE_LOG", "INFO"),
        stream=sys.stderr,
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    for noisy in ("httpx", "botocore", "aiobotocore", "s3fs", "fsspec", "alembic", "mlflow.store"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    values = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    assert isinstance(values, dict)
    return values


def canonical_json(value: Any) -> bytes:
    """The one way in which a document is written, so that equal content has equal bytes."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
