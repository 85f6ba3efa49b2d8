"""The fields of the partner contract as we offer it, and what is said of those that break its rules.

The messages of these fields are the contract's error types (contracts/partner.md, section 5): no value is ever made
one of another kind, and everything that is wrong is told together.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from marshmallow import ValidationError, fields, validate

from schemas.base import Document

Json = dict[str, Any]

DAYS_AHEAD = 30


# -- problems ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What is wrong with a field of a request. `field` uses dots and `[i]`; `type` is the contract's word for it."""

    field: str
    type: str

    def to_json(self) -> Json:
        return {"type": self.type, "field": self.field, "message": f"{self.field} {_SENTENCES[self.type]}"}


_SENTENCES = {
    "required": "is required",
    "object": "is not a JSON object",
    "string": "is not a text",
    "stringEmpty": "is empty",
    "stringMax": "is too long",
    "stringPattern": "is not of the form that is expected",
    "enumValue": "is none of the values that are allowed",
    "array": "is not an array",
    "arrayMin": "has too few elements",
    "arrayMax": "has too many elements",
    "arrayUnique": "names something twice",
    "boolean": "is not true or false",
    "number": "is not a number of the kind that is expected",
    "numberMin": "is too small",
    "numberMax": "is too large",
    "date": "is not a date like 2024-02-14",
    "dateRange": f"is not within today and {DAYS_AHEAD} days from now",
    "notFound": "is not known",
    "noService": "has nothing to deliver and nothing to assemble",
    "slotUnavailable": "and all its alternatives are taken or over",
    "keyReused": "was used for another request",
    "imageReused": "belongs to another order",
}


class Wrong(Exception):
    """A request that is not as the contract says. `problems` holds all that is wrong with it, sorted."""

    def __init__(self, problems: Collection[Problem]) -> None:
        self.problems = sorted(set(problems))
        super().__init__(", ".join(f"{problem.field}: {problem.type}" for problem in self.problems))


def problems_in(messages: Any, place: str = "") -> Iterator[Problem]:
    """marshmallow's nested messages as the contract's list."""
    if isinstance(messages, dict):
        for name, below in messages.items():
            yield from problems_in(below, _place(place, name))
    else:
        yield from (Problem(place or "body", word) for word in messages)


def _place(above: str, name: str | int) -> str:
    if name == "_schema":
        return above
    if isinstance(name, int):
        return f"{above}[{name}]"
    return f"{above}.{name}" if above else name


# -- fields -----------------------------------------------------------------------------------------------------------


def _says(invalid: str) -> dict[str, Any]:
    """A field's words: what is null counts as missing."""
    return {"required": "required", "null": "required", "invalid": invalid}


class Text(fields.String):
    """A text, and nothing that could be made one."""

    default_error_messages = _says("string")

    def __init__(self, least: int = 0, most: int | None = None, *, trim: bool = False, **more: Any) -> None:
        limits = [validate.Length(min=least, error="stringEmpty")] if least else []
        limits += [validate.Length(max=most, error="stringMax")] if most is not None else []
        super().__init__(validate=[*limits, *more.pop("validate", [])], **more)
        self._trim = trim

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, *args, **kwargs)
        return text.strip() if self._trim else text


class Choice(Text):
    """One of a few words."""

    default_error_messages = _says("enumValue")

    def __init__(self, choices: Sequence[str], **more: Any) -> None:
        super().__init__(validate=[validate.OneOf(choices, error="enumValue")], **more)


class Phone(Text):
    """A telephone number without spaces, hyphens and brackets."""

    _GAPS = re.compile("[ ()-]")
    _FORM = re.compile(r"\+?[0-9]{7,15}")

    def __init__(self, **more: Any) -> None:
        pattern = r"^[ ()-]*\+?([ ()-]*[0-9]){7,15}[ ()-]*$"
        super().__init__(metadata={"pattern": pattern, "example": "+35799000001"}, **more)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        number = self._GAPS.sub("", super()._deserialize(value, *args, **kwargs))
        if not self._FORM.fullmatch(number):
            raise ValidationError("stringPattern")
        return number


