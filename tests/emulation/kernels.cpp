// The CUDA operators as CPU operators of a library of their own,
// torch.ops.tcwarp_emulated: the kernels of csrc/cuda, to the letter.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cuda_runtime.h"

namespace torch::stable::accelerator {

struct NoGuard {  // there is no device to guard
  explicit NoGuard(int32_t) {}
  ~NoGuard() {}
};

}  // namespace torch::stable::accelerator

#define DeviceGuard NoGuard
#define tcwarp tcwarp_emulated
#define CUDA CPU

namespace tcwarp::cuda {

template <typename Kernel, typename... Arguments>
void launch(const torch::stable::Tensor&, dim3 blocks, int threads,
            Kernel kernel, const Arguments&... arguments) {
  // What a GPU refuses to launch.
  STD_TORCH_CHECK(blocks.x >= 1 && blocks.y >= 1 && blocks.z >= 1 &&
                      blocks.x <= 2147483647u && blocks.y <= 65535u &&
                      blocks.z <= 65535u && threads >= 1 && threads <= 1024,
                  "launch: invalid configuration");
  emulation::launch(blocks, static_cast<unsigned>(threads),
                    [&] { kernel(arguments...); });
}

}  // namespace tcwarp::cuda

#include "../../csrc/cuda/align.cu"
#include "../../csrc/cuda/fields.cu"
#include "../../csrc/cuda/warp.cu"
#include "../../csrc/cuda/warp_backward.cu"
#include "../../csrc/schemas.cpp"
