#include "eval/needle_tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

#include "eval/generate.h"
#include "eval/needle_texts.h"

namespace headkv {
namespace {

constexpr std::array<std::string_view, 6> kKinds = {"single",     "multi_key", "multi_value",
                                                    "paraphrase", "reason",    "two_hop"};
constexpr std::array<std::string_view, 2> kSplits = {"dev", "final"};

struct Draft {
    std::string form;                  // "fact/3": what its answer stands or falls with
    std::vector<std::string> needles;  // the first stands at the depth, the others elsewhere
    std::string question;
    std::vector<std::string> answers;
    std::vector<std::string> labels;
    Metric metric = Metric::contains;
    std::optional<StringMatch> match = {};
    std::int64_t max_tokens = 24;
    bool first_line = true;
};

// Forms take turns, in an order of the seed's, so that each is asked about as often as any other.
class Turns {
public:
    Turns(std::uint64_t seed, std::string_view kind, std::int64_t number)
        : random_(example_random(seed, kind)), number_(static_cast<std::size_t>(number)) {}

    // Whose turn it is among the forms of a list; sets the draft's.
    template <class T>
    const T& take(std::span<const T> forms, std::string_view list, Draft& draft) {
        std::vector<std::size_t> order(forms.size());
        std::iota(order.begin(), order.end(), std::size_t{0});
        random_.shuffle(order);
        const std::size_t chosen = order[number_ % order.size()];
        draft.form = fmt::format("{}/{}", list, chosen + 1);
        return forms[chosen];
    }

private:
    Random random_;
    std::size_t number_;
};

std::vector<std::string> shuffled(Random& random, std::span<const std::string_view> texts) {
    std::vector<std::string> copy(texts.begin(), texts.end());
    random.shuffle(copy);
    return copy;
}

// Without its first word, "a" or "in": "the stuffed pelican" is right.
std::string bare(const std::string& text) { return text.substr(text.find(' ') + 1); }

Draft draft_hop(const NeedleTexts& texts, Random& random, Turns turns) {
    Draft draft;
    const HopForm& form = turns.take(texts.hops, "hop", draft);
    const auto persons = texts.persons(random);
    const std::string place = shuffled(random, texts.places)[0];
    // The place is what a method must not lose: its sentence stands at the depth.
    draft.needles = {fmt::format(fmt::runtime(form.second), persons[0], persons[1], place),
                     fmt::format(fmt::runtime(form.first), persons[0], persons[1], place)};
    draft.question = fmt::format(fmt::runtime(form.question), persons[0]);
    draft.answers = {place, bare(place)};
    return draft;
}

Draft draft_comparison(const NeedleTexts& texts, Random& random, Turns turns) {
    Draft draft;
    const NeedleForm& form = turns.take(texts.comparisons, "comparison", draft);
    const auto persons = texts.persons(random);
    const std::size_t less = 11 + random.below(40);
    const std::size_t more = less + 5 + random.below(40);
    const bool ask_more = random.below(2) == 0;
    const auto fact = [&](const std::string& who, std::size_t number) {
        return fmt::format(fmt::runtime(form.fact), who, number);
    };
    draft.needles = {fact(persons[0], ask_more ? more : less),
                     fact(persons[1], ask_more ? less : more)};
    draft.question = fmt::format(fmt::runtime(form.question), "", "", ask_more ? "more" : "fewer") +
                     " Write the name of one person and nothing else.";
    draft.answers = {persons[0]};
    // Naming both is no answer.
    draft.metric = Metric::labels;
    draft.labels = {persons[0], persons[1]};
    return draft;
}

Draft draft_paraphrase(const NeedleTexts& texts, Random& random, Turns turns) {
    Draft draft;
    const NeedleForm& form = turns.take(texts.paraphrases, "paraphrase", draft);
    const std::string person = texts.persons(random)[0];
    draft.needles = {fmt::format(fmt::runtime(form.fact), person)};
    draft.question = form.question;
    draft.answers = {person};
    return draft;
}

Draft draft_fact(const NeedleTexts& texts, std::string_view kind, Random& random, Turns turns) {
    Draft draft;
    const bool several = kind == "multi_value";
    const NeedleForm& form = several ? turns.take(texts.several, "several", draft)
                                     : turns.take(texts.facts, "fact", draft);
    const auto towns = texts.towns(random);
    const auto things = shuffled(random, texts.things);
    draft.question = fmt::format(fmt::runtime(form.question), towns[0]);
    const std::size_t facts = kind == "single" ? 1 : several ? 3 : 4;
    for (std::size_t i = 0; i < facts; ++i) {
        draft.needles.push_back(
            fmt::format(fmt::runtime(form.fact), several ? towns[0] : towns[i], things[i]));
        if (i == 0 || several) draft.answers.push_back(bare(things[i]));
    }
    if (several) {
        draft.match = StringMatch::all;
        draft.max_tokens = 64;
        draft.first_line = false;
    }
    return draft;
}

// `number`: from 0, of the examples of the kind at one depth.
Draft draft_of(std::string_view kind, const NeedleTexts& texts, Random& random, std::uint64_t seed,
               std::int64_t number) {
    if (kind == "two_hop") return draft_hop(texts, random, {seed, kind, number});
    if (kind == "paraphrase") return draft_paraphrase(texts, random, {seed, kind, number});
    if (kind != "reason") return draft_fact(texts, kind, random, {seed, kind, number});
    const Turns turns(seed, kind, number / 2);
    return number % 2 == 0 ? draft_hop(texts, random, turns)
                           : draft_comparison(texts, random, turns);
}

}  // namespace

std::span<const std::string_view> needle_task_kinds() { return kKinds; }
std::span<const std::string_view> needle_splits() { return kSplits; }

Result<TaskData> make_needle_tasks(const NeedleTaskOptions& options, const Tokenizer& tokenizer) {
    const auto kinds = chosen_names(options.kinds, kKinds, "needles");
    if (!kinds) return tl::unexpected(kinds.error());
    if (auto sizes = check_sizes(options.lengths, options.samples, "samples"); !sizes) {
        return tl::unexpected(sizes.error());
    }
    if (std::ranges::find(kSplits, options.split) == kSplits.end()) {
        return bad_input("--split {}: give dev or final", options.split);
    }
    const NeedleTexts& texts = options.split == "dev" ? dev_needle_texts() : final_needle_texts();
    if (options.depths.empty()) return bad_input("no depth is given");
    for (const double depth : options.depths) {
        if (!(depth >= 0 && depth <= 100)) return bad_input("a depth of {}: give 0 to 100", depth);
        if (std::count(options.depths.begin(), options.depths.end(), depth) > 1) {
            return bad_input("the depth {} is given twice", depth);
        }
    }
    TaskData data;
    for (const std::string& kind : *kinds) {
        std::int64_t before = 0;  // examples of shorter lengths, at one depth
        for (const std::int64_t length : options.lengths) {
            for (const double depth : options.depths) {
                for (std::int64_t sample = 0; sample < options.samples; ++sample) {
                    TaskExample example;
                    example.group = fmt::format("{}/{}/{:g}", kind, length, depth);
                    example.id = fmt::format("{}/{}", example.group, sample + 1);
                    // The same needles and text at every depth, so that depths can be compared.
                    Random random = example_random(
                        options.seed, fmt::format("{}/{}/{}", kind, length, sample + 1));
                    Draft draft = draft_of(kind, texts, random, options.seed, before + sample);
                    std::vector<Insertion> needles;
                    for (std::size_t i = 0; i < draft.needles.size(); ++i) {
                        const double step =
                            static_cast<double>(i) / static_cast<double>(draft.needles.size());
                        const double at = depth / 100 + step;
                        needles.push_back({i == 0 ? at : at - std::floor(at), draft.needles[i]});
                    }
                    Filler filler(random.next(), texts.prose);
                    const auto context = [&](std::int64_t units) {
                        return with_insertions(filler.sentences(static_cast<std::size_t>(units)),
                                               needles);
                    };
                    const auto tokens = [&](std::int64_t units) {
                        return prompt_tokens(tokenizer, context(units), draft.question);
                    };
                    std::int64_t needed = 0;
                    const auto units = largest_fit(length, 1'000'000'000, tokens, needed);
                    if (!units) {
                        return bad_input("{} does not fit a length of {}: it needs {} tokens", kind,
                                         length, needed);
                    }
                    example.cluster = std::move(draft.form);
                    example.context = context(*units);
                    example.question = std::move(draft.question);
                    example.answers = std::move(draft.answers);
                    example.labels = std::move(draft.labels);
                    example.metric = draft.metric;
                    example.match = draft.match;
                    example.max_tokens = draft.max_tokens;
                    example.first_line = draft.first_line;
                    example.depth = depth;
                    example.length = length;
                    data.examples.push_back(std::move(example));
                }
            }
            before += options.samples;
        }
    }
    return data;
}

}  // namespace headkv
