// The methods once more, naively: kept sets straight from METHODS.md's formulas, in double, without
// a line of src/method. And ways to get them wrong, which the comparison has to notice.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "support/reference.h"

namespace headkv::test {

enum class Mistake { none, pool_before_group, window_keys_left_out, one_window_row_fewer };

struct ReferenceMethod {
    std::string name = "snapkv";  // as on the command line
    double rows = 128;            // mean rows per KV head, window included
    std::int64_t window = 16;
    std::int64_t kernel = 7;
    bool average_pool = false;  // else max
    double beta = 2;            // headkv-*
    double pyramid_beta = 20;
    double floor = 0.2;          // ada-kv
    std::int64_t sinks = 4;      // streaming-llm
    double query_decay = 1;      // weight of a query of the window beside the next one's
    std::vector<double> scores;  // headkv-*: [layers][query_heads]
    Mistake mistake = Mistake::none;
};

// Mean attention of the last `window` queries, the last of which weighs 1, the one before it
// `decay`, ...: [query_heads][tokens].
std::vector<std::vector<double>> observe(const Reference& reference, const ReferenceRun& run,
                                         std::int64_t layer, std::int64_t window,
                                         bool window_keys = true, double decay = 1);

KeepLists naive_keep(const Reference& reference, const ReferenceRun& run,
                     const ReferenceMethod& method);

// |intersection| / |union|, mean over layers and heads.
double mean_jaccard(const KeepLists& a, const KeepLists& b);

std::int64_t rows_in(const KeepLists& lists);

}  // namespace headkv::test
