// Wrong usage ends with status 2 and says what was meant.
// RUN: not alpa-mlir-opt %s --cs 2>&1 | FileCheck %s --check-prefix=FLAG
// FLAG: alpa-mlir-opt: error: unknown argument '--cs'; did you mean 'cse'
// RUN: not alpa-mlir-opt %s --pass-pipeline="canonicalise" 2>&1 | FileCheck %s --check-prefix=NAME
// NAME: alpa-mlir-opt: error: there is no pass 'canonicalise'; did you mean 'canonicalize'
// RUN: not alpa-mlir-opt %s --pass-pipeline="func.func(inline)" 2>&1 | FileCheck %s --check-prefix=MODULE
// MODULE: error: inline runs on the module: take it out of func.func
// RUN: not alpa-mlir-opt %s --pass-pipeline="sdy-populate-op-sharding-rules" 2>&1 | FileCheck %s --check-prefix=FUNCTION
// FUNCTION: error: sdy-populate-op-sharding-rules runs on functions: write func.func(sdy-populate-op-sharding-rules)
// RUN: not alpa-mlir-opt %s --pass-pipeline="func.func(alpa-normalize)" 2>&1 | FileCheck %s --check-prefix=OURS
// OURS: error: alpa-normalize runs on the module
// RUN: not alpa-mlir-opt %s --pass-pipeline="cse,(" 2>&1 | FileCheck %s --check-prefix=SYNTAX
// SYNTAX: error: pipeline 'cse,(', character 5: expected the name of a pass
// RUN: not alpa-mlir-opt %s --alpa-normalize="batch=1" 2>&1 | FileCheck %s --check-prefix=OPTION
// OPTION: error: alpa-normalize has no option 'batch'; did you mean 'batch-args'? (its options: batch-args, state-args, unroll, unroll-layers, groups)
// RUN: not alpa-mlir-opt %s --cse="x=1" 2>&1 | FileCheck %s --check-prefix=UPSTREAM
// UPSTREAM: error: 'cse{x=1}': {{.*}}no such option x
module {}
