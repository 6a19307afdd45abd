"""An example of an event's data, made from its JSON Schema: always the same one, and one that its class accepts.

What a schema says is followed as far as it goes; what it does not say (a validator of the class's own, a date that must
lie in the future) is found by looking again, see `LOOKS`. The class has the last word: what it refuses is no example.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil, floor
from string import ascii_letters, digits, punctuation
from typing import Any, Generic, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import to_json

M = TypeVar("M", bound=BaseModel)
Schema = Mapping[str, Any]

LOOKS = range(4)
"""0: with the examples and defaults that the schema holds; 1: without; 2: times far ahead; 3: only what must be."""
STEPS = 2000
"""Parts of an example beyond which it is given up: models that refer to each other at random have many."""
MOST = 1000
"""Items, or characters, beyond which nobody would read an example."""

INSTANTS = {
    "date-time": ("2026-03-14T09:30:00Z", "2999-12-31T09:30:00Z"),
    "date": ("2026-03-14", "2999-12-31"),
    "time": ("09:30:00Z", "09:30:00Z"),
}
ZONE = re.compile(r"(Z|[+-]\d\d:\d\d)$")
"""What JSON Schema calls a date-time or a time has one."""
FORMATS = {
    "duration": "PT1H30M",
    "email": "ada@example.com",
    "idn-email": "ada@example.com",
    "name-email": "Ada <ada@example.com>",
    "uri": "https://example.com/",
    "multi-host-uri": "postgresql://example.com/name",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "ipvanyaddress": "192.0.2.1",
    "ipv4network": "192.0.2.0/24",
    "ipv6network": "2001:db8::/32",
    "ipvanynetwork": "192.0.2.0/24",
    "ipv4interface": "192.0.2.1/24",
    "ipv6interface": "2001:db8::1/32",
    "ipvanyinterface": "192.0.2.1/24",
    "base64url": "dGV4dA==",
    "base64": "dGV4dA==",
    "json-string": "{}",
    "path": "folder/file",
    "regex": ".*",
}
LIKELY = (
    "ada@example.com",
    "https://example.com/",
    "+49301234567",
    "2026-03-14",
    "12345",
    "EUR",
    "DE",
    "de",
    "AB-1234",
    "1.0.0",
    "0.00",
    "#336699",
)
"""Tried on a pattern before one is spelt out: people know them."""


class NoExample(Exception):
    """There is none, or none that can be found from the schema alone."""


@dataclass(frozen=True, slots=True)
class Example(Generic[M]):
    """What a publisher would write as JSON, and what its class reads from that."""

    data: Any
    read: M


class Quiet(GenerateJsonSchema):
    """JSON Schema without titles that only repeat a field's name; what it cannot describe may be anything."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Titles that people wrote are kept all the same."""
        return False

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        """An empty schema accepts everything."""
        return {}

    def encode_default(self, dft: Any) -> Any:
        """A set is written in an order of its own each time."""
        encoded = super().encode_default(dft)
        with suppress(Exception):
            return settled(TypeAdapter(Any).dump_python(dft, by_alias=self.by_alias), encoded)
        return encoded

    def emit_warning(self, kind: Any, detail: str) -> None:
        """A default that JSON cannot hold is left out, and that is all there is to say."""


def example_of(model: type[M]) -> Example[M] | None:
    """An example of a model, or None where none is found."""
    for look in LOOKS:
        with suppress(Exception):  # the model's validators are its author's, and may raise anything
            schema = model.model_json_schema(schema_generator=Quiet)
            data = Maker(schema.get("$defs", {}), look).make(schema, model.__name__)
            return Example(data, model.model_validate_json(to_json(data), extra="ignore"))
    return None


def settled(held: Any, written: Any) -> Any:
    """What was written of a Python value, with the sets in it in order."""
    match held, written:
        case ((set() | frozenset()), list()):
            return sorted(written, key=lambda each: (str(type(each)), str(each)))
        case dict(), dict() if len(held) == len(written):
            return {
                name: settled(*pair)
                for name, pair in zip(written, zip(held.values(), written.values(), strict=True), strict=True)
            }
        case ((list() | tuple()), list()) if len(held) == len(written):
            return [settled(*pair) for pair in zip(held, written, strict=True)]
    return written


def unique(name: str, version: int) -> UUID:
    """A UUID of that version that is always the same for a name."""
    made = uuid5(NAMESPACE_URL, name).int
    return UUID(int=made & ~(0xF << 76) | version << 76)


