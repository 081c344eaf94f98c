"""What others published, each figure with its source and the protocol it belongs to.

Promises that a figure stands beside a row only where task, split, model and reading are those of
the publication; figures of other models are listed below a table, never in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..embedder import Layer
from .methods import Method, Published
from .settings import PAPER_LAYERS

PAPER = "arXiv 2502.14620"
# The sizes of RWKV/v6-Finch-1B6-HF: a local copy of the paper's model has any name.
PAPER_MODEL = {"n_layer": 24, "n_embd": 2048, "n_vocab": 65536}
GLOVE_ROWS = 400_000  # of the glove.6B files
PaperFigures = dict[tuple[Layer | str | None, str], Published]  # by layer and split


def _rwkv(split: str) -> PaperFigures:
    rho, seconds, peak = {
        "train[:1000]": (
            (0.2879, 0.2766, 0.2671, 0.2491, 0.2296, 0.2245),
            (0.3366, 0.3348, 0.3342, 0.3301, 0.3277, 0.3279),
            (3078.39, 3078.39, 3078.39, 3078.38, 3078.38, 3078.38),
        ),
        "validation": (
            (0.3498, 0.3410, 0.3345, 0.3170, 0.3127, 0.3073),
            (0.3318, 0.3287, 0.3298, 0.3300, 0.3296, 0.3288),
            (3078.44,) * 6,
        ),
    }[split]
    rows = (Published(r, PAPER, s, p) for r, s, p in zip(rho, seconds, peak, strict=True))
    return {(layer, split): row for layer, row in zip(PAPER_LAYERS, rows, strict=True)}


RWKV: PaperFigures = {
    **_rwkv("train[:1000]"),
    **_rwkv("validation"),
}
GLOVE = {
    "train[:1000]": Published(0.3876, PAPER, 0.0006, 3059.73),
    "validation": Published(0.4326, PAPER, 0.2186, 3077.13),
}


def of_rwkv(
    method: Method, sizes: dict[str, int], task: str, split: str, max_length: int | None
) -> Published | None:
    """The paper's figure for a layer of its model, if all else is the paper's as well."""
    paper = Method(method.model, "gpt2", "mean", layer=method.layer)
    same = method == paper and sizes == PAPER_MODEL and (task, max_length) == ("mrpc", 128)
    return RWKV.get((method.layer, split)) if same else None


def of_glove(task: str, split: str, dims: int, rows: int) -> Published | None:
    """The paper's figure for averaged word vectors, if they are the whole of its file."""
    whole = task == "mrpc" and dims == 50 and rows == GLOVE_ROWS
    return GLOVE.get(split) if whole else None


@dataclass(frozen=True)
class Mark:
    """A published figure of another model on the same pairs: what there is to reach."""

    method: str
    spearman: float
    source: str
    caveat: str = ""


_SIMCSE = "SimCSE, arXiv 2104.08821"
_INFORMATION = "OFSkean/information_flow"
_PADDED = "left-padded without a mask, so contaminated"
# STS-B test, then the test part of SICK-R that SentEval distributes (SemEval-2014, 4927 pairs).
_STSB_AND_SICK = (
    ("GloVe average", 0.5802, 0.5376, "SBERT, arXiv 1908.10084"),
    ("BERT base, average of the last layer", 0.4635, 0.5840, _SIMCSE),
    ("BERT base, whitening", 0.6824, 0.6373, _SIMCSE),
    ("OPT-1.3B, PromptEOL, one demonstration", 0.7880, 0.6969, "arXiv 2307.16645"),
    ("LLaMA2-7B, mean", 0.4210, 0.4996, "arXiv 2412.11556"),
    ("LLaMA2-7B, contrastive prompting", 0.8229, 0.7634, "arXiv 2505.12831"),
)
MARKS: dict[tuple[str, str], tuple[Mark, ...]] = {
    ("stsb", "test"): (
        *(Mark(name, stsb, source) for name, stsb, _, source in _STSB_AND_SICK),
        Mark("mamba-370m, best layer", 0.4845, _INFORMATION, _PADDED),
    ),
    ("sick-2014", "test"): tuple(
        Mark(name, sick, source) for name, _, sick, source in _STSB_AND_SICK
    ),
    ("sick-2014", "all"): (Mark("mamba-370m, best layer", 0.5510, _INFORMATION, _PADDED),),
}
