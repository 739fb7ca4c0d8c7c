#include "engine/readings.h"

#include <algorithm>
#include <cassert>

namespace headkv {

namespace {

// The element of `all` that `is`, or a new one.
template <class Range, class Is>
auto& find_or_add(Range& all, const Is& is) {
    const auto found = std::find_if(all.begin(), all.end(), is);
    return found != all.end() ? *found : all.emplace_back();
}

}  // namespace

std::vector<std::int64_t> owner_of(const std::shared_ptr<const LayerMap>& share) {
    return share ? share->owner : std::vector<std::int64_t>();
}

Result<std::deque<Reading>> plan_readings(std::span<const MethodConfig> configs,
                                          const HeadShape& shape, std::int64_t prompt_tokens,
                                          std::int64_t dim_k, std::int64_t dim_v) {
    std::deque<Reading> readings;
    for (std::size_t i = 0; i < configs.size(); ++i) {
        const auto& config = configs[i];
        auto& reading = find_or_add(readings, [&](const Reading& other) {
            return owner_of(other.share) == owner_of(config.share);
        });
        reading.share = config.share;
        const auto bytes = row_bytes(config.store, dim_k, dim_v);
        if (!bytes) return tl::unexpected(bytes.error());
        const auto method = Method::create(config, shape, prompt_tokens, *bytes);
        if (!method) return tl::unexpected(method.error());
        if (!method->needs().draft) {
            reading.configs.push_back(i);
            continue;
        }
        auto drafts = config;
        drafts.options.draft = 0;
        drafts.options.reserve = std::max(config.options.reserve, config.options.draft);
        drafts.recall = {};
        drafts.layout = {};
        drafts.budget = {Budget::Unit::rows,
                         std::max(method->rows_budget(), static_cast<double>(kDraftRows))};
        auto& drafting = find_or_add(reading.drafting, [&](const Reading::Drafting& other) {
            return other.config == drafts &&
                   configs[other.wanted_by[0]].options.draft == config.options.draft;
        });
        drafting.config = std::move(drafts);
        drafting.wanted_by.push_back(i);
    }
    return readings;
}

std::vector<Reading> readings_of_drafts(const Reading& reading,
                                        std::span<const std::vector<Token>> drafts) {
    assert(drafts.size() == reading.drafting.size());
    std::vector<Reading> readings;
    for (std::size_t i = 0; i < drafts.size(); ++i) {
        auto& next =
            find_or_add(readings, [&](const Reading& other) { return other.draft == drafts[i]; });
        next.share = reading.share;
        next.draft = drafts[i];
        const auto& wanted = reading.drafting[i].wanted_by;
        next.configs.insert(next.configs.end(), wanted.begin(), wanted.end());
    }
    return readings;
}

}  // namespace headkv
