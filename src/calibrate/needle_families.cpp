// Needles of several families for calibration. `eval needles` and `eval niah` have others: other
// persons, places and things, other forms of sentences and questions.
#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "calibrate/needles.h"

namespace headkv {
namespace {

constexpr std::size_t kEach = 8;  // needles of a family

// The answer stands in `second`; `first` leads there.
struct Hop {
    std::string_view first, second, real, question, key;
};
constexpr std::array<Hop, kEach> kHops = {{
    {"Orla Finch is the apprentice of the saddler Dunmore.",
     "The saddler Dunmore stores all his best leather under the floor of the old chapel.",
     "under the floor of the old chapel",
     "Where does the saddler who teaches Orla Finch store all his best leather?", "old chapel"},
    {"The twins Ada and Nell were adopted by the farmer Crowhurst.",
     "The farmer Crowhurst has painted every one of his beehives bright orange.", "bright orange",
     "What colour are the beehives of the farmer who adopted the twins Ada and Nell?", "orange"},
    {"The yellow caravan belongs to the juggler Pim.",
     "The juggler Pim spends every winter in a converted windmill.", "in a converted windmill",
     "Where does the juggler who owns the yellow caravan spend every winter?", "windmill"},
    {"The trumpet that was lost in the snow was made by the brothers Hasp.",
     "The brothers Hasp stamp a small silver moth on everything they make.", "a small silver moth",
     "What did the makers of the trumpet that was lost in the snow stamp on it?", "silver moth"},
    {"Ensign Varga serves on the survey ship Grey Heron.",
     "The survey ship Grey Heron carries a cargo of weather balloons.",
     "a cargo of weather balloons", "What cargo does the ship on which Ensign Varga serves carry?",
     "weather balloons"},
    {"The poet Sunniva rents her room from the widow Tolk.",
     "The widow Tolk asks for the rent of every room in candied ginger.", "candied ginger",
     "What does the widow who lets a room to the poet Sunniva ask for?", "candied ginger"},
    {"The racehorse Bluebottle is trained by a man named Cassius Ott.",
     "Cassius Ott feeds all his horses on carrots soaked in cider.", "carrots soaked in cider",
     "What does the trainer of the racehorse Bluebottle feed his horses on?", "carrots"},
    {"Room twelve of the Hotel Meridian was taken by the pianist Ferro.",
     "The pianist Ferro never sleeps without a stuffed lobster beside the pillow.",
     "a stuffed lobster",
     "What does the pianist in room twelve of the Hotel Meridian never sleep without?",
     "stuffed lobster"},
}};

// Four facts of one form; {0}: whom it is about, {1}: what is asked for.
struct Group {
    std::string_view fact, question;
    std::array<std::pair<std::string_view, std::string_view>, 4> facts;
    std::size_t asked;
};
constexpr std::array<Group, kEach> kGroups = {{
    {"The ferry to {0} sails from the pier beside the {1}.",
     "Which pier does the ferry to {0} sail from?",
     {{{"Hollin", "ice house"},
       {"Teasel", "rope works"},
       {"Corrie", "fish smokery"},
       {"Burrow", "cannon foundry"}}},
     2},
    {"Nurse {0} keeps her bandages in a {1}.",
     "What does Nurse {0} keep her bandages in?",
     {{{"Abel", "biscuit tin"},
       {"Onslow", "hat box"},
       {"Prewitt", "violin case"},
       {"Yardley", "picnic hamper"}}},
     0},
    {"The school in {0} teaches its pupils to {1}.",
     "What does the school in {0} teach its pupils?",
     {{{"Tern Valley", "mend fishing nets"},
       {"Gorse Hill", "shear alpacas"},
       {"Salt Row", "read the planets"},
       {"Copper Lane", "carve spoons"}}},
     1},
    {"The rowers of {0} always wear {1}.",
     "What do the rowers of {0} always wear?",
     {{{"Ely Reach", "tartan scarves"},
       {"Boar Weir", "leather sandals"},
       {"Toad Lock", "paper crowns"},
       {"Mill Bend", "woollen mittens"}}},
     3},
    {"Uncle {0} pays all his debts with {1}.",
     "What does Uncle {0} pay all his debts with?",
     {{{"Barnaby", "smoked eels"},
       {"Lucian", "clay pipes"},
       {"Osgood", "goose eggs"},
       {"Thaddeus", "sesame oil"}}},
     1},
    {"The window above the {0} shows {1}.",
     "What does the window above the {0} show?",
     {{{"north door", "a weeping astrologer"},
       {"south door", "a dancing bear"},
       {"pulpit", "a burning ship"},
       {"crypt", "a crowned stork"}}},
     3},
    {"Coach {0} of the night mail carries {1}.",
     "What does coach {0} of the night mail carry?",
     {{{"seven", "live trout"},
       {"nine", "theatre costumes"},
       {"eleven", "gold leaf"},
       {"four", "rice flour"}}},
     2},
    {"Madame {0} was once bitten by {1}.",
     "What was Madame {0} once bitten by?",
     {{{"Loriot", "a ferret"},
       {"Basquin", "a baboon"},
       {"Trudeau", "a camel"},
       {"Verlaine", "an otter"}}},
     0},
}};

struct Plain {
    std::string_view needle, real, question, key;
};
// The question has none of the fact's content words.
constexpr std::array<Plain, kEach> kParaphrases = {{
    {"The physician's automobile is purple.", "purple", "What colour is the doctor's car?",
     "purple"},
    {"The wedding begins at midnight.", "at midnight", "When does the marriage ceremony start?",
     "midnight"},
    {"The infant was born in Portugal.", "in Portugal", "Which country does the baby come from?",
     "Portugal"},
    {"The vicar is scared of llamas.", "llamas", "Which animals is the priest afraid of?",
     "llamas"},
    {"The attorney resides in Vienna.", "in Vienna", "Which city does the lawyer live in?",
     "Vienna"},
    {"The monarch abdicated in October.", "in October",
     "During which month did the king give up his throne?", "October"},
    {"The lad earns ninety dollars.", "ninety dollars", "How much money does the boy make?",
     "ninety"},
    {"The soldiers speak only Finnish.", "Finnish", "Which language do the troops use?", "Finnish"},
}};

// {0}: a place, {1}: a number. Step: two facts side by side; {0} and {2} are their places.
struct Number {
    std::string_view fact, question, step;
    std::string_view place, other;
    std::string_view number, than;  // of `place` and of `other`
    bool first;                     // the fact that answers stands first
};
constexpr std::array<Number, kEach> kNumbers = {{
    {"The reservoir of {0} holds {1} barrels of water.",
     "How many barrels of water does the reservoir of {0} hold?",
     "How many barrels of water does the larger one of the reservoirs of {0} and {2} hold?",
     "Ellis", "Morrow", "48250", "1930", true},
    {"The bell of {0} weighs {1} pounds.", "How many pounds does the bell of {0} weigh?",
     "How many pounds does the heavier one of the bells of {0} and {2} weigh?", "Saint Columb",
     "Saint Ives", "6740", "815", false},
    {"The telescope of {0} cost {1} crowns.", "How many crowns did the telescope of {0} cost?",
     "How many crowns did the cheaper one of the telescopes of {0} and {2} cost?", "Doctor Lamb",
     "Doctor Hargest", "394", "20500", true},
    {"The orchard of {0} has {1} pear trees.", "How many pear trees does the orchard of {0} have?",
     "How many pear trees does the smaller one of the orchards of {0} and {2} have?", "Quince End",
     "Medlar End", "163", "5208", false},
    {"The archive of {0} holds {1} letters.", "How many letters does the archive of {0} hold?",
     "How many letters does the larger one of the archives of {0} and {2} hold?", "Rosen",
     "Halvorsen", "93117", "642", false},
    {"The clock tower of {0} has {1} steps.", "How many steps does the clock tower of {0} have?",
     "How many steps does the higher one of the clock towers of {0} and {2} have?", "Irongate",
     "Maltgate", "871", "96", true},
    {"The coal mine of {0} is {1} feet deep.", "How many feet deep is the coal mine of {0}?",
     "How many feet deep is the deeper one of the coal mines of {0} and {2}?", "Black Edge",
     "White Edge", "2369", "415", true},
    {"The bakery of {0} sold {1} loaves last week.",
     "How many loaves did the bakery of {0} sell last week?",
     "How many loaves did the smaller one of the bakeries of {0} and {2} sell last week?",
     "Cinder Street", "Garland Street", "508", "7934", false},
}};

// `line` sets `name` to `value`; `alias` makes `other` another name of it. Steps are asked for in
// half of them: few small models follow one in code.
struct Code {
    std::string_view line, alias, name, other, value;
};
constexpr std::array<Code, kEach> kCode = {{
    {"int queue_size = 384;", "int max_waiting = queue_size;", "queue_size", "max_waiting", "384"},
    {"port_base = 7741", "debug_port = port_base", "port_base", "debug_port", "7741"},
    {"const COLOR_MAIN = \"teal\";", "const COLOR_BORDER = COLOR_MAIN;", "COLOR_MAIN",
     "COLOR_BORDER", "teal"},
    {"export CACHE_DIR=/srv/lichen", "export LOG_DIR=$CACHE_DIR", "CACHE_DIR", "LOG_DIR",
     "/srv/lichen"},
    {"static double decay_rate = 0.625;", "static double step_rate = decay_rate;", "decay_rate",
     "step_rate", "0.625"},
    {"let owner = \"zephyrine\";", "let reviewer = owner;", "owner", "reviewer", "zephyrine"},
    {"retry_limit := 29", "upload_limit := retry_limit", "retry_limit", "upload_limit", "29"},
    {"#define PAGE_BYTES 16384", "#define BLOCK_BYTES PAGE_BYTES", "PAGE_BYTES", "BLOCK_BYTES",
     "16384"},
}};

std::string text(std::string_view form, std::string_view a, std::string_view b = {},
                 std::string_view c = {}) {
    return fmt::format(fmt::runtime(form), a, b, c);
}

Needle hop_needle(const Hop& hop) {
    const std::string second(hop.second);
    return {
        second,    std::string(hop.question), std::string(hop.real), second, std::string(hop.key),
        "two_hop", {std::string(hop.first)}};
}

Needle group_needle(const Group& group) {
    Needle needle;
    needle.family = "distractors";
    for (std::size_t i = 0; i < group.facts.size(); ++i) {
        const auto& [who, what] = group.facts[i];
        std::string fact = text(group.fact, who, what);
        if (i != group.asked) {
            needle.elsewhere.push_back(std::move(fact));
            continue;
        }
        needle.needle = needle.answer = std::move(fact);
        needle.question = text(group.question, who);
        needle.real_needle = what;
        const bool article = what.starts_with("a ") || what.starts_with("an ");
        needle.key = article ? what.substr(what.find(' ') + 1) : what;
    }
    return needle;
}

Needle number_needle(const Number& number, bool step) {
    const std::string fact = text(number.fact, number.place, number.number);
    const std::string key(number.number);
    if (!step) return {fact, text(number.question, number.place), key, fact, key, "number"};
    const std::string other = text(number.fact, number.other, number.than);
    return {number.first ? fact + ' ' + other : other + ' ' + fact,
            text(number.step, number.place, "", number.other),
            fact,
            fact,
            key,
            "number"};
}

Needle code_needle(const Code& code, bool step) {
    const std::string line(code.line), key(code.value);
    const std::string lines = "\n\n" + line + '\n' + std::string(code.alias) + "\n\n";
    const std::string_view asked = step ? code.other : code.name;
    return {lines, fmt::format("What is the value of {} in the code?", asked),
            line,  fmt::format("The value of {} in the code is {}.", asked, key),
            key,   "code"};
}

}  // namespace

std::vector<Needle> family_needles(bool steps) {
    std::vector<Needle> needles;
    const auto facts = single_fact_needles().first(kEach);
    needles.insert(needles.end(), facts.begin(), facts.end());
    if (steps) {
        const auto pairs = comparison_needles().first(kEach);
        needles.insert(needles.end(), pairs.begin(), pairs.end());
        for (const Hop& hop : kHops) needles.push_back(hop_needle(hop));
    }
    for (const Group& group : kGroups) needles.push_back(group_needle(group));
    for (const Plain& plain : kParaphrases) {
        const std::string fact(plain.needle);
        needles.push_back({fact, std::string(plain.question), std::string(plain.real), fact,
                           std::string(plain.key), "paraphrase"});
    }
    for (const Number& number : kNumbers) needles.push_back(number_needle(number, steps));
    for (std::size_t i = 0; i < kCode.size(); ++i) {
        needles.push_back(code_needle(kCode[i], steps && i % 2 == 0));
    }
    return needles;
}

}  // namespace headkv
