// The test of the test: a kernel that is right, and right but for one fault.
// torch.ops.tcwarp_planted.run(input, fault), whose faults tests/emulator.py
// names in this order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "cuda_runtime.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr unsigned kThreads = 64;

enum class Fault : int64_t {
  kNone,
  kNoBarrier,
  kNoWarpBarrier,
  kPlainSum,
  kPlainRead,
  kUnwritten,
  kUnwrittenShared,
  kLastBlockWins,
  kReturnedLane,
  kDivergedLanes,
  kOtherBarrier,
  kMisaligned,
};

struct Report {
  double sum;
  double largest;
  double last;
};

__global__ void __launch_bounds__(kThreads)
    planted_kernel(Fault fault, const double* input, double* output,
                   Report* report) {
  __shared__ double tile[kThreads], pairs[kThreads];
  const unsigned t = threadIdx.x, at = blockIdx.x * blockDim.x + t;
  if (fault == Fault::kReturnedLane && t == 40) return;
  if (fault == Fault::kMisaligned)
    __ldg(reinterpret_cast<const float4*>(input + 1));
  if (fault != Fault::kUnwrittenShared || t != 7) tile[t] = __ldg(input + at);
  if (fault == Fault::kOtherBarrier && t < 32) {
    __syncthreads();
  } else if (fault != Fault::kNoBarrier) {
    __syncthreads();
  }
  double value = tile[kThreads - 1 - t];
  // Back and forth within pairs.
  pairs[t] = value;
  if (fault == Fault::kNoWarpBarrier) {
    __any_sync(0xFFFFFFFFu, 1);  // waits, but orders nothing
  } else if (fault != Fault::kDivergedLanes || t % 2 == 0) {
    __syncwarp();
  }
  value = __shfl_xor_sync(0xFFFFFFFFu, pairs[t ^ 1], 1);
  if (fault != Fault::kUnwritten || at != kThreads + 7) output[at] = value;
  double sum = value;
  for (int by = 16; by > 0; by /= 2) {
    sum += __shfl_down_sync(0xFFFFFFFFu, sum, by);
  }
  if (t % warpSize != 0) return;
  if (fault == Fault::kPlainSum) {
    report->sum += sum;
  } else {
    atomicAdd(&report->sum, sum);
  }
  if (fault == Fault::kPlainRead && sum <= report->largest) return;
  atomicMax(reinterpret_cast<unsigned long long*>(&report->largest),
            static_cast<unsigned long long>(__double_as_longlong(sum)));
  if (fault == Fault::kLastBlockWins) {
    const double block = blockIdx.x;
    emulation::update(&report->last, [=](double) { return block; });
  }
}

std::tuple<Tensor, Tensor> run(const Tensor& input, int64_t fault) {
  Tensor output = torch::stable::empty_like(input);
  Tensor report = torch::stable::empty({3}, ScalarType::Double);
  torch::stable::zero_(report);
  const auto* const from = input.const_data_ptr<double>();
  auto* const to = output.mutable_data_ptr<double>();
  auto* const found = static_cast<Report*>(report.mutable_data_ptr());
  emulation::launch(
      dim3(static_cast<unsigned>(input.numel()) / kThreads), kThreads,
      [&] { planted_kernel(static_cast<Fault>(fault), from, to, found); });
  return {output, report};
}

}  // namespace

STABLE_TORCH_LIBRARY(tcwarp_planted, m) {
  m.def("run(Tensor input, int fault) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(tcwarp_planted, CPU, m) {
  m.impl("run", TORCH_BOX(&run));
}
