"""lit's configuration: RUN lines call the commands installed beside the Python that runs lit.

`lit -v lit_tests` from the repository's root.  Features: `mpi` where mpirun is installed.
"""

import os
import shutil
import sys
from pathlib import Path

import lit.formats

# lit executes this file with `config` and `lit_config` defined.
here = Path(__file__).resolve().parent
commands = Path(sys.executable).parent

config.name = "alpa_mlir"  # noqa: F821
config.test_format = lit.formats.ShTest(execute_external=False)  # noqa: F821
config.suffixes = [".mlir", ".test"]  # noqa: F821
config.excludes = ["Inputs"]  # noqa: F821
config.test_source_root = str(here)  # noqa: F821
config.test_exec_root = str(here.parent / "build" / "lit")  # noqa: F821

environment = config.environment  # noqa: F821
environment["PATH"] = os.pathsep.join([str(commands), environment.get("PATH", os.environ["PATH"])])
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    environment[name] = "1"
for name in ("HOME", "TMPDIR", "PYTHONHASHSEED", "PYTHONPYCACHEPREFIX"):
    if name in os.environ:
        environment[name] = os.environ[name]
# Open MPI in a container: several ranks share few cores and the user may be root.
environment["OMPI_ALLOW_RUN_AS_ROOT"] = environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
environment["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
environment["PRTE_MCA_hwloc_default_binding_policy"] = "none"
environment["OMPI_MCA_btl"] = "^ofi"

config.substitutions.append(("FileCheck", f"{commands / 'filecheck'}"))  # noqa: F821
if shutil.which("mpirun", path=environment["PATH"]):
    config.available_features.add("mpi")  # noqa: F821
