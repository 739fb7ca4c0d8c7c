#include "eval/needle_tasks.h"

#include <algorithm>
#include <map>
#include <sstream>

#include "calibrate/filler.h"
#include "calibrate/haystack.h"
#include "calibrate/needles.h"
#include "eval/needle_texts.h"
#include "generated.h"

namespace headkv {
namespace {

using test::occurrences;
using test::tiny_tokenizer;

TaskData made(const NeedleTaskOptions& options) {
    auto data = make_needle_tasks(options, tiny_tokenizer());
    if (!data) throw std::runtime_error(data.error().message);
    return std::move(*data);
}

TEST(NeedleTasks, AGridOfLengthsAndDepths) {
    const NeedleTaskOptions options{{}, {2000, 4000}, {0, 50, 100}, 3, 1};
    const auto data = made(options);
    EXPECT_EQ(data.examples.size(), 6U * 2 * 3 * 3);
    test::expect_well_formed(data, 0.9);
    EXPECT_EQ(test::written(made(options)), test::written(data));
    EXPECT_NE(test::written(made({{}, {2000, 4000}, {0, 50, 100}, 3, 2})), test::written(data));
    for (const TaskExample& example : data.examples) {
        ASSERT_TRUE(example.depth);
        EXPECT_TRUE(example.id.starts_with(example.group + "/"));
        // The answer's sentence stands at the depth, but for half a sentence and the needle itself.
        const std::string& answer = example.answers[0];
        const std::size_t at = example.context.find(answer);
        ASSERT_NE(at, std::string::npos) << example.id;
        const double share = static_cast<double>(at) / static_cast<double>(example.context.size());
        EXPECT_NEAR(share, *example.depth / 100, 0.16) << example.id;
    }
}

TEST(NeedleTasks, FormsTakeTurns) {
    // 4 lengths of 8 samples: each of 16 facts twice, whatever the depth.
    std::map<std::string, std::set<std::string>> asked;  // [form]
    const auto data = made({{"single"}, {600, 700, 800, 900}, {10, 90}, 8, 1});
    for (const TaskExample& example : data.examples) {
        asked[example.cluster].insert(example.id.substr(0, example.id.find('/', 7)) +
                                      example.id.substr(example.id.rfind('/')));
    }
    EXPECT_EQ(asked.size(), 16U);
    for (const auto& [form, ids] : asked) {
        EXPECT_TRUE(form.starts_with("fact/"));
        EXPECT_EQ(ids.size(), 2U) << form;
    }
    // Kinds that ask for the same facts share their clusters.
    for (const TaskExample& example : made({{"multi_key"}, {900}, {10}, 8, 1}).examples) {
        EXPECT_TRUE(asked.contains(example.cluster));
    }
}

// What settings were chosen on says nothing about them.
TEST(NeedleTasks, SplitsShareNothing) {
    const auto all_of = [](std::span<const NeedleForm> forms) {
        std::vector<std::string> texts;
        for (const NeedleForm& form : forms) {
            texts.emplace_back(form.fact);
            texts.emplace_back(form.question);
        }
        return texts;
    };
    const auto forms_of = [&](const NeedleTexts& texts) {
        std::vector<std::string> forms;
        for (const auto list : {texts.facts, texts.several, texts.paraphrases, texts.comparisons}) {
            const auto more = all_of(list);
            forms.insert(forms.end(), more.begin(), more.end());
        }
        for (const HopForm& hop : texts.hops) {
            for (const std::string_view form : {hop.first, hop.second, hop.question}) {
                forms.emplace_back(form);
            }
        }
        return forms;
    };
    const auto& dev = dev_needle_texts();
    const auto& other = final_needle_texts();
    const auto dev_forms = forms_of(dev);
    for (const NeedleTexts* texts : {&dev, &other}) {
        EXPECT_GE(texts->facts.size(), 12U);
        EXPECT_GE(texts->hops.size(), 6U);
    }
    for (const std::string& form : forms_of(other)) {
        EXPECT_EQ(std::ranges::count(dev_forms, form), 0) << form;
    }
    const auto names_of = [](const NeedleTexts& texts) {
        Random random(1);
        std::set<std::string> names;
        for (const auto& list : {texts.persons(random), texts.towns(random)}) {
            for (const std::string& name : list) {
                std::istringstream words(name);
                for (std::string word; words >> word;) names.insert(word);
            }
        }
        return names;
    };
    const auto dev_names = names_of(dev);
    for (const std::string& name : names_of(other)) EXPECT_FALSE(dev_names.contains(name)) << name;
    for (const auto& [mine, others] :
         {std::pair{dev.things, other.things}, std::pair{dev.places, other.places}}) {
        for (const std::string_view one : mine) {
            for (const std::string_view two : others) {
                const auto a = one.substr(one.find(' ')), b = two.substr(two.find(' '));
                EXPECT_EQ(a.find(b), std::string_view::npos) << one << ' ' << two;
                EXPECT_EQ(b.find(a), std::string_view::npos) << one << ' ' << two;
            }
        }
    }
    ASSERT_NE(dev.prose, other.prose);
    std::set<std::string> sentences;
    const auto dev_text = sentences_of(filler_text(3, 200000, dev.prose));
    for (const std::string& sentence : dev_text)
        sentences.insert(sentence.substr(0, sentence.find('.')));
    EXPECT_GT(sentences.size(), 1500U);
    for (const std::string& sentence : sentences_of(filler_text(3, 200000, other.prose))) {
        EXPECT_FALSE(sentences.contains(sentence.substr(0, sentence.find('.')))) << sentence;
    }
}

TEST(NeedleTasks, TheFinalSplitIsWellFormed) {
    const NeedleTaskOptions options{{}, {2500}, {30}, 12, 1, "final"};
    const auto data = made(options);
    test::expect_well_formed(data, 0.9);
    for (const TaskExample& example : data.examples) {
        for (const std::string& answer : example.answers) {
            EXPECT_EQ(occurrences(example.context, answer), 1U) << example.id << ' ' << answer;
            EXPECT_EQ(occurrences(example.question, answer), 0U) << example.id;
        }
    }
}

TEST(NeedleTasks, FactsStandInTheTextOnceAndTheQuestionDoesNotTell) {
    const auto data = made({{}, {3000}, {30}, 12, 1});
    for (const TaskExample& example : data.examples) {
        const bool several = example.group.starts_with("multi_value");
        const bool hop = example.cluster.starts_with("hop/");
        ASSERT_EQ(example.answers.size(), several ? 3U : hop ? 2U : 1U);
        // A place is right without its preposition, too.
        EXPECT_TRUE(!hop || example.answers[0].ends_with(" " + example.answers[1]));
        for (const std::string& answer : example.answers) {
            EXPECT_EQ(occurrences(example.context, answer), 1U) << example.id << ' ' << answer;
            EXPECT_EQ(occurrences(example.question, answer), 0U) << example.id;
        }
    }
}

// Scores measured on what they are tested on would flatter themselves.
TEST(NeedleTasks, CalibrationAsksNothingOfThem) {
    auto data = made({{}, {3000}, {30}, 40, 1});
    const auto others = made({{}, {3000}, {30}, 40, 1, "final"});
    data.examples.insert(data.examples.end(), others.examples.begin(), others.examples.end());
    for (const bool steps : {false, true}) {
        for (const Needle& needle : family_needles(steps)) {
            for (const TaskExample& example : data.examples) {
                EXPECT_NE(example.question, needle.question);
                EXPECT_EQ(occurrences(example.context, needle.needle), 0U) << needle.needle;
                EXPECT_EQ(occurrences(example.context, needle.real_needle), 0U) << example.id;
                for (const std::string& answer : example.answers) EXPECT_NE(answer, needle.key);
            }
        }
    }
}

TEST(NeedleTasks, AParaphraseSharesNoContentWordWithItsNeedle) {
    const std::set<std::string> empty_words = {
        "the",   "a",     "an", "of",   "in",  "to",   "by",   "is",   "was", "what",
        "who",   "whom",  "on", "at",   "for", "that", "this", "with", "and", "which",
        "whose", "where", "as", "does", "had", "no",   "did",  "from"};
    const auto words = [&](const std::string& text) {
        std::set<std::string> found;
        std::string plain;
        for (const char c : text) {
            plain += std::isalpha(static_cast<unsigned char>(c)) != 0
                         ? static_cast<char>(std::tolower(static_cast<unsigned char>(c)))
                         : ' ';
        }
        std::istringstream in(plain);
        // A stem of five letters: "steers" and "steer" are one word.
        for (std::string word; in >> word;) {
            if (word.size() > 1 && !empty_words.contains(word)) found.insert(word.substr(0, 5));
        }
        return found;
    };
    std::set<std::string> questions;
    auto data = made({{"paraphrase"}, {1500}, {0}, 12, 1});
    const auto others = made({{"paraphrase"}, {1500}, {0}, 12, 1, "final"});
    data.examples.insert(data.examples.end(), others.examples.begin(), others.examples.end());
    for (const TaskExample& example : data.examples) {
        questions.insert(example.question);
        const std::string needle = example.context.substr(0, example.context.find(". ") + 1);
        ASSERT_NE(needle.find(example.answers[0]), std::string::npos);
        const auto asked = words(example.question);
        for (const std::string& word : words(needle)) {
            EXPECT_FALSE(asked.contains(word)) << needle << ' ' << example.question;
        }
    }
    EXPECT_EQ(questions.size(), 22U);
}

TEST(NeedleTasks, ReasoningNeedsBothFacts) {
    std::size_t hops = 0;
    for (const TaskExample& example : made({{"reason"}, {1500}, {40}, 20, 1}).examples) {
        if (example.cluster.starts_with("hop/")) {
            // The person asked about is named beside another one, and the place beside that one.
            ++hops;
            const std::size_t place = example.context.find(example.answers[0]);
            const std::size_t begin = sentence_border(example.context, place);
            const std::string sentence = example.context.substr(begin, place - begin);
            std::string asked;
            for (const std::string& name : [] {
                     Random random(0);
                     return person_names(random);
                 }()) {
                if (occurrences(example.question, name) > 0) asked = name;
            }
            ASSERT_FALSE(asked.empty()) << example.question;
            EXPECT_EQ(occurrences(example.context, asked), 1U);
            EXPECT_EQ(occurrences(sentence, asked), 0U);
            continue;
        }
        ASSERT_EQ(example.labels.size(), 2U);
        const auto number = [&](const std::string& who) {
            std::istringstream rest(example.context.substr(example.context.find(who) + who.size()));
            std::string word;
            while (rest >> word && std::isdigit(static_cast<unsigned char>(word[0])) == 0) {
            }
            return std::stoi(word);
        };
        const bool more = occurrences(example.question, " more ") == 1;
        EXPECT_NE(more, occurrences(example.question, " fewer ") == 1);
        EXPECT_EQ(more, number(example.labels[0]) > number(example.labels[1]));
        EXPECT_EQ(
            label_score(example.labels[0], example.question, example.answers[0], example.labels),
            1);
        EXPECT_EQ(label_score(example.labels[0] + ", not " + example.labels[1], example.question,
                              example.answers[0], example.labels),
                  0);
    }
    EXPECT_EQ(hops, 10U);
}

TEST(NeedleTasks, RefusesWhatCannotBeMade) {
    const auto works = [](const NeedleTaskOptions& options) {
        return make_needle_tasks(options, tiny_tokenizer()).has_value();
    };
    EXPECT_TRUE(works({{"single"}, {500}, {12.5}, 1, 1}));
    EXPECT_FALSE(works({{"double"}, {500}, {10}, 1, 1}));
    EXPECT_FALSE(works({{"single"}, {500}, {10}, 1, 1, "test"}));
    EXPECT_FALSE(works({{"single"}, {50}, {10}, 1, 1}));
    EXPECT_FALSE(works({{"single"}, {500}, {101}, 1, 1}));
    EXPECT_FALSE(works({{"single"}, {500}, {}, 1, 1}));
    EXPECT_FALSE(works({{"single"}, {500}, {10, 10}, 1, 1}));
}

}  // namespace
}  // namespace headkv
