"""Examples made from schemas: their class takes them, their JSON Schema allows them, and they are always the same."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv6Network
from types import SimpleNamespace
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator
from pydantic import (
    UUID4,
    UUID7,
    AfterValidator,
    AnyUrl,
    AwareDatetime,
    BaseModel,
    Field,
    FutureDate,
    JsonValue,
    NaiveDatetime,
    PastDatetime,
    StringConstraints,
    create_model,
    model_validator,
)
from pydantic_core import to_json, to_jsonable_python

from broker.tools.asyncapi import seventh
from broker.tools.examples import Quiet, example_of, settled, spelt, unique


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(default=9, ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Tree(BaseModel):
    value: int
    children: list[Tree] = []
    parent: Tree | None = None


class Endless(BaseModel):
    again: Endless


def problems(model: type[BaseModel]) -> list[str]:
    """What JSON Schema has to say against an example, in its raw form and as its class writes it."""
    found = example_of(model)
    assert found is not None, model.model_json_schema()
    accepted = model.model_json_schema(schema_generator=Quiet)
    written = model.model_json_schema(schema_generator=Quiet, mode="serialization")
    dumped = to_jsonable_python(found.read)
    validators = [
        (Draft202012Validator(accepted, format_checker=Draft202012Validator.FORMAT_CHECKER), found.data),
        (Draft7Validator(seventh(accepted), format_checker=Draft7Validator.FORMAT_CHECKER), found.data),
        (Draft7Validator(seventh(written), format_checker=Draft7Validator.FORMAT_CHECKER), dumped),
    ]
    for validator, _ in validators:
        validator.check_schema(validator.schema)
    return [error.message for validator, data in validators for error in validator.iter_errors(data)]


TYPES: list[Any] = [
    int, float, bool, str, bytes, None, Any, JsonValue, UUID, UUID4, UUID7, datetime, AwareDatetime, PastDatetime, date,
    FutureDate, timedelta, Decimal, IPv4Address, IPv6Network, AnyUrl, Colour, Literal["a", 2], Cat, Tree,
    Cat | Dog, Annotated[Cat | Dog, Field(discriminator="kind")], int | None, tuple[()], tuple[int, str],
    tuple[int, ...], set[str], frozenset[int], dict[str, int], dict[Colour, int], dict[int, str],
    Annotated[int, Field(gt=7, lt=15, multiple_of=7)],
    Annotated[int, Field(ge=-5, le=-3)],
    Annotated[float, Field(gt=0.2, lt=0.4)],
    Annotated[float, Field(lt=-0.5)],
    Annotated[Decimal, Field(gt=0, max_digits=6, decimal_places=2)],
    Annotated[str, Field(max_length=0)],
    Annotated[str, Field(min_length=20, max_length=21)],
    Annotated[str, StringConstraints(pattern="^[A-Z]{2}[0-9]+(-[a-z]|_)$", min_length=12)],
    Annotated[str, StringConstraints(pattern="^[^a-zA-Z]$")],
    Annotated[str, StringConstraints(pattern="^[а-я]+$")],
    Annotated[list[int], Field(min_length=3, max_length=3)],
    Annotated[set[int], Field(min_length=3)],
    Annotated[set[Colour], Field(min_length=2)],
    Annotated[set[UUID], Field(min_length=2)],
    Annotated[list[int], Field(max_length=0)],
    Annotated[dict[Annotated[str, StringConstraints(pattern="^[A-Z]{3}$")], int], Field(min_length=2)],
    Annotated[int, AfterValidator(operator.neg)],
]  # fmt: skip


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_an_example_of_each_type(kind: Any) -> None:
    assert problems(create_model("Model", field=kind)) == []


# Types that mypy need not understand.
lists: Any = list
dicts: Any = dict
tuples: Any = tuple
literal: Any = Literal
annotated: Any = Annotated
models: Any = create_model

LEAF = st.one_of(
    st.sampled_from([int, str, bool, float, UUID, AwareDatetime, date, timedelta, Decimal, Colour, Cat, Tree, Any]),
    st.tuples(st.integers(-(10**6), 10**6), st.integers(0, 100)).map(
        lambda it: annotated[int, Field(ge=it[0], le=it[0] + it[1])]
    ),
    st.tuples(st.integers(0, 30), st.integers(0, 30)).map(
        lambda it: annotated[str, Field(min_length=it[0], max_length=it[0] + it[1])]
    ),
    st.sampled_from(["^[a-f0-9]{8}$", r"^\d+(\.\d+)?$", "^(yes|no)$", r"^\w+@\w+\.(com|org)$", "x{3,5}y?"]).map(
        lambda it: annotated[str, StringConstraints(pattern=it)]
    ),
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3
    ).map(lambda it: literal[tuple(it)]),
)
KEYS: st.SearchStrategy[Any] = st.sampled_from([str, int, Colour, UUID])
KINDS = st.recursive(
    LEAF,
    lambda kind: st.one_of(
        kind.map(lambda it: lists[it]),
        st.tuples(kind, st.integers(0, 3)).map(lambda it: annotated[lists[it[0]], Field(min_length=it[1])]),
        st.tuples(KEYS, kind).map(lambda it: dicts[it[0], it[1]]),
        kind.map(lambda it: it | None),
        st.tuples(kind, kind).map(lambda it: it[0] | it[1]),
        st.tuples(kind, kind).map(lambda it: tuples[it[0], it[1]]),
        st.dictionaries(st.sampled_from(["one", "two", "three"]), kind, max_size=3).map(
            lambda it: models("Nested", **it)
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.dictionaries(
        st.from_regex("[a-z][a-z_]{0,9}[a-z]", fullmatch=True).filter(lambda it: not hasattr(BaseModel, it)),
        st.tuples(KINDS, st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda it: it != "$ref")),
        max_size=4,
    )
)
def test_an_example_of_whatever_a_model_holds(fields: dict[str, tuple[Any, str]]) -> None:
    """Fields of any type under any alias; two fields of one alias are nobody's model."""
    aliases = {alias: name for name, (_, alias) in fields.items()}
    named: dict[str, Any] = {name: (fields[name][0], Field(alias=alias)) for alias, name in aliases.items()}
    assert problems(create_model("Generated", **named)) == []


