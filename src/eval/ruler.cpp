#include "eval/ruler.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <utility>

#include "eval/generate.h"

namespace headkv {
namespace {

constexpr std::array<std::string_view, 13> kTasks = {"niah_single_1",
                                                     "niah_single_2",
                                                     "niah_single_3",
                                                     "niah_multikey_1",
                                                     "niah_multikey_2",
                                                     "niah_multikey_3",
                                                     "niah_multivalue",
                                                     "niah_multiquery",
                                                     "vt",
                                                     "cwe",
                                                     "fwe",
                                                     "qa_1",
                                                     "qa_2"};

// A context that grows with its units, and what is asked of it.
struct Draft {
    std::function<std::string(std::int64_t units)> context;
    std::string question;
    std::vector<std::string> answers;
    StringMatch match = StringMatch::all;
    std::int64_t max_tokens = 128;
    std::int64_t least = 0;  // units without which there is no such task
    std::int64_t most = 1'000'000'000;
};

double share(Random& random) { return static_cast<double>(random.below(10'001)) / 10'000; }

std::string listed(std::span<const std::string> names) {
    return names.size() == 1 ? names[0]
                             : fmt::format("{} and {}", joined(names.first(names.size() - 1), ", "),
                                           names.back());
}

// Four sentences over and over, as RULER's plain haystack.
constexpr std::array<std::string_view, 4> kRefrain = {"The hills are round. ", "The rain is warm. ",
                                                      "A path leads down to the water. ",
                                                      "Then it climbs again. "};

std::vector<std::string> refrain(std::int64_t sentences) {
    std::vector<std::string> text;
    for (std::int64_t i = 0; i < sentences; ++i) {
        text.emplace_back(kRefrain[static_cast<std::size_t>(i) % kRefrain.size()]);
    }
    return text;
}

enum class Hay { refrain, prose, needles };
enum class Code { word, number, uuid };

struct NeedleTask {
    Hay hay = Hay::prose;
    Code key = Code::word;
    Code value = Code::number;
    std::size_t keys = 1, values = 1, queries = 1;  // values of each key
};

NeedleTask needle_task(std::string_view name) {
    if (name == "niah_single_1") return {.hay = Hay::refrain};
    if (name == "niah_single_3") return {.value = Code::uuid};
    if (name == "niah_multikey_1") return {.keys = 4};
    if (name == "niah_multikey_2") return {.hay = Hay::needles};
    if (name == "niah_multikey_3") {
        return {.hay = Hay::needles, .key = Code::uuid, .value = Code::uuid};
    }
    if (name == "niah_multivalue") return {.values = 4};
    if (name == "niah_multiquery") return {.keys = 4, .queries = 4};
    return {};  // niah_single_2
}

Draft draft_needles(const NeedleTask& task, Random& random) {
    const auto words = word_pairs(random);
    const auto key_of = [task, &words](Random& draws, std::size_t index) {
        return task.key == Code::word ? words[index] : random_uuid(draws);
    };
    const auto value_of = [task](Random& draws) {
        return task.value == Code::number ? random_digits(draws, 7) : random_uuid(draws);
    };
    const std::string_view kind = task.value == Code::number ? "number" : "code";
    const auto sentence = [kind](std::string_view key, std::string_view value) {
        return fmt::format("One of the secret {}s of {} is: {}.", kind, key, value);
    };
    const auto values = different(task.keys * task.values, [&] { return value_of(random); });
    std::vector<Insertion> needles;
    std::vector<std::string> asked;
    Draft draft;
    for (std::size_t key = 0; key < task.keys; ++key) {
        const std::string name = key_of(random, key);
        if (key < task.queries) asked.push_back(name);
        for (std::size_t i = 0; i < task.values; ++i) {
            const std::string& value = values[key * task.values + i];
            needles.push_back({share(random), sentence(name, value)});
            if (key < task.queries) draft.answers.push_back(value);
        }
    }
    const bool one = draft.answers.size() == 1;
    draft.question = fmt::format("{} of {} that the text above names? Write {} and nothing else.",
                                 one ? fmt::format("What is the secret {}", kind)
                                     : fmt::format("What are all the secret {}s", kind),
                                 listed(asked),
                                 one ? fmt::format("the {}", kind) : fmt::format("the {}s", kind));
    const std::string opening = fmt::format(
        "The text below hides {}. Remember {}: a question about {} follows the text.\n\n",
        one ? fmt::format("a secret {}", kind) : fmt::format("some secret {}s", kind),
        one ? "it" : "them", one ? "it" : "them");
    if (task.hay == Hay::needles) {
        // Others of the same form are the hay. Their values are never the one asked for.
        draft.most = static_cast<std::int64_t>(words.size() - task.keys);
        if (task.key == Code::uuid) draft.most = 1'000'000'000;
        draft.context = [=, seed = random.next()](std::int64_t units) {
            Random draws(seed);
            std::vector<std::string> others;
            for (std::size_t i = 0; i < static_cast<std::size_t>(units); ++i) {
                const std::string key =
                    task.key == Code::word ? words[task.keys + i] : random_uuid(draws);
                std::string value = value_of(draws);
                while (value == values[0]) value = value_of(draws);
                others.push_back(sentence(key, value) + '\n');
            }
            return opening + with_insertions(others, needles);
        };
    } else if (task.hay == Hay::refrain) {
        draft.context = [=](std::int64_t units) {
            return opening + with_insertions(refrain(units), needles);
        };
    } else {
        draft.context = [=, filler = Filler(random.next())](std::int64_t units) mutable {
            return opening +
                   with_insertions(filler.sentences(static_cast<std::size_t>(units)), needles);
        };
    }
    return draft;
}

// One chain of four hops: five variables hold the value.
Draft draft_variables(Random& random) {
    constexpr std::size_t hops = 4;
    Draft draft;
    draft.max_tokens = 30;
    draft.answers = different(hops + 1, [&] { return random_letters(random, 5, 'A'); });
    const std::string value = random_digits(random, 5);
    std::vector<double> shares;
    for (std::size_t i = 0; i <= hops; ++i) shares.push_back(share(random));
    std::sort(shares.begin(), shares.end());
    std::vector<Insertion> statements;
    for (std::size_t i = 0; i <= hops; ++i) {
        statements.push_back(
            {shares[i],
             i == 0 ? fmt::format("VAR {} = {}.", draft.answers[0], value)
                    : fmt::format("VAR {} = VAR {}.", draft.answers[i], draft.answers[i - 1])});
    }
    draft.context = [statements](std::int64_t units) {
        return "Assignments to variables are hidden in the text below. Follow them.\n\n" +
               with_insertions(refrain(units), statements);
    };
    draft.question = fmt::format(
        "Which {} variables hold the value {}, directly or by way of others? Write their names "
        "and nothing else.",
        hops + 1, value);
    return draft;
}

constexpr std::size_t kCommonWords = 10;

// Ten words occur `common` times, all others `rare` times.
Draft draft_common_words(Random& random, std::size_t common, std::size_t rare) {
    Draft draft;
    draft.max_tokens = 120;
    const auto words = word_pairs(random);
    draft.answers.assign(words.begin(), words.begin() + kCommonWords);
    draft.most = static_cast<std::int64_t>(words.size() - kCommonWords);
    draft.least = kCommonWords;
    draft.context = [=, seed = random.next()](std::int64_t units) {
        std::vector<std::string> all;
        for (std::size_t i = 0; i < kCommonWords + static_cast<std::size_t>(units); ++i) {
            all.insert(all.end(), i < kCommonWords ? common : rare, words[i]);
        }
        Random(seed).shuffle(all);
        std::string text =
            "Below is a numbered list of words. Some of them occur more often than the others.\n";
        for (std::size_t i = 0; i < all.size(); ++i) text += fmt::format("\n{}. {}", i + 1, all[i]);
        return text;
    };
    draft.question = fmt::format(
        "Which {} words occur most often in the list above? Write them and nothing else.",
        kCommonWords);
    return draft;
}

// How often each word of a coded text of about `total` words occurs: the k-th in proportion to
// 1 / k^2 (RULER's alpha of 2), rounded down; words that would not occur once are left out.
std::vector<std::size_t> zipf_counts(std::size_t total) {
    constexpr double zeta_2 = std::numbers::pi * std::numbers::pi / 6;
    std::vector<std::size_t> counts;
    for (std::size_t k = 1;; ++k) {
        const auto square = static_cast<double>(k * k);
        const auto count = static_cast<std::size_t>(static_cast<double>(total) / (zeta_2 * square));
        if (count == 0) return counts;
        counts.push_back(count);
    }
}

// The most frequent "word" is dots, noise to be ignored; asked are the three after it.
Draft draft_frequent_words(Random& random) {
    Draft draft;
    draft.max_tokens = 50;
    draft.answers = different(3, [&] { return random_letters(random, 6); });
    // From here on the fourth is rarer than the third, and is the fifth's equal at most.
    while (true) {
        const auto counts = zipf_counts(static_cast<std::size_t>(++draft.least));
        if (counts.size() > 4 && counts[1] > counts[2] && counts[2] > counts[3] &&
            counts[3] > counts[4] && counts[3] > 2) {
            break;
        }
    }
    draft.context = [answers = draft.answers, seed = random.next()](std::int64_t units) {
        Random draws(seed);
        const auto counts = zipf_counts(static_cast<std::size_t>(units));
        std::set<std::string> used(answers.begin(), answers.end());
        std::vector<std::string> all;
        for (std::size_t k = 0; k < counts.size(); ++k) {
            std::string word = k == 0 ? "..." : k <= answers.size() ? answers[k - 1] : "";
            while (word.empty()) {
                word = random_letters(draws, 6);
                if (!used.insert(word).second) word.clear();
            }
            all.insert(all.end(), counts[k], word);
        }
        draws.shuffle(all);
        return fmt::format(
            "Below is a text of coded words. Count how often each of them occurs; the dots mean "
            "nothing.\n\n{}",
            joined(all, " "));
    };
    draft.question =
        "Which three coded words occur most often in the text above? Write them and nothing else.";
    return draft;
}

// A document on a person or a town of the world of one example.
struct World {
    std::vector<std::string> persons, towns;
    std::uint64_t seed = 0;
};

constexpr std::array<std::string_view, 12> kTrades = {
    "an organ builder", "a map engraver",   "a glass painter",  "a lock maker",
    "a bell founder",   "a bridge builder", "a seed merchant",  "a lens grinder",
    "a ship designer",  "a paper maker",    "a clock repairer", "a carpet weaver"};
constexpr std::array<std::string_view, 12> kWares = {
    "smoked cheese",  "blue porcelain", "walnut furniture", "fishing nets",
    "herbal liqueur", "felt hats",      "copper kettles",   "ginger biscuits",
    "wax candles",    "silk ribbons",   "roof slates",      "wooden toys"};

std::string town_of(const World& world, std::size_t person) {
    return world.towns[person % world.towns.size()];
}

std::size_t of(const World& world, std::string_view what, std::size_t index, std::size_t count) {
    return example_random(world.seed, fmt::format("{} {}", what, index)).below(count);
}

std::size_t birth_year(const World& world, std::size_t person) {
    return 1700 + of(world, "born", person, 260);
}

std::string person_document(const World& world, std::size_t person) {
    const std::string& name = world.persons[person];
    const std::size_t born = birth_year(world, person);
    return fmt::format(
        "{0}\n{0} was born in the town of {1} in the year {2} and became {3}. At the age of {4}, "
        "{0} opened a workshop there. Pupils came from far away, and {5} of them are known by "
        "name.",
        name, town_of(world, person), born, kTrades[of(world, "trade", person, kTrades.size())],
        22 + of(world, "workshop", person, 20), 3 + of(world, "pupils", person, 40));
}

std::string river_of(const World& world, std::size_t town) {
    // Invented: two syllables.
    constexpr std::array<std::string_view, 16> first = {"Al",  "Bri", "Cor", "Del", "Es", "Fal",
                                                        "Gar", "Hol", "Is",  "Ker", "Lo", "Mor",
                                                        "Nar", "Sev", "Tam", "Vel"};
    constexpr std::array<std::string_view, 16> second = {"ba",  "dra", "fen", "gor", "la",   "mis",
                                                         "na",  "pel", "rin", "sa",  "tone", "va",
                                                         "wen", "yle", "zar", "mond"};
    return fmt::format("{}{}", first[of(world, "river", town, first.size())],
                       second[of(world, "stream", town, second.size())]);
}

std::string town_document(const World& world, std::size_t town) {
    return fmt::format(
        "{0}\n{0} is a town on the river {1}. It has about {2} inhabitants and is known for its "
        "{3}. A market is held there {4} times a year.",
        world.towns[town], river_of(world, town), 1000 + 10 * of(world, "people", town, 900),
        kWares[of(world, "wares", town, kWares.size())], 2 + of(world, "market", town, 9));
}

// One document answers (qa_1), or one names the town that another is about (qa_2); all others are
// of the same form, persons and towns in turn.
Draft draft_documents(Random& random, bool two_hops) {
    Draft draft;
    draft.match = StringMatch::part;
    draft.max_tokens = 32;
    World world{person_names(random), town_names(random), random.next()};
    const std::string name = world.persons[0];
    const std::string river = river_of(world, 0);
    if (two_hops) {
        draft.question = fmt::format(
            "On which river does the town lie in which {} was born? Write the name of the river "
            "and nothing else.",
            name);
        draft.answers = {river};
    } else {
        draft.question =
            fmt::format("In which year was {} born? Write the year and nothing else.", name);
        draft.answers = {std::to_string(birth_year(world, 0))};
    }
    draft.most = static_cast<std::int64_t>(world.towns.size()) * 2 - 2;
    draft.context = [world = std::move(world), two_hops, seed = random.next()](std::int64_t units) {
        std::vector<std::string> documents = {person_document(world, 0)};
        if (two_hops) documents.push_back(town_document(world, 0));
        for (std::size_t i = 0; i < static_cast<std::size_t>(units); ++i) {
            const std::size_t other = 1 + i / 2;
            documents.push_back(i % 2 == 0 ? person_document(world, other)
                                           : town_document(world, other));
        }
        Random(seed).shuffle(documents);
        std::string text = "Answer the question behind the documents with what they say.";
        for (std::size_t i = 0; i < documents.size(); ++i) {
            text += fmt::format("\n\nDocument {}:\n{}", i + 1, documents[i]);
        }
        return text;
    };
    return draft;
}

std::vector<Draft> drafts(std::string_view task, std::int64_t length, Random& random) {
    std::vector<Draft> result;  // the first that fits is taken
    if (task == "vt") {
        result.push_back(draft_variables(random));
    } else if (task == "cwe") {
        // RULER's counts: the smaller ones are those of its short prompts, and here also of longer
        // ones that have too many tokens a word for the larger.
        if (length >= 4096) result.push_back(draft_common_words(random, 30, 3));
        result.push_back(draft_common_words(random, 6, 1));
    } else if (task == "fwe") {
        result.push_back(draft_frequent_words(random));
    } else if (task == "qa_1" || task == "qa_2") {
        result.push_back(draft_documents(random, task == "qa_2"));
    } else {
        result.push_back(draft_needles(needle_task(task), random));
    }
    return result;
}

}  // namespace

std::span<const std::string_view> ruler_tasks() { return kTasks; }

Result<TaskData> make_ruler(const RulerOptions& options, const Tokenizer& tokenizer) {
    const auto tasks = chosen_names(options.tasks, kTasks, "ruler");
    if (!tasks) return tl::unexpected(tasks.error());
    if (auto sizes = check_sizes(options.lengths, options.samples, "samples"); !sizes) {
        return tl::unexpected(sizes.error());
    }
    TaskData data;
    for (const std::string& task : *tasks) {
        for (const std::int64_t length : options.lengths) {
            for (std::int64_t sample = 0; sample < options.samples; ++sample) {
                TaskExample example;
                example.group = fmt::format("{}/{}", task, length);
                example.id = fmt::format("{}/{}", example.group, sample + 1);
                Random random = example_random(options.seed, example.id);
                std::optional<std::int64_t> extra;
                std::int64_t needed = 0;
                for (Draft& draft : drafts(task, length, random)) {
                    const auto tokens = [&](std::int64_t units) {
                        return prompt_tokens(tokenizer, draft.context(draft.least + units),
                                             draft.question) +
                               draft.max_tokens;
                    };
                    extra = largest_fit(length, draft.most - draft.least, tokens, needed);
                    if (!extra) continue;
                    example.context = draft.context(draft.least + *extra);
                    example.question = std::move(draft.question);
                    example.answers = std::move(draft.answers);
                    example.match = draft.match;
                    example.max_tokens = draft.max_tokens;
                    break;
                }
                if (!extra) {
                    return bad_input("{} does not fit a length of {}: it needs {} tokens", task,
                                     length, needed);
                }
                example.length = length;
                data.examples.push_back(std::move(example));
            }
        }
    }
    return data;
}

}  // namespace headkv
