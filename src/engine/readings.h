// In which readings of a prompt the caches of several configurations are filled: layers that share
// rows make another computation, and a drafted answer must be written before its queries can look.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "headkv/error.h"
#include "headkv/method.h"
#include "headkv/tokenizer.h"

namespace headkv {

struct Reading {
    // MethodConfig::share of all of it.
    std::shared_ptr<const LayerMap> share = {};
    std::vector<std::size_t> configs = {};  // whose caches it fills
    // Caches for drafting besides, each with the configurations that its draft is for.
    struct Drafting {
        MethodConfig config;
        std::vector<std::size_t> wanted_by;
    };
    std::vector<Drafting> drafting = {};
    std::vector<Token> draft = {};  // read behind the prompt
};

// [layers] as LayerMap has it; empty where every layer owns its rows (null).
std::vector<std::int64_t> owner_of(const std::shared_ptr<const LayerMap>& share);

// The readings to begin with: one for each map of shared layers, in the order of the
// configurations. The cache that drafts for a configuration is its own method's without a draft,
// with kDraftRows rows a head or its own if those are more: so a draft does not depend on what else
// is read, and one draft serves several small budgets. Errors (bad_input): Method::create's.
Result<std::deque<Reading>> plan_readings(std::span<const MethodConfig> configs,
                                          const HeadShape& shape, std::int64_t prompt_tokens,
                                          std::int64_t dim_k, std::int64_t dim_v);
// The readings that fill the caches of those who wanted drafts: one for each draft; `drafts`
// [reading.drafting] as written. An empty one is none to look from.
std::vector<Reading> readings_of_drafts(const Reading& reading,
                                        std::span<const std::vector<Token>> drafts);

}  // namespace headkv
