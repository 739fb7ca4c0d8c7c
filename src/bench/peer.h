// llama.cpp's own benchmark programs, run beside ours in one call so that both meet the same
// machine in the same state.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "headkv/error.h"

namespace headkv {

// Standard output of a program; its standard error is thrown away. No shell is involved.
// Errors (failure): cannot be started, or ended with another status than 0 (the status is said).
// `stopped` is asked a few times a second: where it says so the program is ended, and the error is
// ErrorKind::interrupted.
Result<std::string> run_program(const std::vector<std::string>& arguments,
                                const std::function<bool()>& stopped = {});

// Tokens a second, one entry a round; empty where the peer was not asked.
struct PeerSpeed {
    std::vector<double> prefill, decode;  // decode: of all slots together
};

class LlamaBench {
public:
    struct Settings {
        std::string program;  // llama-bench
        std::string model;
        int threads = 1;
        std::int64_t tokens = 32;            // decode steps
        std::function<bool()> stopped = {};  // see run_program
    };
    // Error (bad_input): no such file, or it does not call itself llama-bench.
    static Result<LlamaBench> create(const Settings& settings);

    void set_threads(int threads) { settings_.threads = threads; }

    // Measures each depth once, flash attention on: its prefill, and the decode behind it. With
    // more than one slot the program llama-batched-bench beside it is used (full cache, so slots x
    // (depth + tokens) rows). Errors: run_program's, or output of another form.
    Result<void> round(const std::vector<std::int64_t>& depths,
                       const std::vector<std::int64_t>& slots);

    // By (depth, slots).
    const std::map<std::pair<std::int64_t, std::int64_t>, PeerSpeed>& speeds() const {
        return speeds_;
    }

private:
    Result<void> single(const std::vector<std::int64_t>& depths);
    Result<void> batched(std::int64_t depth, std::int64_t slots);

    Settings settings_;
    std::map<std::pair<std::int64_t, std::int64_t>, PeerSpeed> speeds_;
};

}  // namespace headkv
