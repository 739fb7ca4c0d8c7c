#include "eval/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "calibrate/filler.h"
#include "calibrate/haystack.h"

namespace headkv {
namespace {

// No word ends like another of its list or (nouns) begins like one, so that no pair is a part of
// another pair: answers are scored by what occurs in them.
constexpr auto kAdjectives = std::to_array<std::string_view>(
    {"amber",   "ancient",  "arctic",  "bashful",  "bitter",  "blunt",    "brave",   "brittle",
     "broad",   "bronze",   "calm",    "candid",   "careful", "cheap",    "chilly",  "clever",
     "cloudy",  "coarse",   "copper",  "cosy",     "crimson", "crooked",  "curious", "damp",
     "daring",  "dense",    "distant", "drowsy",   "dusty",   "eager",    "earnest", "elegant",
     "empty",   "faded",    "famous",  "fearless", "feeble",  "fierce",   "flat",    "foggy",
     "fragile", "frank",    "frosty",  "frozen",   "fuzzy",   "gentle",   "giant",   "gloomy",
     "golden",  "graceful", "grand",   "green",    "grumpy",  "handsome", "harsh",   "hasty",
     "hidden",  "hollow",   "honest",  "humble",   "humid",   "idle",     "jolly",   "keen",
     "lavish",  "lively",   "lonely",  "loud",     "loyal",   "lucky",    "marble",  "mellow",
     "merry",   "mild",     "modest",  "muddy",    "narrow",  "nimble",   "noble",   "noisy",
     "orange",  "pale",     "patient", "plain",    "polite",  "proud",    "purple",  "quiet",
     "rapid",   "rigid",    "rough",   "rusty",    "scarlet", "secret",   "shabby",  "sharp"});
constexpr auto kNouns = std::to_array<std::string_view>(
    {"acorn",   "anchor",  "apron",   "arrow",    "badger",  "balcony", "banjo",   "barrel",
     "basket",  "beacon",  "beaver",  "blanket",  "bonnet",  "bottle",  "bridge",  "bucket",
     "button",  "cabin",   "cactus",  "camel",    "candle",  "canyon",  "carpet",  "castle",
     "cellar",  "cherry",  "chimney", "cobweb",   "comet",   "compass", "cottage", "cradle",
     "cricket", "curtain", "dagger",  "dolphin",  "donkey",  "dragon",  "easel",   "falcon",
     "feather", "fiddle",  "flannel", "fountain", "garden",  "glacier", "goblet",  "hammer",
     "harbour", "hedge",   "helmet",  "heron",    "hinge",   "island",  "jacket",  "jungle",
     "kettle",  "kitten",  "ladder",  "lantern",  "lemon",   "lizard",  "locket",  "magnet",
     "mantle",  "meadow",  "mirror",  "mitten",   "monkey",  "napkin",  "needle",  "orchard",
     "otter",   "paddle",  "parrot",  "pebble",   "pencil",  "pepper",  "pigeon",  "pillow",
     "planet",  "pocket",  "puddle",  "pulley",   "quarry",  "rabbit",  "raven",   "ribbon",
     "rocket",  "saddle",  "salmon",  "shovel",   "spindle", "thimble", "trumpet", "walnut"});
constexpr auto kFirstNames = std::to_array<std::string_view>(
    {"Aldous",  "Ansel",  "Basil",   "Beatrix", "Bertram", "Blanche", "Brenna",  "Cedric",
     "Clement", "Corin",  "Dagmar",  "Delia",   "Edmund",  "Elspeth", "Enoch",   "Fabian",
     "Felix",   "Gideon", "Greta",   "Hester",  "Hilda",   "Horace",  "Ida",     "Ingrid",
     "Jasper",  "Jonas",  "Kirsten", "Lavinia", "Leopold", "Linus",   "Magnus",  "Matilda",
     "Mildred", "Nestor", "Odile",   "Orson",   "Percy",   "Petra",   "Quentin", "Ramona",
     "Rufus",   "Sabine", "Silas",   "Tabitha", "Tobias",  "Ursula",  "Viola",   "Wilfred"});
constexpr auto kLastNames = std::to_array<std::string_view>(
    {"Ambrell",  "Ashdown", "Bexley",   "Birtle",  "Cardew",    "Chivers",  "Cobley",   "Dantry",
     "Denholm",  "Drewitt", "Eastlow",  "Farrant", "Fenwick",   "Garside",  "Gladwyn",  "Hallam",
     "Harkness", "Imrie",   "Jessop",   "Kellow",  "Kirkbride", "Lanyon",   "Lorrimer", "Maddock",
     "Marchant", "Nettle",  "Oakshott", "Padgett", "Pomfret",   "Quaife",   "Ransome",  "Rudge",
     "Sallow",   "Selwick", "Skelton",  "Tarrant", "Thackray",  "Tolliver", "Upcott",   "Venning",
     "Wadlow",   "Whitlam", "Wragge",   "Yelland", "Zeller",    "Borrow",   "Crispin",  "Dorling"});
constexpr auto kTownStarts = std::to_array<std::string_view>(
    {"Aber", "Alder", "Bran",   "Brock", "Cald",  "Carn", "Dun",   "Dray",  "Elm",   "Fair",
     "Fern", "Glen",  "Grim",   "Hart",  "Hazel", "Holm", "Kings", "Lang",  "Lark",  "Lin",
     "Mar",  "Mill",  "Nether", "Nor",   "Oak",   "Orm",  "Pen",   "Quarr", "Raven", "Red",
     "Rush", "Sax",   "Stan",   "Thorn", "Tol",   "Ul",   "Wake",  "Whit",  "Win",   "Yar"});
constexpr auto kTownEnds = std::to_array<std::string_view>(
    {"beck",  "borough", "bourne", "bury",  "cliffe", "combe",  "cot",   "dale", "den",  "fold",
     "ford",  "gate",    "grave",  "ham",   "haven",  "hythe",  "leigh", "low",  "mere", "minster",
     "mouth", "pool",    "shaw",   "stead", "stoke",  "thorpe", "ton",   "well", "wick", "worth"});

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

}  // namespace

Random example_random(std::uint64_t seed, std::string_view id) {
    // The seed goes through a round of the generator first: neighbouring seeds then share nothing.
    return Random(Random(seed).next() ^ hash_text(id));
}

std::string random_digits(Random& random, std::size_t count) {
    std::string text;
    for (std::size_t i = 0; i < count; ++i) {
        text += static_cast<char>(i == 0 ? '1' + static_cast<char>(random.below(9))
                                         : '0' + static_cast<char>(random.below(10)));
    }
    return text;
}

std::string random_letters(Random& random, std::size_t count, char first) {
    std::string text;
    for (std::size_t i = 0; i < count; ++i) {
        text += static_cast<char>(first + static_cast<char>(random.below(26)));
    }
    return text;
}

std::string random_uuid(Random& random) {
    const std::uint64_t a = random.next();
    const std::uint64_t b = random.next();
    // Version 4, variant 1.
    return fmt::format("{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}", a >> 32U, (a >> 16U) & 0xffffU,
                       a & 0xfffU, 0x8000U | ((b >> 48U) & 0x3fffU), b & 0xffffffffffffULL);
}

std::string joined(std::span<const std::string> texts, std::string_view between) {
    std::string all;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        if (i > 0) all += between;
        all += texts[i];
    }
    return all;
}

