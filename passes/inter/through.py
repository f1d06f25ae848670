"""How long a step takes at least with a partition that has a given range of layers on a given number of devices.

All layers and all devices have to be used: whether a range on some devices is of interest depends on what is left for
the layers ahead of it and behind it. A step takes as long as its longest stage at least. So

    ahead[k, d]  = min over the last stage ahead of max(ahead[i, d - n], step[n, i, k-1])
    through[n, i, j] = min over a of max(ahead[i, a], step[n, i, j], behind[j+1, D - n - a])

with `behind` likewise, D devices in all and step[n, i, j] seconds of a step that layers i … j make on n devices.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from alpa_mlir.passes.intra.compiled import compiled

Table = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def through(step: Table, devices: Ids, total: int) -> Table:
    """[sizes, i, j]: seconds of a step at least; `step` likewise (infinite: cannot be), `devices` of each size."""
    unit = int(np.gcd.reduce(np.append(devices, total)))
    step, sizes, most = np.ascontiguousarray(step), devices // unit, total // unit
    ahead = _ahead(step, sizes, most)
    # The layers behind are those ahead of the program turned round.
    behind = _ahead(np.ascontiguousarray(step[:, ::-1, ::-1].transpose(0, 2, 1)), sizes, most)
    return _through(step, sizes, ahead, behind)


@compiled
def _ahead(step: Table, devices: Ids, total: int) -> Table:
    """[k, d]: the least step with the first k layers on d devices."""
    sizes, layers, _ = step.shape
    found = np.full((layers + 1, total + 1), np.inf)
    found[0, 0] = 0.0
    for k in range(1, layers + 1):
        for m in range(sizes):
            for i in range(k):
                for d in range(devices[m], total + 1):
                    found[k, d] = min(found[k, d], max(found[i, d - devices[m]], step[m, i, k - 1]))
    return found


@compiled
def _through(step: Table, devices: Ids, ahead: Table, behind: Table) -> Table:
    sizes, layers, _ = step.shape
    total = ahead.shape[1] - 1
    found = np.full(step.shape, np.inf)
    for m in range(sizes):
        for i in range(layers):
            for j in range(i, layers):
                for d in range(total + 1 - devices[m]):
                    rest = max(ahead[i, d], behind[layers - 1 - j, total - devices[m] - d])
                    found[m, i, j] = min(found[m, i, j], max(rest, step[m, i, j]))
    return found
