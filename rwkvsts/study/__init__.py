"""The laboratory: models x readings x tasks, with controls, intervals and costs, in one table.

`settings` says what is asked and `methods` what it is made of; `passes` compute, `experiment` runs
them all, `table` compares; `report`, `plots` and `folder` show and keep. `statistics`, `cost`,
`baselines`, `published` and `machine` are what they are made of. Everything here uses an embedder
through its public surface.
"""

from .experiment import Study, run
from .folder import merge, read, write
from .settings import StudyConfig
from .table import Row

__all__ = ["Row", "Study", "StudyConfig", "merge", "read", "run", "write"]