def test_what_the_schema_holds_is_shown() -> None:
    class Model(BaseModel):
        country: str = Field(examples=["Peru"])
        colour: str = "green"
        naive: datetime = datetime(2020, 1, 1)  # noqa: DTZ001  (that is the point)

    found = example_of(Model)
    assert found is not None
    assert (found.data["country"], found.data["colour"]) == ("Peru", "green")
    assert problems(Model) == []


def test_what_the_schema_holds_is_not_shown_where_it_is_wrong() -> None:
    class Model(BaseModel):
        number: int = Field(examples=["many"])

    found = example_of(Model)
    assert found is not None
    assert found.data == {"number": 1}


def test_one_name_has_one_id_everywhere() -> None:
    class One(BaseModel):
        order_id: UUID

    class Two(BaseModel):
        lines: list[One]

    one, two = example_of(One), example_of(Two)
    assert one is not None
    assert two is not None
    assert two.data["lines"] == [one.data]
    assert unique("a", 7).version == 7


def refuse(it: Any) -> Any:
    raise TypeError("never")


class Refusing(BaseModel):
    field: Annotated[int, AfterValidator(refuse)]


class Contradictory(BaseModel):
    low: int
    high: int

    @model_validator(mode="after")
    def check(self) -> Contradictory:
        if self.low >= self.high:
            raise ValueError("low must be lower")
        return self


class Naive(BaseModel):
    at: NaiveDatetime


class ManyTimes(BaseModel):
    at: Annotated[set[time], Field(min_length=2)]


class Called(BaseModel):
    call: Callable[[], int]


