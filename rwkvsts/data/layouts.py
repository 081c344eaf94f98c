"""How data sets lie in a local folder: as distributed, in GLUE's layout, or as on the hub.

Promises the files of one split with their rows, restricted to the split where a file holds
several, or one `DataError` that says which file was looked for and where.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import DataError
from .catalogue import DATA_SETS, GLUE_FILES, SICK_SETS, STSB_HEADER, DataSet
from .pairs import Columns
from .readers import Record, need, read_jsonl, read_tsv

Files = list[tuple[Path, Iterable[Record]]]

GLUE_HINT = (
    " (copies of GLUE's train.tsv lack a row; the original msr_paraphrase_train.txt with "
    "mrpc_dev_ids.tsv is whole)"
)
_GLUE_STSB = Columns("sentence1", "sentence2", "score", 0, 5)
_MRPC_DEV_IDS = ("mrpc_dev_ids.tsv", "dev_ids.tsv")  # the second name is the GLUE script's


def local(name: str, spec: DataSet, part: str, data: Path) -> tuple[Files, Columns | None]:
    """Files of a split below the folder `data` or its subfolder, with the columns they have."""
    if name in ("mrpc", "stsb") and part in GLUE_FILES:
        original = any(_look(data, spec.folder, file) for file in spec.files[part])
        glue = _look(data, spec.folder, GLUE_FILES[part])
        if glue is not None and not original:
            return [(glue, read_tsv(glue))], spec.columns if name == "mrpc" else _GLUE_STSB
    paths = [_find(data, spec.folder, file) for file in spec.files[part]]
    return [(path, _rows(name, part, path)) for path in paths], spec.columns


def _rows(name: str, part: str, path: Path) -> Iterable[Record]:
    if name == "mrpc" and part != "test":
        return _mrpc_part(path, _mrpc_dev_ids(path.parent), part)
    if name == "sick":
        return _sick_part(path, SICK_SETS[part])
    if name == "stsb":
        return _without_header(read_tsv(path, STSB_HEADER))
    return read_jsonl(path) if path.suffix == ".gz" else read_tsv(path)


def _look(data: Path, folder: str, file: str) -> Path | None:
    candidates = (data / folder / file, data / file)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _find(data: Path, folder: str, file: str) -> Path:
    found = _look(data, folder, file)
    if found is None:
        raise DataError(
            f"{file} is neither in {data / folder} nor in {data}; give the folder that holds "
            f"{folder}/{file}, or none to read from the hub"
        )
    return found


def _without_header(rows: Iterator[Record]) -> Iterator[Record]:
    """STS-B's own files have no header; copies that have one name the score in its place."""
    for line, row in rows:
        if not (line == 1 and row["score"] == "score"):
            yield line, row


def _mrpc_dev_ids(folder: Path) -> set[tuple[str, str]]:
    """Id pairs of GLUE's validation split; GLUE's train is what is left, in file order."""
    path = next((folder / n for n in _MRPC_DEV_IDS if (folder / n).is_file()), None)
    if path is None:
        raise DataError(
            f"{' or '.join(_MRPC_DEV_IDS)} is not in {folder}; it names the pairs of GLUE's "
            "validation split and comes with GLUE's MRPC: put it beside msr_paraphrase_train.txt"
        )
    ids = {(row["id 1"], row["id 2"]) for _, row in read_tsv(path, ("id 1", "id 2"))}
    expected = DATA_SETS["mrpc"].counts["validation"]
    if len(ids) != expected:
        raise DataError(
            f"{path}: expected {expected} distinct id pairs, found {len(ids)}; get the file again"
        )
    return ids


def _mrpc_part(path: Path, dev: set[tuple[str, str]], part: str) -> Iterator[Record]:
    for line, row in read_tsv(path):
        need(path, row, ("#1 ID", "#2 ID"))
        if ((row["#1 ID"], row["#2 ID"]) in dev) == (part == "validation"):
            yield line, row


def _sick_part(path: Path, part: str) -> Iterator[Record]:
    for line, row in read_tsv(path):
        need(path, row, ("SemEval_set",))
        if row["SemEval_set"] not in SICK_SETS.values():
            raise DataError(
                f"{path}, line {line}, column 'SemEval_set': expected TRAIN, TRIAL or TEST, "
                f"found {row['SemEval_set']!r}; get the file again"
            )
        if row["SemEval_set"] == part:
            yield line, row
