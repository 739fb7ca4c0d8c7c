// Which layers of a model can read the rows of earlier ones (KVSharer, 2410.18517): pairs whose
// rows differ most are tried first, and kept while the final hidden states stay near the model's.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "headkv/engine.h"
#include "headkv/error.h"
#include "headkv/layer_map.h"

namespace headkv {

struct ShareSettings {
    std::int64_t texts = 30, tokens = 64;  // as the paper's code
    std::int64_t wanted = 0;               // layers that are to share; 0: an eighth of all
    double least = 0.5;                    // cosine of the final hidden states, mean over the texts
    std::uint64_t seed = 1;                // of the texts
};

// Sums of the rows of several texts of one length.
struct LayerRowSums {
    std::vector<double> keys, values;  // [layers][kv_heads][tokens][dim]
    void add(const TextStates& states);
};

struct LayerPair {
    std::int64_t reader = 0, owner = 0;  // reader > owner
    double distance = 0;
    bool operator==(const LayerPair&) const = default;
};

// All pairs of layers by descending distance (ties: the lower reader, then owner). The distance is
// the mean over keys and values of the mean over tokens of |a - b|, a and b being a token's rows of
// all heads of the two layers; of sums over texts, so it is that of means up to a factor.
std::vector<LayerPair> pairs_by_distance(const LayerRowSums& sums, const HeadShape& shape,
                                         std::int64_t tokens);

// Cosine of final hidden states with a map to those without, mean over texts.
using CosineOf = std::function<Result<double>(const LayerMap&)>;

// Tries the pairs in order: the reader, if it does not share already, and all who read its rows
// read the owner of the other from then on; kept if the cosine is above settings.least. Ends with
// the wanted count. `map` comes with its shape and an owner for each layer, itself. Errors: that of
// `cosine_of`; bad_input where no pair, or fewer than wanted, can be kept (says how many).
Result<LayerMap> choose_shared(LayerMap map, std::span<const LayerPair> pairs,
                               const ShareSettings& settings, const CosineOf& cosine_of);

// Reads the texts (all of one length) with an engine on the CPU and chooses. `progress` is told how
// many layers share; false stops it (interrupted). The model's names are the caller's to fill in.
Result<LayerMap> share_layers(Engine& engine, std::span<const std::vector<Token>> texts,
                              const ShareSettings& settings, const Progress& progress);

// All that decides the outcome, for the file.
nlohmann::json settings_json(const ShareSettings& settings, const std::string& texts);

}  // namespace headkv
