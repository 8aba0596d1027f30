"""A .parquet file as records, read a few hundred rows at a time.

The text (or dialogue) and what `meta` names are asked for: a value of theirs that Python cannot hold is named by file, column
and row. Columns beside them are kept where a document's meta can hold them (numbers, texts, dates, truth values), and left out
where they cannot be read; nested and binary ones are not read at all.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from seedbed.core.errors import DataError
from seedbed.sources.fields import Record, asked_keys
from seedbed.sources.files import BadInput, Bounds, FoundFile
from seedbed.sources.lines import bad_double, doubled
from seedbed.sources.unpack import open_seekable

ROWS = 256  # unpacked at a time


def parquet_records(
    file: FoundFile, bounds: Bounds, *, text_key: str | None = None, meta: Iterable[str] = ()
) -> Iterator[Record | BadInput]:
    """Give the rows of a .parquet; `text_key` None asks for all columns.

    Raises BadInput if it is damaged, has a column twice or says that it unpacks to more than the bound, DataError without the
    package for it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"reading {file.name} needs a further package: pip install 'seedbed[data]'") from None
    number = 0
    with open_seekable(file, bounds) as opened:
        try:
            table = pyarrow.parquet.ParquetFile(opened)
            schema = table.schema_arrow
            asked = set(schema.names) if text_key is None else asked_keys(schema.names, text_key, meta)
            if (double := doubled(schema.names)) is not None:
                raise bad_double(Record(None, id=file.name, file=file.name), double)
            size = sum(table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups))
            if size > bounds.file_bytes:
                problem = f"it unpacks to {size} bytes, more than {bounds.file_bytes}"
                raise BadInput(file=file.name, reason="file too large", problem=problem, advice="cut it, or raise the bound")
            wanted = [f.name for f in schema if f.name in asked or _is_plain(f.type)]
            for batch in table.iter_batches(batch_size=ROWS, columns=wanted):
                columns = {name: _values(batch.column(name)) for name in wanted}
                for row in range(batch.num_rows):
                    number += 1
                    yield _record(file, number, {name: values[row] for name, values in columns.items()}, asked)
        except (pyarrow.ArrowException, OSError) as e:
            problem = f"not a whole parquet file ({(str(e).splitlines() or [type(e).__name__])[0]})"
            raise BadInput(
                file=file.name, reason="invalid parquet", problem=problem, advice="give a whole file", record=number + 1
            ) from None


def _is_plain(kind: Any) -> bool:
    """Whether a document's meta may hold values of a column: numbers, texts, dates, truth values."""
    import pyarrow.types as t

    tests = (t.is_integer, t.is_floating, t.is_boolean, t.is_string, t.is_large_string, t.is_date, t.is_timestamp)
    inner = kind.value_type if t.is_dictionary(kind) else kind
    return any(test(inner) for test in tests)


def _values(column: Any) -> list[Any]:
    """Return a column's values as Python has them; in the place of one that it cannot hold, the error."""
    try:
        return column.to_pylist()
    except Exception:  # whatever one of the values does
        return [_value(column[i]) for i in range(len(column))]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except Exception as e:  # UnicodeDecodeError, OverflowError, ValueError, by the column's type
        return e


def _record(file: FoundFile, number: int, fields: Mapping[str, Any], asked: set[str]) -> Record | BadInput:
    record = Record(
        {k: None if isinstance(v, Exception) else v for k, v in fields.items()},
        id=f"{file.name}:{number}",
        file=file.name,
        record=number,
    )
    for name, value in fields.items():
        if isinstance(value, Exception) and name in asked:
            if isinstance(value, UnicodeDecodeError):
                return record.bad(
                    "invalid UTF-8",
                    problem=f"the column {name!r} has a byte here that is not UTF-8 ({value})",
                    advice="convert the column to UTF-8",
                )
            return record.bad(
                "unreadable value",
                problem=f"the column {name!r} has a value here that cannot be held ({value})",
                advice="mend that value, or do not ask for the column",
            )
    return record
