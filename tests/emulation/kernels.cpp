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

#include <cstring>

#include "cuda_runtime.h"

// Filled with NaN: what torch fills where algorithms must be deterministic is
// not what is allocated through its shim on a CPU.
inline AOTITorchError filled_empty_strided(int64_t dimensions,
                                           const int64_t* sizes,
                                           const int64_t* strides, int32_t type,
                                           int32_t device, int32_t index,
                                           AtenTensorHandle* tensor) {
  const AOTITorchError error = aoti_torch_empty_strided(
      dimensions, sizes, strides, type, device, index, tensor);
  if (error != AOTI_TORCH_SUCCESS) return error;
  void* data = nullptr;
  int64_t bytes = 0;
  aoti_torch_get_data_ptr(*tensor, &data);
  aoti_torch_get_storage_size(*tensor, &bytes);
  if (bytes > 0) std::memset(data, 0xff, static_cast<std::size_t>(bytes));
  return error;
}

#define aoti_torch_empty_strided filled_empty_strided

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
