"""Conditions on clips: the small language of `--where`, the same for every form of index.

    split = 'train' AND (mismatch_probability < 0.5 OR labels IN ('barking', 'rowing')) AND NOT silent

A column is compared with a value by =, !=, <, <=, >, >=, [NOT] IN (...) or IS [NOT] NULL; a column of true and false
may stand alone. `labels = 'x'` holds where x is one of the clip's labels. A comparison with a missing value does not
hold.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn

from avdistill.errors import ConfigError

#: what a column holds; "texts" is a list of texts
Kind = Literal["text", "number", "boolean", "texts"]
Value = str | float | bool
_TOKEN = re.compile(
    r"(?P<text>'(?:[^']|'')*')|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    r"|(?P<sign><=|>=|!=|<>|=|<|>|\(|\)|,)|(?P<name>[^\W\d]\w*)"
)
_NEGATED = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">", "in": "not in", "not in": "in"}
_NEGATED |= {"is null": "is not null", "is not null": "is null"}
# Beyond what anybody writes, and far from the depth of Python's own calls.
_DEEPEST = 50


@dataclass(frozen=True)
class Comparison:
    """One column and its values: one for =, !=, <, <=, > and >=, none for "is null" and "is not null"."""

    column: str
    kind: Kind
    operator: str
    values: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Group:
    """Conditions of which all ("and") or any ("or") must hold."""

    joined_by: Literal["and", "or"]
    parts: tuple["Condition", ...]


Condition = Comparison | Group


def parse_where(text: str, columns: Mapping[str, Kind]) -> Condition:
    """The condition that a text states, without NOT: negations are carried into the comparisons.

    Raises:
        ConfigError: it is no condition on these columns; the message names the place.
    """
    return _Parser(text, columns).parse()


def _negated(condition: Condition) -> Condition:
    if isinstance(condition, Group):
        return Group("or" if condition.joined_by == "and" else "and", tuple(map(_negated, condition.parts)))
    return Comparison(condition.column, condition.kind, _NEGATED[condition.operator], condition.values)


class _Parser:
    """Recursive descent: `_any` of `_all` of `_term`."""

    def __init__(self, text: str, columns: Mapping[str, Kind]) -> None:
        self.text, self.columns, self.depth = text, columns, 0
        self.tokens: list[tuple[str, str, int]] = []
        position = 0
        while (rest := text[position:].lstrip()) != "":
            position = len(text) - len(rest)
            found = _TOKEN.match(text, position)
            if found is None:
                self._fail("a column, a sign or a value in single quotes", position)
            self.tokens.append(
                (str(found.lastgroup), str(found[found.lastgroup or 0]), found.start(found.lastgroup or 0))
            )
            position = found.end()
        self.tokens.append(("end", "the end", len(text)))
        self.next = 0

    def parse(self) -> Condition:
        condition = self._any()
        if self.tokens[self.next][0] != "end":
            self._fail("AND, OR or the end")
        return condition

    def _any(self) -> Condition:
        self.depth += 1
        if self.depth > _DEEPEST:
            self._fail(f"at most {_DEEPEST} nested conditions")
        parts = [self._all()]
        while self._take_word("or"):
            parts.append(self._all())
        self.depth -= 1
        return parts[0] if len(parts) == 1 else Group("or", tuple(parts))

    def _all(self) -> Condition:
        parts = [self._term()]
        while self._take_word("and"):
            parts.append(self._term())
        return parts[0] if len(parts) == 1 else Group("and", tuple(parts))

    def _term(self) -> Condition:
        negations = 0
        while self._take_word("not"):
            negations += 1
        if self._take("sign", "("):
            condition = self._any()
            self._expect(")")
        else:
            condition = self._comparison()
        return _negated(condition) if negations % 2 else condition

    def _comparison(self) -> Condition:
        kind, name, _ = self.tokens[self.next]
        if kind != "name" or name not in self.columns:
            self._fail(f"a column ({', '.join(self.columns)})")
        self.next += 1
        column, operator = self.columns[name], self.tokens[self.next][1]
        if self._take_word("is"):
            if column == "texts":
                self._fail(f"=, != or IN after {name}", back=1)
            operator = "is not null" if self._take_word("not") else "is null"
            if not self._take_word("null"):
                self._fail("NULL")
            return Comparison(name, column, operator)
        negated = self._take_word("not")
        if self._take_word("in"):
            self._expect("(")
            values = [self._value(name, column)]
            while self._take("sign", ","):
                values.append(self._value(name, column))
            self._expect(")")
            return Comparison(name, column, "not in" if negated else "in", tuple(values))
        if negated:
            self._fail("IN")
        if operator in ("=", "!=", "<>", "<", "<=", ">", ">="):
            if operator[0] in "<>" and operator != "<>" and column not in ("text", "number"):
                self._fail(f"= or != after {name}")
            self.next += 1
            return Comparison(name, column, "!=" if operator == "<>" else operator, (self._value(name, column),))
        if column == "boolean":
            return Comparison(name, column, "=", (True,))
        return self._fail("=, !=, <, <=, >, >=, IN or IS")

    def _value(self, name: str, column: Kind) -> Value:
        kind, text, _ = self.tokens[self.next]
        if column == "boolean" and kind == "name" and text.lower() in ("true", "false"):
            value: Value = text.lower() == "true"
        elif column == "number" and kind == "number":
            value = float(text)
        elif column in ("text", "texts") and kind == "text":
            value = text[1:-1].replace("''", "'")
        else:
            wanted = {"boolean": "true or false", "number": "a number"}.get(column, "a text in single quotes")
            self._fail(f"{wanted} for {name}")
        self.next += 1
        return value

    def _take(self, kind: str, text: str) -> bool:
        found = self.tokens[self.next]
        taken = found[0] == kind and found[1].lower() == text
        self.next += taken
        return taken

    def _take_word(self, word: str) -> bool:
        return self._take("name", word)

    def _expect(self, sign: str) -> None:
        if not self._take("sign", sign):
            self._fail(f"{sign!r}")

    def _fail(self, expected: str, position: int | None = None, back: int = 0) -> NoReturn:
        if position is None:
            _, found, position = self.tokens[self.next - back]
        else:
            found = self.text[position : position + 20].strip()
        raise ConfigError(f"where: character {position + 1}: expected {expected}, found {found!r:.60}")