std::vector<std::string> different(std::size_t count, const std::function<std::string()>& draw) {
    std::set<std::string> seen;
    std::vector<std::string> texts;
    while (texts.size() < count) {
        std::string text = draw();
        if (seen.insert(text).second) texts.push_back(std::move(text));
    }
    return texts;
}

std::vector<std::string> all_pairs(Random& random, std::span<const std::string_view> first,
                                   std::span<const std::string_view> second,
                                   std::string_view between) {
    std::vector<std::string> pairs;
    pairs.reserve(first.size() * second.size());
    for (const std::string_view one : first) {
        for (const std::string_view other : second) {
            pairs.push_back(fmt::format("{}{}{}", one, between, other));
        }
    }
    random.shuffle(pairs);
    return pairs;
}

std::vector<std::string> word_pairs(Random& random) {
    return all_pairs(random, kAdjectives, kNouns, "-");
}

std::vector<std::string> person_names(Random& random) {
    return all_pairs(random, kFirstNames, kLastNames, " ");
}

std::vector<std::string> town_names(Random& random) {
    return all_pairs(random, kTownStarts, kTownEnds, "");
}

std::vector<std::string> sentences_of(std::string_view text) {
    std::vector<std::string> sentences;
    std::size_t begin = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const bool ends = (text[i] == '.' || text[i] == '!' || text[i] == '?') &&
                          i + 1 < text.size() && is_space(text[i + 1]);
        if (!ends) continue;
        std::size_t end = i + 1;
        while (end < text.size() && is_space(text[end])) ++end;
        sentences.emplace_back(text.substr(begin, end - begin));
        begin = end;
        i = end - 1;
    }
    if (begin < text.size()) sentences.emplace_back(text.substr(begin));
    return sentences;
}

