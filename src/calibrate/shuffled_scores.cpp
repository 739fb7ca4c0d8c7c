#include "calibrate/shuffled_scores.h"

#include <cstddef>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "calibrate/random.h"

namespace headkv {

HeadScores shuffled_scores(const HeadScores& scores, std::uint64_t seed) {
    const auto group =
        static_cast<std::size_t>(scores.shape.kv_heads > 0 ? scores.shape.group() : 1);
    std::vector<std::size_t> order(scores.mean.size() / group);
    std::iota(order.begin(), order.end(), std::size_t{0});
    Random(seed).shuffle(order);
    const auto dealt = [&](const std::vector<double>& from) {
        std::vector<double> to;
        to.reserve(from.size());
        for (const std::size_t old : order) {
            if (from.empty()) break;
            const auto first = from.begin() + static_cast<std::ptrdiff_t>(old * group);
            to.insert(to.end(), first, first + static_cast<std::ptrdiff_t>(group));
        }
        return to;
    };
    HeadScores shuffled = scores;
    shuffled.mean = dealt(scores.mean);
    shuffled.stderr_ = dealt(scores.stderr_);
    shuffled.kind += "-shuffled";
    shuffled.reliability.reset();
    auto settings = nlohmann::json::parse(scores.settings_json, nullptr, false);
    if (!settings.is_object()) settings = nlohmann::json::object();
    settings["shuffled"] = {{"seed", seed}};
    shuffled.settings_json = settings.dump();
    return shuffled;
}

}  // namespace headkv
