#include "calibrate/share_layers.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <utility>

namespace headkv {
namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

std::int64_t wanted_of(const ShareSettings& settings, std::int64_t layers) {
    return settings.wanted > 0 ? settings.wanted : std::max<std::int64_t>(1, layers / 8);
}

void add_to(std::vector<double>& sums, const std::vector<float>& values) {
    if (sums.empty()) sums.assign(values.size(), 0.0);
    std::transform(sums.begin(), sums.end(), values.begin(), sums.begin(),
                   [](double sum, float value) { return sum + static_cast<double>(value); });
}

// Mean over tokens of the length of a token's difference. rows [layers][heads][tokens][dim]
double distance(const std::vector<double>& rows, std::int64_t a, std::int64_t b,
                const HeadShape& shape, std::int64_t tokens) {
    const auto head_rows = std::ssize(rows) / (shape.layers * shape.kv_heads);
    const auto dim = head_rows / tokens, layer = head_rows * shape.kv_heads;
    double sum = 0;
    for (std::int64_t token = 0; token < tokens; ++token) {
        double square = 0;
        for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
            const auto first = head * head_rows + token * dim;
            for (auto i = first; i < first + dim; ++i) {
                const double gap = rows[size(a * layer + i)] - rows[size(b * layer + i)];
                square += gap * gap;
            }
        }
        sum += std::sqrt(square);
    }
    return sum / static_cast<double>(tokens);
}

double cosine(const std::vector<float>& a, const std::vector<float>& b) {
    double both = 0, left = 0, right = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        const auto x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
        both += x * y;
        left += x * x;
        right += y * y;
    }
    return left > 0 && right > 0 ? both / std::sqrt(left * right) : 0;
}

tl::unexpected<Error> stopped() {
    return tl::unexpected(Error{ErrorKind::interrupted, "interrupted; nothing was written"});
}

}  // namespace

void LayerRowSums::add(const TextStates& states) {
    add_to(keys, states.keys);
    add_to(values, states.values);
}

std::vector<LayerPair> pairs_by_distance(const LayerRowSums& sums, const HeadShape& shape,
                                         std::int64_t tokens) {
    std::vector<LayerPair> pairs;
    for (std::int64_t reader = 1; reader < shape.layers; ++reader) {
        for (std::int64_t owner = 0; owner < reader; ++owner) {
            pairs.push_back({reader, owner,
                             (distance(sums.keys, reader, owner, shape, tokens) +
                              distance(sums.values, reader, owner, shape, tokens)) /
                                 2});
        }
    }
    std::stable_sort(pairs.begin(), pairs.end(), [](const LayerPair& a, const LayerPair& b) {
        return a.distance > b.distance;
    });
    return pairs;
}

Result<LayerMap> choose_shared(LayerMap map, std::span<const LayerPair> pairs,
                               const ShareSettings& settings, const CosineOf& cosine_of) {
    const auto wanted = wanted_of(settings, map.layers());
    if (wanted >= map.layers()) {
        return bad_input("{} of {} layers cannot share: at least one must own its rows", wanted,
                         map.layers());
    }
    std::int64_t shared = map.layers() - map.owners();
    for (const LayerPair& pair : pairs) {
        if (shared == wanted) break;
        if (!map.owns(pair.reader)) continue;
        LayerMap trial = map;
        const auto owner = map.owner_of(pair.owner);
        for (auto& other : trial.owner) {
            if (other == pair.reader) other = owner;
        }
        ++map.tried;
        const auto near = cosine_of(trial);
        if (!near) return tl::unexpected(near.error());
        if (!(*near > settings.least)) continue;
        map.owner = std::move(trial.owner);
        map.cosine = *near;
        shared = map.layers() - map.owners();
    }
    if (shared < wanted) {
        return bad_input(
            "only {} of {} layers can share rows with a cosine above {:g}: ask for fewer with "
            "--share-layers, or accept less with --share-cosine",
            shared, map.layers(), settings.least);
    }
    return map;
}

Result<LayerMap> share_layers(Engine& engine, std::span<const std::vector<Token>> texts,
                              const ShareSettings& settings, const Progress& progress) {
    LayerMap map;
    map.shape = engine.model().info().shape;
    map.owner.resize(size(map.shape.layers));
    std::iota(map.owner.begin(), map.owner.end(), 0);
    const auto wanted = wanted_of(settings, map.shape.layers);
    const auto go_on = [&](const LayerMap& now) {
        return !progress || progress(now.layers() - now.owners(), wanted);
    };
    LayerRowSums sums;
    std::vector<std::vector<float>> right;  // final hidden states without a map
    for (const auto& text : texts) {
        if (!go_on(map)) return stopped();
        auto states = engine.states(text);
        if (!states) return tl::unexpected(states.error());
        sums.add(*states);
        right.push_back(std::move(states->final));
    }
    const auto cosine_of = [&](const LayerMap& trial) -> Result<double> {
        const auto shared = std::make_shared<const LayerMap>(trial);
        double sum = 0;
        for (std::size_t i = 0; i < texts.size(); ++i) {
            if (!go_on(trial)) return stopped();
            const auto states = engine.states(texts[i], shared);
            if (!states) return tl::unexpected(states.error());
            sum += cosine(states->final, right[i]);
        }
        return sum / static_cast<double>(texts.size());
    };
    return choose_shared(map, pairs_by_distance(sums, map.shape, std::ssize(texts[0])), settings,
                         cosine_of);
}

nlohmann::json settings_json(const ShareSettings& settings, const std::string& texts) {
    return {{"texts", texts},
            {"count", settings.texts},
            {"tokens", settings.tokens},
            {"least_cosine", settings.least},
            {"seed", settings.seed}};
}

}  // namespace headkv
