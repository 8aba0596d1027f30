"""A .parquet file as records, read a few hundred rows at a time."""

from collections.abc import Iterator
from typing import Any

from seedbed.core.errors import DataError
from seedbed.sources.fields import Record
from seedbed.sources.files import BadInput, Bounds, FoundFile
from seedbed.sources.unpack import open_seekable

ROWS = 256  # unpacked at a time


def parquet_records(file: FoundFile, bounds: Bounds) -> Iterator[Record | BadInput]:
    """Give the rows of a .parquet.

    Raises BadInput if it is damaged or says that it unpacks to more than the bound, DataError without the package for it.
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
            size = sum(table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups))
            if size > bounds.file_bytes:
                problem = f"it unpacks to {size} bytes, more than {bounds.file_bytes}"
                raise BadInput(file=file.name, reason="file too large", problem=problem, advice="cut it, or raise the bound")
            for batch in table.iter_batches(batch_size=ROWS):
                for fields in _rows(batch):
                    number += 1
                    record = Record(fields, id=f"{file.name}:{number}", file=file.name, record=number)
                    if isinstance(fields, UnicodeDecodeError):
                        problem = f"a text has a byte that is not UTF-8 ({fields})"
                        yield record.bad("invalid UTF-8", problem=problem, advice="convert the column to UTF-8")
                    else:
                        yield record
        except (pyarrow.ArrowException, OSError) as e:
            problem = f"not a whole parquet file ({str(e).splitlines()[0]})"
            raise BadInput(
                file=file.name, reason="invalid parquet", problem=problem, advice="give a whole file", record=number + 1
            ) from None


def _rows(batch: Any) -> list[Any]:
    """The batch's rows as mappings; in the place of a row with text that is not UTF-8, the error."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as e:
        if batch.num_rows == 1:
            return [e]
        return [row for i in range(batch.num_rows) for row in _rows(batch.slice(i, 1))]
