"""Loading data sets: MRPC, STS-B, SICK-R, STS12 to STS16 and their like, and the bundled pairs.

Assumes a local folder laid out as the data sets are distributed, or a hub that answers.
Promises that what it returns is complete: the number of pairs is the published one where one is
known, and every cell has been checked. Anything else is one `DataError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import DataError, HubError
from ..files.hub import fetch
from . import layouts
from .catalogue import DATA_SETS, DataSet, find
from .pairs import Columns, Pairs, collect
from .readers import Record, read_jsonl, read_parquet, read_tsv

__all__ = ["DATA_SETS", "Pairs", "asset", "load"]


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
        "mrpc", "stsb", "sick" (SICK.txt, 9840 pairs), "sick-2014" (SemEval-2014, 9927 pairs),
        "sts12" to "sts16", "biosses", "demo" (bundled), or a repository "org/name" on the hub in
        the layout of mteb/sts12-sts.
    split
        "train", "validation" or "test", with an optional slice as in "train[:1000]"; "all" for
        "demo" and "sick-2014". None takes the split that papers report.
    data
        Folder that holds the data sets' folders (`mrpc/`, `stsb/`, `sick/`, `sts12-sts/`), or
        that folder itself. None reads from the hub.
    revision, cache_dir, local_files_only
        Passed to `huggingface_hub`; without effect when `data` is given.

    Raises
    ------
    DataError
        Unknown name or split, or a file that is not what it should be.
    HubError
        The hub did not deliver.
    """
    spec = find(name)
    split = spec.default if split is None else split
    part, window = _parse_split(name, spec, split)
    hub = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only}
    files, columns = _files(name, spec, part, data, hub)
    assert columns is not None
    pairs = collect(name, part, files, columns)
    _check_count(pairs, spec.counts[part], [path for path, _ in files])
    _check_slice(name, split, window, len(pairs))
    return Pairs(
        name,
        split,
        pairs.sentence1[window],
        pairs.sentence2[window],
        pairs.label[window],
        pairs.source,
    )


def _files(
    name: str, spec: DataSet, part: str, data: str | Path | None, hub: dict[str, Any]
) -> tuple[layouts.Files, Columns | None]:
    """The files that hold a split, their rows and columns: bundled, local, or from the hub."""
    if name == "demo":
        path = asset("pairs.tsv")
        return [(path, read_tsv(path))], spec.columns
    if data is not None:
        return layouts.local(name, spec, part, Path(data))
    path = _download(name, spec, part, **hub)
    return [(path, _read_hub_file(path, spec))], spec.hub_columns


def asset(name: str) -> Path:
    """Path of a file bundled with the package; `DataError` when this copy lacks it."""
    path = Path(str(resources.files("rwkvsts"))) / "assets" / name
    if not path.is_file():
        raise DataError(
            f"{path} is missing: this copy of rwkvsts was installed without its bundled assets; "
            "install it again"
        )
    return path


def _parse_split(name: str, spec: DataSet, split: str) -> tuple[str, slice]:
    known = tuple(spec.counts)
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


def _check_count(pairs: Pairs, expected: int | None, paths: list[Path]) -> None:
    if len(pairs) != (expected or len(pairs) or 1):
        glue = any(path.name == "train.tsv" for path in paths)
        raise DataError(
            f"{', '.join(map(str, paths))}: expected {expected or 'some'} pairs in {pairs.name} "
            f"{pairs.split}, found {len(pairs)}; the file is cut short or of another edition: get "
            f"it again{layouts.GLUE_HINT if glue else ''}"
        )


def _read_hub_file(path: Path, spec: DataSet) -> Iterator[Record]:
    assert spec.hub_columns is not None
    if path.suffix == ".gz":
        return read_jsonl(path)
    return read_parquet(path, spec.hub_columns[:3])


def _download(
    name: str,
    spec: DataSet,
    part: str,
    revision: str | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    """The split's file from the hub, through its cache."""
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
