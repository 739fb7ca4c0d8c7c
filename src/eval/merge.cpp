#include "eval/merge.h"

#include <fmt/format.h>

#include <fstream>
#include <map>
#include <optional>

#include "eval/sample.h"

namespace headkv {
namespace {

using nlohmann::json;

struct Part {
    std::string folder;
    ReportHead head;
    Shard shard;
    std::int64_t whole = 0;  // examples of the whole run
    std::vector<json> entries;
};

// What a shard's flags say beyond those of the whole run.
constexpr const char* kShard = "shard";

Result<std::vector<json>> read_log(const std::filesystem::path& file, const json& flags) {
    std::ifstream in(file, std::ios::binary);
    if (!in) return bad_input("{}: cannot be read", file.string());
    std::vector<json> lines;
    for (std::string line; std::getline(in, line);) {
        lines.push_back(json::parse(line, nullptr, false));
        if (!lines.back().is_object()) {
            return bad_input("{}, line {}: torn; run this shard again, it goes on from there",
                             file.string(), lines.size());
        }
    }
    if (lines.empty() || lines[0].value("settings", json()) != flags) {
        return bad_input(
            "{}: is of other settings than results.json beside it; run this shard "
            "again",
            file.string());
    }
    lines.erase(lines.begin());
    return lines;
}

Result<Part> read_part(const std::filesystem::path& folder) {
    Part part;
    part.folder = folder.string();
    const auto file = folder / "results.json";
    std::ifstream in(file, std::ios::binary);
    if (!in) {
        return bad_input("{}: is missing; run this shard to its end before it is merged",
                         file.string());
    }
    auto head = report_head_from_json(json::parse(in, nullptr, false));
    if (!head) {
        return bad_input("{}: holds no results of `headkv eval`: {}", file.string(),
                         head.error().message);
    }
    part.head = std::move(*head);
    json& flags = part.head.flags;
    if (!flags.is_object() || !flags.contains(kShard)) {
        return bad_input("{}: is no shard; give folders of runs with --shard", file.string());
    }
    auto entries = read_log(folder / "answers.jsonl", flags);
    if (!entries) return tl::unexpected(entries.error());
    part.entries = std::move(*entries);
    const json shard = flags[kShard];
    flags.erase(kShard);
    try {
        part.shard = {shard.at("index"), shard.at("of")};
        shard.at("examples").get_to(part.whole);
    } catch (const json::exception& error) {
        return bad_input("{}: {}", file.string(), error.what());
    }
    // Sample and limit make no difference to an answer, but to what the shards share.
    flags["selection"] = {shard.value("sample", json()), shard.value("limit", json()), part.whole,
                          part.shard.of, shard.value("examples_hash", json())};
    return part;
}

// The first difference between two runs' settings; empty if there is none.
std::string difference(const json& a, const json& b, const std::string& name = "") {
    if (a == b) return "";
    if (a.is_structured() && a.type() == b.type()) {
        const json patch = json::diff(a, b);
        std::string place = patch.at(0).at("path");
        const json::json_pointer pointer(place);
        const auto text = [&](const json& of) {
            return of.contains(pointer) ? of.at(pointer).dump() : std::string("nothing");
        };
        return fmt::format("{}{}: {} and {}", name, place, text(a), text(b));
    }
    return fmt::format("{}: {} and {}", name, a.dump(), b.dump());
}

Result<void> check_same(const Part& first, const Part& other) {
    const json a = to_json(first.head), b = to_json(other.head);
    if (const std::string what = difference(a, b); !what.empty()) {
        return bad_input("{} and {} are shards of different runs: {}", first.folder, other.folder,
                         what);
    }
    return {};
}

std::string name_of(const json& entry) {
    for (const char* name : {"id", "probe"}) {
        if (entry.contains(name) && entry[name].is_string()) return entry[name];
    }
    return "without id";
}

}  // namespace

Result<Merged> merge_shards(std::span<const std::filesystem::path> folders) {
    if (folders.empty()) return bad_input("merge: give the folders of all shards");
    std::map<std::int64_t, Part> parts;
    std::optional<Part> first;
    for (const auto& folder : folders) {
        auto part = read_part(folder);
        if (!part) return tl::unexpected(part.error());
        if (!first) first = *part;
        if (auto same = check_same(*first, *part); !same) return tl::unexpected(same.error());
        const auto [at, fresh] = parts.emplace(part->shard.index, *part);
        if (!fresh) {
            return bad_input("{} and {} are both shard {}", at->second.folder, part->folder,
                             to_string(part->shard));
        }
    }
    const std::int64_t of = first->shard.of;
    std::map<std::string, std::string> seen;  // id -> folder
    for (std::int64_t index = 1; index <= of; ++index) {
        const auto found = parts.find(index);
        if (found == parts.end()) {
            return bad_input("shard {} is missing: give the folders of all {} shards",
                             to_string(Shard{index, of}), of);
        }
        const Part& part = found->second;
        for (const json& entry : part.entries) {
            const auto [before, fresh] = seen.emplace(name_of(entry), part.folder);
            if (!fresh) {
                return bad_input("example {} is there twice: in {} and in {}", before->first,
                                 before->second, part.folder);
            }
        }
        const std::int64_t wanted = (first->whole - index + of) / of;
        const auto there = static_cast<std::int64_t>(part.entries.size());
        if (there != wanted) {
            return bad_input("{} holds {} of the {} examples of shard {}: run it to its end",
                             part.folder, there, wanted, to_string(part.shard));
        }
    }

    Merged merged;
    merged.head = first->head;
    merged.head.flags.erase("selection");
    const bool niah = merged.head.task == "niah";
    for (std::int64_t k = 0; k < first->whole; ++k) {
        const Part& part = parts.at(k % of + 1);
        const json& entry = part.entries[static_cast<std::size_t>(k / of)];
        auto probe = niah ? niah_probe_from_json(entry) : std::nullopt;
        auto result = niah ? std::nullopt : task_result_from_json(entry);
        if (!probe && !result) {
            return bad_input("{}: example {} is not of this version's form; run this shard again",
                             part.folder, name_of(entry));
        }
        if (probe) merged.probes.push_back(std::move(*probe));
        if (result) merged.results.push_back(std::move(*result));
        merged.entries.push_back(entry);
    }
    return merged;
}

Result<void> write_log(const std::filesystem::path& file, const Merged& merged) {
    // Through the log of a run, so that both are written alike; beside, so that none is half.
    auto beside = file;
    beside += ".merging";
    std::error_code error;
    std::filesystem::remove(beside, error);
    {
        auto log = RunLog::open(beside, merged.head.flags);
        if (!log) return tl::unexpected(log.error());
        for (const json& entry : merged.entries) {
            if (auto written = log->append(entry); !written) return written;
        }
    }
    std::filesystem::rename(beside, file, error);
    if (error) return bad_input("{}: {}", file.string(), error.message());
    return {};
}

}  // namespace headkv
