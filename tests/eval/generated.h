// What the tests of generated tasks share.
#pragma once

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <string_view>

#include "eval/generate.h"
#include "eval/task.h"
#include "support/tiny_model.h"

namespace headkv::test {

// The tokenizer of the tiny models: about one token a byte.
inline const Tokenizer& tiny_tokenizer() {
    static const std::shared_ptr<const Model> model = [] {
        const TempFolder folder;
        write_tiny_model({}, folder / "m.gguf");
        return Model::load(folder / "m.gguf").value();
    }();
    return model->tokenizer();
}

inline std::size_t occurrences(std::string_view text, std::string_view part) {
    std::size_t count = 0;
    for (std::size_t at = text.find(part); at != std::string_view::npos;
         at = text.find(part, at + 1)) {
        ++count;
    }
    return count;
}

// Everything of the examples that a prompt or a score is made of.
inline std::string written(const TaskData& data) {
    std::string all;
    for (const TaskExample& example : data.examples) {
        all += example.id + '|' + example.group + '|' + example.context + '|' + example.question;
        all += '|' + joined(example.answers, ",") + '\n';
        for (const TaskTurn& turn : example.turns) {
            all += turn.question + '|' + joined(turn.answers, ",") + '\n';
        }
    }
    return all;
}

// Ids differ, prompts are at most as long as asked for and at least `close` of it.
inline void expect_well_formed(const TaskData& data, double close) {
    std::set<std::string> ids;
    for (const TaskExample& example : data.examples) {
        EXPECT_TRUE(ids.insert(example.id).second) << example.id;
        ASSERT_FALSE(example.answers.empty());
        EXPECT_TRUE(example.metric || example.match) << example.id;
        const auto tokens = prompt_tokens(tiny_tokenizer(), example.context, example.question);
        EXPECT_LE(tokens, *example.length) << example.id;
        EXPECT_GE(static_cast<double>(tokens), close * static_cast<double>(*example.length))
            << example.id;
    }
}

}  // namespace headkv::test
