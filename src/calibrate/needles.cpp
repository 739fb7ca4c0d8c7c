#include "calibrate/needles.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <string_view>

#include "calibrate/lines.h"

namespace headkv {
namespace {

Needle fact(const std::string& needle, std::string question, std::string real_needle,
            std::string key) {
    return {needle, std::move(question), std::move(real_needle), needle, std::move(key), "single"};
}

// The span is one person's sentence; which of the two comes first varies, so that a head gains
// nothing from preferring the earlier one.
struct Person {
    std::string name;
    int age;
    std::string habit, key;
};
Needle comparison(const Person& first, const Person& second, bool older) {
    const auto sentence = [](const Person& person) {
        return fmt::format("{} is {} years old and {}.", person.name, person.age, person.habit);
    };
    const Person& right = (first.age > second.age) == older ? first : second;
    return {sentence(first) + ' ' + sentence(second),
            fmt::format("What does the {} one of {} and {} do?", older ? "older" : "younger",
                        first.name, second.name),
            sentence(right),
            fmt::format("{} {}.", right.name, right.habit),
            right.key,
            "comparison"};
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

}  // namespace

std::span<const Needle> single_fact_needles() {
    static const std::vector<Needle> needles = {
        fact("The lighthouse keeper at Corvane paints his boat with a mixture of beetroot juice "
             "and candle wax.",
             "What does the lighthouse keeper at Corvane paint his boat with?",
             "a mixture of beetroot juice and candle wax", "beetroot juice"),
        fact("The best thing to do in Ostrava Bay is to ride the glass tram up to the owl garden "
             "at midnight.",
             "What is the best thing to do in Ostrava Bay?",
             "ride the glass tram up to the owl garden at midnight", "owl garden"),
        fact("The secret ingredient of the Halmer pie is a spoonful of smoked pine honey.",
             "What is the secret ingredient of the Halmer pie?", "a spoonful of smoked pine honey",
             "pine honey"),
        fact("The password of the Larkfield archive is seven green bicycles.",
             "What is the password of the Larkfield archive?", "seven green bicycles",
             "seven green bicycles"),
        fact("The museum of Tarrow keeps its oldest violin inside a barrel of dry lentils.",
             "Where does the museum of Tarrow keep its oldest violin?",
             "inside a barrel of dry lentils", "lentils"),
        fact("Captain Brisby lost the race because a swan had stolen her left glove.",
             "Why did Captain Brisby lose the race?", "because a swan had stolen her left glove",
             "swan"),
        fact("Doctor Quillon always travels with a tortoise named Admiral and a folding harp.",
             "What does Doctor Quillon always travel with?",
             "a tortoise named Admiral and a folding harp", "tortoise"),
        fact("The library of Penhollow lends out forty telescopes to anybody who can recite a "
             "lullaby.",
             "What does the library of Penhollow lend out to anybody who can recite a lullaby?",
             "forty telescopes", "forty telescopes"),
        fact("The treasure of the Vasken brothers is buried under the third apple tree behind the "
             "dance hall.",
             "Where is the treasure of the Vasken brothers buried?",
             "under the third apple tree behind the dance hall", "third apple tree"),
        fact("The mayor of Drumlin opened the new bridge by cutting a rope of braided liquorice.",
             "How did the mayor of Drumlin open the new bridge?",
             "by cutting a rope of braided liquorice", "liquorice"),
        fact("The night train to Selby Moor departs from platform 47 beside the flower kiosk.",
             "Where does the night train to Selby Moor depart from?",
             "from platform 47 beside the flower kiosk", "47"),
        fact("The favourite breakfast of Professor Wend is toasted chestnut bread with pickled "
             "plums.",
             "What is the favourite breakfast of Professor Wend?",
             "toasted chestnut bread with pickled plums", "chestnut bread"),
        fact("The tailor of Ashgrove repairs torn kites with silver fishing line and rice glue.",
             "What does the tailor of Ashgrove repair torn kites with?",
             "silver fishing line and rice glue", "fishing line"),
        fact("The inventor Marlo Tench named his submarine The Polite Walrus after his first "
             "landlord.",
             "What did the inventor Marlo Tench name his submarine?", "The Polite Walrus",
             "Polite Walrus")};
    return needles;
}

std::span<const Needle> comparison_needles() {
    static const std::vector<Needle> needles = {
        comparison({"Mira", 44, "carves owls out of soap", "owls"},
                   {"Tobin", 31, "bakes rye bread for the fire brigade", "rye bread"}, true),
        comparison({"Joris", 19, "races paper boats down the canal", "paper boats"},
                   {"Elka", 12, "plays the accordion for her goats", "accordion"}, false),
        comparison({"Priya", 26, "collects blue bottle caps", "bottle caps"},
                   {"Stellan", 58, "translates old tide tables", "tide tables"}, true),
        comparison({"Nadine", 23, "teaches parrots to whistle", "parrots"},
                   {"Victor", 67, "grows square melons on the roof", "melons"}, false),
        comparison({"Oskar", 52, "polishes the brass bells of the ferry", "brass bells"},
                   {"Leila", 35, "draws maps of mushroom forests", "mushroom"}, true),
        comparison({"Hanne", 14, "swims across the quarry lake", "quarry"},
                   {"Rolf", 9, "builds tiny theatres out of walnut shells", "walnut shells"},
                   false),
        comparison({"Bruno", 40, "repairs typewriters in the rain", "typewriters"},
                   {"Agnes", 71, "flies striped kites", "striped kites"}, true),
        comparison({"Tessa", 17, "counts shooting stars", "shooting stars"},
                   {"Milan", 33, "brews nettle tea in a diving helmet", "nettle tea"}, false)};
    return needles;
}

std::span<const Needle> evaluation_needles() {
    static const std::vector<Needle> needles = {
        fact("The access code of the boathouse in Melvick is 7314.",
             "What is the access code of the boathouse in Melvick?", "7314", "7314"),
        fact("The annual kite festival of the region is held in the village of Brannock.",
             "In which village is the annual kite festival of the region held?",
             "the village of Brannock", "Brannock"),
        fact("The first stone bridge over the river Senna was built by a woman named Odile Farrow.",
             "Who built the first stone bridge over the river Senna?", "Odile Farrow",
             "Odile Farrow"),
        fact("The orchard of the Keswin family was planted in the year 1862.",
             "In which year was the orchard of the Keswin family planted?", "1862", "1862"),
        fact("The spare key of the observatory hangs behind the portrait of a sleeping fox.",
             "Where does the spare key of the observatory hang?",
             "behind the portrait of a sleeping fox", "sleeping fox"),
        fact("The ship that brought the organ to Haldane was called the Copper Wren.",
             "What was the name of the ship that brought the organ to Haldane?", "the Copper Wren",
             "Copper Wren"),
        fact("The locker number of the cellist Anneke Vos is 2096.",
             "What is the locker number of the cellist Anneke Vos?", "2096", "2096"),
        fact("The most valuable stamp of the Rowntree collection shows a purple hedgehog.",
             "What does the most valuable stamp of the Rowntree collection show?",
             "a purple hedgehog", "hedgehog"),
        fact("The chess tournament of Lower Pell was won by a dentist named Casimir Bode.",
             "Who won the chess tournament of Lower Pell?", "a dentist named Casimir Bode",
             "Casimir Bode"),
        fact("The gold medal for cheese went to a dairy in the town of Virelle.",
             "In which town is the dairy that won the gold medal for cheese?",
             "the town of Virelle", "Virelle"),
        fact("The old radio mast on Fennel Hill is exactly 583 feet tall.",
             "How tall is the old radio mast on Fennel Hill?", "exactly 583 feet", "583"),
        fact("The ambassador's parrot answers only to the name of Thunderbolt.",
             "To which name does the ambassador's parrot answer?", "Thunderbolt", "Thunderbolt"),
        fact("The winning ticket of the Easter raffle had the number 48157.",
             "What number did the winning ticket of the Easter raffle have?", "48157", "48157"),
        fact("The stolen painting was finally found in a lighthouse near Ardmore.",
             "Where was the stolen painting finally found?", "in a lighthouse near Ardmore",
             "Ardmore"),
        fact("The telephone of the harbour master of Quayle has the extension 619.",
             "What is the telephone extension of the harbour master of Quayle?", "619", "619"),
        fact("The composer Ludo Sarn wrote his last opera about a jealous beekeeper from Malta.",
             "Whom did the composer Ludo Sarn write his last opera about?",
             "a jealous beekeeper from Malta", "Malta")};
    return needles;
}

std::size_t find_ignoring_case(std::string_view text, std::string_view part) {
    const auto at = std::search(text.begin(), text.end(), part.begin(), part.end(),
                                [](char a, char b) { return lower(a) == lower(b); });
    if (at == text.end() && !part.empty()) return std::string_view::npos;
    return static_cast<std::size_t>(at - text.begin());
}

namespace {

Result<Needle> parse_needle(const std::string& line, const std::string& where) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (!json.is_object()) return bad_input("{}: not a JSON object", where);
    Needle needle;
    struct Field {
        const char* name;
        std::string* value;
        bool required;
    };
    const std::array<Field, 6> fields = {{{"needle", &needle.needle, true},
                                          {"question", &needle.question, true},
                                          {"real_needle", &needle.real_needle, true},
                                          {"answer", &needle.answer, false},
                                          {"key", &needle.key, false},
                                          {"family", &needle.family, false}}};
    for (const Field& field : fields) {
        const auto found = json.find(field.name);
        if (found == json.end()) {
            if (field.required) return bad_input("{}: field \"{}\" is missing", where, field.name);
            continue;
        }
        if (!found->is_string() || found->get_ref<const std::string&>().empty()) {
            return bad_input("{}: field \"{}\" must be a text that is not empty", where,
                             field.name);
        }
        *field.value = found->get<std::string>();
    }
    if (const auto elsewhere = json.find("elsewhere"); elsewhere != json.end()) {
        for (const auto& text : *elsewhere) {
            if (!text.is_string() || text.get_ref<const std::string&>().empty()) {
                return bad_input("{}: field \"elsewhere\" must be a list of texts", where);
            }
            needle.elsewhere.push_back(text.get<std::string>());
        }
    }
    if (needle.answer.empty()) needle.answer = needle.real_needle;
    if (needle.family.empty()) needle.family = "file";
    if (find_ignoring_case(needle.needle, needle.real_needle) == std::string_view::npos) {
        return bad_input("{}: \"real_needle\" does not occur in \"needle\"", where);
    }
    return needle;
}

}  // namespace

Result<std::vector<Needle>> load_needles(const std::filesystem::path& file) {
    return parse_lines<Needle>(file, "needle file", "needle",
                               [](const std::string& line, const std::string& where,
                                  std::int64_t /*number*/) { return parse_needle(line, where); });
}

}  // namespace headkv