class Day(Text):
    """A date like 2024-02-14."""

    default_error_messages = _says("date")
    _FORM = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")

    def __init__(self, **more: Any) -> None:
        super().__init__(metadata={"format": "date", "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}, **more)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        day = day_of(super()._deserialize(value, *args, **kwargs))
        if day is None:
            raise self.make_error("invalid")
        return day


def day_of(text: Any) -> date | None:
    """The day that a text like 2024-02-14 names; Python alone would take other forms, too."""
    if not isinstance(text, str) or not Day._FORM.fullmatch(text):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


class Truth(fields.Boolean):
    """`true` or `false`, and nothing that could be made one."""

    default_error_messages = _says("boolean")

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class Number(fields.Float):
    """A number of JSON's between two bounds."""

    default_error_messages = _says("number")

    def __init__(self, least: int, most: int, **more: Any) -> None:
        bounds = [validate.Range(min=least, error="numberMin"), validate.Range(max=most, error="numberMax")]
        super().__init__(validate=bounds, **more)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.make_error("invalid", input=value)
        return value


class Whole(fields.Integer):
    """A whole number of JSON's, which does not tell 2 from 2.0."""

    default_error_messages = _says("number")

    def __init__(self, least: int | None = None, most: int | None = None, **more: Any) -> None:
        bounds = [validate.Range(min=least, error="numberMin")] if least is not None else []
        bounds += [validate.Range(max=most, error="numberMax")] if most is not None else []
        super().__init__(validate=bounds, **more)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.make_error("invalid", input=value)
        if isinstance(value, float) and not value.is_integer():
            raise self.make_error("invalid", input=value)
        return int(value)


class ItemId(Whole):
    """A whole number, or a text of its digits: the seed shows both."""

    _DIGITS = re.compile("[0-9]{1,18}")

    def __init__(self, **more: Any) -> None:
        super().__init__(metadata={"type": ["integer", "string"], "pattern": "^[0-9]{1,18}$"}, **more)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, str) and self._DIGITS.fullmatch(value):
            return int(value)
        return super()._deserialize(value, *args, **kwargs)


class QueryNumber(Whole):
    """A whole number in a URL, where everything is text."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not ItemId._DIGITS.fullmatch(value):
            raise self.make_error("invalid", input=value)
        return int(value)


class Array(fields.List[Any]):
    """An array; what is wrong with it and with its elements is told together.

    `wrap`: a single object is taken for an array of one."""

    default_error_messages = _says("array")

    def __init__(
        self, inner: fields.Field[Any], most: int, *, wrap: bool = False, distinct: bool = False, **more: Any
    ) -> None:
        metadata: Json = {"minItems": 1, "maxItems": most} | ({"uniqueItems": True} if distinct else {})
        if wrap:
            metadata |= {"type": ["array", "object"], "description": "A single object is taken for an array of one."}
        super().__init__(inner, metadata=metadata, **more)
        self._most = most
        self._wrap = wrap
        self._distinct = distinct

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        elements = in_array(value) if self._wrap else value
        if not isinstance(elements, list):
            raise self.make_error("invalid")
        own = self._own(elements)
        try:
            loaded = super()._deserialize(elements, *args, **kwargs)
        except ValidationError as error:
            raise ValidationError({**_by_place(error), **own}, valid_data=error.valid_data) from None
        if own:
            raise ValidationError({**own}, valid_data=loaded)
        return loaded

    def _own(self, elements: list[Any]) -> dict[str, list[str]]:
        words = ["arrayMin"] if not elements else []
        words += ["arrayMax"] if len(elements) > self._most else []
        texts = [element for element in elements if isinstance(element, str)]
        words += ["arrayUnique"] if self._distinct and len(set(texts)) < len(texts) else []
        return {"_schema": words} if words else {}


class Texts(fields.List[str]):
    """An array of texts, which may be empty."""

    default_error_messages = _says("array")

    def __init__(self, **more: Any) -> None:
        super().__init__(Text(error_messages={"null": "string"}), **more)


def _by_place(error: ValidationError) -> dict[Any, Any]:
    return error.messages if isinstance(error.messages, dict) else {"_schema": error.messages}


def in_array(value: Any) -> Any:
    """A single object as an array of one (trap 5)."""
    return [value] if isinstance(value, dict) else value


class Part(Document):
    """An object of a request."""

    error_messages = {"type": "object"}  # noqa: RUF012 - marshmallow's own way


def nested(schema: type[Part], **more: Any) -> fields.Nested:
    """An object in an object."""
    return fields.Nested(schema, error_messages=_says("object"), **more)


def element(schema: type[Part]) -> fields.Nested:
    """An object in an array, where null is no object."""
    return fields.Nested(schema, error_messages={"null": "object"})


def read(schema: Document, document: Any) -> Json:
    """`document` as the values of `schema`. Raises `Wrong`."""
    try:
        values: Json = schema.load(document)
    except ValidationError as error:
        raise Wrong(list(problems_in(error.messages))) from None
    return values
