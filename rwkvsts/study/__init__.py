"""The laboratory: layers x splits x methods, with controls, intervals and costs, in one table.

`experiment` computes, `report` and `plots` show; `statistics`, `cost`, `baselines` and `machine`
are what they are made of. Everything here uses the embedder through its public surface.
"""

from .experiment import Row, Study, StudyConfig, run

__all__ = ["Row", "Study", "StudyConfig", "run"]
