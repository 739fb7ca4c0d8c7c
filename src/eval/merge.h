// Shards of one run put together again.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "eval/report.h"

namespace headkv {

// A whole run, as one without shards would have left it.
struct Merged {
    ReportHead head;
    std::vector<TaskResult> results;      // in the order of the whole run; none of niah
    std::vector<NiahProbe> probes;        // the same of niah alone
    std::vector<nlohmann::json> entries;  // the same, as the logs hold them
};

// Reads FOLDER/results.json and FOLDER/answers.jsonl of every shard, in any order.
// Errors (bad_input): a folder that holds no finished shard, shards of different runs (says which
// setting differs), a shard that is missing or there twice, an example that is.
Result<Merged> merge_shards(std::span<const std::filesystem::path> folders);

// answers.jsonl of the whole run; replaces what is there. Error (bad_input): not writable.
Result<void> write_log(const std::filesystem::path& file, const Merged& merged);

}  // namespace headkv
