"""Pages that are read from the code: the command line from the table of verbs, Python from the docstrings."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro

import avdistill
from avdistill.cli import VERBS, main
from avdistill.commands.completion import Words, calls, sub_verbs

# Modules whose every public name is for users, beside the names of `avdistill` itself.
WHOLE = {"errors": "avdistill.errors", "losses": "avdistill.losses", "methods": "avdistill.methods.base"}


def pages() -> dict[Path, str]:
    """Every generated page."""
    return {Path("cli.md"): _command_line(), **_api()}


class _CalledError(Exception):
    pass


def _command_line() -> str:
    """Every verb with its options."""
    parts = [
        "# Command line\n\nGenerated from the table of verbs. `avdistill VERB --help` prints the same, `avdistill "
        "completion` prints [completions](installation.md#shell-completion). Exit codes: 0, 1 for a failure, 2 for a "
        "wrong call, 130 after Ctrl-C.\n",
        "| verb | what it does |\n|---|---|",
        *(f"| [`{verb}`](#{verb}) | {_cell(line)} |" for verb, (_, line) in VERBS.items()),
    ]
    previous = ""
    for words in calls():
        verb = words[0]
        if verb != previous:
            parts.append(f"\n## {verb}\n\n{VERBS[verb][1][0].upper()}{VERBS[verb][1][1:]}.")
            previous = verb
        if len(words) == 2:
            parts.append(f"\n### {' '.join(words)}\n\n{sub_verbs(verb)[words[1]].replace('->', '→')}.")
        parts.append(_options(words))
    return "\n".join(parts) + "\n"


def _options(words: Words) -> str:
    if words == ("teacher", "train"):
        return "\nThe options are those of [`train`](#train), with the defaults of the recipe `audio_teacher`."
    asked = ["train", "ucf51_small"] if words == ("train",) else list(words)
    kind, settings = _captured(asked)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(kind, **settings)
    rows = []
    for action in parser._actions:
        name = next((each for each in action.option_strings if each.startswith("--")), action.dest)
        if name == "--help":
            continue
        text = " ".join((action.help or "").split())
        found = re.search(r"\s*\((required|optional|repeatable|default: .*)\)$", text)
        default = "" if found is None else found[1].removeprefix("default: ")
        choices = " or ".join(f"`{each}`" for each in action.choices or ())
        text = text if found is None else text[: found.start()]
        if choices and len(action.choices or ()) > 1:
            text += f" One of {choices.replace(' or ', ', ')}."
        rows.append(f"| `{name}` | {_cell(default) and f'`{_cell(default)}`'} | {_cell(text)} |")
    note = "\nThe defaults are those of the recipe `ucf51_small`." if words == ("train",) else ""
    if not rows:
        return note
    return f"{note}\n\n| option | default | |\n|---|---|---|\n" + "\n".join(rows)


def _captured(words: list[str]) -> tuple[Any, dict[str, Any]]:
    """What a verb gives to tyro: the class of its arguments, and the settings of the parser."""
    calls_: list[tuple[Any, dict[str, Any]]] = []

    def cli(kind: Any, **settings: Any) -> None:
        calls_.append((kind, {name: settings[name] for name in ("default", "config", "prog") if name in settings}))
        raise _CalledError

    original = tyro.cli
    tyro.cli = cli  # type: ignore[assignment]
    try:
        main(words)
    except _CalledError:
        pass
    finally:
        tyro.cli = original
    return calls_[0]


def _cell(text: str) -> str:
    """A text in a table's cell."""
    return text.replace("|", r"\|").replace("<", "&lt;")


def _api() -> dict[Path, str]:
    """A page for each room of the library that has public names, and the page that lists them."""
    rooms: dict[str, list[str]] = {}
    for module, names in sorted(avdistill._LAZY.items()):
        rooms.setdefault(module.split(".")[1], []).extend(f"{module}.{name}" for name in names)
    for room in WHOLE:
        rooms.setdefault(room, [])
    found, index = {}, []
    for room, objects in sorted(rooms.items()):
        about = _about(f"avdistill.{room}")
        listed = [*objects, *(f"{WHOLE[room]}.{name}" for name in _public(WHOLE[room]))] if room in WHOLE else objects
        listed = _without_repeats(listed)
        found[Path(f"api/{room}.md")] = f"# {room}\n\n{about}\n\n" + "\n".join(f"::: {name}\n" for name in listed)
        links = ", ".join(f"[`{name.rpartition('.')[2]}`]({room}.md#{name})" for name in listed)
        index.append(f"| [{room}]({room}.md) | {_cell(about)} | {links} |")
    head = (
        "# Python API\n\nNames of `avdistill` itself are imported as `from avdistill import NAME`; those of `losses`, "
        "`methods` and `errors` as `from avdistill.methods import NAME`.\n\n| part | about | names |\n|---|---|---|\n"
    )
    return {Path("api/index.md"): head + "\n".join(index) + "\n", **found}


def _about(module: str) -> str:
    """The first paragraph of a module's docstring."""
    return " ".join((import_module(module).__doc__ or "").split("\n\n")[0].split())


def _public(module: str) -> Iterable[str]:
    """The names of a module that its `__all__` lists, or that it defines."""
    loaded = import_module(module)
    defined = [
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(module)
    ]
    return getattr(loaded, "__all__", defined)


def _without_repeats(objects: list[str]) -> list[str]:
    seen: dict[str, str] = {}
    for name in objects:
        seen.setdefault(name.rpartition(".")[2], name)
    return list(seen.values())