@dataclass
class Maker:
    """Makes one example; of several in one place, the ``nth``.

    Args:
        definitions: what ``#/$defs/…`` refers to.
        look: which of `LOOKS`.
    """

    definitions: Mapping[str, Schema]
    look: int
    _inside: list[str] = field(default_factory=list)
    _steps: int = 0

    def make(self, schema: Schema | bool, name: str, nth: int = 0) -> Any:
        """An example of what a schema describes, which is called ``name`` where it stands.

        Raises:
            NoExample: it has none, or only endless ones.
        """
        self._steps += 1
        if schema is False or self._steps > STEPS:
            raise NoExample
        if schema is True:
            schema = {}
        if "$ref" in schema:
            return self._referred(schema, name, nth)
        given = self._given(schema, nth)
        if given:
            return given[0]
        for word in ("allOf", "anyOf", "oneOf"):
            if word in schema:
                return self._combined(word, schema, name, nth)
        kinds = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kinds, list):
            return self._first([{**schema, "type": kind} for kind in kinds], name, nth)
        return self._of_type(kinds, schema, name, nth)

    def _referred(self, schema: Schema, name: str, nth: int) -> Any:
        target = str(schema["$ref"]).removeprefix("#/$defs/")
        if target in self._inside or target not in self.definitions:
            raise NoExample
        self._inside.append(target)
        try:
            beside = {word: value for word, value in schema.items() if word != "$ref"}
            return self.make({**self.definitions[target], **beside}, name, nth)
        finally:
            self._inside.pop()

    def _given(self, schema: Schema, nth: int) -> Sequence[Any]:
        """What the schema itself holds: at most one value."""
        if "const" in schema:
            return [schema["const"]]
        values = schema.get("enum", ())
        if not values and self.look == 0:
            default = [] if nth or schema.get("default") in (None, "", [], {}) else [schema["default"]]
            values = schema.get("examples") or default
            if schema.get("format") in ("date-time", "time"):
                values = [value for value in values if ZONE.search(str(value))]
        return [values[nth % len(values)]] if values else []

    def _combined(self, word: str, schema: Schema, name: str, nth: int) -> Any:
        beside = {each: value for each, value in schema.items() if each != word}
        if word == "allOf":
            merged: dict[str, Any] = {}
            for part in (*schema[word], beside):
                merged |= part
            return self.make(merged, name, nth)
        return self._first([{**beside, **part} for part in schema[word] if isinstance(part, dict)], name, nth)

    def _first(self, choices: Sequence[Schema], name: str, nth: int) -> Any:
        """Of several the first that has an example; null is the last resort, or the first."""
        for choice in sorted(choices, key=lambda each: (each.get("type") == "null") is (self.look < 3)):
            with suppress(NoExample):
                return self.make(choice, name, nth)
        raise NoExample

    def _of_type(self, kind: str, schema: Schema, name: str, nth: int) -> Any:
        match kind:
            case "object":
                return self._object(schema, nth)
            case "array":
                return self._array(schema, name, nth)
            case "string":
                return self._text(schema, name, nth)
            case "integer" | "number":
                return number(schema, nth, whole=kind == "integer")
            case "boolean":
                return True
            case "null":
                return None
        raise NoExample

    def _object(self, schema: Schema, nth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        required = schema.get("required", ())
        for name, part in schema.get("properties", {}).items():
            if self.look == 3 and name not in required:
                continue
            try:
                made[name] = self.make(part, name, nth)
            except NoExample:
                if name in required:
                    raise
        wanted = schema.get("minProperties", 0 if "properties" in schema or self.look == 3 else 1)
        self._more(schema, made, min(wanted, schema.get("maxProperties", wanted)))
        return made

    def _more(self, schema: Schema, made: dict[str, Any], wanted: int) -> None:
        """Properties of no fixed name, up to so many in all."""
        named: dict[str, Any] = schema.get("patternProperties", {})
        if not named and schema.get("additionalProperties") in (None, False):
            return
        pattern, value = next(iter(named.items()), (None, schema.get("additionalProperties", True)))
        names = {"pattern": pattern} if pattern is not None else schema.get("propertyNames")
        least = schema.get("minProperties", 0)
        for nth in range(min(wanted, MOST)):
            if len(made) >= wanted:
                break
            try:
                made[self._key(names, nth)] = self.make(value, "value", nth)
            except NoExample:
                if len(made) < least:
                    raise
                break

    def _key(self, names: Schema | None, nth: int) -> str:
        """A property's name. Where the schema does not say what it is, it may be meant as a number."""
        if names is not None:
            return str(self.make({"type": "string", **names}, "key", nth))
        return str(nth + 1) if self.look else f"key {nth + 1}" if nth else "key"

    def _array(self, schema: Schema, name: str, nth: int) -> list[Any]:
        made = [self.make(part, name, nth) for part in schema.get("prefixItems", ())]
        least, each = schema.get("minItems", 0), schema.get("items", "prefixItems" not in schema)
        if least > MOST:
            raise NoExample
        most = len(made) + (each is not False and self.look < 3)
        wanted = min(max(least, most), schema.get("maxItems", MOST))
        for position in range(len(made), wanted):
            try:
                made.append(self.make(each, name, nth + position))
            except NoExample:
                if position < least:
                    raise
                break
        return made

    def _text(self, schema: Schema, name: str, nth: int) -> str:
        kind = schema.get("format", "")
        if kind in INSTANTS:
            return INSTANTS[kind][self.look == 2]
        if re.fullmatch("uuid[1-8]?", kind):
            return str(unique(f"{name}\n{nth}" if nth else name, int(kind[4:] or 4)))
        for text in texts(schema, name, nth):
            return text
        raise NoExample


def number(schema: Schema, nth: int, *, whole: bool) -> int | float:
    """A small number within the bounds of a schema."""
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    low = schema.get("minimum", above)
    high = schema.get("maximum", below)
    value: int | float = 1 + nth
    if low is not None and (value < low or value == above):
        value = (floor(low) + 1 if above is not None else ceil(low)) + nth
    if high is not None and (value > high or value == below):
        value = ceil(high) - 1 if below is not None else floor(high)
    step = schema.get("multipleOf")
    if step:
        value = ceil(value / step) * step
        if high is not None and value > high:
            value = floor(high / step) * step
    if (low is None or value >= low) and (high is None or value <= high) and value not in (above, below):
        return value
    if whole or step or low is None or high is None:
        raise NoExample
    middle = (low + high) / 2
    short = float(f"{middle:.3g}")
    return short if low < short < high else middle


def texts(schema: Schema, name: str, nth: int) -> Iterator[str]:
    """Texts that fit a schema, the one that reads best first."""
    known, pattern = FORMATS.get(schema.get("format", "")), schema.get("pattern")
    least, most = schema.get("minLength", 0), schema.get("maxLength", MOST)
    words = " ".join(re.findall(r"[^\W_]+", name)).capitalize() or "Text"
    plain = words if nth == 0 else f"{words} {nth + 1}"
    fitted = plain[:most].strip().ljust(min(least, MOST), "x")
    likely = [*([known] if known is not None else []), fitted]
    fits = None
    if pattern is not None:
        with suppress(re.error, RecursionError):  # Rust's syntax, in which pydantic reads it, knows more than Python's
            fits = re.compile(pattern).search
            likely += [fitted.lower(), *fitted.lower().split()[:1], *LIKELY] if nth == 0 else []
            likely += spelt(pattern, nth)
    for text in likely:
        if least <= len(text) <= most and (fits is None or fits(text)):
            yield text


# -- from a regular expression to a text -----------------------------------------------------------------------------

ALPHABET = ascii_letters + digits + punctuation + " "
CATEGORIES = {"DIGIT": r"\d", "NOT_DIGIT": r"\D", "SPACE": r"\s", "NOT_SPACE": r"\S", "WORD": r"\w", "NOT_WORD": r"\W"}


def spelt(pattern: str, nth: int) -> Iterator[str]:
    """Texts that most likely match a pattern: its parts in turn, repeated ever more often.

    How Python takes a pattern apart is its own business. Where that is hidden, or has changed, there are none, or some
    that do not match: `texts` tries those that are `LIKELY` before, and shows none that does not match.
    """
    with suppress(Exception):
        parts = re._parser.parse(pattern)  # type: ignore[attr-defined]
        for times in (1, 2, 4, 8, 16, 32, 64):
            yield Speller(times, nth).spell(parts)


@dataclass
class Speller:
    """Spells out one text: what may be repeated is repeated ``times``, and of several choices the ``nth`` is taken."""

    times: int
    nth: int

    def spell(self, parts: Any) -> str:
        """What parts of a pattern match, one after the other."""
        return "".join(self._part(str(op), argument) for op, argument in parts)

    def _part(self, op: str, argument: Any) -> str:  # noqa: PLR0911  (a table)
        match op:
            case "LITERAL":
                return chr(argument)
            case "NOT_LITERAL":
                return _member([("NEGATE", None), ("LITERAL", argument)], self.nth)
            case "ANY":
                return ALPHABET[self.nth % len(ALPHABET)]
            case "IN":
                return _member(argument, self.nth)
            case "BRANCH":
                return self.spell(argument[1][self.nth % len(argument[1])])
            case "SUBPATTERN":
                return self.spell(argument[-1])
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, repeated = argument
                wanted = max(least, self.times - 1 if least == 0 else self.times)
                return self.spell(repeated) * int(min(wanted, int(most), MOST))
        return ""  # places and assertions stand for no character; what Rust does not know cannot be there


def _member(members: Any, nth: int) -> str:
    """A character of a set, ``[a-z_]``."""
    negated = str(members[0][0]) == "NEGATE"

    def holds(char: str) -> bool:
        return any(_is_member(char, op, argument) for op, argument in members)

    found = [char for char in ALPHABET if holds(char) is not negated]
    if found:
        return found[nth % len(found)]
    op, argument = members[0]
    return chr(argument if str(op) == "LITERAL" else argument[0])


def _is_member(char: str, op: Any, argument: Any) -> bool:
    match str(op):
        case "LITERAL":
            return ord(char) == int(argument)
        case "RANGE":
            return bool(argument[0] <= ord(char) <= argument[1])
        case "CATEGORY":
            return re.match(CATEGORIES[str(argument).removeprefix("CATEGORY_")], char) is not None
    return False
