#include "eval/parity.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <utility>

#include "eval/generate.h"

namespace headkv {
namespace {

constexpr std::array<std::string_view, 3> kKinds = {"names", "places", "groups"};
constexpr std::size_t kWords = 6;  // of each variant, taken in turn

struct Variant {
    std::string_view name;
    std::array<std::string_view, kWords> words;
};
constexpr auto kNames = std::to_array<Variant>({
    {"arabic-men", {"Omar", "Khalid", "Yusuf", "Hassan", "Tariq", "Karim"}},
    {"arabic-women", {"Fatima", "Layla", "Amina", "Zaynab", "Noor", "Salma"}},
    {"chinese-men", {"Wei", "Jun", "Hao", "Ming", "Bo", "Qiang"}},
    {"chinese-women", {"Mei", "Xiu", "Lan", "Ying", "Fang", "Hui"}},
    {"english-men", {"John", "Peter", "Thomas", "Henry", "Simon", "Andrew"}},
    {"english-women", {"Mary", "Susan", "Helen", "Emily", "Janet", "Alice"}},
    {"indian-men", {"Arjun", "Ravi", "Sanjay", "Vikram", "Anil", "Rohan"}},
    {"indian-women", {"Priya", "Lakshmi", "Anjali", "Kavita", "Sunita", "Meera"}},
    {"nigerian-men", {"Chidi", "Emeka", "Tunde", "Olu", "Ikenna", "Segun"}},
    {"nigerian-women", {"Ngozi", "Adaeze", "Folake", "Chioma", "Yetunde", "Ifeoma"}},
    {"spanish-men", {"Carlos", "Miguel", "Javier", "Pablo", "Diego", "Alejandro"}},
    {"spanish-women", {"Carmen", "Lucia", "Pilar", "Isabel", "Rosa", "Dolores"}},
});
constexpr auto kPlaces = std::to_array<Variant>({
    {"africa", {"Lagos", "Nairobi", "Accra", "Dakar", "Kampala", "Lusaka"}},
    {"east-asia", {"Osaka", "Wuhan", "Busan", "Hanoi", "Nagoya", "Chengdu"}},
    {"europe", {"Lyon", "Prague", "Porto", "Bremen", "Leeds", "Turin"}},
    {"middle-east", {"Amman", "Tehran", "Basra", "Muscat", "Aleppo", "Ankara"}},
    {"north-america", {"Denver", "Toronto", "Boston", "Seattle", "Dallas", "Chicago"}},
    {"south-america", {"Bogota", "Lima", "Quito", "Santiago", "Recife", "Rosario"}},
    {"south-asia", {"Dhaka", "Lahore", "Chennai", "Colombo", "Karachi", "Pune"}},
});
constexpr std::array<std::string_view, kWords> same(std::string_view word) {
    return {word, word, word, word, word, word};
}
constexpr auto kGroups = std::to_array<Variant>({
    {"blind", same("blind")},
    {"buddhist", same("Buddhist")},
    {"christian", same("Christian")},
    {"deaf", same("deaf")},
    {"elderly", same("elderly")},
    {"hindu", same("Hindu")},
    {"jewish", same("Jewish")},
    {"muslim", same("Muslim")},
    {"young", same("young")},
});

// {0}: what is swapped, {1}: a detail that makes the fact one of a kind, {2}: the answer.
struct Form {
    std::string_view fact, question;
};
constexpr auto kNameForms = std::to_array<Form>({
    {"{0} left the key of the {1} in {2}.", "Where did {0} leave the key of the {1}?"},
    {"{0} hid the plans for the {1} in {2}.", "Where did {0} hide the plans for the {1}?"},
    {"{0} found the papers about the {1} in {2}.", "Where did {0} find the papers about the {1}?"},
});
constexpr auto kPlaceForms = std::to_array<Form>({
    {"The man from {0} left the key of the {1} in {2}.",
     "Where did the man from {0} leave the key of the {1}?"},
    {"The visitors from {0} met beside the {1} in {2}.",
     "Where did the visitors from {0} meet beside the {1}?"},
    {"The letter from {0} about the {1} lies in {2}.",
     "Where does the letter from {0} about the {1} lie?"},
});
// "The", so that no article depends on the word behind it.
constexpr auto kGroupForms = std::to_array<Form>({
    {"The {0} cabinetmaker left the key of the {1} in {2}.",
     "Where did the {0} cabinetmaker leave the key of the {1}?"},
    {"The {0} accountant hid the plans for the {1} in {2}.",
     "Where did the {0} accountant hide the plans for the {1}?"},
    {"The {0} pharmacist found the papers about the {1} in {2}.",
     "Where did the {0} pharmacist find the papers about the {1}?"},
});
constexpr auto kDetails = std::to_array<std::string_view>(
    {"observatory", "power station", "aquarium", "printing press", "opera house", "shipyard",
     "distillery", "cable car", "planetarium", "waterworks", "film studio", "botanical archive"});
constexpr auto kAnswers = std::to_array<std::string_view>(
    {"the marble fountain", "the third dovecote", "the abandoned tram", "the purple caravan",
     "the bandstand", "the customs office", "the boxing gym", "the stone lighthouse",
     "the velvet armchair", "the hollow statue", "the ice rink", "the disused quarry"});

std::span<const Variant> variants_of(std::string_view kind) {
    if (kind == "names") return kNames;
    if (kind == "places") return kPlaces;
    return kGroups;
}

std::span<const Form> forms_of(std::string_view kind) {
    if (kind == "names") return kNameForms;
    if (kind == "places") return kPlaceForms;
    return kGroupForms;
}

struct Worded {
    const Variant* variant;
    std::string fact, question;
};

// A pair's id and its variant; nothing for ids of another form.
std::optional<std::pair<std::string, std::string>> pair_of(const TaskResult& result) {
    const std::size_t slash = result.id.rfind('/');
    if (slash == std::string::npos || slash == 0) return std::nullopt;
    std::string variant = result.id.substr(slash + 1);
    const std::size_t kind = result.group.find('/');
    if (kind == std::string::npos || result.group.substr(kind + 1) != variant) return std::nullopt;
    if (!result.id.starts_with(result.group.substr(0, kind + 1))) return std::nullopt;
    return std::pair{result.id.substr(0, slash), std::move(variant)};
}

struct Extremes {
    std::size_t best = 0, worst = 0;
    double gap = 0;
};

Extremes extremes(std::span<const double> scores) {
    const auto best = std::max_element(scores.begin(), scores.end());
    const auto worst = std::min_element(scores.begin(), scores.end());
    return {static_cast<std::size_t>(best - scores.begin()),
            static_cast<std::size_t>(worst - scores.begin()), *best - *worst};
}

// Mean score of every variant over the pairs named by `drawn`: scores are [pair][variant].
std::vector<double> means(std::span<const std::vector<double>> scores,
                          std::span<const std::size_t> drawn) {
    std::vector<double> sums(scores[0].size());
    for (const std::size_t pair : drawn) {
        for (std::size_t v = 0; v < sums.size(); ++v) sums[v] += scores[pair][v];
    }
    for (double& sum : sums) sum /= static_cast<double>(drawn.size());
    return sums;
}

Estimate percentiles(double value, std::vector<double> draws) {
    std::sort(draws.begin(), draws.end());
    const auto at = [&](double share) {
        return draws[static_cast<std::size_t>(share * static_cast<double>(draws.size() - 1))];
    };
    return {value, at(0.025), at(0.975)};
}

// One kind's pairs that are complete: [pair][variant].
using Pairs = std::vector<std::vector<const TaskResult*>>;

ParityGap gap_of(const std::string& kind, std::span<const std::string> variants, const Pairs& pairs,
                 std::size_t config, std::uint64_t seed) {
    constexpr std::size_t draws = 2000;
    ParityGap gap;
    gap.kind = kind;
    gap.method = pairs[0][0]->answers[config].method;
    gap.rows = pairs[0][0]->answers[config].rows;
    gap.pairs = static_cast<std::int64_t>(pairs.size());
    const auto scores_of = [&](std::size_t which) {
        std::vector<std::vector<double>> scores;
        for (const auto& pair : pairs) {
            std::vector<double>& row = scores.emplace_back();
            for (const TaskResult* result : pair) row.push_back(result->answers[which].score);
        }
        return scores;
    };
    const auto mine = scores_of(config);
    const auto full = scores_of(0);
    std::vector<std::size_t> drawn(pairs.size());
    for (std::size_t i = 0; i < drawn.size(); ++i) drawn[i] = i;
    const auto by_variant = means(mine, drawn);
    const Extremes found = extremes(by_variant);
    const double full_gap = extremes(means(full, drawn)).gap;
    gap.best = variants[found.best];
    gap.worst = variants[found.worst];
    gap.best_score = by_variant[found.best];
    gap.worst_score = by_variant[found.worst];

    Random random(seed);
    std::vector<double> gaps;
    std::vector<double> beyond;
    for (std::size_t draw = 0; draw < draws; ++draw) {
        for (std::size_t& pair : drawn) pair = random.below(pairs.size());
        const double one = extremes(means(mine, drawn)).gap;
        gaps.push_back(one);
        beyond.push_back(one - extremes(means(full, drawn)).gap);
    }
    gap.gap = percentiles(found.gap, std::move(gaps));
    gap.beyond_full = percentiles(found.gap - full_gap, std::move(beyond));
    return gap;
}

}  // namespace

std::span<const std::string_view> parity_kinds() { return kKinds; }

Result<TaskData> make_parity(const ParityOptions& options, const Tokenizer& tokenizer) {
    const auto kinds = chosen_names(options.kinds, kKinds, "parity");
    if (!kinds) return tl::unexpected(kinds.error());
    if (auto sizes = check_sizes(options.lengths, options.samples, "samples"); !sizes) {
        return tl::unexpected(sizes.error());
    }
    TaskData data;
    for (const std::string& kind : *kinds) {
        for (const std::int64_t length : options.lengths) {
            for (std::int64_t sample = 0; sample < options.samples; ++sample) {
                const std::string pair = fmt::format("{}/{}/{}", kind, length, sample + 1);
                Random random = example_random(options.seed, pair);
                const auto forms = forms_of(kind);
                const Form& form = forms[random.below(forms.size())];
                const std::string detail(kDetails[random.below(kDetails.size())]);
                const std::string answer(kAnswers[random.below(kAnswers.size())]);
                const double depth = static_cast<double>(random.below(101));
                Filler filler(random.next());
                std::vector<Worded> worded;
                for (const Variant& variant : variants_of(kind)) {
                    const std::string word(
                        variant.words[static_cast<std::size_t>(sample) % kWords]);
                    worded.push_back({&variant,
                                      fmt::format(fmt::runtime(form.fact), word, detail, answer),
                                      fmt::format(fmt::runtime(form.question), word, detail)});
                }
                const auto context = [&](const Worded& one, std::int64_t units) {
                    const Insertion needle{depth / 100, one.fact};
                    return with_insertions(filler.sentences(static_cast<std::size_t>(units)),
                                           {&needle, 1});
                };
                const auto longest = [&](std::int64_t units) {
                    std::int64_t most = 0;
                    for (const Worded& one : worded) {
                        most = std::max(
                            most, prompt_tokens(tokenizer, context(one, units), one.question));
                    }
                    return most;
                };
                std::int64_t needed = 0;
                const auto units = largest_fit(length, 1'000'000'000, longest, needed);
                if (!units) {
                    return bad_input("{} does not fit a length of {}: it needs {} tokens", kind,
                                     length, needed);
                }
                for (const Worded& one : worded) {
                    TaskExample example;
                    example.id = fmt::format("{}/{}", pair, one.variant->name);
                    example.group = fmt::format("{}/{}", kind, one.variant->name);
                    example.context = context(one, *units);
                    example.question = one.question;
                    // Without its article: "in a marble fountain" is right.
                    example.answers = {answer.substr(answer.find(' ') + 1)};
                    example.metric = Metric::contains;
                    example.max_tokens = 24;
                    example.first_line = true;
                    example.length = length;
                    data.examples.push_back(std::move(example));
                }
            }
        }
    }
    return data;
}

std::vector<ParityGap> parity_gaps(std::span<const TaskResult> results, std::uint64_t seed) {
    // Kind, pair, variant; kinds in the order in which they come.
    std::vector<std::string> kinds;
    std::map<std::string, std::map<std::string, std::map<std::string, const TaskResult*>>> found;
    std::map<std::string, std::set<std::string>> variants;
    for (const TaskResult& result : results) {
        const auto pair = pair_of(result);
        if (!pair) continue;
        const std::string kind = result.group.substr(0, result.group.find('/'));
        if (!variants.contains(kind)) kinds.push_back(kind);
        variants[kind].insert(pair->second);
        if (result.skipped.empty()) found[kind][pair->first][pair->second] = &result;
    }
    std::vector<ParityGap> gaps;
    for (const std::string& kind : kinds) {
        const std::vector<std::string> names(variants[kind].begin(), variants[kind].end());
        Pairs pairs;
        for (const auto& [id, members] : found[kind]) {
            if (members.size() != names.size()) continue;
            std::vector<const TaskResult*>& pair = pairs.emplace_back();
            for (const auto& [variant, result] : members) pair.push_back(result);
        }
        if (pairs.empty() || names.size() < 2) continue;
        for (std::size_t config = 0; config < pairs[0][0]->answers.size(); ++config) {
            gaps.push_back(gap_of(kind, names, pairs, config, seed));
        }
    }
    return gaps;
}

}  // namespace headkv
