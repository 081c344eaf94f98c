"""The folder of a run: what is in it, how it changes, and how runs are read and merged again.

    run.json                  settings, machine, versions, pairs, every row
    table.csv .md .tex        the table
    scores.parquet            the score of every pair by every row
    layers bars similarity time norms   plots, each as .pdf and .png
    passes/                   finished work, from which an interrupted study resumes

Promises that the files of a run change together: they are made beside the old ones and take their
place once all that could be made is there; a process that dies in between is made up for by the
next one that opens the folder. What cannot be made is left out and named; the rest is written.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from . import plots, report
from .experiment import Study, assemble
from .methods import Cost, Method, PairSet, Published, Scored

FORMAT = 1
PASSES = "passes"
READY = ".ready"  # holds a whole set of files on its way to their names
MANIFEST = "files.json"  # in there: which files the set has, moved already or not
TABLES: dict[str, Callable[[Study], str]] = {
    "table.csv": report.csv,
    "table.md": report.markdown,
    "table.tex": report.latex,
}
PLOTS = tuple(f"{name}.{kind}" for name in plots.PLOTS for kind in ("pdf", "png"))
FILES = ("run.json", "scores.parquet", *TABLES, *PLOTS)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep the folder for this process; `DataError` if another study writes into it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"another study writes into {folder}; give it a folder of its own"
            ) from None
        yield


def write(study: Study, folder: str | Path) -> tuple[list[Path], list[str]]:
    """Write the files of a run; returns their paths, and what could not be written and why."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    made: list[str] = []
    stage = folder / ".new"
    try:
        _finish(folder)
        shutil.rmtree(stage, ignore_errors=True)  # of a process that was killed
        stage.mkdir()
        for name, make in _makers(study).items():
            try:
                make(stage / name)
                _sync(stage / name)
                made.append(name)
            except Exception as error:  # whatever it was, the other files are worth having
                (stage / name).unlink(missing_ok=True)
                failures.append(f"{name}: {_reason(error)}")
        made = [name for name in made if (stage / name).exists()]
        _put(stage / MANIFEST, json.dumps(made))
        _sync(stage / MANIFEST)
        os.replace(stage, folder / READY)
        _finish(folder)
    except OSError as error:
        failures.append(f"{folder}: {_reason(error)}")
        made = []
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return [folder / name for name in made], failures


def read(folder: str | Path) -> tuple[list[Scored], dict[str, Any]]:
    """The scored methods of a run and its record; `DataError` if they are not those of a run."""
    import pyarrow
    import pyarrow.parquet

    folder = Path(folder)
    try:
        if (folder / READY).is_dir():
            with held(folder):
                _finish(folder)
        record = json.loads((folder / "run.json").read_text("utf-8"))
        scores = pyarrow.parquet.read_table(
            (folder / "scores.parquet").absolute(), columns=["row", "label", "score"]
        )
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{folder}: not the folder of a run ({_reason(error)}); give one that "
            "rwkvsts study --out has written"
        ) from None
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise DataError(
            f"{folder}: expected a run of format {FORMAT}, found {found!r}; run the study again"
        )
    try:
        return _scored(folder, record, scores), record
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder}: run.json is not as it was written ({_reason(error)}); run the study again"
        ) from None


def merge(folders: list[str | Path]) -> Study:
    """One study from several runs: their methods side by side on the same pairs.

    Raises `DataError` where runs have different pairs under one name.
    """
    scored: dict[tuple[str, Method], Scored] = {}
    sets: dict[str, tuple[PairSet, Path]] = {}
    runs: list[dict[str, Any]] = []
    norms: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for folder in map(Path, folders):
        found, record = read(folder)
        records.append(record)
        runs += record["runs"]
        norms += [n for n in record["norms"] if n not in norms]
        for one in found:
            first, where = sets.setdefault(one.pairs.key, (one.pairs, folder))
            if first.digest != one.pairs.digest:
                raise DataError(
                    f"{one.pairs.key} is not the same in {where} and {folder}: other pairs cannot "
                    "be compared; score them again from one copy"
                )
            _add(scored, one, folder.name)
    order = list(sets)
    listed = sorted(
        scored.values(), key=lambda s: (order.index(s.pairs.key), s.method.pooling is not None)
    )
    return assemble(listed, runs, records[0]["resamples"], records[0]["seed"], norms)


def _add(scored: dict[tuple[str, Method], Scored], new: Scored, run: str) -> None:
    """Add to what there is; the same method with other scores goes by its run's name too."""
    key = new.pairs.key, new.method
    if key in scored:
        if np.array_equal(scored[key].scores, new.scores):
            return
        new = replace(new, method=replace(new.method, model=f"{new.method.model} ({run})"))
    scored[new.pairs.key, new.method] = new


