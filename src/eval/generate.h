// What generated tasks are made of: random codes, words and names of our own, filler cut into
// sentences, and the search for as much of it as fits.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "calibrate/filler.h"
#include "calibrate/random.h"
#include "eval/task.h"
#include "headkv/tokenizer.h"

namespace headkv {

// A generator for one example: what it draws does not depend on which others are generated.
Random example_random(std::uint64_t seed, std::string_view id);

std::string random_digits(Random& random, std::size_t count);  // the first is not 0
std::string random_letters(Random& random, std::size_t count, char first = 'a');
std::string random_uuid(Random& random);
std::string joined(std::span<const std::string> texts, std::string_view between);
// `count` different ones.
std::vector<std::string> different(std::size_t count, const std::function<std::string()>& draw);

// Every one of `first` before every one of `second`, shuffled.
std::vector<std::string> all_pairs(Random& random, std::span<const std::string_view> first,
                                   std::span<const std::string_view> second,
                                   std::string_view between);
// All "adjective-noun" words in an order of the seed's: thousands of them, none a part of another.
std::vector<std::string> word_pairs(Random& random);
// All invented persons ("Odile Tarrant") and towns ("Marwick"), likewise.
std::vector<std::string> person_names(Random& random);
std::vector<std::string> town_names(Random& random);

// Sentences with the white space behind them: joined they are the text again.
std::vector<std::string> sentences_of(std::string_view text);

// Built-in prose of at least so many sentences, of an example's own.
class Filler {
public:
    explicit Filler(std::uint64_t seed, Prose prose = Prose::village)
        : seed_(seed), prose_(prose) {}
    std::span<const std::string> sentences(std::size_t count);

private:
    std::uint64_t seed_;
    Prose prose_;
    std::vector<std::string> sentences_;
};

struct Insertion {
    double share = 0;  // 0..1 of the sentences stand before it
    std::string text;  // a sentence
};
// Insertions at one place stay in their order.
std::string with_insertions(std::span<const std::string> sentences,
                            std::span<const Insertion> insertions);

// Tokens of the prompt of a context and a question without a chat template (question_prompt).
std::int64_t prompt_tokens(const Tokenizer& tokenizer, std::string_view context,
                           std::string_view question);

// The most units (0 .. most) whose length is at most `limit`; it stops early within 0.5 % of it.
// Lengths must grow with the units. Nothing where not even 0 fits; `least` is then the length of 0.
std::optional<std::int64_t> largest_fit(
    std::int64_t limit, std::int64_t most,
    const std::function<std::int64_t(std::int64_t units)>& length, std::int64_t& least);

// What all generated tasks check alike. Errors (bad_input): no length or one below 1, `count`
// (called `what`) below 1, a name that is not known.
Result<std::vector<std::string>> chosen_names(std::span<const std::string> asked,
                                              std::span<const std::string_view> known,
                                              std::string_view task);
Result<void> check_sizes(std::span<const std::int64_t> lengths, std::int64_t count,
                         std::string_view what);

}  // namespace headkv
