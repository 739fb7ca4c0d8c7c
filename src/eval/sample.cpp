#include "eval/sample.h"

#include <fmt/format.h>

#include <charconv>
#include <map>
#include <utility>

namespace headkv {

Result<Shard> parse_shard(std::string_view text) {
    Shard shard;
    const char* const end = text.data() + text.size();
    const auto index = std::from_chars(text.data(), end, shard.index);
    if (index.ec == std::errc() && index.ptr != end && *index.ptr == '/') {
        const auto of = std::from_chars(index.ptr + 1, end, shard.of);
        const bool read = of.ec == std::errc() && of.ptr == end;
        if (read && shard.index >= 1 && shard.index <= shard.of) return shard;
    }
    return bad_input("--shard {}: give 1/4 for the first of four, up to 4/4", text);
}

std::string to_string(const Shard& shard) { return fmt::format("{}/{}", shard.index, shard.of); }

std::vector<TaskExample> select_examples(std::vector<TaskExample> examples,
                                         const Selection& selection) {
    // One place decides the order, so that a run with a sample goes on where one without stopped.
    TaskSettings settings;
    settings.seed = selection.seed;
    examples = chosen_examples(std::move(examples), settings);
    if (selection.sample > 0) {
        std::map<std::string, std::int64_t> taken;
        std::erase_if(examples, [&](const TaskExample& example) {
            return taken[example.group]++ >= selection.sample;
        });
    }
    if (selection.limit > 0 && examples.size() > static_cast<std::size_t>(selection.limit)) {
        examples.resize(static_cast<std::size_t>(selection.limit));
    }
    return examples;
}

}  // namespace headkv
