"""Job args of many shapes, each the twin of the Go struct of the same name in `go/shapes.go`.

Same kind, same fields in the same order, same marks: that is all it takes for one unique key on both sides, and these
classes show it. Pointers and slices are nil in Go until they are set, so their twins are `| None`; an embedded struct
is a base class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

import attrs
import msgspec

import riverq
from riverq import omitempty, unique

ZERO_TIME = datetime.fromisoformat("0001-01-01T00:00:00+00:00")


@riverq.job_args("shape_empty")
@dataclass
class Empty:
    pass


@riverq.job_args("shape_simple")
@dataclass
class Simple:
    name: str = ""
    count: int = 0


@dataclass
class Inner:
    zeta: int = 0
    alpha: str = ""
    mid: bool = False


@riverq.job_args("shape_ordered")
class Ordered(msgspec.Struct):
    zeta: int = 0
    nested: Inner = msgspec.field(default_factory=Inner)
    alpha: str = ""
    mid: bool = msgspec.field(default=False, name="Mid")
    under: int = msgspec.field(default=0, name="_under")
    dotted: str = msgspec.field(default="", name="a.b")
    slash: str = msgspec.field(default="", name="path/key")


@riverq.job_args("shape_floats")
@dataclass
class Floats:
    one: float = 0.0
    many: list[float] | None = None
    table: dict[str, float] | None = None


@riverq.job_args("shape_integers")
@attrs.define
class Integers:
    small: int = 0
    large: int = 0
    unsigned: int = 0
    flag: bool = False


@riverq.job_args("shape_times")
@dataclass
class Times:
    at: datetime = ZERO_TIME
    maybe: datetime | None = None
    later: Annotated[datetime | None, omitempty] = None
    items: list[datetime] | None = None


@riverq.job_args("shape_omitting")
@dataclass
class Omitting:
    text: Annotated[str, omitempty] = ""
    number: Annotated[int, omitempty] = 0
    real: Annotated[float, omitempty] = 0.0
    flag: Annotated[bool, omitempty] = False
    items: Annotated[list[str] | None, omitempty] = None
    table: Annotated[dict[str, str] | None, omitempty] = None
    pointer: Annotated[str | None, omitempty] = None
    object: Annotated[Inner | None, omitempty] = None
    last: str = ""


@riverq.job_args("shape_nullable")
class Nullable(msgspec.Struct):
    text: str | None = None
    number: int | None = None
    object: Inner | None = None
    items: list[str] | None = None
    table: dict[str, str] | None = None


@riverq.job_args("shape_collections")
@dataclass
class Collections:
    objects: list[Inner] | None = None
    by_name: dict[str, Inner] | None = None
    matrix: list[list[int]] | None = None
    labels: dict[str, Any] | None = None
    pair: tuple[str, str] = ("", "")


@riverq.job_args("shape_bytes")
@dataclass
class Bytes:
    data: bytes | None = None


@riverq.job_args("shape_selected")
@dataclass
class Selected:
    trace_id: str = ""
    customer_id: Annotated[str, unique] = ""
    amount: Annotated[int, unique] = 0
    note: str = ""


@dataclass
class Customer:
    name: str = ""
    id: Annotated[str, unique] = ""
    region: Annotated[str, unique, omitempty] = ""


@riverq.job_args("shape_selected_nested")
@dataclass
class SelectedNested:
    subject: Annotated[str, unique] = ""
    customer: Customer = field(default_factory=Customer)
    trace_id: str = ""
    label: Annotated[str | None, unique] = None


@riverq.job_args("shape_selected_pointer")
@dataclass
class SelectedPointer:
    trace_id: str = ""
    customer: Customer | None = None


@riverq.job_args("shape_selected_whole")
@dataclass
class SelectedWhole:
    trace_id: str = ""
    object: Annotated[Inner, unique] = field(default_factory=Inner)
    table: Annotated[dict[str, str] | None, unique] = None
    items: Annotated[list[int] | None, unique] = None


@riverq.job_args("shape_selected_omitting")
@dataclass
class SelectedOmitting:
    left: Annotated[str, unique, omitempty] = ""
    right: Annotated[int, unique, omitempty] = 0
    other: str = ""


@riverq.job_args("shape_selected_siblings")
@dataclass
class SelectedSiblings:
    payer: Customer = field(default_factory=Customer)
    payee: Customer = field(default_factory=Customer)
    trace_id: str = ""


@riverq.job_args("shape_selected_siblings_marked")
@dataclass
class SelectedSiblingsMarked:
    payer: Annotated[Customer, unique] = field(default_factory=Customer)
    payee: Annotated[Customer, unique] = field(default_factory=Customer)
    trace_id: str = ""


@dataclass
class Base:
    tenant_id: Annotated[str, unique] = ""
    actor: str = ""


@riverq.job_args("shape_embedded")
@dataclass
class Embedded(Base):
    subject: Annotated[str, unique] = ""
    body: str = ""


@dataclass
class Common:
    middle: str = ""
    flag: bool = False


@riverq.job_args("shape_embedded_plain")
@dataclass
class EmbeddedPlain(Common):
    zed: str = ""
    able: int = 0


@riverq.job_args("shape_selected_odd_names")
class SelectedOddNames(msgspec.Struct):
    dotted: Annotated[str, unique] = msgspec.field(default="", name="a.b")
    slash: Annotated[str, unique] = msgspec.field(default="", name="path/key")
    colon: Annotated[str, unique] = msgspec.field(default="", name=":lead")
    accent: Annotated[str, unique] = msgspec.field(default="", name="é")
    other: str = ""


SHAPES: dict[str, type[Any]] = {
    shape.__name__: shape
    for shape in (
        Empty,
        Simple,
        Ordered,
        Floats,
        Integers,
        Times,
        Omitting,
        Nullable,
        Collections,
        Bytes,
        Selected,
        SelectedNested,
        SelectedPointer,
        SelectedWhole,
        SelectedOmitting,
        SelectedSiblings,
        SelectedSiblingsMarked,
        Embedded,
        EmbeddedPlain,
        SelectedOddNames,
    )
}


def build(shape: str, values: dict[str, Any]) -> Any:
    """The instance that JSON `values` describe, as Go's decoder builds its own from the same text."""
    return msgspec.convert(values, SHAPES[shape])
