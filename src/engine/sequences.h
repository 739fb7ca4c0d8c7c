// Sequences of one example or probe; freed whatever happens.
#pragma once

#include <utility>
#include <vector>

#include "headkv/engine.h"

namespace headkv {

// Keeps every row of the prompt.
inline MethodConfig full_cache() {
    MethodConfig config;
    config.method = "full";
    config.budget = {Budget::Unit::share, 1.0};
    return config;
}

class Sequences {
public:
    Sequences(Engine& engine, std::vector<SequenceId> ids)
        : engine_(engine), ids_(std::move(ids)) {}
    ~Sequences() {
        for (const SequenceId id : ids_) engine_.release(id);
    }
    Sequences(const Sequences&) = delete;
    Sequences& operator=(const Sequences&) = delete;
    const std::vector<SequenceId>& ids() const { return ids_; }

private:
    Engine& engine_;
    std::vector<SequenceId> ids_;
};

}  // namespace headkv
