// RUN: not alpa-mlir-opt %s --alpa-unstack 2>&1 | FileCheck %s
// CHECK: error: alpa-unstack takes level 1: run alpa-normalize first
func.func @main(%a: tensor<2x4xf32>) -> tensor<2x4xf32> {
  return %a : tensor<2x4xf32>
}
