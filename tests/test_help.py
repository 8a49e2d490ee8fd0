"""Every option of every verb has a help text of whole sentences."""

import re
import warnings

import pytest
import tyro

from avdistill.cli import VERBS, main
from avdistill.methods import METHODS

NO_OPTIONS_OF_THEIR_OWN = ("train", "teacher", "reference")
CALLS = [
    *([verb] for verb in VERBS if verb not in NO_OPTIONS_OF_THEIR_OWN),
    *(["reference", each] for each in ("clips", "checkpoint", "retrieve", "predictions")),
    *(["teacher", each] for each in ("probe", "convert", "list")),
    ["train", "audio_teacher"],
    *(["train", "demo_supervised", "--method", name] for name in METHODS),
]


class CalledError(Exception):
    pass


@pytest.mark.parametrize("words", CALLS, ids=" ".join)
def test_help_is_whole_sentences(words, monkeypatch):
    calls = []

    def cli(kind, **settings):
        calls.append((kind, settings))
        raise CalledError

    monkeypatch.setattr(tyro, "cli", cli)
    with pytest.raises(CalledError):
        main(words)
    kind, settings = calls[0]
    settings = {name: value for name, value in settings.items() if name in ("default", "config", "prog")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(kind, **settings)
    assert re.match(r"[A-Z].*\.$", kind.__doc__.partition("\n")[0]), kind.__doc__
    wrong = []
    for action in parser._actions:
        name = (action.option_strings or [action.dest])[0]
        if name == "-h" or ".options." in name or len(action.choices or ()) == 1:
            continue
        text = re.sub(r"\s*\((required|optional|repeatable|default: .*)\)$", "", action.help or "", flags=re.DOTALL)
        if not re.match(r"[A-Z`].*\.$", text, flags=re.DOTALL):
            wrong.append((name, text))
    assert not wrong


def test_verbs_are_listed_as_phrases_that_begin_with_a_verb(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == len(VERBS)
    assert all(re.match(r"  \w+ +[a-z]+ ", line) for line in lines)
