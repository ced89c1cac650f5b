// Every operator of the library. Shapes: N samples, C channels, D = 2 or 3
// spatial axes, `*size` their lengths; displacements in pixels, array order.
// `mode` and `padding_mode` are the codes of shared/index.h. Autograd, fake
// kernels and argument checks stand in Python, in tcwarp/_native.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(tcwarp, m) {
  // input (N, C, *image), displacement (N or 1, D, *size) -> (N, C, *size)
  m.def(
      "warp(Tensor input, Tensor displacement, int mode, int padding_mode) "
      "-> Tensor");
  // grad_output (N, C, *size) -> grad_input (N, C, *image): the adjoint of
  // warp; `image` is *size unless given. `deterministic` is for CUDA; the CPU's
  // is so in any case.
  m.def(
      "warp_backward_input(Tensor grad_output, Tensor displacement, int mode, "
      "int padding_mode, bool deterministic, SymInt[]? image=None) -> Tensor");
  // grad_output (N, C, *size), input (N, C, *image) -> grad_displacement,
  // shaped as the displacement
  m.def(
      "warp_backward_displacement(Tensor grad_output, Tensor input, "
      "Tensor displacement, int mode, int padding_mode) -> Tensor");
  // seed (1) int64 -> standard normals (planes, *modes) float64. Plane n * D +
  // k is component k of sample n, D the number of modes; they start at `first`
  m.def(
      "field_coefficients(Tensor seed, SymInt first, SymInt planes, "
      "int[] modes, float identity_probability) -> Tensor");
  // coefficients (planes, ky, kx) float64, rows (h, ky), columns (kx, w)
  // -> scale * rows @ coefficients @ columns (planes, h, w). A kernel on CUDA
  // alone: elsewhere it is that product, in Python
  m.def(
      "sum_modes(Tensor coefficients, Tensor rows, Tensor columns, "
      "float scale, ScalarType dtype) -> Tensor");
  // first (N or 1, D, *image), second (N, D, *size) -> displacement of
  // t2 o t1^-1 (N, D, *size); without second, of t1^-1. And a report (2)
  // float64: the largest residual in pixels, and one minus the smallest
  // determinant of the Jacobian, mirror images taken as positive
  m.def(
      "align(Tensor first, Tensor? second, float tolerance, int steps) "
      "-> (Tensor, Tensor)");
}
