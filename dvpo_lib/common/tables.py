"""Tables that come in: data sets, lists of records, lists by column, and data frames of pandas, as one kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

FLOAT32_MAX = 3.4028234663852886e38


def is_data_frame(table: Any) -> bool:
    """If a table is a data frame of pandas, found without importing pandas."""
    return hasattr(table, "iloc") and hasattr(table, "columns")


def frame_records(frame: Any) -> list[dict[str, Any]]:
    """The records of a data frame, with Python's own numbers; missing values (NaN, NaT, NA) become None."""
    plain = frame.astype(object)
    return plain.where(frame.notna(), None).to_dict("records")


def table_columns(table: Any, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, list]:
    """Columns of a table as lists of one length.

    Args:
        table: `datasets.Dataset`, data frame of pandas, list of records, or lists by column name.
        required: Columns that every record needs.
        optional: Columns that some records may have; the others get None.

    Raises:
        ValueError: If the table is of another kind or has no records, or a record (named by its index) is no mapping or
            has no such column.
    """
    if is_data_frame(table):
        known = list(map(str, table.columns))
        records: Any = frame_records(table)
    elif hasattr(table, "column_names"):
        known, records = list(table.column_names), None
    elif isinstance(table, Mapping):
        lengths = {name: len(values) for name, values in table.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of the table have different lengths: {lengths}")
        known, records = list(table), None
    elif isinstance(table, Iterable) and not isinstance(table, str | bytes | set | frozenset):
        records = list(table)
        known = None
    else:
        raise ValueError(f"a table of records is expected, not {type(table).__name__}")
    size = len(records) if records is not None else len(table[known[0]]) if known else 0
    if known is not None and (size or known):
        for column in required:
            if column not in known:
                raise ValueError(f"the table has no column {column!r}; it has {sorted(known)}")
    if not size:
        raise ValueError("the table is empty")
    if records is None:
        return {name: list(table[name]) for name in (*required, *optional) if name in known}
    for place, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise ValueError(f"record {place} is no mapping of columns but {str(record)[:80]!r}")
        for column in required:
            if column not in record:
                raise ValueError(f"record {place} has no column {column!r}; it has {sorted(map(str, record))}")
    used = [*required, *(name for name in optional if any(name in record for record in records))]
    return {name: [record.get(name) for record in records] for name in used}


def plain_number(value: Any) -> Any:
    """A number of torch or numpy as that of Python; anything else as it is."""
    count = value.numel() if hasattr(value, "numel") else getattr(value, "size", None)
    return value.item() if hasattr(value, "item") and count == 1 else value


def short_repr(value: Any, limit: int = 80) -> str:
    """A value for a message, in one line and cut; Python refuses to write integers of more than 4300 digits."""
    if isinstance(value, int) and value.bit_length() > 300:
        return f"an integer of {value.bit_length()} bits"
    try:
        return " ".join(repr(value).split("\n"))[:limit]
    except Exception:  # of the value's own code
        return f"a {type(value).__name__} that cannot be shown"


def number_problem(value: Any) -> str | None:
    """What keeps a value from being a reward: no number, not finite, too large for float32; None if nothing does."""
    if not isinstance(value, int | float):
        return "is not a number"
    if value != value or value in (float("inf"), float("-inf")):
        return "is not a finite number"
    return None if abs(value) <= FLOAT32_MAX else "does not fit into float32"
