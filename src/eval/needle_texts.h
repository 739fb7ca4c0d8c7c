// What generated needles are made of: two sets of everything, for development and for the final
// figures. They share no form of sentence or question, no name, no answer and no prose.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "calibrate/filler.h"
#include "calibrate/random.h"

namespace headkv {

// A fact and how it is asked for; what {0}, {1}, ... stand for depends on the list.
struct NeedleForm {
    std::string_view fact, question;
};
// {0}: whom the question is about, {1}: who leads to the answer, {2}: the answer, a place.
struct HopForm {
    std::string_view first, second, question;
};

struct NeedleTexts {
    std::span<const NeedleForm> facts;         // {0}: a town, {1}: one of `things`
    std::span<const NeedleForm> several;       // the same, true of three things
    std::span<const std::string_view> things;  // with their article, which is no part of an answer
    // {0}: a person, the answer. The question has none of the fact's content words.
    std::span<const NeedleForm> paraphrases;
    std::span<const HopForm> hops;
    std::span<const std::string_view> places;
    // {0}: a person, the answer; {1}: a number; {2} in the question: more or fewer.
    std::span<const NeedleForm> comparisons;
    // All of them, in an order of the generator's.
    std::vector<std::string> (*persons)(Random&) = nullptr;
    std::vector<std::string> (*towns)(Random&) = nullptr;
    Prose prose = Prose::village;
};

const NeedleTexts& dev_needle_texts();
const NeedleTexts& final_needle_texts();

}  // namespace headkv
