// `headkv calibrate --kind share`: which layers can read the rows of others.
#pragma once

#include <string>

#include "calibrate/share_layers.h"
#include "cli/options.h"

namespace headkv::cli {

struct ShareArguments {
    std::string out, haystack, json;
    ShareSettings settings;
};

// Errors: those of load_model, Haystack and share_layers; a file that cannot be written.
Result<void> calibrate_share(const ModelArguments& model, const ShareArguments& arguments);

}  // namespace headkv::cli
