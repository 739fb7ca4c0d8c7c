// Which examples a run takes: a sample of every group, the first so many, one shard of several.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "eval/task.h"

namespace headkv {

// One of several runs that share the examples of one; 1 of 1 is a whole run.
struct Shard {
    std::int64_t index = 1, of = 1;  // index from 1
    bool whole() const { return of == 1; }
};
// "2/3". Error (bad_input): anything else, or an index beyond the number of shards.
Result<Shard> parse_shard(std::string_view text);
std::string to_string(const Shard& shard);

struct Selection {
    std::int64_t sample = 0;  // most examples a group, drawn by the seed; 0: all
    std::int64_t limit = 0;   // most examples in all, of the order of the run; 0: all
    std::uint64_t seed = 1;
};

// The examples in the order of a run: shuffled by the seed, so that a run that stops early is
// balanced; of every group the first `sample` of that order; then cut to the limit.
std::vector<TaskExample> select_examples(std::vector<TaskExample> examples,
                                         const Selection& selection);

// Example k of `examples` belongs to shard k % of + 1, so that all shards are of a size.
template <class Example>
std::vector<Example> shard_of(std::vector<Example> examples, const Shard& shard) {
    std::vector<Example> mine;
    const auto step = static_cast<std::size_t>(shard.of);
    for (auto k = static_cast<std::size_t>(shard.index - 1); k < examples.size(); k += step) {
        mine.push_back(std::move(examples[k]));
    }
    return mine;
}

}  // namespace headkv
