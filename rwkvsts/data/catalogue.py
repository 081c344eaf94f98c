"""The catalogue: what is known of each data set, and where it can be had.

SICK is in circulation in two editions: "sick" is `SICK.txt` (9840 pairs, split by its column
SemEval_set), "sick-2014" is the SemEval-2014 release (9927 pairs).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..errors import DataError
from .pairs import Columns


@dataclass(frozen=True)
class DataSet:
    """One data set.

    counts : published number of pairs by split; None where none is known
    default : the split that papers report
    folder, files, columns : names of a local copy's folder, files by split, columns
    repo, hub_files, hub_columns : the same of the copy on the hub
    """

    counts: dict[str, int | None]
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
SICK_SETS = {"train": "TRAIN", "validation": "TRIAL", "test": "TEST"}
STSB_HEADER = ("genre", "file", "year", "id", "score", "sentence 1", "sentence 2")
_SHARD = "{}-00000-of-00001.parquet"

# GLUE's own layout has a file per split, read where the original distribution is absent.
GLUE_FILES = {"train": "train.tsv", "validation": "dev.tsv"}


def mteb(repo: str, counts: dict[str, int | None], high: float = 5) -> DataSet:
    """A data set in the layout of mteb/sts12-sts: test.jsonl.gz, with a score of 0 to `high`."""
    columns = Columns(*_PLAIN, "score", 0, high)
    files = {split: f"{split}.jsonl.gz" for split in counts}
    return DataSet(
        counts=counts,
        default="test",
        folder=repo.rpartition("/")[2],
        files={split: (file,) for split, file in files.items()},
        columns=columns,
        repo=repo,
        hub_files=files,
        hub_columns=columns,
    )


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
        files={split: ("SICK.txt",) for split in SICK_SETS},
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
        counts={"all": None},
        default="all",
        columns=Columns(*_PLAIN, "label", 0, 1, binary=True),
    ),
    "sts12": mteb("mteb/sts12-sts", {"train": 2234, "test": 3108}),
    "sts13": mteb("mteb/sts13-sts", {"test": 1500}),
    "sts14": mteb("mteb/sts14-sts", {"test": 3750}),
    "sts15": mteb("mteb/sts15-sts", {"test": 3000}),
    "sts16": mteb("mteb/sts16-sts", {"test": 1186}),
    "biosses": mteb("mteb/biosses-sts", {"test": 100}, high=4),
}


def find(name: str) -> DataSet:
    """The data set of that name; a name with a slash is a repository in the layout of `mteb`.

    Raises `DataError` for any other name.
    """
    if name in DATA_SETS:
        return DATA_SETS[name]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return mteb(name, {"train": None, "validation": None, "test": None})
    raise DataError(
        f"no data set {name!r}; choose one of {', '.join(DATA_SETS)}, or a repository on the hub "
        "in the layout of mteb/sts12-sts"
    )
