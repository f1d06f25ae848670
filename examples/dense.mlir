// Two dense layers. Try: alpa-mlir-opt examples/dense.mlir --alpa-normalize --alpa-shard="mesh=4 cluster=a100 memory=16MB" --alpa-localize
func.func @main(%x: tensor<512x1024xf32>, %up: tensor<1024x4096xf32>, %down: tensor<4096x1024xf32>) -> tensor<512x1024xf32> {
  %0 = stablehlo.dot_general %x, %up, contracting_dims = [1] x [0] : (tensor<512x1024xf32>, tensor<1024x4096xf32>) -> tensor<512x4096xf32>
  %1 = stablehlo.tanh %0 : tensor<512x4096xf32>
  %2 = stablehlo.dot_general %1, %down, contracting_dims = [1] x [0] : (tensor<512x4096xf32>, tensor<4096x1024xf32>) -> tensor<512x1024xf32>
  return %2 : tensor<512x1024xf32>
}
