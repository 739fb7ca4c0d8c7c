// Lists of in-context examples.
#include <algorithm>
#include <array>
#include <set>

#include "calibrate/forced_probes.h"
#include "calibrate/random.h"
#include "headkv/session.h"

namespace headkv {
namespace {

using Words = std::array<std::string_view, 12>;

// The class of an input is that of its second word; the labels tell nothing of it.
constexpr std::array<Words, 3> kClasses = {{
    {"heron", "badger", "salmon", "beetle", "pony", "lizard", "owl", "hare", "otter", "goose",
     "mole", "crab"},
    {"hammer", "chisel", "shovel", "pliers", "ladder", "rake", "anvil", "drill", "saw", "wrench",
     "axe", "trowel"},
    {"cherry", "melon", "walnut", "pear", "fig", "grape", "lemon", "plum", "apricot", "quince",
     "date", "mango"},
}};
constexpr std::array<std::string_view, 12> kColours = {
    "grey", "tiny", "old", "pale", "wet", "huge", "cold", "dark", "soft", "dry", "odd", "rough"};
constexpr std::array<std::string_view, 6> kLabels = {"blick", "dorve", "tamsi",
                                                     "fumo",  "kreth", "wolna"};

struct Input {
    std::size_t which = 0;  // class
    std::string text;
};

std::vector<Input> all_inputs(Random& random) {
    std::vector<Input> inputs;
    for (std::size_t which = 0; which < kClasses.size(); ++which) {
        for (const std::string_view word : kClasses[which]) {
            for (const std::string_view colour : kColours) {
                inputs.push_back({which, fmt::format("{} {}", colour, word)});
            }
        }
    }
    random.shuffle(inputs);
    return inputs;
}

}  // namespace

Result<std::vector<ForcedProbe>> icl_probes(const Model& model,
                                            std::span<const std::int64_t> lengths,
                                            std::int64_t each, std::uint64_t seed) {
    const Tokenizer& tokenizer = model.tokenizer();
    std::vector<ForcedProbe> probes;
    // Lengths and families take turns.
    for (std::int64_t number = 0; number < each; ++number) {
        for (const std::int64_t length : lengths) {
            for (const bool same_input : {true, false}) {
                Random random(seed +
                              static_cast<std::uint64_t>(number * 2 + (same_input ? 0 : 1)) *
                                  0x9e3779b97f4a7c15ULL +
                              static_cast<std::uint64_t>(length));
                auto inputs = all_inputs(random);
                std::vector<std::string_view> labels(kLabels.begin(), kLabels.end());
                random.shuffle(labels);
                // The last input stays out of the list.
                const Input fresh = inputs.back();
                inputs.pop_back();
                std::string list;
                std::vector<WeightedBytes> places;  // of the labels
                for (const Input& input : inputs) {
                    const std::string line = fmt::format("{} -> ", input.text);
                    const std::string next = line + std::string(labels[input.which]) + '\n';
                    const auto tokens = static_cast<std::int64_t>(
                        tokenizer.encode(list + next, false, false).size());
                    if (!list.empty() && tokens > length) break;
                    places.push_back({list.size() + line.size(), list.size() + next.size() - 1, 1});
                    list += next;
                }
                const std::size_t earlier = random.below(places.size());
                const Input& asked = same_input ? inputs[earlier] : fresh;
                list += asked.text + " ->";
                std::vector<WeightedBytes> parts;
                for (std::size_t i = 0; i < places.size(); ++i) {
                    const bool belongs = same_input ? i == earlier : inputs[i].which == asked.which;
                    if (belongs) parts.push_back(places[i]);
                }

                ForcedProbe probe;
                auto prompt = question_prompt(model, list, "", std::nullopt);
                if (!prompt) return tl::unexpected(prompt.error());
                probe.prompt = std::move(*prompt);
                probe.answer = answer_tokens(tokenizer, labels[asked.which], false);
                const auto tokens =
                    static_cast<std::int64_t>(probe.prompt.size() + probe.answer.size());
                if (tokens > model.info().context) {
                    return bad_input(
                        "a list of {} tokens exceeds the model's context of {}: give shorter "
                        "--lengths",
                        tokens, model.info().context);
                }
                std::vector<std::string> pieces;
                std::string text;
                for (const Token token : probe.prompt) {
                    pieces.push_back(tokenizer.piece(token, true));
                    text += pieces.back();
                }
                const std::size_t offset = text.find(list);
                if (offset == std::string::npos) {
                    return failure("the list of examples is not found in its own tokens");
                }
                for (WeightedBytes& part : parts) {
                    part.begin += offset;
                    part.end += offset;
                }
                const std::string family = same_input ? "same_input" : "same_class";
                probe.evidence = evidence_of(pieces, parts, family);
                probe.probe = {fmt::format("{} {} length {}", family, number + 1, length), family,
                               number};
                probes.push_back(std::move(probe));
            }
        }
    }
    return probes;
}

}  // namespace headkv
