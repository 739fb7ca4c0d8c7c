// Files of layers that share rows: headkv-share/1 (docs/formats.md).
#include "headkv/layer_map.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <system_error>

#include "method/json_files.h"

namespace headkv {
namespace {

using nlohmann::json;

constexpr std::string_view kFormat = "headkv-share/1";
constexpr std::int64_t kMost = 65536;  // layers, and heads of one: far above any model

std::string text_of(const json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

// -1 where there is no such number from `least` to `most`.
std::int64_t count_of(const json& object, const char* key, std::int64_t least, std::int64_t most) {
    const auto found = object.find(key);
    if (found == object.end() || !found->is_number_integer()) return -1;
    if (found->is_number_unsigned() &&
        found->get<std::uint64_t>() > static_cast<std::uint64_t>(most)) {
        return -1;
    }
    const auto value = found->get<std::int64_t>();
    return value < least || value > most ? -1 : value;
}

Result<LayerMap> parse(const json& root, const std::string& file) {
    const auto format = root.is_object() ? root.find("format") : root.end();
    if (format == root.end() || *format != kFormat) {
        return bad_input("{}: is no map of shared layers ({})", file, kFormat);
    }
    const auto model = root.find("model");
    if (model == root.end() || !model->is_object()) {
        return bad_input("{}: 'model' is missing", file);
    }
    LayerMap map;
    map.model_name = text_of(*model, "name");
    map.architecture = text_of(*model, "architecture");
    map.fingerprint = text_of(*model, "fingerprint");
    map.created_by = text_of(root, "created_by");
    map.shape = {count_of(*model, "layers", 1, kMost), count_of(*model, "query_heads", 1, kMost),
                 count_of(*model, "kv_heads", 1, kMost)};
    if (map.shape.layers < 0 || map.shape.query_heads < 0 || map.shape.kv_heads < 0) {
        return bad_input("{}: 'model' must have whole numbers of layers, query_heads and kv_heads",
                         file);
    }
    const auto owner = root.find("owner");
    if (owner == root.end() || !owner->is_array() ||
        static_cast<std::int64_t>(owner->size()) != map.shape.layers) {
        return bad_input("{}: 'owner' must be a list of {} layers", file, map.shape.layers);
    }
    for (const json& entry : *owner) {
        if (!entry.is_number_integer()) {
            return bad_input("{}: 'owner' must be a list of whole numbers", file);
        }
        map.owner.push_back(entry.get<std::int64_t>());
    }
    if (const auto wrong = wrong_owner(map.owner); !wrong.empty()) {
        return bad_input("{}: {}", file, wrong);
    }
    if (const auto cosine = root.find("cosine"); cosine != root.end() && cosine->is_number()) {
        map.cosine = cosine->get<double>();
    }
    map.tried = std::max<std::int64_t>(0, count_of(root, "tried", 0, kMost * kMost));
    if (const auto settings = root.find("settings");
        settings != root.end() && settings->is_object()) {
        map.settings_json = settings->dump();
    }
    return map;
}

std::string json_text(const json& value) {
    return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace

std::string wrong_owner(const std::vector<std::int64_t>& owner) {
    for (std::size_t layer = 0; layer < owner.size(); ++layer) {
        const auto other = owner[layer];
        if (other < 0 || other > static_cast<std::int64_t>(layer)) {
            return fmt::format(
                "layer {} reads the rows of layer {}: it must be itself or an "
                "earlier one",
                layer, other);
        }
        if (owner[static_cast<std::size_t>(other)] != other) {
            return fmt::format("layer {} reads the rows of layer {}, which owns none", layer,
                               other);
        }
    }
    return {};
}

std::int64_t LayerMap::owners() const {
    std::int64_t count = 0;
    for (std::int64_t layer = 0; layer < layers(); ++layer) count += owns(layer) ? 1 : 0;
    return count;
}

std::int64_t LayerMap::last_reader(std::int64_t layer) const {
    for (auto reader = layers() - 1; reader > layer; --reader) {
        if (owner_of(reader) == layer) return reader;
    }
    return layer;
}

Result<LayerMap> load_layer_map(const std::filesystem::path& file) {
    std::error_code ignored;
    if (std::filesystem::is_directory(file, ignored)) {
        return bad_input("{}: is a folder, not a map of shared layers", file.string());
    }
    std::ifstream in(file, std::ios::binary);
    if (!in) {
        return bad_input("{}: cannot read the map of shared layers: {}", file.string(),
                         std::strerror(errno));
    }
    const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    const auto root = json::parse(text, nullptr, false);
    if (root.is_discarded()) {
        return bad_input("{}: not JSON, or cut short: is it a map of shared layers?",
                         file.string());
    }
    return parse(root, file.string());
}

std::string layer_map_text(const LayerMap& map) {
    const json settings = json::parse(map.settings_json, nullptr, false);
    return fmt::format(
        "{{\n  \"format\": \"{}\",\n  \"kind\": \"share\",\n  \"model\": {{\"name\": {}, "
        "\"architecture\": {}, \"layers\": {}, \"query_heads\": {}, \"kv_heads\": {}, "
        "\"fingerprint\": {}}},\n  \"settings\": {},\n  \"created_by\": {},\n  \"tried\": {},\n  "
        "\"cosine\": {},\n  \"owner\": {}\n}}\n",
        kFormat, json_text(map.model_name), json_text(map.architecture), map.shape.layers,
        map.shape.query_heads, map.shape.kv_heads, json_text(map.fingerprint),
        json_text(settings.is_object() ? settings : json::object()), json_text(map.created_by),
        map.tried, json_text(map.cosine), json_text(map.owner));
}

Result<void> check_layer_map(const LayerMap& map, const HeadShape& shape,
                             const std::string& fingerprint, bool force) {
    if (map.layers() != shape.layers || map.shape.kv_heads != shape.kv_heads ||
        map.shape.query_heads != shape.query_heads) {
        return bad_input(
            "the map of shared layers is of another model: it has {} layers of {} query and {} KV "
            "heads, the model has {} of {} and {}",
            map.layers(), map.shape.query_heads, map.shape.kv_heads, shape.layers,
            shape.query_heads, shape.kv_heads);
    }
    if (const auto wrong = wrong_owner(map.owner); !wrong.empty()) {
        return bad_input("the map of shared layers is none: {}", wrong);
    }
    const bool comparable = !map.fingerprint.empty() && !fingerprint.empty();
    if (comparable && !force && map.fingerprint != fingerprint) {
        return bad_input(
            "the map of shared layers was made for another model ({}, fingerprint {}; this one is "
            "{}): make one with 'headkv calibrate --kind share', or insist with --force-scores",
            map.model_name.empty() ? "unnamed" : map.model_name, map.fingerprint, fingerprint);
    }
    return {};
}

Result<LayerMap> find_layer_map(const std::vector<std::filesystem::path>& folders,
                                const std::string& fingerprint) {
    std::string looked_in;
    for (const auto& folder : folders) {
        looked_in += (looked_in.empty() ? "" : ", ") + folder.string();
        for (const auto& file : json_files_of(folder)) {
            // A folder may hold other files too: what is no such map is passed over.
            auto map = load_layer_map(file);
            if (map && !fingerprint.empty() && map->fingerprint == fingerprint) return map;
        }
    }
    return bad_input(
        "no map of shared layers for this model (fingerprint {}) in {}: make one with 'headkv "
        "calibrate --kind share', or name a file with --share",
        fingerprint, looked_in.empty() ? "any folder" : looked_in);
}

}  // namespace headkv
