// The figures of `headkv bench` as a table, as CSV and as a page with charts.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bench/bench.h"
#include "bench/machine.h"
#include "bench/peer.h"
#include "bench/stall.h"

namespace headkv::cli {

struct BenchReport {
    std::string model;
    int threads = 1;
    std::string precision;
    BenchSettings settings;
    std::vector<BenchResult> results;
    std::optional<MachineSpeed> machine;
    std::vector<StallResult> stalls;  // of every result; empty without --max-stall-ms
    // llama.cpp's figures by (depth, slots); empty without --vs.
    std::map<std::pair<std::int64_t, std::int64_t>, PeerSpeed> peer;
};

// Median of one side and that of the peer, where it measured the same: ours / theirs, else 0.
double prefill_ratio(const BenchReport& report, const BenchResult& result);
double decode_ratio(const BenchReport& report, const BenchResult& result);
// Time to the first token of one prompt: the prefill and one decode step, ms.
double first_token_ms(const BenchReport& report, const BenchResult& result);

std::string bench_table(const BenchReport& report);
std::string bench_csv(const BenchReport& report);
std::string bench_page(const BenchReport& report);
// The decode chart of the page as a picture of its own.
std::string bench_svg(const BenchReport& report);

}  // namespace headkv::cli
