#include "eval/ruler.h"

#include <map>
#include <sstream>

#include "generated.h"

namespace headkv {
namespace {

using test::occurrences;
using test::tiny_tokenizer;

TaskData made(std::vector<std::string> tasks, std::int64_t length, std::int64_t samples = 3,
              std::uint64_t seed = 1) {
    auto data = make_ruler({std::move(tasks), {length}, samples, seed}, tiny_tokenizer());
    if (!data) throw std::runtime_error(data.error().message);
    return std::move(*data);
}

std::map<std::string, int> counts(const std::string& text) {
    std::map<std::string, int> found;
    std::istringstream words(text);
    for (std::string word; words >> word;) ++found[word];
    return found;
}

TEST(StringMatch, CountsReferencesThatOccur) {
    const std::vector<std::string> three = {"Alpha", "beta", "GAMMA"};
    EXPECT_DOUBLE_EQ(string_match(StringMatch::all, "alpha and gamma", three), 2.0 / 3);
    EXPECT_DOUBLE_EQ(string_match(StringMatch::part, "alpha and gamma", three), 1);
    EXPECT_DOUBLE_EQ(string_match(StringMatch::part, "delta", three), 0);
    EXPECT_DOUBLE_EQ(string_match(StringMatch::all, "", three), 0);
    EXPECT_DOUBLE_EQ(string_match(StringMatch::all, "a", {}), 0);
    EXPECT_DOUBLE_EQ(string_match(StringMatch::all, "a", std::vector<std::string>{""}), 0);
    // A control character parts words; a reference inside a word is found, as in RULER.
    EXPECT_DOUBLE_EQ(
        string_match(StringMatch::all, "one\ntwo", std::vector<std::string>{"one two"}), 1);
    EXPECT_DOUBLE_EQ(string_match(StringMatch::all, "112", std::vector<std::string>{"12"}), 1);
}

TEST(Ruler, AllTasksFitTheirLengthAndComeFromTheSeed) {
    const auto data = made({}, 6000, 2);
    EXPECT_EQ(data.examples.size(), 13U * 2);
    test::expect_well_formed(data, 0.95);
    const std::map<std::string, std::int64_t> answers = {
        {"vt", 30}, {"cwe", 120}, {"fwe", 50}, {"qa_1", 32}, {"qa_2", 32}};
    for (const TaskExample& example : data.examples) {
        const auto known = answers.find(example.group.substr(0, example.group.find('/')));
        EXPECT_EQ(example.max_tokens, known == answers.end() ? 128 : known->second) << example.id;
        EXPECT_LE(prompt_tokens(tiny_tokenizer(), example.context, example.question) +
                      *example.max_tokens,
                  6000);
    }
    EXPECT_EQ(test::written(made({}, 6000, 2)), test::written(data));
    EXPECT_NE(test::written(made({}, 6000, 2, 2)), test::written(data));
    // An example does not depend on which others are made.
    EXPECT_EQ(test::written(made({"vt"}, 6000, 1)), test::written({{data.examples[16]}, {}}));
    EXPECT_EQ(data.examples[16].id, "vt/6000/1");
    EXPECT_EQ(data.examples[16].group, "vt/6000");
}

TEST(Ruler, NeedlesStandInTheTextOnce) {
    const std::map<std::string, std::size_t> answers = {
        {"niah_single_1", 1},   {"niah_single_2", 1},   {"niah_single_3", 1},
        {"niah_multikey_1", 1}, {"niah_multikey_2", 1}, {"niah_multikey_3", 1},
        {"niah_multivalue", 4}, {"niah_multiquery", 4}};
    const std::map<std::string, std::size_t> needles = {
        {"niah_single_1", 1},   {"niah_single_2", 1},   {"niah_single_3", 1},
        {"niah_multikey_1", 4}, {"niah_multivalue", 4}, {"niah_multiquery", 4}};
    for (const auto& [task, count] : answers) {
        for (const TaskExample& example : made({task}, 5000).examples) {
            ASSERT_EQ(example.answers.size(), count) << task;
            for (const std::string& answer : example.answers) {
                EXPECT_EQ(occurrences(example.context, answer), 1U) << task;
                EXPECT_EQ(occurrences(example.question, answer), 0U) << task;
                // Its sentence names a key that the question names.
                const std::size_t at = example.context.find(": " + answer);
                const std::size_t of = example.context.rfind(" of ", at) + 4;
                EXPECT_NE(example.question.find(example.context.substr(of, at - of - 3)),
                          std::string::npos);
            }
            const std::size_t all = occurrences(example.context, "One of the secret ");
            if (needles.contains(task)) {
                EXPECT_EQ(all, needles.at(task)) << task;
            } else {
                EXPECT_GT(all, 20U) << task;
            }
        }
    }
}

TEST(Ruler, VariablesFormOneChain) {
    for (const TaskExample& example : made({"vt"}, 3000, 5).examples) {
        ASSERT_EQ(example.answers.size(), 5U);
        std::size_t last = 0;
        for (std::size_t i = 0; i < 5; ++i) {
            const std::size_t at = example.context.find("VAR " + example.answers[i] + " = ");
            ASSERT_NE(at, std::string::npos);
            EXPECT_GE(at, last);
            last = at;
            if (i > 0) {
                EXPECT_EQ(occurrences(example.context, "VAR " + example.answers[i] + " = VAR " +
                                                           example.answers[i - 1] + "."),
                          1U);
            }
        }
    }
}

TEST(Ruler, CommonAndFrequentWordsHaveTheirCounts) {
    for (const auto& [length, common, rare] : {std::tuple{12000, 30, 3}, std::tuple{4000, 6, 1}}) {
        for (const TaskExample& example : made({"cwe"}, length).examples) {
            const auto found = counts(example.context);
            EXPECT_EQ(example.answers.size(), 10U);
            std::size_t others = 0;
            for (const auto& [word, n] : found) {
                if (word.find('-') == std::string::npos) continue;
                const bool answer = std::find(example.answers.begin(), example.answers.end(),
                                              word) != example.answers.end();
                EXPECT_EQ(n, answer ? common : rare) << word;
                others += answer ? 0U : 1U;
            }
            EXPECT_GE(others, 10U);
        }
    }
    for (const TaskExample& example : made({"fwe"}, 3000).examples) {
        const std::string text = example.context.substr(example.context.find("\n\n") + 2);
        auto found = counts(text);
        const int dots = found["..."];
        const int third = found[example.answers[2]];
        EXPECT_GT(dots, found[example.answers[0]]);
        EXPECT_GT(found[example.answers[0]], found[example.answers[1]]);
        EXPECT_GT(found[example.answers[1]], third);
        for (const auto& [word, n] : found) {
            if (word != "..." && std::find(example.answers.begin(), example.answers.end(), word) ==
                                     example.answers.end()) {
                EXPECT_LT(n, third) << word;
            }
        }
        // Zeta with alpha 2: a fourth, a ninth, a sixteenth of the dots, less than one word less.
        for (std::size_t k = 2; k <= 4; ++k) {
            const double expected = static_cast<double>(dots) / static_cast<double>(k * k);
            EXPECT_NEAR(found[example.answers[k - 2]], expected, 1) << k;
        }
    }
}

TEST(Ruler, DocumentsHoldTheFactsThatAnswer) {
    for (const TaskExample& example : made({"qa_1", "qa_2"}, 6000, 4).examples) {
        EXPECT_EQ(example.match, StringMatch::part);
        const bool two = example.group.starts_with("qa_2");
        const std::size_t was = example.question.find("was ") + 4;
        const std::string name =
            two ? example.question.substr(
                      example.question.find("which ", 15) + 6,
                      example.question.find(" was born") - example.question.find("which ", 15) - 6)
                : example.question.substr(was, example.question.find(" born") - was);
        const std::string born = name + " was born in the town of ";
        ASSERT_EQ(occurrences(example.context, born), 1U) << name;
        const std::size_t at = example.context.find(born) + born.size();
        const std::string town = example.context.substr(at, example.context.find(' ', at) - at);
        if (two) {
            EXPECT_EQ(occurrences(example.context,
                                  town + " is a town on the river " + example.answers[0] + "."),
                      1U);
        } else {
            EXPECT_EQ(example.context.find(" in the year " + example.answers[0], at),
                      at + town.size());
        }
        EXPECT_GT(occurrences(example.context, "Document "), 10U);
    }
}

TEST(Ruler, RefusesWhatCannotBeMade) {
    const auto refused = [](const RulerOptions& options) {
        const auto data = make_ruler(options, tiny_tokenizer());
        return data ? std::string() : data.error().message;
    };
    EXPECT_NE(refused({{"niah"}, {1000}, 1, 1}).find("qa_2"), std::string::npos);
    EXPECT_NE(refused({{"cwe"}, {200}, 1, 1}).find("needs"), std::string::npos);
    EXPECT_NE(refused({{"vt"}, {}, 1, 1}), "");
    EXPECT_NE(refused({{"vt"}, {0}, 1, 1}), "");
    EXPECT_NE(refused({{"vt"}, {1000, 1000}, 1, 1}), "");
    EXPECT_NE(refused({{"vt"}, {1000}, 0, 1}), "");
}

TEST(LargestFit, FindsTheMostUnits) {
    std::int64_t least = 0;
    const auto line = [](std::int64_t units) { return 10 + 7 * units; };
    EXPECT_EQ(largest_fit(100, 1'000'000, line, least), 12);
    EXPECT_EQ(least, 10);
    EXPECT_EQ(largest_fit(100, 5, line, least), 5);
    EXPECT_EQ(largest_fit(10, 5, line, least), 0);
    EXPECT_EQ(largest_fit(9, 5, line, least), std::nullopt);
    // Steps of uneven size, and few calls for a long text.
    int calls = 0;
    const auto uneven = [&](std::int64_t units) {
        ++calls;
        return 10 + 20 * units + 15 * (units % 3);
    };
    const auto found = largest_fit(100'000, 1'000'000'000, uneven, least);
    ASSERT_TRUE(found);
    EXPECT_LE(uneven(*found), 100'000);
    EXPECT_GE(uneven(*found), 99'400);
    EXPECT_LT(calls, 12);
}

}  // namespace
}  // namespace headkv
