"""The Python API of planning: `plan(module, PlanOptions(cluster, …))` is what `alpa-mlir-plan` prints.
`foresee` says sooner, and less exactly, how long its step will take.

The work is done by the pass `alpa-parallelize-pipeline` (`alpa_mlir.passes.parallelize`).
"""

from __future__ import annotations

import alpa_mlir.passes.all  # noqa: F401  (registers every pass)
from alpa_mlir.passes.parallelize import foresee as foresee
from alpa_mlir.passes.parallelize import plan as plan
from alpa_mlir.passes.plan_passes import PARTITIONERS as PARTITIONERS
from alpa_mlir.passes.plan_passes import SCHEDULES as SCHEDULES
from alpa_mlir.passes.plan_passes import PlanOptions as PlanOptions
