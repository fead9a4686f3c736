// The constants of a program's delegates by the keys that XNNPACK gave them.
#pragma once

#include <executorch/runtime/core/named_data_map.h>

#include <string_view>

namespace qn {

// XNNPACK asks for a name that ends in 64 digits; a program may hold the constant under that name without the last 56.
inline executorch::runtime::Result<executorch::runtime::FreeableBuffer> find_constant(const executorch::runtime::NamedDataMap& stored,
                                                                                      std::string_view key) {
  auto found = stored.get_data(key);
  const bool missing = found.error() == executorch::runtime::Error::NotFound && key.size() >= 64;
  return missing ? stored.get_data(key.substr(0, key.size() - 56)) : std::move(found);
}

}  // namespace qn
