"""Sentence pairs with a similarity label: MRPC, STS-B, SICK-R and the bundled pairs.

Assumes a local folder laid out as the data sets are distributed, or a hub that answers.
Promises that what it returns is complete: the number of pairs is the published one, every
sentence has text, every label is a number in its range. Anything else is one `DataError` that
names file, line and column. Sentences are kept as they are, to the last space, because a
language model sees the spaces.

SICK is in circulation in two editions: "sick" is `SICK.txt` (9840 pairs, split by its column
SemEval_set), "sick-2014" is the SemEval-2014 release (9927 pairs).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, HubError
from ..files.hub import fetch
from .readers import Record, need, read_jsonl_gz, read_parquet, read_tsv


@dataclass(frozen=True)
class Pairs:
    """Labelled sentence pairs of one split.

    `label` is float64 [n]: 0 or 1 for MRPC and the bundled pairs, graded for STS-B and SICK, on
    the scale of the file it came from (rank correlation does not care). `source` says where the
    pairs came from.
    """

    name: str
    split: str
    sentence1: list[str]
    sentence2: list[str]
    label: NDArray[np.float64]
    source: str = ""

    def __len__(self) -> int:
        return len(self.sentence1)

    @property
    def binary(self) -> bool:
        """True when every label is 0 or 1."""
        return bool(np.isin(self.label, (0.0, 1.0)).all())


class Columns(NamedTuple):
    """Which columns of a file hold the pair, and what the label may be."""

    sentence1: str
    sentence2: str
    label: str
    low: float
    high: float
    binary: bool = False


@dataclass(frozen=True)
class DataSet:
    """What is known of one data set: the published number of pairs and where they can be had."""

    counts: dict[str, int]
    default: str
    folder: str = ""
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    columns: Columns | None = None
    repo: str = ""
    hub_files: dict[str, str] = field(default_factory=dict)
    hub_columns: Columns | None = None


_PLAIN = ("sentence1", "sentence2")
_MRPC = Columns("#1 String", "#2 String", "Quality", 0, 1, binary=True)
_SICK = Columns("sentence_A", "sentence_B", "relatedness_score", 1, 5)
_SICK_SETS = {"train": "TRAIN", "validation": "TRIAL", "test": "TEST"}
_STSB_HEADER = ("genre", "file", "year", "id", "score", "sentence 1", "sentence 2")
_SHARD = "{}-00000-of-00001.parquet"

DATA_SETS: dict[str, DataSet] = {
    "mrpc": DataSet(
        counts={"train": 3668, "validation": 408, "test": 1725},
        default="validation",
        folder="mrpc",
        files={
            "train": ("msr_paraphrase_train.txt",),
            "validation": ("msr_paraphrase_train.txt",),
            "test": ("msr_paraphrase_test.txt",),
        },
        columns=_MRPC,
        repo="nyu-mll/glue",
        hub_files={s: "mrpc/" + _SHARD.format(s) for s in ("train", "validation", "test")},
        hub_columns=Columns(*_PLAIN, "label", 0, 1, binary=True),
    ),
    "stsb": DataSet(
        counts={"train": 5749, "validation": 1500, "test": 1379},
        default="test",
        folder="stsb",
        files={
            "train": ("sts-train.csv",),
            "validation": ("sts-dev.csv",),
            "test": ("sts-test.csv",),
        },
        columns=Columns("sentence 1", "sentence 2", "score", 0, 5),
        repo="sentence-transformers/stsb",
        hub_files={s: "data/" + _SHARD.format(s) for s in ("train", "validation", "test")},
        hub_columns=Columns(*_PLAIN, "score", 0, 1),
    ),
    "sick": DataSet(
        counts={"train": 4439, "validation": 495, "test": 4906},
        default="test",
        folder="sick",
        files={split: ("SICK.txt",) for split in _SICK_SETS},
        columns=_SICK,
    ),
    "sick-2014": DataSet(
        counts={"train": 4500, "validation": 500, "test": 4927, "all": 9927},
        default="test",
        folder="sick",
        files={
            "train": ("SICK_train.txt",),
            "validation": ("SICK_trial.txt",),
            "test": ("SICK_test_annotated.txt",),
            "all": ("SICK_train.txt", "SICK_trial.txt", "SICK_test_annotated.txt"),
        },
        columns=_SICK,
        repo="mteb/sickr-sts",
        hub_files={"all": "test.jsonl.gz"},
        hub_columns=Columns(*_PLAIN, "score", 1, 5),
    ),
    "demo": DataSet(
        counts={},
        default="all",
        columns=Columns(*_PLAIN, "label", 0, 1, binary=True),
    ),
}


def load(
    name: str,
    split: str | None = None,
    data: str | Path | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Pairs:
    """Load one split of a data set, checked.

    Parameters
    ----------
    name
        "mrpc", "stsb", "sick" (SICK.txt, 9840 pairs), "sick-2014" (SemEval-2014, 9927 pairs) or
        "demo" (bundled).
    split
        "train", "validation" or "test", with an optional slice as in "train[:1000]"; "all" for
        "demo" and "sick-2014". None takes the split that papers report.
    data
        Folder that holds the data sets' folders (`mrpc/`, `stsb/`, `sick/`), or that folder
        itself. None reads from the hub.
    revision, cache_dir, local_files_only
        Passed to `huggingface_hub`; without effect when `data` is given.

    Raises
    ------
    DataError
        Unknown name or split, or a file that is not what it should be.
    HubError
        The hub did not deliver.
    """
    if name not in DATA_SETS:
        raise DataError(f"no data set {name!r}; choose one of {', '.join(DATA_SETS)}")
    spec = DATA_SETS[name]
    split = spec.default if split is None else split
    part, window = _parse_split(name, split)
    if name == "demo":
        path = asset("pairs.tsv")
        pairs = _collect(name, part, [(path, read_tsv(path))], spec.columns)
    elif data is not None:
        pairs = _collect(name, part, _local(name, part, Path(data)), spec.columns)
    else:
        path = _download(name, part, revision, cache_dir, local_files_only)
        pairs = _collect(name, part, [(path, _read_hub_file(path, spec))], spec.hub_columns)
    _check_slice(name, split, window, len(pairs))
    return Pairs(
        name,
        split,
        pairs.sentence1[window],
        pairs.sentence2[window],
        pairs.label[window],
        pairs.source,
    )


def asset(name: str) -> Path:
    """Path of a file bundled with the package; `DataError` when this copy lacks it."""
    path = Path(str(resources.files("rwkvsts"))) / "assets" / name
    if not path.is_file():
        raise DataError(
            f"{path} is missing: this copy of rwkvsts was installed without its bundled assets; "
            "install it again"
        )
    return path


def _parse_split(name: str, split: str) -> tuple[str, slice]:
    known = ("all",) if name == "demo" else tuple(DATA_SETS[name].counts)
    match = re.fullmatch(r"([a-z]+)(?:\[(\d*):(\d*)\])?", split)
    if match is None or match[1] not in known:
        raise DataError(
            f"no split {split!r} in {name}; choose one of {', '.join(known)}, "
            "with a slice if wanted, as in 'train[:1000]'"
        )
    start, stop = (int(bound) if bound else None for bound in match.groups()[1:])
    return match[1], slice(start, stop)


def _check_slice(name: str, split: str, window: slice, count: int) -> None:
    start, stop, _ = window.indices(count)
    if start >= stop or (window.stop or 0) > count:
        raise DataError(f"split {split!r} of {name}: expected a slice within its {count} pairs")


def _local(name: str, part: str, data: Path) -> list[tuple[Path, Iterable[Record]]]:
    """Files of a local split with their records, restricted to the split where one file has all."""
    spec = DATA_SETS[name]
    paths = [_find(data, spec.folder, file) for file in spec.files[part]]
    header = _STSB_HEADER if name == "stsb" else None
    if name == "mrpc" and part != "test":
        dev = _mrpc_dev_ids(_find(data, spec.folder, "mrpc_dev_ids.tsv"))
        return [(path, _mrpc_part(path, dev, part)) for path in paths]
    if name == "sick":
        return [(path, _sick_part(path, _SICK_SETS[part])) for path in paths]
    return [(path, read_tsv(path, header)) for path in paths]


def _find(data: Path, folder: str, file: str) -> Path:
    for candidate in (data / folder / file, data / file):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"{file} is neither in {data / folder} nor in {data}; give the folder that holds "
        f"{folder}/{file}, or none to read from the hub"
    )


def _mrpc_dev_ids(path: Path) -> set[tuple[str, str]]:
    """Id pairs of GLUE's validation split; GLUE's train is what is left, in file order."""
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
        if row["SemEval_set"] not in _SICK_SETS.values():
            raise DataError(
                f"{path}, line {line}, column 'SemEval_set': expected TRAIN, TRIAL or TEST, "
                f"found {row['SemEval_set']!r}; get the file again"
            )
        if row["SemEval_set"] == part:
            yield line, row


def _read_hub_file(path: Path, spec: DataSet) -> Iterator[Record]:
    assert spec.hub_columns is not None
    if path.suffix == ".gz":
        return read_jsonl_gz(path)
    return read_parquet(path, spec.hub_columns[:3])


def _collect(
    name: str, part: str, files: list[tuple[Path, Iterable[Record]]], columns: Columns | None
) -> Pairs:
    """Check every cell of every row, then the number of rows."""
    assert columns is not None
    sentence1: list[str] = []
    sentence2: list[str] = []
    label: list[float] = []
    for path, rows in files:
        for line, row in rows:
            need(path, row, columns[:3])
            sentence1.append(_text(path, line, columns.sentence1, row))
            sentence2.append(_text(path, line, columns.sentence2, row))
            label.append(_label(path, line, columns, row))
    source = ", ".join(str(path) for path, _ in files)
    expected = DATA_SETS[name].counts.get(part, len(label) or 1)
    if len(label) != expected:
        raise DataError(
            f"{source}: expected {expected} pairs in {name} {part}, found {len(label)}; the file "
            "is cut short or of another edition: get it again"
        )
    return Pairs(name, part, sentence1, sentence2, np.array(label, np.float64), source)


def _text(path: Path, line: int, column: str, row: dict[str, Any]) -> str:
    text = row[column]
    if isinstance(text, str) and text.strip():
        return text
    raise DataError(
        f"{path}, line {line}, column {column!r}: expected a sentence, found {text!r}; "
        "get the file again"
    )


def _label(path: Path, line: int, columns: Columns, row: dict[str, Any]) -> float:
    cell = row[columns.label]
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    # A NaN fails every comparison, so it is refused here as well.
    if columns.low <= value <= columns.high and (value in (0, 1) or not columns.binary):
        return value
    wanted = "0 or 1" if columns.binary else f"a number from {columns.low:g} to {columns.high:g}"
    raise DataError(
        f"{path}, line {line}, column {columns.label!r}: expected {wanted}, found {cell!r}; "
        "get the file again"
    )


def _download(
    name: str,
    part: str,
    revision: str | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    """The split's file from the hub, through its cache."""
    spec = DATA_SETS[name]
    if part not in spec.hub_files:
        offers = ", ".join(spec.hub_files)
        raise DataError(
            (
                f"the hub copy of {name} offers {offers}, not {part!r}"
                if offers
                else f"{name} is not on the hub, only 'sick-2014' is"
            )
            + "; give a local folder (data=..., --data) that holds "
            + ", ".join(f"{spec.folder}/{file}" for file in spec.files[part])
        )
    try:
        return fetch(
            spec.repo,
            spec.hub_files[part],
            repo_type="dataset",
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    except HubError as error:
        raise HubError(f"{error} Or give a local folder (data=..., --data).") from error
