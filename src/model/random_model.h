// Models of a given shape with random weights: to measure what a shape costs without its download.
// They load and compute as trained ones do, and answer nonsense.
#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "headkv/error.h"
#include "model/model_shapes.h"

namespace headkv {

// Types that matrices can be written in: those that ggml quantises without an importance matrix.
std::span<const ggml_type> random_model_types();
// By ggml's name, in any case. Errors (bad_input): unknown; lists them.
Result<ggml_type> find_random_model_type(std::string_view name);

// Everything about the file but its weights, which are drawn while they are written.
class RandomModel {
public:
    // Matrices in `type`, vectors in f32. Errors (bad_input): check_shape's, rows that the type's
    // blocks do not divide, a vocabulary too small for the bytes and the special tokens.
    static Result<RandomModel> plan(const ModelShape& shape, ggml_type type, std::uint64_t seed);

    std::span<const std::byte> header() const { return header_; }  // all before the weights, padded
    std::int64_t bytes() const { return bytes_; }                  // of the whole file
    std::int64_t parameters() const { return parameters_; }

    // Element i of every tensor is a pure function of seed, tensor and i, in whole numbers and one
    // float product: the same on every machine.
    struct Tensor {
        std::string name;
        ggml_type type = GGML_TYPE_F32;
        std::int64_t in = 0, rows = 0;
        std::int64_t offset = 0;  // in the file
        std::uint64_t key = 0;    // of its part of the random numbers
        std::int32_t mean = 0;    // value = (mean + deviate) * scale, see random_model.cpp
        float scale = 0;
    };
    std::span<const Tensor> tensors() const { return tensors_; }

private:
    friend class RandomModelPlanner;
    std::vector<std::byte> header_;
    std::vector<Tensor> tensors_;
    std::int64_t bytes_ = 0, parameters_ = 0;
};

struct WriteOptions {
    int threads = 0;  // 0: one per core; the bytes do not depend on it
    bool overwrite = false;
    // Bytes done of all; false stops (ErrorKind::interrupted). Called by the calling thread only.
    std::function<bool(std::int64_t done, std::int64_t total)> progress = {};
};

// The whole file or nothing: written under a temporary name beside it, a few MiB at a time, and
// renamed. Errors: bad_input (exists, not writable, no space), interrupted; nothing stays behind.
Result<void> write_random_model(const RandomModel& model, const std::filesystem::path& file,
                                const WriteOptions& options = {});

}  // namespace headkv
