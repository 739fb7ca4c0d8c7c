// The chat template of probes: what the model brings, raw prompts if it brings none.
#pragma once

#include <optional>

#include "cli/options.h"

namespace headkv::cli {

// Base models have no template and are probed raw; a template that is there but not recognised is
// an error, as everywhere.
inline Result<std::optional<ChatTemplate>> probe_template(const PromptArguments& arguments,
                                                          const Model& model) {
    const bool none = model.tokenizer().chat_template().empty() && arguments.chat_template.empty();
    if (none) return std::nullopt;
    return prompt_template(arguments, model);
}

}  // namespace headkv::cli
