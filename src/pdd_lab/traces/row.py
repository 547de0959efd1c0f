"""What a trace format is: a model of one row of its file, and how polars reads the whole file into columns.

The model's fields are the columns of a trace, its aliases the names in the file. Polars reads all rows at once.
Where it cannot, the model says what is wrong with the first row that is malformed.
"""

from __future__ import annotations

import csv
import re
from abc import abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from pdd_lab.traces.trace import MOST_TOKENS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from io import BytesIO
    from pathlib import Path

    import polars as pl

MOST_SECONDS = 1e12
"""Between a trace's origin and a request: thirty thousand years. A float still has its milliseconds."""
UNITS_PER_S: Mapping[str, float] = MappingProxyType({"s": 1.0, "ms": 1e3, "us": 1e6})
"""Units of timestamps by name."""


def _text(pattern: str, what: str) -> BeforeValidator:
    """Refuse text that pydantic takes for a number, and polars does not: 1_000, 5.0, other scripts' digits."""

    def check(value: object) -> object:
        if isinstance(value, str) and not re.fullmatch(pattern, value):
            raise ValueError(what)
        return value

    return BeforeValidator(check)


_DIGITS = _text(r"[+-]?[0-9]{1,18}", "not a whole number")
_NUMBER = _text(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", "not a number")
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Tokens = Annotated[int, _DIGITS, Field(ge=0, le=MOST_TOKENS)]
Moment = Annotated[float, _NUMBER, Field(allow_inf_nan=False)]


class Row(BaseModel):
    """One request. A subclass is a format: it says which names the fields have in the file."""

    name: ClassVar[str] = ""
    """Of the format."""
    header: ClassVar[bool]
    """Whether the first line names the columns."""
    telling: ClassVar[frozenset[str]] = frozenset()
    """A file of this format has at least one of these too, if there are any: they tell it from others."""
    units_per_s: ClassVar[float | None] = 1.0
    """Of `arrival`; None: it is a date."""
    hash_block: ClassVar[int | None] = None
    """Prompt tokens of a hash block where no line says it; None: the format has no hashes."""

    @field_validator("arrival", mode="after", check_fields=False)
    @classmethod
    def _near(cls, arrival: Any) -> Any:
        if isinstance(arrival, float) and abs(arrival) > MOST_SECONDS * (cls.units_per_s or 1.0):
            raise ValueError("too far from the origin")
        return arrival

    @classmethod
    def names(cls) -> dict[str, str]:
        """Return the fields' names in the file."""
        return {name: field.alias or name for name, field in cls.model_fields.items()}

    @classmethod
    def with_units(cls, **units: float) -> type[Self]:
        """Return this format with another `units_per_s` or `hash_block`."""
        made = create_model(cls.__name__, __base__=cls)
        for name, value in units.items():
            setattr(made, name, value)
        return made

    @classmethod
    def described(cls, *, block: int | None) -> str:
        """Return the format and the units in which a file of it was read; `block`: None where it has no hashes."""
        unit = next((name for name, per_s in UNITS_PER_S.items() if per_s == cls.units_per_s), None)
        timed = "dates" if unit is None else f"timestamps in {unit}"
        return f"{cls.name}, {timed}" + ("" if block is None else f", hash blocks of {block} tokens")

    @classmethod
    def lacks(cls, fields: Collection[str]) -> list[str]:
        """Return the names that a line of this format must have and that are not among `fields`."""
        needed = (field.alias or name for name, field in cls.model_fields.items() if field.is_required())
        return [name for name in needed if name not in fields]

    @classmethod
    @abstractmethod
    def scan(cls, source: Path | BytesIO) -> pl.LazyFrame:
        """Return a file as columns, without reading it: ``arrival`` (seconds), ``prompt``, ``output`` (tokens).

        Where the format has them also ``hashes``, ``block_tokens``, ``group`` and ``session``. A value that
        cannot be read is null.
        """

    @classmethod
    @abstractmethod
    def parse(cls, line: str, header: str) -> Self:
        """Return the row of one line. `header` is the file's first line.

        Raises:
            ValueError: it cannot be read.
        """

    @classmethod
    def check(cls, line: str, header: str) -> None:
        """Raise ValueError with the reason if this line cannot be read; `header` is the file's first line."""
        try:
            cls.parse(line, header)
        except ValidationError as error:
            raise ValueError(_reason(error)) from error


class CSVRow(Row):
    """A row of a CSV file with a header."""

    header = True

    @classmethod
    def scan(cls, source: Path | BytesIO) -> pl.LazyFrame:
        """Return the columns that the file has; see `Row.scan`."""
        import polars as pl

        frame = pl.scan_csv(source, infer_schema=False)
        there = frame.collect_schema().names()
        columns = {name: pl.col(alias) for name, alias in cls.names().items() if alias in there}
        for name in ("prompt", "output"):
            columns[name] = columns[name].cast(pl.Int64, strict=False)
        return frame.select(**columns | {"arrival": cls.seconds(columns["arrival"])})

    @classmethod
    def seconds(cls, text: pl.Expr) -> pl.Expr:
        """Return the times of arrival, in seconds from any origin."""
        import polars as pl

        return text.cast(pl.Float64, strict=False) / cls.units_per_s

    @classmethod
    def parse(cls, line: str, header: str) -> Self:
        """Return the row of one line; see `Row.parse`."""
        try:
            names, values = cells(header), cells(line)
        except csv.Error as error:
            raise ValueError(str(error)) from error
        if len(names) != len(values):
            raise ValueError(f"{len(values)} fields where the header has {len(names)}")
        return cls.model_validate(dict(zip(names, values, strict=True)))


class JSONRow(Row):
    """A line of a file of JSON objects. Text that looks like a number is none."""

    model_config = ConfigDict(strict=True)
    header = False
    hashes_all: ClassVar[bool] = False
    """Whether the hashes of a prompt are of all its blocks, and not only of those that it may share."""

    prompt: Tokens
    hashes: list[Whole] | None = None

    @property
    def block(self) -> int:
        """Prompt tokens of a hash block."""
        return self.hash_block or 1

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        count, prompt = len(self.hashes or ()), max(self.prompt, 1)
        if (count - 1) * self.block >= prompt:
            name = self.names()["hashes"]
            told = f"{name} has {count} blocks of {self.block} tokens for a prompt of {self.prompt}"
            largest = (prompt - 1) // (count - 1)
            raise ValueError(f"{told}: --block-size can be {largest} at most" if largest else told)
        return self

    @classmethod
    def scan(cls, source: Path | BytesIO) -> pl.LazyFrame:
        """Return the columns, also those that no line has; see `Row.scan`."""
        import polars as pl

        types: dict[str, Any] = {"arrival": pl.Float64(), "hashes": pl.List(pl.Int64())}
        types |= {"group": pl.String(), "session": pl.String()}
        names = cls.names()
        frame = pl.scan_ndjson(source, schema={own: types.get(name, pl.Int64()) for name, own in names.items()})
        columns = {name: pl.col(own) for name, own in names.items()}
        return frame.select(**columns | {"arrival": columns["arrival"] / cls.units_per_s})

    @classmethod
    def parse(cls, line: str, header: str) -> Self:  # noqa: ARG003 - there is none
        """Return the row of one line; see `Row.parse`."""
        return cls.model_validate_json(line)


def cells(line: str) -> list[str]:
    """Return the fields of a line of CSV; raises csv.Error."""
    return next(csv.reader([line], strict=True), [])


def _reason(error: ValidationError) -> str:
    """Return in one phrase what is wrong with a row, the field and its value first."""
    first = error.errors()[0]
    kind, given, context = first["type"], first["input"], first.get("ctx", {})
    if kind == "json_invalid":
        return f"not JSON: {context['error']}".replace("line 1 column", "character")
    if kind == "model_type":
        return "not a JSON object"
    if not first["loc"]:
        return str(context["error"])
    field = first["loc"][0]
    if kind == "missing":
        return f"{field} is missing"
    if kind == "list_type" or len(first["loc"]) > 1:
        return f"{field} is not a list of whole numbers"
    if kind.startswith(("greater", "less")):
        return f"{field} is {given}: {first['msg'].replace('Input', 'it', 1)}"
    if kind == "value_error":
        return f"{field} is {given!r}, {context['error']}"
    return f"{field} is {given!r}, not a {'whole ' if kind.startswith('int') else ''}number"
