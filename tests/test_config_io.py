"""Configs: strict both ways."""

import json
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avdistill.config_io import decode, encode, read_json
from avdistill.errors import ConfigError
from avdistill.inputs import AudioInput
from avdistill.methods import METHODS
from avdistill.methods.kd import KDConfig
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.training import TrainConfig, read_config
from avdistill.training.recipes import RECIPES
from support.strategies import CHARACTERS


@dataclass(frozen=True)
class Leaf:
    name: Literal["leaf"] = "leaf"
    size: int = 1
    rate: float = 0.5


@dataclass(frozen=True)
class Branch:
    name: Literal["branch"] = "branch"
    leaves: tuple[Leaf, ...] = ()
    title: str | None = None


@dataclass(frozen=True)
class Tree:
    folder: Path
    part: Leaf | Branch = field(default_factory=Leaf)
    pair: tuple[int, float] = (1, 2.0)
    flag: bool = False
    extra: dict[str, int | float | bool | str] = field(default_factory=dict)


whole = st.integers(-(2**63), 2**63 - 1)  # no array holds others
leaves = st.builds(Leaf, size=whole, rate=st.floats(allow_nan=False, allow_infinity=False))
branches = st.builds(Branch, leaves=st.lists(leaves, max_size=3).map(tuple), title=st.none() | st.text(CHARACTERS))
values = whole | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.text(CHARACTERS)
trees = st.builds(
    Tree,
    folder=st.text("abc/", min_size=1).map(Path),
    part=leaves | branches,
    pair=st.tuples(whole, st.floats(allow_nan=False, allow_infinity=False)),
    flag=st.booleans(),
    extra=st.dictionaries(st.text(CHARACTERS), values, max_size=3),
)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"folder": "a", "flag": 2**70}, "expected bool"),
        ({"folder": "a", "pair": [2**70, 1.0]}, "64 bits"),
        ({"folder": "a", "pair": [1, float("inf")]}, "finite"),
        ({"folder": "a\0b"}, "expected a path"),
        ({"folder": "a", "extra": {"x": "\ud800"}}, "Unicode"),
        ({"folder": "a", "part": {"name": ["leaf"]}}, "expected one of"),
        ({"folder": "a", "part": {"name": "leaf", "size": [[[[]]]] * 10**5}}, "expected int"),
        ({"folder": "a", "x" * 10**5: 1}, "unknown key"),
    ],
)
def test_what_no_reader_could_use_is_one_short_line(value, message):
    with pytest.raises(ConfigError, match=message) as error:
        decode(Tree, value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a": NaN}', "[-Infinity]", "{", '"\udcff"', "1" * 5000])
def test_json_that_cannot_be_read_is_a_value_error(text, tmp_path):
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError):  # noqa: PT011  (each parser's own words)
        read_json(tmp_path / "a.json")


@given(trees)
def test_what_is_encoded_decodes_to_the_same(tree):
    again = decode(Tree, json.loads(json.dumps(encode(tree))))
    assert again == tree
    assert {k: type(v) for k, v in again.extra.items()} == {k: type(v) for k, v in tree.extra.items()}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"folder": "x", "hight": 1}, r"config\.hight: unknown key; known: folder, part, pair, flag, extra"),
        ({}, r"config\.folder: missing"),
        ({"folder": 3}, r"config\.folder: expected Path, got 3"),
        ({"folder": "x", "flag": 1}, r"config\.flag: expected bool, got 1"),
        ({"folder": "x", "pair": [1]}, r"config\.pair: expected 2 values, got 1"),
        ({"folder": "x", "pair": [1.5, 2]}, r"config\.pair\[0\]: expected int, got 1\.5"),
        (
            {"folder": "x", "part": {"name": "root"}},
            r"config\.part\.name: expected one of 'leaf', 'branch', got 'root'",
        ),
        ({"folder": "x", "part": {"name": "leaf", "size": True}}, r"config\.part\.size: expected int, got True"),
        ({"folder": "x", "part": {"name": "branch", "leaves": [{"rate": "a"}]}}, r"config\.part\.leaves\[0\]\.rate"),
        ({"folder": "x", "part": {"name": "branch", "title": 5}}, r"config\.part\.title: expected one of str, null"),
        ([], r"config: expected an object"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_key(value, message):
    with pytest.raises(ConfigError, match=message) as caught:
        decode(Tree, value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_the_file(name, tmp_path):
    config = replace(RECIPES[name], dataset=Path("dataset"), out=Path("run"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(encode(config)))
    assert read_config(path) == config


def test_unions_of_methods_and_views():
    config = TrainConfig(dataset=Path("s"), out=Path("o"), method=MNFCSCConfig(temperature="sample"))
    config = replace(config, student=replace(config.student, view=AudioInput(seconds=1.5), options={"width": 16}))
    assert decode(TrainConfig, json.loads(json.dumps(encode(config)))) == config
    broken = encode(config)
    broken["method"]["temperature"] = "hot"
    with pytest.raises(ConfigError, match=r"config\.method\.temperature: expected one of 'pairwise'.*'hot'"):
        decode(TrainConfig, broken)


def test_values_no_run_can_have():
    for changes in ({"steps": 0}, {"val_fraction": 1.0}, {"labeled_per_batch": 99}, {"workers": -1}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            TrainConfig(dataset=Path("s"), out=Path("o"), **changes)
    with pytest.raises(ConfigError, match="No such file"):
        read_config(Path("absent.json"))


def test_every_method_config_is_told_apart_by_its_name():
    for name, method in METHODS.items():
        config = method.config_class
        assert is_dataclass(config)
        assert next(f.default for f in fields(config) if f.name == "name") == name
    assert KDConfig().name == "kd"
