"""A projection of embeddings to fewer numbers: fitted once on a sample of texts, kept in a file::

    fitted = corpus.fit(model, texts, width=256, layers=(7,))
    fitted.save(Path("projection.npz"))
    options = corpus.Options(layers=(7,), projection=corpus.Projection.load(Path("projection.npz")))

It is the whitening of `rwkvsts.study.postprocess`: rotate to the directions of greatest variance,
scale each to variance 1, keep the first. Assumes finite embeddings [n, L, C]. Promises that a row's
projection depends on that row alone, to the bit, whatever is projected with it and by however many
threads: rows and matrix are whole numbers of so few bits, times powers of two, that float64 holds
every partial sum exactly, so that their order is of no account.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..embedder import FloatArray, Layer, to_unit_length
from ..errors import DataError
from ..files.writing import replacing
from .options import PROBE
from .output import naming_file

ROW_BITS = 23  # of a centred row's numbers, beside their sign: a float32's precision
EXACT_BITS = 53  # whole numbers up to 2 ** 53 are exact in float64
CLOSE = 0.2  # of a probe's length: between devices and dtypes less, between models more

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Projection:
    """What `fit` learned and `rwkvsts embed --projection` applies.

    about : what it was fitted on: model, layers, pooling, prompt, texts
    mean : [L, C]
    steps : [L, width, C] whole numbers, the matrix in steps of `unit`
    unit : [L, width] powers of two
    probe : [2, L, C], the fitted model's embeddings of two fixed texts, by which it is known again
    """

    about: dict[str, Any]
    mean: Array
    steps: Array
    unit: Array
    probe: FloatArray

    @property
    def width(self) -> int:
        """Numbers of a projected row."""
        return int(self.steps.shape[1])

    @property
    def layers(self) -> list[Layer]:
        """The layers that it was fitted on."""
        return list(self.about["layers"])

    def narrow(self, layers: Sequence[Layer] | None = None, width: int | None = None) -> Projection:
        """The part for these layers, and for the first `width` directions.

        Raises DataError for what was not fitted.
        """
        width = self.width if width is None else width
        if not 1 <= width <= self.width:
            raise DataError(f"--dim {width}: the projection was fitted for 1 .. {self.width}")
        wanted = self.layers if layers is None else list(layers)
        if unknown := [layer for layer in wanted if layer not in self.layers]:
            fitted = ",".join(map(str, self.layers))
            raise DataError(
                f"--projection: it was fitted on layers {fitted}, not on {unknown[0]}; name fitted "
                "layers by --layers, or fit it anew"
            )
        at = [self.layers.index(layer) for layer in wanted]
        return Projection(
            {**self.about, "layers": wanted},
            self.mean[at],
            self.steps[at, :width],
            self.unit[at, :width],
            self.probe[:, at],
        )

    def check(
        self, model: Any, pooling: str, prompt: str | None, max_length: int | None = None
    ) -> None:
        """Raise DataError where it was fitted on another model, or on texts read otherwise."""
        asked = {"pooling": pooling, "prompt": prompt, "max_length": max_length}
        for name, now in {"width": model.width, **asked}.items():
            if (was := self.about.get(name)) != now:
                raise DataError(
                    f"--projection: it was fitted on embeddings of {name} {was!r}, these are of "
                    f"{now!r}; fit it anew"
                )
        found = model.encode(list(PROBE), self.layers, pooling, prompt, show_progress=False)
        apart = np.linalg.norm(found - self.probe, axis=-1)
        # Not "greater than": a NaN is no likeness.
        if not (apart <= CLOSE * np.linalg.norm(self.probe, axis=-1)).all():
            raise DataError(
                f"--projection: it was fitted on another model, called {self.about['model']!r}, "
                f"than {model.name!r}; fit it anew"
            )

    def transform(self, rows: FloatArray, normalize: bool = False) -> FloatArray:
        """Rows [n, L, C] as float32 [n, L, width], of length 1 where that is asked."""
        out = np.empty((*rows.shape[:-1], self.width), np.float32)
        _core.in_default_floats(lambda: self._apply(rows, out))
        if normalize:
            to_unit_length(out)
        return out

    def _apply(self, rows: FloatArray, out: FloatArray) -> None:
        with np.errstate(invalid="ignore", over="ignore"):  # not finite before: not finite after
            for at in range(len(self.mean)):
                whole = rows[:, at].astype(np.float64)
                whole -= self.mean[at]
                _, exponent = np.frexp(np.abs(whole).max(axis=-1, keepdims=True))
                step = np.ldexp(1.0, exponent - ROW_BITS)
                np.rint(np.divide(whole, step, out=whole), out=whole)
                out[:, at] = whole @ self.steps[at].T * step * self.unit[at]

    def identity(self) -> dict[str, Any]:
        """For a manifest: what it was fitted on, and a digest of its numbers."""
        found = hashlib.sha256()
        for array in (self.mean, self.steps, self.unit):
            found.update(np.ascontiguousarray(array).tobytes())
        return {"dim": self.width, "sha256": found.hexdigest(), "fitted_on": self.about}

    def save(self, path: Path) -> None:
        """Write a .npz file, whole or not at all."""
        with naming_file(path), replacing(path) as part, open(part, "wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                about=np.array(json.dumps(self.about)),
                mean=self.mean,
                steps=self.steps.astype(np.int32),
                unit=self.unit,
                probe=self.probe,
            )

    @classmethod
    def load(cls, path: Path) -> Projection:
        """Read what `save` wrote; nothing in it is executed.

        Raises DataError for anything else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                arrays = [file[name] for name in ("mean", "steps", "unit", "probe")]
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such file; rwkvsts fit makes one") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        except (
            *(EOFError, ValueError, KeyError, TypeError, AttributeError, MemoryError),
            zipfile.BadZipFile,
        ):
            raise DataError(f"{path} is no projection; rwkvsts fit makes one") from None
        if not _fits(about, arrays):
            raise DataError(f"{path} is no projection; rwkvsts fit makes one")
        return cls(about, arrays[0], arrays[1].astype(np.float64), arrays[2], arrays[3])


