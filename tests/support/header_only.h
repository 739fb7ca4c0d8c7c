// A model file of a known shape that is all header: its weights are a hole, so that it takes no
// space and no time. Enough for what looks at sizes alone.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

#include "model/random_model.h"

namespace headkv::test {

inline void write_header_only(const std::string& shape, std::int64_t vocabulary,
                              std::int64_t context, const std::filesystem::path& file) {
    const auto known = std::ranges::find(model_shapes(), shape, &ModelShape::name);
    if (known == model_shapes().end()) throw std::runtime_error("no such shape: " + shape);
    ModelShape sizes = *known;
    sizes.vocabulary = vocabulary;
    sizes.context = context;
    const auto model = RandomModel::plan(sizes, GGML_TYPE_Q8_0, 1);
    if (!model) throw std::runtime_error(model.error().message);
    const auto header = model->header();
    std::ofstream(file, std::ios::binary)
        .write(reinterpret_cast<const char*>(header.data()),
               static_cast<std::streamsize>(header.size()));
    std::filesystem::resize_file(file, static_cast<std::uintmax_t>(model->bytes()));
}

}  // namespace headkv::test
