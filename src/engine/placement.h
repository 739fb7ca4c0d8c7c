// Which layers of a model lie on which device.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "headkv/error.h"
#include "headkv/model.h"

namespace headkv {

// Consecutive layers to each of `devices`, front to back, by what their weights take: in proportion
// to `shares` (one a device, above 0), or where there are none to `free` of the devices, or equally
// where that is not known. Every device gets a layer. `layers`: only so many, the last ones, which
// are followed by the output; the CPU then has the layers before them, and the embedding. 0: all
// lie on the CPU. Nothing, or more than there are: all lie on `devices`, the embedding on the
// first. `model`: its shape and the bytes of its tensors. Errors (bad_input): shares that are not
// one a device or not above 0, more devices than layers.
Result<std::vector<Stage>> place_layers(const ModelInfo& model,
                                        std::span<const DeviceMemory> devices,
                                        std::span<const double> shares,
                                        std::optional<std::int64_t> layers);

}  // namespace headkv
