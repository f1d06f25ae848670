// RUN: alpa-mlir-opt %s --cse --canonicalize -sdy-populate-op-sharding-rules | FileCheck %s
// RUN: alpa-mlir-opt %s --pass-pipeline="builtin.module(cse,canonicalize,func.func(sdy-populate-op-sharding-rules))" | FileCheck %s
// RUN: alpa-mlir-opt %s -pass-pipeline "cse , canonicalize{max-iterations=3}" --sdy-populate-op-sharding-rules | FileCheck %s
// RUN: alpa-mlir-opt %s --sdy-populate-op-sharding-rules="conservative-propagation=true" --cse | FileCheck %s
// RUN: cat %s | alpa-mlir-opt - --cse --emit-bytecode | alpa-mlir-opt --sdy-populate-op-sharding-rules | FileCheck %s
// RUN: alpa-mlir-opt %s --cse --mlir-print-ir-after-all --mlir-print-ir-before-all -o %t 2>&1 | FileCheck %s --check-prefix=PRINT
// RUN: FileCheck %s --check-prefix=PRINTED < %t

// PRINT: IR Dump Before cse
// PRINT: stablehlo.add
// PRINT: stablehlo.add
// PRINT: IR Dump After cse
// PRINT: stablehlo.add
// PRINT-NOT: stablehlo.add
// PRINTED: stablehlo.multiply

// CHECK-LABEL: func.func @merges_equal_adds
// CHECK: stablehlo.add %arg0, %arg0 {sdy.sharding_rule
// CHECK-NOT: stablehlo.add
// CHECK: stablehlo.multiply
func.func @merges_equal_adds(%a: tensor<8x8xf32>) -> tensor<8x8xf32> {
  %0 = stablehlo.add %a, %a : tensor<8x8xf32>
  %1 = stablehlo.add %a, %a : tensor<8x8xf32>
  %2 = stablehlo.multiply %0, %1 : tensor<8x8xf32>
  return %2 : tensor<8x8xf32>
}
