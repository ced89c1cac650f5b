// What torch says where it fails, out of memory for instance: through its
// stable ABI nothing but a code comes back.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

// From torch 2.13 on; null beside an older one.
extern "C" __attribute__((weak)) const char*
torch_exception_get_what_without_backtrace();

namespace tcwarp {

template <typename Function, Function function>
struct Explained;

// `function`, whose errors of torch have torch's own message.
template <typename Result, typename... Arguments,
          Result (*function)(Arguments...)>
struct Explained<Result (*)(Arguments...), function> {
  static Result call(Arguments... arguments) {
    try {
      return function(std::forward<Arguments>(arguments)...);
    } catch (const std::runtime_error& error) {
      if (std::strstr(error.what(), "API call failed") == nullptr) throw;
      if (torch_exception_get_what_without_backtrace == nullptr) {
        throw std::runtime_error(
            std::string("tcwarp: torch failed, out of memory most likely (from "
                        "2.13 on it would say): ") +
            error.what());
      }
      throw std::runtime_error(torch_exception_get_what_without_backtrace());
    }
  }
};

}  // namespace tcwarp

#define TCWARP_BOX(function) \
  TORCH_BOX((&tcwarp::Explained<decltype(&function), &function>::call))
