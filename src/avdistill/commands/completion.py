"""The verb that prints the completion of verbs and options for a shell: completion."""

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

import tyro

from avdistill.cli import VERBS, main

# An option at the beginning of its line of a help text; words in the explanations do not begin a line.
_OPTION = re.compile(r"^[│|\s]*(?:-h, )?(--[a-z0-9][\w.-]*)", re.MULTILINE)
Words = tuple[str, ...]


@dataclass(frozen=True)
class _Completion:
    """Print a script that completes verbs, recipes and options in a shell."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """The shell: avdistill completion bash > ~/.local/share/bash-completion/completions/avdistill."""


def completion(arguments: list[str]) -> None:
    """`avdistill completion bash|zsh|fish`."""
    a = tyro.cli(_Completion, args=arguments, prog="avdistill completion")
    options = {words: options_of(words) for words in calls()}
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[a.shell](options), end="")


def sub_verbs(verb: str) -> dict[str, str]:
    """The verbs below a verb, such as those of `avdistill teacher`, with what they do; empty for most."""
    module, function = VERBS[verb][0].split(":")
    table = getattr(import_module(f"avdistill.commands.{module}"), "SUB_VERBS", {})
    return {name: help_line for name, (_, help_line) in table.items()} if function == verb else {}


def calls() -> Iterator[Words]:
    """The words after `avdistill` that options follow: ("info",), ("teacher", "probe"), ..."""
    for verb in VERBS:
        below = sub_verbs(verb)
        yield from ((verb, name) for name in below) if below else [(verb,)]


def options_of(words: Words) -> list[str]:
    """The options of a verb, as its help lists them."""
    # The help of these names the options of a recipe by a reference; all recipes have the same.
    asked = {("train",): ("train", "demo"), ("teacher", "train"): ("train", "audio_teacher")}.get(words, words)
    printed = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"  # one column of options
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*asked, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    found = dict.fromkeys(_OPTION.findall(printed.getvalue()))
    return [option for option in found if option != "--help"]


def _recipes() -> list[str]:
    from avdistill.training.recipes import RECIPES

    return list(RECIPES)


def _bash(options: dict[Words, list[str]]) -> str:
    verbs = " ".join(VERBS)
    second = {verb: list(sub_verbs(verb)) for verb in VERBS if sub_verbs(verb)} | {"train": _recipes()}
    seconds = "\n".join(f"        {verb}) words={_quoted(names)} ;;" for verb, names in second.items())
    by_call = "\n".join(f"        {_pattern(words)}) options={_quoted(names)} ;;" for words, names in options.items())
    return f"""# bash completion of avdistill
_avdistill() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} options= words=
    COMPREPLY=()
    if [ "$COMP_CWORD" = 1 ]; then
        COMPREPLY=($(compgen -W '{verbs} --help --version' -- "$current"))
        return
    fi
    if [ "$COMP_CWORD" = 2 ] && [[ $current != -* ]]; then
        case ${{COMP_WORDS[1]}} in
{seconds}
        esac
        COMPREPLY=($(compgen -W "$words" -- "$current"))
        return
    fi
    [[ $current == -* ]] || return
    case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}} " in
{by_call}
    esac
    COMPREPLY=($(compgen -W "$options --help" -- "$current"))
}}
complete -o default -F _avdistill avdistill
"""


def _zsh(options: dict[Words, list[str]]) -> str:
    second = {verb: sub_verbs(verb) for verb in VERBS if sub_verbs(verb)}
    second |= {"train": dict.fromkeys(_recipes(), "")}
    seconds = "\n".join(f"            {verb}) words_=({_described(names)}) ;;" for verb, names in second.items())
    by_call = "\n".join(
        f"        {_pattern(words)}) options=({' '.join(map(shlex.quote, names))}) ;;"
        for words, names in options.items()
    )
    return f"""#compdef avdistill
_avdistill() {{
    local -a words_ options
    if (( CURRENT == 2 )); then
        words_=({_described({verb: line for verb, (_, line) in VERBS.items()})})
        _describe verb words_
        return
    fi
    if (( CURRENT == 3 )) && [[ $PREFIX != -* ]]; then
        case $words[2] in
{seconds}
        esac
        (( $#words_ )) && {{ _describe word words_; return; }}
    fi
    if [[ $PREFIX != -* ]]; then
        _files
        return
    fi
    case "$words[2] $words[3] " in
{by_call}
    esac
    compadd -- $options --help
}}
compdef _avdistill avdistill
"""


def _fish(options: dict[Words, list[str]]) -> str:
    lines = ["# fish completion of avdistill"]
    for verb, (_, help_line) in VERBS.items():
        lines.append(f"complete -c avdistill -n __fish_use_subcommand -f -a {verb} -d {_escaped(help_line)}")
        below = sub_verbs(verb) | (dict.fromkeys(_recipes(), "") if verb == "train" else {})
        condition = f"'__fish_seen_subcommand_from {verb}; and test (count (commandline -opc)) = 2'"
        lines += [f"complete -c avdistill -n {condition} -f -a {name} -d {_escaped(of)}" for name, of in below.items()]
    for words, names in options.items():
        condition = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in words)
        lines += [f"complete -c avdistill -n '{condition}' -l {name.removeprefix('--')}" for name in names]
    return "\n".join(lines) + "\n"


def _pattern(words: Words) -> str:
    """Of a `case` on the first two words and a blank."""
    return f"{shlex.quote(' '.join(words) + ' ')}*"


def _quoted(names: Iterable[str]) -> str:
    return shlex.quote(" ".join(names))


def _escaped(text: str) -> str:
    """In fish's single quotes, where a backslash escapes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _described(names: dict[str, str]) -> str:
    """Entries `name:description` of zsh's _describe."""
    return " ".join(shlex.quote(f"{name}:{line}" if line else name) for name, line in names.items())
