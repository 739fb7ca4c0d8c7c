// How rows are stored: names, and bytes of a row.
#include <array>

#include "headkv/method.h"

namespace headkv {
namespace {

constexpr std::array kTypes = {StoreStep::f16, StoreStep::q8_0, StoreStep::q4_0};
constexpr std::int64_t kBlock = 32;  // values of a quantised block

// A block is an f16 scale and its values in 8 or 4 bits each (src/kernels/attention.h).
std::int64_t bytes_of(StoreStep step, std::int64_t dim) {
    switch (step) {
        case StoreStep::f16:
            break;
        case StoreStep::q8_0:
            return dim / kBlock * (2 + kBlock);
        case StoreStep::q4_0:
            return dim / kBlock * (2 + kBlock / 2);
    }
    return dim * 2;
}

const StoreStep* find_type(std::string_view name) {
    for (const StoreStep& type : kTypes) {
        if (name_of(type) == name) return &type;
    }
    return nullptr;
}

}  // namespace

std::string_view name_of(StoreStep step) {
    switch (step) {
        case StoreStep::f16:
            return "f16";
        case StoreStep::q8_0:
            return "q8_0";
        case StoreStep::q4_0:
            return "q4_0";
    }
    return "?";
}

std::string name_of(const StoreTypes& types) {
    std::string name(name_of(types.keys));
    if (types.keys != types.values) name.append(":").append(name_of(types.values));
    return name;
}

Result<StoreTypes> parse_store_types(std::string_view text) {
    const std::size_t colon = text.find(':');
    const auto* keys = find_type(text.substr(0, colon));
    const auto* values = colon == std::string_view::npos ? keys : find_type(text.substr(colon + 1));
    if (keys == nullptr || values == nullptr) {
        return bad_input(
            "rows cannot be stored as '{}': give f16, q8_0 or q4_0, or one for keys and one for "
            "values, as in q8_0:q4_0",
            text.substr(0, 64));
    }
    return StoreTypes{*keys, *values};
}

Result<std::int64_t> row_bytes(const StoreTypes& types, std::int64_t dim_k, std::int64_t dim_v) {
    const auto fits = [](StoreStep step, std::int64_t dim) {
        return step == StoreStep::f16 || dim % kBlock == 0;
    };
    const bool keys_fit = fits(types.keys, dim_k);
    if (!keys_fit || !fits(types.values, dim_v)) {
        return bad_input(
            "{} cannot be stored as {}: it comes in blocks of {} values, and the model's heads "
            "have {}; store them as f16",
            keys_fit ? "values" : "keys", name_of(keys_fit ? types.values : types.keys), kBlock,
            keys_fit ? dim_v : dim_k);
    }
    return bytes_of(types.keys, dim_k) + bytes_of(types.values, dim_v);
}

}  // namespace headkv