class TooLong(BaseModel):
    text: Annotated[str, Field(min_length=1_000_000)]


class Impossible(BaseModel):
    number: Annotated[int, Field(gt=1, lt=2)]


@pytest.mark.parametrize("model", [Endless, Refusing, Contradictory, Naive, ManyTimes, Called, TooLong, Impossible])
def test_where_none_is_found_there_is_none(model: type[BaseModel]) -> None:
    """JSON Schema calls a date without its zone no date-time, so there is none that it would allow."""
    assert example_of(model) is None


def test_what_may_be_left_out_is_left_out_rather_than_everything() -> None:
    class Model(BaseModel):
        number: int
        at: NaiveDatetime | None = None

    found = example_of(Model)
    assert found is not None
    assert found.data == {"number": 1}


@pytest.mark.parametrize(("optional", "found"), [("", False), (" | None = None", True)])
def test_models_that_all_refer_to_each_other(optional: str, *, found: bool) -> None:
    """A tree of all of them would have 12! leaves."""
    names = [f"Mutual{n}" for n in range(12)]
    fields = "; ".join(f"f{n}: {name}{optional}" for n, name in enumerate(names))
    source = "\n".join(f"class {name}(BaseModel): {fields}" for name in names)
    namespace: dict[str, Any] = {"BaseModel": BaseModel, "__name__": __name__}
    exec(f"from __future__ import annotations\n{source}", namespace)
    namespace["Mutual0"].model_rebuild(_types_namespace=namespace)
    assert (example_of(namespace["Mutual0"]) is not None) is found


def test_patterns_that_only_pydantic_can_read_are_tried_all_the_same() -> None:
    model = create_model("Model", name=Annotated[str, StringConstraints(pattern=r"^\p{Lu}\p{Ll}+$")])
    found = example_of(model)
    assert found is not None
    assert found.data == {"name": "Name"}


@pytest.mark.parametrize("pattern", ["a|b", "[^ab]c?", ".{5}", r"\S\D\W", "(?:x|y){2}z*", "", "[é-ü]", "^$"])
def test_a_pattern_is_spelt_out(pattern: str) -> None:
    assert any(re.search(pattern, text) for text in spelt(pattern, 0))


def hidden() -> SimpleNamespace:
    """Python's module with nothing but what it promises."""
    return SimpleNamespace(**{name: getattr(re, name) for name in re.__all__})


def changed(parse: Callable[[str], Any]) -> SimpleNamespace:
    """Python's module, which takes patterns apart in another way."""
    return SimpleNamespace(**vars(hidden()), _parser=SimpleNamespace(parse=parse))


@pytest.mark.parametrize(
    "private",
    [hidden(), changed(lambda _: None), changed(lambda _: [("LITERAL", "a")]), changed(lambda _: [("NEW", 1, 2)]),
     changed(lambda _: [("LITERAL", 97)])],
    ids=["hidden", "nothing", "other arguments", "other parts", "wrong texts"],
)  # fmt: skip
def test_without_python_s_way_to_take_a_pattern_apart_there_are_fewer_examples_and_no_wrong_one(
    private: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.tools.examples.re", private)
    spelt_out = create_model("Model", code=Annotated[str, StringConstraints(pattern="^[A-Z]{9}!$")])
    assert example_of(spelt_out) is None
    likely = create_model("Model", code=Annotated[str, StringConstraints(pattern="^[A-Z]{3}$")])
    found = example_of(likely)
    assert found is not None
    assert found.data == {"code": "EUR"}


def test_sets_are_written_in_order() -> None:
    held = {"a": {3, 1, 2}, "b": [frozenset("xyz")], 1: "c"}
    written = {"a": [3, 1, 2], "b": [["z", "x", "y"]], "1": "c"}
    assert settled(held, written) == {"a": [1, 2, 3], "b": [["x", "y", "z"]], "1": "c"}
    assert to_json(settled(written, written)) == to_json(written)
