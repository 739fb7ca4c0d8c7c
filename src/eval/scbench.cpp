#include "eval/scbench.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "calibrate/needles.h"
#include "eval/generate.h"

namespace headkv {
namespace {

constexpr std::array<std::string_view, 6> kTasks = {"kv",        "prefix_suffix", "vt",
                                                    "many_shot", "math_find",     "facts"};
constexpr std::int64_t kMostTurns = 20;

// A context that grows with its units, and the questions on it. What is asked depends on the units
// where any of them may be asked for.
struct Made {
    std::string context;
    std::vector<TaskTurn> turns;
};
struct Draft {
    std::function<Made(std::int64_t units)> make;
    Metric metric = Metric::contains;
    std::optional<StringMatch> match = {};
    std::int64_t max_tokens = 32;
    std::int64_t least = 0;  // units without which the questions cannot be asked
};

// `turns` different numbers below `count`, the same for a seed.
std::vector<std::size_t> drawn(std::uint64_t seed, std::size_t count, std::size_t turns) {
    std::vector<std::size_t> order(count);
    for (std::size_t i = 0; i < count; ++i) order[i] = i;
    Random(seed).shuffle(order);
    order.resize(turns);
    return order;
}

Draft draft_pairs(Random& random, std::size_t turns) {
    Draft draft;
    draft.max_tokens = 64;
    draft.least = static_cast<std::int64_t>(turns);
    draft.make = [turns, seed = random.next()](std::int64_t units) {
        Random draws(seed);
        std::vector<std::pair<std::string, std::string>> pairs;
        for (std::int64_t i = 0; i < units; ++i) {
            std::string key = random_uuid(draws);
            pairs.emplace_back(std::move(key), random_uuid(draws));
        }
        Made made{"Below is a table of keys and values.\n", {}};
        for (const auto& [key, value] : pairs) made.context += fmt::format("\n{}: {}", key, value);
        for (const std::size_t at : drawn(seed + 1, pairs.size(), turns)) {
            made.turns.push_back(
                {fmt::format("What is the value of the key {}? Write the value and nothing else.",
                             pairs[at].first),
                 {pairs[at].second}});
        }
        return made;
    };
    return draft;
}

Draft draft_prefix_suffix(Random& random, std::size_t turns) {
    constexpr std::size_t ends = 4;  // letters of the prefix, and of the suffix
    Draft draft;
    draft.least = static_cast<std::int64_t>(turns);
    draft.make = [turns, seed = random.next()](std::int64_t units) {
        Random draws(seed);
        std::set<std::string> seen;
        std::vector<std::string> lines;
        while (lines.size() < static_cast<std::size_t>(units)) {
            std::string line = random_letters(draws, 16);
            // Nothing else fits a question.
            if (seen.insert(line.substr(0, ends) + line.substr(line.size() - ends)).second) {
                lines.push_back(std::move(line));
            }
        }
        Made made{fmt::format("Below is a list of words without a meaning, one a line.\n\n{}",
                              joined(lines, "\n")),
                  {}};
        for (const std::size_t at : drawn(seed + 1, lines.size(), turns)) {
            made.turns.push_back(
                {fmt::format("Which word of the list begins with \"{}\" and ends with \"{}\"? "
                             "Write the word and nothing else.",
                             lines[at].substr(0, ends), lines[at].substr(lines[at].size() - ends)),
                 {lines[at]}});
        }
        return made;
    };
    return draft;
}

// A chain of three variables for every question.
Draft draft_variables(Random& random, std::size_t turns) {
    constexpr std::size_t links = 3;
    Draft draft;
    draft.match = StringMatch::all;
    const auto names = different(turns * links, [&] { return random_letters(random, 5, 'A'); });
    const auto values = different(turns, [&] { return random_digits(random, 5); });
    std::vector<Insertion> statements;
    std::vector<TaskTurn> questions;
    for (std::size_t chain = 0; chain < turns; ++chain) {
        std::vector<std::string> held(
            names.begin() + static_cast<std::ptrdiff_t>(chain * links),
            names.begin() + static_cast<std::ptrdiff_t>((chain + 1) * links));
        std::vector<std::size_t> places;
        for (std::size_t i = 0; i < links; ++i) places.push_back(random.below(1001));
        std::sort(places.begin(), places.end());
        for (std::size_t i = 0; i < links; ++i) {
            statements.push_back({static_cast<double>(places[i]) / 1000,
                                  i == 0 ? fmt::format("VAR {} = {}.", held[0], values[chain])
                                         : fmt::format("VAR {} = VAR {}.", held[i], held[i - 1])});
        }
        questions.push_back(
            {fmt::format("Which {} variables hold the value {}, directly or by way of others? "
                         "Write their names in one line and nothing else.",
                         links, values[chain]),
             std::move(held)});
    }
    draft.make = [statements = std::move(statements), questions = std::move(questions),
                  filler = Filler(random.next())](std::int64_t units) mutable {
        return Made{
            "Assignments to variables are hidden in the text below. Follow them.\n\n" +
                with_insertions(filler.sentences(static_cast<std::size_t>(units)), statements),
            questions};
    };
    return draft;
}

// Six subjects; what stands for each is a word without a meaning, so that only examples tell.
struct Subject {
    std::array<std::string_view, 6> who, what;
};
constexpr std::array<Subject, 6> kSubjects = {{
    {{"the soup", "the bread", "this stew", "the pancake", "our salad", "the pie"},
     {"needs more salt", "is best eaten warm", "burned in the oven", "tastes of garlic",
      "was served with butter", "came with too much pepper"}},
    {{"the storm", "the fog", "this frost", "the drizzle", "the heat wave", "the breeze"},
     {"will last until Friday", "came in from the sea", "surprised the whole valley",
      "is over by noon", "followed a cold night", "was in no forecast"}},
    {{"the violin", "the choir", "this melody", "the drummer", "the flute", "our orchestra"},
     {"sounded out of tune", "rehearsed the second movement", "came in one beat late",
      "filled the concert hall", "played without a score", "ended on a quiet chord"}},
    {{"the fever", "the nurse", "this cough", "the surgeon", "the bandage", "the clinic"},
     {"was treated with rest", "asked for another blood test", "needs a prescription",
      "is described in the patient's file", "kept the ward awake",
      "got better after the injection"}},
    {{"the striker", "the referee", "this marathon", "the goalkeeper", "our team", "the sprinter"},
     {"lost in extra time", "trained for the final", "was cheered by the stadium",
      "set a new record", "missed the penalty", "warmed up before the match"}},
    {{"the loan", "the invoice", "this mortgage", "the cashier", "the refund", "our budget"},
     {"was paid in two instalments", "is due at the end of the quarter", "carries high interest",
      "went to the wrong account", "was checked by the auditor", "lowered the yearly profit"}},
}};
constexpr std::array<std::string_view, 6> kLabels = {"blick", "dax", "fep", "toma", "wug", "zorp"};

Draft draft_many_shot(Random& random, std::size_t turns) {
    Draft draft;
    draft.max_tokens = 8;
    std::vector<std::string> labels(kLabels.begin(), kLabels.end());
    random.shuffle(labels);
    // A text is a subject, who and what: those of the questions are shown in no example.
    const auto text_of = [](std::size_t which) {
        const Subject& subject = kSubjects[which % kSubjects.size()];
        const std::size_t pair = which / kSubjects.size();
        return fmt::format("{} {}", subject.who[pair % 6], subject.what[pair / 6]);
    };
    const std::size_t texts = kSubjects.size() * 36;
    const auto order = drawn(random.next(), texts, texts);
    std::vector<TaskTurn> questions;
    for (std::size_t i = 0; i < turns; ++i) {
        questions.push_back(
            {fmt::format(
                 "Which label belongs to the text \"{}\"? Write the label and nothing else.",
                 text_of(order[i])),
             {labels[order[i] % labels.size()]}});
    }
    // One example of each subject at least.
    std::vector<std::size_t> shown;
    for (std::size_t subject = 0; subject < kSubjects.size(); ++subject) {
        shown.push_back(
            *std::find_if(order.begin() + static_cast<std::ptrdiff_t>(turns), order.end(),
                          [&](std::size_t which) { return which % kSubjects.size() == subject; }));
    }
    for (auto at = order.begin() + static_cast<std::ptrdiff_t>(turns); at != order.end(); ++at) {
        if (std::find(shown.begin(), shown.begin() + kSubjects.size(), *at) ==
            shown.begin() + kSubjects.size()) {
            shown.push_back(*at);
        }
    }
    draft.least = static_cast<std::int64_t>(kSubjects.size());
    draft.make = [=, seed = random.next()](std::int64_t units) {
        std::vector<std::size_t> used;
        // Beyond all texts they are shown again.
        for (std::size_t i = 0; i < static_cast<std::size_t>(units); ++i) {
            used.push_back(shown[i % shown.size()]);
        }
        Random(seed).shuffle(used);
        Made made{"Each text below has a label.\n", questions};
        for (const std::size_t which : used) {
            made.context += fmt::format("\nText: {}\nLabel: {}\n", text_of(which),
                                        labels[which % labels.size()]);
        }
        made.context.pop_back();
        return made;
    };
    return draft;
}

std::string ordinal(std::size_t k, std::string_view superlative) {
    constexpr std::array<std::string_view, 10> names = {"",       "second ", "third ",   "fourth ",
                                                        "fifth ", "sixth ",  "seventh ", "eighth ",
                                                        "ninth ", "tenth "};
    return fmt::format("{}{}", names[k], superlative);
}

// The largest, the smallest, the second largest, ... in an order of the seed's.
Draft draft_numbers(Random& random, std::size_t turns) {
    Draft draft;
    draft.max_tokens = 16;
    draft.least = kMostTurns;
    draft.make = [turns, seed = random.next()](std::int64_t units) {
        Random draws(seed);
        // All of six digits: no number is a part of another.
        const auto numbers =
            different(static_cast<std::size_t>(units), [&] { return random_digits(draws, 6); });
        auto sorted = numbers;
        std::sort(sorted.begin(), sorted.end());
        Made made{fmt::format("Below is a list of numbers.\n\n{}", joined(numbers, "\n")), {}};
        for (const std::size_t which : drawn(seed + 1, turns, turns)) {
            const std::size_t k = which / 2;
            const bool largest = which % 2 == 0;
            made.turns.push_back(
                {fmt::format("Which number is the {} of the list? Write the number and nothing "
                             "else.",
                             ordinal(k, largest ? "largest" : "smallest")),
                 {largest ? sorted[sorted.size() - 1 - k] : sorted[k]}});
        }
        return made;
    };
    return draft;
}

// A fact in each part of the text, asked for in an order of the seed's. Those of `eval niah` come
// first: head scores were measured with the others.
Draft draft_facts(Random& random, std::size_t turns) {
    Draft draft;
    std::vector<Needle> facts(evaluation_needles().begin(), evaluation_needles().end());
    random.shuffle(facts);
    facts.insert(facts.end(), single_fact_needles().begin(), single_fact_needles().end());
    std::vector<Insertion> insertions;
    std::vector<TaskTurn> questions;
    for (std::size_t i = 0; i < turns; ++i) {
        const double part = static_cast<double>(random.below(1001)) / 1000;
        insertions.push_back(
            {(static_cast<double>(i) + part) / static_cast<double>(turns), facts[i].needle});
        questions.push_back({facts[i].question, {facts[i].key}});
    }
    random.shuffle(questions);
    draft.make = [insertions = std::move(insertions), questions = std::move(questions),
                  filler = Filler(random.next())](std::int64_t units) mutable {
        return Made{with_insertions(filler.sentences(static_cast<std::size_t>(units)), insertions),
                    questions};
    };
    return draft;
}

Draft draft_of(std::string_view task, Random& random, std::size_t turns) {
    if (task == "kv") return draft_pairs(random, turns);
    if (task == "prefix_suffix") return draft_prefix_suffix(random, turns);
    if (task == "vt") return draft_variables(random, turns);
    if (task == "many_shot") return draft_many_shot(random, turns);
    if (task == "math_find") return draft_numbers(random, turns);
    return draft_facts(random, turns);
}

}  // namespace

std::span<const std::string_view> scbench_tasks() { return kTasks; }

Result<TaskData> make_scbench(const ScbenchOptions& options, const Tokenizer& tokenizer) {
    const auto tasks = chosen_names(options.tasks, kTasks, "scbench");
    if (!tasks) return tl::unexpected(tasks.error());
    if (auto sizes = check_sizes(options.lengths, options.samples, "samples"); !sizes) {
        return tl::unexpected(sizes.error());
    }
    if (options.turns < 1 || options.turns > kMostTurns) {
        return bad_input("{} turns: give 1 to {}", options.turns, kMostTurns);
    }
    TaskData data;
    for (const std::string& task : *tasks) {
        for (const std::int64_t length : options.lengths) {
            for (std::int64_t sample = 0; sample < options.samples; ++sample) {
                TaskExample example;
                const std::string cell = fmt::format("{}/{}", task, length);
                example.group = options.lengths.size() == 1 ? task : cell;
                example.id = fmt::format("{}/{}", cell, sample + 1);
                Random random = example_random(options.seed, example.id);
                const Draft draft = draft_of(task, random, static_cast<std::size_t>(options.turns));
                const auto tokens = [&](std::int64_t units) {
                    const Made made = draft.make(draft.least + units);
                    return prompt_tokens(tokenizer, made.context, made.turns[0].question);
                };
                std::int64_t needed = 0;
                const auto extra = largest_fit(length, 1'000'000'000, tokens, needed);
                if (!extra) {
                    return bad_input("{} does not fit a length of {}: it needs {} tokens", task,
                                     length, needed);
                }
                Made made = draft.make(draft.least + *extra);
                example.context = std::move(made.context);
                example.question = std::move(made.turns[0].question);
                example.answers = std::move(made.turns[0].answers);
                example.turns.assign(std::make_move_iterator(made.turns.begin() + 1),
                                     std::make_move_iterator(made.turns.end()));
                example.metric = draft.metric;
                example.match = draft.match;
                example.max_tokens = draft.max_tokens;
                // A line is an answer: what a model says behind it is no part of the conversation.
                example.first_line = true;
                example.length = length;
                data.examples.push_back(std::move(example));
            }
        }
    }
    return data;
}

}  // namespace headkv