def _fits(about: Any, arrays: list[NDArray[Any]]) -> bool:
    """Whether what a file holds is what `Projection.save` writes."""
    mean, steps, unit, probe = arrays
    if steps.ndim != 3 or not isinstance(about, dict):
        return False
    L, width, C = steps.shape
    shapes = [(L, C), (L, width, C), (L, width), (2, L, C)]
    known = isinstance(about.get("layers"), list) and {"model", "pooling", "prompt"} <= set(about)
    return (
        known
        and [a.shape for a in arrays] == shapes
        and [a.dtype for a in arrays] == [np.float64, np.int32, np.float64, np.float32]
        and len(about["layers"]) == L > 0
        and about.get("width") == C
        and width > 0
        and all(bool(np.isfinite(a).all()) for a in (mean, unit, probe))
    )


def fit(
    model: Any,
    texts: Sequence[str],
    width: int,
    layers: Sequence[Layer] | None = None,
    pooling: str = "mean",
    prompt: str | None = None,
    max_length: int | None = None,
) -> Projection:
    """Learn a projection from a sample of the texts that it is for, many more than `width`.

    Parameters
    ----------
    model : what `rwkvsts.load` returns
    width : numbers of a projected row, fewer than there are texts
    layers, pooling, prompt, max_length : as in `encode`, and as in the job to come

    Raises
    ------
    ValueError : the texts span fewer directions
    """
    from ..study.postprocess import Whitening  # here: the study brings plotting along

    names = [model.default_layer] if layers is None else list(layers)
    rows = model.encode(list(texts), names, pooling, prompt, max_length)
    whitening = Whitening(width).fit(rows)
    bits = EXACT_BITS - ROW_BITS - int(model.width - 1).bit_length()
    _, exponent = np.frexp(np.abs(whitening.matrix_).max(axis=-1))
    unit = np.ldexp(1.0, exponent - bits)
    about = {
        "model": model.name,
        "revision": model.revision,
        "width": model.width,
        "layers": names,
        "pooling": pooling,
        "prompt": prompt,
        "max_length": max_length,
        "texts": len(rows),
    }
    # By way of whole numbers, as in a file: a zero's sign would change the digest.
    steps = np.rint(whitening.matrix_ / unit[..., None]).astype(np.int32).astype(np.float64)
    probe = model.encode(list(PROBE), names, pooling, prompt, show_progress=False)
    return Projection(about, whitening.mean_, steps, unit, probe)
