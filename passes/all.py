"""Import every pass module, so that every pass is registered."""

from __future__ import annotations

from alpa_mlir.passes import check as check
from alpa_mlir.passes import explain as explain
from alpa_mlir.passes import layers as layers
from alpa_mlir.passes import localize as localize
from alpa_mlir.passes import microbatch as microbatch
from alpa_mlir.passes import normalize as normalize
from alpa_mlir.passes import parallelize as parallelize
from alpa_mlir.passes import price as price
from alpa_mlir.passes import print_strategies as print_strategies
from alpa_mlir.passes import rematerialize as rematerialize
from alpa_mlir.passes import roll as roll
from alpa_mlir.passes import route as route
from alpa_mlir.passes import schedule as schedule
from alpa_mlir.passes import shard as shard
from alpa_mlir.passes import split as split
from alpa_mlir.passes import stages as stages
from alpa_mlir.passes import unstack as unstack