std::span<const std::string> Filler::sentences(std::size_t count) {
    for (std::size_t bytes = count * 100; sentences_.size() < count; bytes *= 2) {
        sentences_ = sentences_of(filler_text(seed_, bytes, prose_));
        // White space behind the last sentence tells it from the one that ends a text.
        if (!sentences_.empty() && !is_space(sentences_.back().back())) sentences_.back() += ' ';
    }
    return std::span(sentences_).first(count);
}

std::string with_insertions(std::span<const std::string> sentences,
                            std::span<const Insertion> insertions) {
    std::vector<std::pair<std::size_t, const std::string*>> places;
    for (const Insertion& insertion : insertions) {
        const double at = insertion.share * static_cast<double>(sentences.size());
        places.emplace_back(std::min(static_cast<std::size_t>(std::lround(at)), sentences.size()),
                            &insertion.text);
    }
    std::stable_sort(places.begin(), places.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    std::string text;
    auto next = places.begin();
    for (std::size_t i = 0; i <= sentences.size(); ++i) {
        for (; next != places.end() && next->first == i; ++next) text += *next->second + ' ';
        if (i < sentences.size()) text += sentences[i];
    }
    while (!text.empty() && is_space(text.back())) text.pop_back();
    return text;
}

std::int64_t prompt_tokens(const Tokenizer& tokenizer, std::string_view context,
                           std::string_view question) {
    std::string text(context);
    if (!context.empty() && !question.empty()) text += "\n\nQuestion: ";
    text += question;
    if (!question.empty()) text += "\nAnswer:";
    return static_cast<std::int64_t>(tokenizer.encode(text).size());
}

std::optional<std::int64_t> largest_fit(
    std::int64_t limit, std::int64_t most,
    const std::function<std::int64_t(std::int64_t units)>& length, std::int64_t& least) {
    least = length(0);
    if (least > limit) return std::nullopt;
    // Fits, and does not; the latter is unknown at first.
    std::int64_t low = 0;
    std::int64_t low_length = least;
    std::optional<std::int64_t> high;
    std::int64_t high_length = 0;
    bool halve = false;
    while (low < most && (!high || *high - low > 1) && low_length < limit - limit / 200) {
        std::int64_t guess = 0;
        if (!high) {
            // As many again as the units so far ask for, and one: a sure step in a few rounds.
            const double each =
                low > 0 ? static_cast<double>(low_length - least) / static_cast<double>(low)
                        : static_cast<double>(length(1) - least);
            const double more = static_cast<double>(limit - low_length) / std::max(each, 0.1);
            guess = low + std::max<std::int64_t>(1, static_cast<std::int64_t>(more * 1.02));
        } else if (halve) {
            guess = low + (*high - low) / 2;
        } else {
            // Lengths grow almost evenly: where the line between the two meets the limit.
            const double share = static_cast<double>(limit - low_length) /
                                 static_cast<double>(high_length - low_length);
            guess = low + static_cast<std::int64_t>(share * static_cast<double>(*high - low));
        }
        if (high) {
            guess = std::clamp(guess, low + 1, *high - 1);
            halve = !halve;
        }
        guess = std::min(guess, most);
        const std::int64_t found = length(guess);
        if (found <= limit) {
            low = guess;
            low_length = found;
        } else {
            high = guess;
            high_length = found;
        }
    }
    return low;
}

Result<std::vector<std::string>> chosen_names(std::span<const std::string> asked,
                                              std::span<const std::string_view> known,
                                              std::string_view task) {
    const std::vector<std::string> all(known.begin(), known.end());
    if (asked.empty()) return all;
    std::vector<std::string> names;
    for (const std::string& name : asked) {
        if (std::find(all.begin(), all.end(), name) == all.end()) {
            return bad_input("{} has no {}; it has {}", task, name, joined(all, ", "));
        }
        // Twice the same would give two examples one id.
        if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
    return names;
}

Result<void> check_sizes(std::span<const std::int64_t> lengths, std::int64_t count,
                         std::string_view what) {
    if (lengths.empty()) return bad_input("no length is given");
    std::set<std::int64_t> seen;
    for (const std::int64_t length : lengths) {
        if (length < 1) return bad_input("a length of {} tokens: give 1 or more", length);
        if (!seen.insert(length).second) return bad_input("the length {} is given twice", length);
    }
    if (count < 1) return bad_input("{} {}: give 1 or more", count, what);
    return {};
}

}  // namespace headkv