def _makers(study: Study) -> dict[str, Callable[[Path], None]]:
    """A function for each file, that writes it to a path."""

    def text(content: Callable[[Study], str]) -> Callable[[Path], None]:
        return lambda path: _put(path, content(study))

    @cache
    def figure(name: str) -> Any:
        return plots.draw(study, name)

    def plot(path: Path) -> None:
        if figure(path.stem) is not None:
            plots.save(figure(path.stem), path, path.suffix[1:])

    return {
        "run.json": text(_record),
        "scores.parquet": lambda path: _write_scores(study, path),
        **{name: text(content) for name, content in TABLES.items()},
        **dict.fromkeys(PLOTS, plot),
    }


def _put(path: Path, content: str) -> None:
    path.write_text(content, "utf-8", newline="\n")


def _record(study: Study) -> str:
    """Everything but the scores. A figure that does not exist is null."""
    sets = {id(s.pairs): s.pairs for s in study.scored}
    content = {
        "format": FORMAT,
        "runs": study.runs,
        "resamples": study.resamples,
        "seed": study.seed,
        "notes": study.notes,
        "pairs": [
            {
                "task": p.task,
                "split": p.split,
                "n": len(p.label),
                "digest": p.digest,
                "source": p.source,
            }
            for p in sets.values()
        ],
        "rows": [asdict(row) for row in study.rows],
        "norms": study.norms,
    }
    return json.dumps(_without_nan(content), indent=1, allow_nan=False, default=str) + "\n"


def _write_scores(study: Study, path: Path) -> None:
    """A line per pair and row of the table: which, the label, the score."""
    import pyarrow
    import pyarrow.parquet

    counts = [len(s.scores) for s in study.scored]
    each = np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    def names(of: Callable[[Scored], str]) -> Any:
        values = [of(s) for s in study.scored]
        known = list(dict.fromkeys(values))
        index = np.array([known.index(v) for v in values], np.int32)
        return pyarrow.DictionaryArray.from_arrays(index[each], known)

    def joined(of: Callable[[Scored], Any]) -> Any:
        return np.concatenate([of(s) for s in study.scored])

    table = pyarrow.table(
        {
            "row": each,
            "task": names(lambda s: s.pairs.task),
            "split": names(lambda s: s.pairs.split),
            "method": names(lambda s: s.method.label),
            "layer": names(lambda s: "" if s.method.layer is None else str(s.method.layer)),
            "pair": np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
            "label": joined(lambda s: s.pairs.label),
            "score": joined(lambda s: s.scores),
        }
    )
    # Absolute: pyarrow takes run:1/x for an address, and ~ for the home folder.
    pyarrow.parquet.write_table(table, path.absolute(), compression="zstd")


def _scored(folder: Path, record: dict[str, Any], scores: Any) -> list[Scored]:
    """The rows of a record with their scores, as they were before the table was built."""
    order = scores["row"].to_numpy()
    label, score = scores["label"].to_numpy(), scores["score"].to_numpy()
    starts = np.searchsorted(order, np.arange(len(record["rows"]) + 1))
    of_set = {(p["task"], p["split"]): p for p in record["pairs"]}
    sets: dict[tuple[str, str], PairSet] = {}
    found = []
    for i, row in enumerate(record["rows"]):
        part = slice(starts[i], starts[i + 1])
        key = row["task"], row["split"]
        about = of_set[key]
        if starts[i + 1] - starts[i] != about["n"]:
            raise DataError(
                f"{folder}: scores.parquet is not of this run.json; run the study again"
            )
        if key not in sets:
            sets[key] = PairSet(*key, label[part], about["digest"], about["source"])
        method = Method(**{f.name: row[f.name] for f in fields(Method)})
        costs = {f.name: _number(row[f.name]) for f in fields(Cost)}
        found.append(Scored(method, sets[key], score[part], Cost(**costs), _printed(row)))
    return found


def _printed(row: dict[str, Any]) -> Published | None:
    if row["published_spearman"] is None:
        return None
    return Published(
        row["published_spearman"],
        row["published_source"],
        row["published_s_per_pair"],
        row["published_peak_mib"],
    )


def _finish(folder: Path) -> None:
    """Bring a whole set of files to their names; what it lacks would be of an older run."""
    ready = folder / READY
    if not ready.is_dir():
        return
    manifest = ready / MANIFEST
    if manifest.exists():
        made = json.loads(manifest.read_text("utf-8"))
        for name in FILES:
            if (ready / name).exists():
                os.replace(ready / name, folder / name)
            elif name not in made:
                (folder / name).unlink(missing_ok=True)
        manifest.unlink()
    ready.rmdir()


def _sync(path: Path) -> None:
    if path.exists():  # a plot with nothing to show is not made
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _reason(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__  # a library that cleans up after a full disk may fail in that
    error = cause or error
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split()) or type(error).__name__


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
