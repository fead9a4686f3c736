#include "paths.h"

namespace qn {

const std::vector<const Path*>& paths() {
  static const std::vector<const Path*> found = [] {
    std::vector<const Path*> result;
    for (const Path* path : {
#if defined(__x86_64__) || defined(QN_SIMDE)
             &kAvx512Vbmi, &kAvx512, &kAvx2,
#elif defined(__aarch64__)
             &kNeonI8mm, &kNeonDot, &kNeon,
#endif
             &kPortable}) {
      if (path->supported()) result.push_back(path);
    }
    return result;
  }();
  return found;
}

}  // namespace qn
