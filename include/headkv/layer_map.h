// Layers that share rows (KVSharer, 2410.18517): some layers own no keys and values, they read
// those of an earlier layer. File format headkv-share/1 (docs/formats.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "headkv/error.h"
#include "headkv/scores.h"

namespace headkv {

struct LayerMap {
    std::string model_name, architecture, fingerprint;
    HeadShape shape;
    // [layers] the layer whose rows it reads: itself, or an earlier one that owns its own.
    std::vector<std::int64_t> owner;
    double cosine = 1;  // of the final hidden states with the map to those without, mean over texts
    std::int64_t tried = 0;            // pairs of layers that were tried for it
    std::string settings_json = "{}";  // free-form object of the calibration's settings
    std::string created_by;
    // The model was trained to share so (ModelInfo::share): it has no other way.
    bool trained = false;

    std::int64_t layers() const { return static_cast<std::int64_t>(owner.size()); }
    std::int64_t owner_of(std::int64_t layer) const {
        return owner[static_cast<std::size_t>(layer)];
    }
    bool owns(std::int64_t layer) const { return owner_of(layer) == layer; }
    std::int64_t owners() const;
    // The last layer that reads the rows of an owner; itself where nobody else does.
    std::int64_t last_reader(std::int64_t layer) const;
};

// What is wrong where owners are not as LayerMap::owner says; empty where nothing is.
std::string wrong_owner(const std::vector<std::int64_t>& owner);
// Errors (bad_input): unreadable, not JSON, wrong format or counts, an owner that comes later or
// owns nothing.
Result<LayerMap> load_layer_map(const std::filesystem::path& file);
// As the file has it; for a writer that renames when it is done.
std::string layer_map_text(const LayerMap& map);
// Refuses a map of another shape (both named) and, unless `force`, of another fingerprint. An empty
// fingerprint on either side is not compared.
Result<void> check_layer_map(const LayerMap& map, const HeadShape& shape,
                             const std::string& fingerprint, bool force);
// The file in one of `folders` (first hit wins) whose fingerprint matches; error (bad_input) names
// the folders looked in and `headkv calibrate`.
Result<LayerMap> find_layer_map(const std::vector<std::filesystem::path>& folders,
                                const std::string& fingerprint);

}  // namespace headkv
