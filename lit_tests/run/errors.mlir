// What is not a plan is refused at its place, with exit status 1.
// RUN: not alpa-mlir-run --local %s 2>&1 | FileCheck %s
// RUN: not alpa-mlir-run --local %s.missing 2>&1 | FileCheck --check-prefix=MISSING %s
// RUN: not alpa-mlir-run %s 2>&1 | FileCheck --check-prefix=USAGE %s

// CHECK: errors.mlir:{{.*}}: error: not a plan: alpa.level is None
// MISSING: errors.mlir.missing:1:1: error: cannot read the plan: No such file or directory
// USAGE: alpa-mlir-run: error: start it as mpirun -n N alpa-mlir-run PLAN, or give -n N or --local
module {}
