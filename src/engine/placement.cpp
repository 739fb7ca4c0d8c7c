#include "engine/placement.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

Result<std::vector<double>> shares_of(std::span<const DeviceMemory> devices,
                                      std::span<const double> given) {
    std::vector<double> shares(given.begin(), given.end());
    if (!shares.empty() && shares.size() != devices.size()) {
        return bad_input("--gpu-split has {} shares for {} GPUs: give one each", shares.size(),
                         devices.size());
    }
    for (const double share : shares) {
        if (std::isfinite(share) && share > 0) continue;
        return bad_input("--gpu-split: a share of {}; give numbers above 0", share);
    }
    if (!shares.empty()) return shares;
    for (const auto& device : devices) shares.push_back(static_cast<double>(device.free));
    if (std::ranges::any_of(shares, [](double share) { return share <= 0; })) {
        std::ranges::fill(shares, 1.0);
    }
    return shares;
}

}  // namespace

Result<std::vector<Stage>> place_layers(const ModelInfo& model,
                                        std::span<const DeviceMemory> devices,
                                        std::span<const double> shares,
                                        std::optional<std::int64_t> layers) {
    const auto all = model.shape.layers;
    const auto count = std::clamp<std::int64_t>(layers.value_or(all), 0, all);
    std::vector<Stage> stages;
    if (count < all) stages.push_back({"cpu", all - count});
    if (count == 0) return stages;
    const auto weights = shares_of(devices, shares);
    if (!weights) return tl::unexpected(weights.error());
    if (std::ssize(devices) > count) {
        return bad_input("{} layers on {} GPUs: give every GPU a layer at least", count,
                         devices.size());
    }
    // Bytes of the layers before each, and of what lies on the first and the last device besides.
    double embedding = 0;
    if (count == all) embedding = static_cast<double>(model.embedding_bytes);
    std::vector<double> before{embedding};
    for (auto layer = all - count; layer < all; ++layer) {
        before.push_back(before.back() + static_cast<double>(model.layer_bytes[size(layer)]));
    }
    const double total = before.back() + static_cast<double>(model.output_bytes);
    const double sum = std::accumulate(weights->begin(), weights->end(), 0.0);
    double share = 0;
    std::int64_t first = 0;
    for (std::size_t i = 0; i < devices.size(); ++i) {
        share += (*weights)[i] / sum;
        // The layers whose middle lies before the end of this device's share.
        std::int64_t end = 0;
        while (end < count && (before[size(end)] + before[size(end + 1)]) / 2 < share * total) {
            ++end;
        }
        const auto left = std::ssize(devices) - static_cast<std::int64_t>(i) - 1;
        end = left == 0 ? count : std::clamp(end, first + 1, count - left);
        stages.push_back({devices[i].device, end - first});
        first = end;
    }
    return stages;
}

}  // namespace headkv
