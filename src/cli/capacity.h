// `headkv plan --model`: how many sequences a GPU holds with each method, where its memory goes and
// what a step costs, from the header of the model's file alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/options.h"
#include "engine/capacity.h"

namespace headkv::cli {

struct CapacityArguments {
    std::string model;     // --model
    std::string gpu = {};  // one of measured_gpus(); empty: the first
    std::string memory = {}, prompt = {}, bandwidth = {}, kv_type = {}, json = {};
    std::vector<std::string> methods = {};  // empty: all
    MethodArguments method = {};            // budget and options that all share
    std::int64_t slots = 0;                 // besides one and the most that fit; 0: none
    std::int64_t new_tokens = DeviceLoad().new_tokens;
    std::int64_t gpus = 1;
    std::optional<std::int64_t> gpu_layers = {};  // the last so many; nothing: all
    std::vector<double> gpu_split = {};           // shares of the GPUs that have them

    // An option that says nothing without a model.
    bool any() const {
        return !gpu.empty() || !memory.empty() || !prompt.empty() || !bandwidth.empty() ||
               !kv_type.empty() || !methods.empty() || slots > 0 || gpus > 1 || gpu_layers ||
               !gpu_split.empty();
    }
};
void add_capacity_options(CLI::App& command, CapacityArguments& arguments);
Result<void> capacity_plan(const CapacityArguments& arguments);

}  // namespace headkv::cli
