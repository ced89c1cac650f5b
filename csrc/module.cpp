// The Python module tcwarp._C: the arithmetic that host and device share, so
// that tests reach it. The operators are in a library of their own, which is
// no Python module and so serves every Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>

#include "shared/divider.h"
#include "shared/index.h"
#include "shared/philox.h"

namespace py = pybind11;

namespace {

std::array<uint32_t, 4> philox4x32(const std::array<uint32_t, 4>& counter,
                                   const std::array<uint32_t, 2>& key) {
  const tcwarp::Words4 words = tcwarp::philox4x32(
      {{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {words.word[0], words.word[1], words.word[2], words.word[3]};
}

int32_t pad_index(int32_t index, int32_t size, int64_t padding_mode) {
  using tcwarp::Padding;
  switch (static_cast<Padding>(padding_mode)) {
    case Padding::kZeros:
      return tcwarp::pad_index<Padding::kZeros>(index, size);
    case Padding::kBorder:
      return tcwarp::pad_index<Padding::kBorder>(index, size);
    case Padding::kReflection:
      return tcwarp::pad_index<Padding::kReflection>(index, size);
  }
  throw std::invalid_argument("pad_index: padding_mode must be 0, 1 or 2");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Arithmetic that the operators on CPU and CUDA share.";
  m.def("philox4x32", &philox4x32, py::arg("counter"), py::arg("key"));
  m.def("normal_radius", &tcwarp::normal_radius, py::arg("word"));
  m.def("sine_of_turn", &tcwarp::sine_of_turn, py::arg("word"));
  m.def("pad_index", &pad_index, py::arg("index"), py::arg("size"),
        py::arg("padding_mode"));
  m.def(
      "quotient",
      [](int32_t value, int32_t divisor) {
        return tcwarp::Divider<int32_t>(divisor).quotient(value);
      },
      py::arg("value"), py::arg("divisor"), "As the CUDA kernels divide.");
  m.def(
      "nearest_offset",
      [](float displacement) { return tcwarp::nearest_offset(displacement); },
      py::arg("displacement"), "Rounded, half up, in float32.");
}
