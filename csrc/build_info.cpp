// What this library was built with and from, as JSON, for tcwarp/_native.py.
#include "build_info.h"  // written by setup.py

extern "C" __attribute__((visibility("default"))) const char*
tcwarp_build_info() {
  return TCWARP_BUILD_INFO;
}
