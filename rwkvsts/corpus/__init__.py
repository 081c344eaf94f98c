"""Embedding a corpus: files of texts in, shards of embeddings out, whatever happens on the way::

    sources = corpus.find(["docs/*.jsonl.gz"])
    found = corpus.survey(sources, corpus.Columns("body", id="id"), on_empty="skip")
    corpus.to_folder(model, found, Path("out"), corpus.Options(layers=(7,), on_empty="skip"))

The modules, in the order in which a row meets them: inputs (names to sources), readers (bytes to
tables), blocks (tables to blocks, checked and tokenised), job (blocks to embeddings), output
(embeddings to files that survive a crash). Beside them: options (what makes two jobs the same job),
projection (to fewer numbers), meter (progress), overlap (a thread ahead).
"""

from .blocks import ON_EMPTY, Counts, Survey, survey
from .inputs import FORMATS, Source, find
from .job import to_folder, to_npy
from .options import Options
from .output import job_in
from .projection import Projection, fit
from .readers import Columns

__all__ = [
    "FORMATS",
    "ON_EMPTY",
    "Columns",
    "Counts",
    "Options",
    "Projection",
    "Source",
    "Survey",
    "find",
    "fit",
    "job_in",
    "survey",
    "to_folder",
    "to_npy",
]
