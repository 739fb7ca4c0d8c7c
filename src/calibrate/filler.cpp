#include "calibrate/filler.h"

#include <array>
#include <cctype>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "calibrate/filler_grammar.h"
#include "calibrate/random.h"

namespace headkv {
namespace {

constexpr std::array<std::string_view, 34> kPeople = {
    "the baker",         "an old gardener",     "the ferryman",       "a retired teacher",
    "the carpenter",     "a travelling tailor", "the night watchman", "a young clerk",
    "the miller",        "a patient weaver",    "the bookbinder",     "an absent-minded painter",
    "the stationmaster", "a visiting surveyor", "the beekeeper",      "a quiet apprentice",
    "the innkeeper",     "a neighbour",         "the clockmaker",     "an unhurried shepherd",
    "the librarian",     "a tired musician",    "the glassblower",    "a careful bricklayer",
    "the schoolmaster",  "a cheerful porter",   "the roadmender",     "an amateur astronomer",
    "the potter",        "a stubborn farmer",   "the letter carrier", "a passing stranger",
    "the rope maker",    "a thoughtful cook"};

constexpr std::array<std::string_view, 36> kObjects = {
    "a cracked teapot",        "the long ladder",           "an iron kettle",
    "a bundle of willow rods", "the garden gate",           "a basket of late apples",
    "an unfinished chair",     "the wooden shutters",       "a faded map of the coast",
    "a coil of tarred rope",   "the kitchen table",         "an umbrella with a bent rib",
    "the brass lantern",       "a sack of barley",          "the heavy account book",
    "a pair of muddy boots",   "an empty birdcage",         "the spare wheel",
    "a jar of plum jam",       "the cellar door",           "a patched sail",
    "an old wool blanket",     "the water barrel",          "a box of mixed nails",
    "the weather vane",        "a stack of roof tiles",     "an oil lamp",
    "the narrow bench",        "a piece of blue glass",     "the dusty piano",
    "a handful of seed beans", "an almanac without covers", "the copper pan",
    "a wheelbarrow",           "the parlour mirror",        "a drawer full of string"};

constexpr std::array<std::string_view, 36> kPlaces = {"behind the orchard wall",
                                                      "near the weir",
                                                      "at the edge of the common",
                                                      "under the railway arch",
                                                      "in the back room of the inn",
                                                      "beside the mill pond",
                                                      "on the steps of the town hall",
                                                      "along the towpath",
                                                      "at the far end of the market",
                                                      "in the shade of the lime trees",
                                                      "by the old toll house",
                                                      "across the water meadow",
                                                      "at the top of the lane",
                                                      "in the loft above the stable",
                                                      "on the gravel beach",
                                                      "between the greenhouses",
                                                      "beneath the church tower",
                                                      "outside the chandler's shop",
                                                      "at the bend in the river",
                                                      "in the corner of the yard",
                                                      "over the stone bridge",
                                                      "near the disused quarry",
                                                      "on the sheltered side of the hill",
                                                      "at the crossroads",
                                                      "in the covered walk",
                                                      "beyond the last row of cottages",
                                                      "next to the pump",
                                                      "among the tall reeds",
                                                      "on the landing stage",
                                                      "in the warm end of the workshop",
                                                      "below the terrace",
                                                      "at the mouth of the valley",
                                                      "by the shuttered bakery",
                                                      "inside the gatehouse",
                                                      "along the southern hedge",
                                                      "around the empty fountain"};

constexpr std::array<std::string_view, 32> kTimes = {"early in the morning",
                                                     "towards evening",
                                                     "after the rain had stopped",
                                                     "before the shops opened",
                                                     "on the first dry day",
                                                     "late in the autumn",
                                                     "during the long frost",
                                                     "while the kettle boiled",
                                                     "at the turn of the tide",
                                                     "once the harvest was in",
                                                     "in the slow hour after lunch",
                                                     "when the wind dropped",
                                                     "at first light",
                                                     "a little before supper",
                                                     "on market days",
                                                     "in the middle of the week",
                                                     "as soon as the mist lifted",
                                                     "towards the end of winter",
                                                     "on the shortest day",
                                                     "when nobody was looking",
                                                     "in the quiet weeks of spring",
                                                     "after a sleepless night",
                                                     "as the lamps were lit",
                                                     "before anyone had asked",
                                                     "on a grey afternoon",
                                                     "at the height of summer",
                                                     "between two showers",
                                                     "when the bells had finished",
                                                     "on the way home",
                                                     "after some hesitation",
                                                     "in due course",
                                                     "just as the light failed"};

constexpr std::array<std::string_view, 34> kActions = {
    "mended",     "carried off",  "set down",     "examined",     "polished",
    "gave away",  "painted",      "put aside",    "borrowed",     "measured",
    "forgot",     "rediscovered", "sketched",     "swept around", "leaned against",
    "wrapped",    "described",    "moved",        "repaired",     "complained about",
    "admired",    "turned over",  "covered",      "sold",         "counted on",
    "looked for", "cleaned",      "tripped over", "took apart",   "oiled",
    "praised",    "hid",          "fetched",      "photographed"};

constexpr std::array<std::string_view, 30> kReasons = {"because the damp had got into everything",
                                                       "so that the children could reach it",
                                                       "since there was nothing better to do",
                                                       "although the weather advised against it",
                                                       "as custom seemed to demand",
                                                       "without saying a word to anyone",
                                                       "to the mild surprise of the onlookers",
                                                       "for reasons that were never explained",
                                                       "in spite of a sore back",
                                                       "with more care than the job required",
                                                       "while humming the same short tune",
                                                       "as if there were all the time in the world",
                                                       "rather than argue about the price",
                                                       "because a promise is a promise",
                                                       "and nobody thought it strange",
                                                       "which took the better part of an hour",
                                                       "and then went back to reading",
                                                       "to make room for the winter stores",
                                                       "with a borrowed set of tools",
                                                       "and left the rest for another day",
                                                       "in the hope of better weather",
                                                       "as carefully as if it were porcelain",
                                                       "though it hardly mattered any more",
                                                       "and was rather pleased with the result",
                                                       "before the damp could do more harm",
                                                       "to settle an old disagreement",
                                                       "because somebody had to",
                                                       "and thought no more of it",
                                                       "with the help of two passing boys",
                                                       "just to see whether it could be done"};

constexpr std::array<std::string_view, 30> kNature = {"the swallows",
                                                      "a thin mist",
                                                      "the river",
                                                      "a row of poplars",
                                                      "the smell of cut hay",
                                                      "the tide",
                                                      "a cold draught",
                                                      "the hedgerow",
                                                      "the afternoon light",
                                                      "a flock of starlings",
                                                      "the snow on the roofs",
                                                      "the stream",
                                                      "a bank of cloud",
                                                      "the wild mint",
                                                      "the north wind",
                                                      "the ivy",
                                                      "a single heron",
                                                      "the moss on the wall",
                                                      "the moonlight",
                                                      "the sound of the weir",
                                                      "the fallen leaves",
                                                      "a warm breeze",
                                                      "the frost",
                                                      "the bramble",
                                                      "a pair of jackdaws",
                                                      "the distant thunder",
                                                      "the dew",
                                                      "the long grass",
                                                      "the smoke of the kilns",
                                                      "a drifting seed"};

constexpr std::array<std::string_view, 28> kNatureVerbs = {"settled over everything",
                                                           "crept a little closer",
                                                           "kept its own slow calendar",
                                                           "made the distance look smaller",
                                                           "had the place to itself",
                                                           "came and went without notice",
                                                           "softened the edges of the walls",
                                                           "was there again the next day",
                                                           "arrived earlier than usual",
                                                           "refused to leave",
                                                           "changed colour by the hour",
                                                           "drew the eye upwards",
                                                           "filled the silence",
                                                           "followed the line of the ditch",
                                                           "announced a change of season",
                                                           "hung about the chimneys",
                                                           "went unnoticed by most",
                                                           "found every gap in the boards",
                                                           "lingered until noon",
                                                           "gave the scene a certain dignity",
                                                           "moved on in its own time",
                                                           "reminded people of the sea",
                                                           "took over the abandoned plot",
                                                           "thinned out towards the hills",
                                                           "was all that could be heard",
                                                           "gathered in the hollow",
                                                           "lay across the path",
                                                           "did not last"};

constexpr std::array<std::string_view, 28> kIdeas = {"patience",
                                                     "a good fire",
                                                     "an honest day's work",
                                                     "dry firewood",
                                                     "a well-kept tool",
                                                     "silence",
                                                     "the habit of walking",
                                                     "a shared meal",
                                                     "a sharp pencil",
                                                     "curiosity",
                                                     "the memory of a place",
                                                     "good bread",
                                                     "a slow answer",
                                                     "an open window",
                                                     "plain speech",
                                                     "a tidy shed",
                                                     "the patience of trees",
                                                     "idle talk",
                                                     "a second opinion",
                                                     "ordinary luck",
                                                     "a borrowed book",
                                                     "the weight of routine",
                                                     "a steady hand",
                                                     "friendly rivalry",
                                                     "an early start",
                                                     "the craft of mending",
                                                     "a sound roof",
                                                     "common sense"};

constexpr std::array<std::string_view, 28> kVerdicts = {
    "is worth more than it costs",
    "cannot be hurried",
    "tends to be noticed only when missing",
    "is easier to praise than to keep",
    "has a way of paying for itself",
    "rarely comes when it is called",
    "makes up for many small faults",
    "is nobody's property",
    "looks different from close by",
    "needs no explanation",
    "grows with use",
    "is best enjoyed in company",
    "was never the cheapest way",
    "outlives most good intentions",
    "depends on the weather more than one thinks",
    "teaches without a word",
    "is half of any trade",
    "does not travel well",
    "should be written down less and practised more",
    "has saved many an evening",
    "is not learned from manuals",
    "belongs to those who look after it",
    "settles more quarrels than the law",
    "goes further than haste",
    "can be had for nothing",
    "comes back to those who wait",
    "asks for very little",
    "wears out slowly"};

constexpr std::array<std::string_view, 26> kSaid = {
    "said that the roof would hold for another winter",
    "maintained that soup improves overnight",
    "remembered a summer without a single storm",
    "believed that every hinge has its own voice",
    "insisted on paying in advance",
    "could talk for an hour about the right way to stack wood",
    "preferred the long way round",
    "knew the names of all the ditches",
    "never trusted a clock that ran on time",
    "wrote long letters and seldom posted them",
    "kept a list of things that squeak",
    "had an opinion on every kind of mud",
    "judged people by the way they closed doors",
    "collected pebbles with a hole in them",
    "slept badly whenever the wind came from the east",
    "spoke to the hens as if to old colleagues",
    "disliked umbrellas on principle",
    "thought that maps should show where the blackberries grow",
    "held that a good knot needs no looking at",
    "never finished a story on the same day",
    "took sugar with almost everything",
    "was proud of a very plain garden",
    "could mimic the creak of any gate",
    "swore by goose fat for leather and for colds",
    "mistrusted shortcuts of any kind",
    "whistled only when something had gone wrong"};

constexpr std::array<std::string_view, 24> kOpenings = {"now and then",
                                                        "as a rule",
                                                        "to begin with",
                                                        "on the whole",
                                                        "in those parts",
                                                        "by common agreement",
                                                        "for once",
                                                        "as it happened",
                                                        "in the end",
                                                        "strangely enough",
                                                        "year after year",
                                                        "more than once",
                                                        "to be fair",
                                                        "if memory serves",
                                                        "in a small way",
                                                        "needless to say",
                                                        "for the most part",
                                                        "sooner or later",
                                                        "all things considered",
                                                        "by and by",
                                                        "as so often",
                                                        "in its own fashion",
                                                        "at a guess",
                                                        "from time to time"};

constexpr std::array<std::string_view, 24> kAdjectives = {
    "crooked",   "modest",      "draughty", "sunlit",    "half-forgotten", "sturdy",   "mossy",
    "narrow",    "whitewashed", "leaning",  "well-worn", "quiet",          "lopsided", "handsome",
    "weathered", "cramped",     "breezy",   "plain",     "sooty",          "creaking", "tidy",
    "remote",    "low",         "humble"};

constexpr std::array<std::string_view, 22> kBuildings = {
    "barn",     "cottage",   "boathouse", "smithy",      "chapel", "warehouse",
    "inn",      "tollbooth", "dairy",     "schoolroom",  "kiln",   "watermill",
    "granary",  "pottery",   "bakehouse", "signal box",  "cellar", "greenhouse",
    "workshop", "stable",    "brewhouse", "reading room"};

constexpr std::array<std::string_view, 40> kSentences = {
    "{time}, {person} {did} {object} {place}.",
    "{person} {did} {object} {place}, {reason}.",
    "{opening}, {person} {did} {object}, {reason}.",
    "{person} {said}, and {person} {said}.",
    "{time}, {nature} {natured}.",
    "{nature} {natured}, and {time} {nature} {natured}.",
    "{idea} {verdict}.",
    "People there liked to say that {idea} {verdict}.",
    "{place}, somebody had left {object}, which pleased {person}.",
    "There was a {adjective} {building} {place}, and {nature} {natured}.",
    "The {building} was {adjective} and rather {adjective}, which suited {person}.",
    "{person}, who {said}, {did} {object} {place}.",
    "Nobody could say why {person} {did} {object} {time}.",
    "{opening}, {idea} {verdict}, or so {person} claimed.",
    "It was {person} who {did} {object}, {reason}.",
    "{time}, {person} and {person} met {place} to talk about {idea}.",
    "What {person} really wanted was {object}, not {object}.",
    "Whoever walked {place} {time} would find {object} there.",
    "{nature} {natured}, yet {person} {did} {object} all the same.",
    "If {idea} {verdict}, the same holds for {idea}.",
    "{person} {said}; the rest of the {building} knew better.",
    "From the {adjective} {building} one could see how {nature} {natured}.",
    "{opening}, {nature} {natured} {place}.",
    "{person} {did} {object} first and {object} afterwards, {reason}.",
    "The talk {place} turned to {idea}, as it usually did {time}.",
    "{object} stood {place} until {person} came for it.",
    "Some held that {idea} {verdict}, others that {idea} {verdict}.",
    "{time}, the {building} was locked and {person} {did} {object} alone.",
    "A {adjective} {building} is no place for {object}, but {person} kept it there all the same.",
    "The story went that {person} {did} {object} {place}, {reason}.",
    "Between {object} and {object} there was hardly room to stand {place}.",
    "{opening}, the {adjective} {building} smelled of wax and damp wool.",
    "{person} {said}, {reason}.",
    "{nature} {natured} while {person} {did} {object}.",
    "The path {place} led past a {adjective} {building}, where {person} {did} {object}.",
    "Nothing was said {time}, for {idea} {verdict}.",
    "{person} looked at {object}, then at {object}, and went {place}.",
    "Not far from there, {place}, {nature} {natured}.",
    "The oldest of them {said}, and {opening} that proved right.",
    "{time}, {object} was found {place}, {reason}."};

constexpr std::array<WordList, 14> kLists = {{{"person", kPeople},
                                              {"object", kObjects},
                                              {"place", kPlaces},
                                              {"time", kTimes},
                                              {"did", kActions},
                                              {"reason", kReasons},
                                              {"nature", kNature},
                                              {"natured", kNatureVerbs},
                                              {"idea", kIdeas},
                                              {"verdict", kVerdicts},
                                              {"said", kSaid},
                                              {"opening", kOpenings},
                                              {"adjective", kAdjectives},
                                              {"building", kBuildings}}};

// Hands out a list's entries in shuffled rounds: every entry is used once before any is used again,
// which keeps near repetition away better than independent draws do.
class Deck {
public:
    explicit Deck(std::size_t size) : size_(size) {}
    std::size_t draw(Random& random) {
        if (left_.empty()) {
            for (std::size_t i = 0; i < size_; ++i) left_.push_back(i);
            random.shuffle(left_);
        }
        const std::size_t drawn = left_.back();
        left_.pop_back();
        return drawn;
    }

private:
    std::size_t size_;
    std::vector<std::size_t> left_;
};

class Writer {
public:
    Writer(const Grammar& grammar, std::uint64_t seed)
        : grammar_(grammar), random_(seed), sentences_(grammar.sentences.size()) {
        for (const WordList& list : grammar.lists) decks_.emplace_back(list.words.size());
    }

    std::string sentence() {
        std::string text;
        do {
            text = expand(grammar_.sentences[sentences_.draw(random_)]);
        } while (!seen_.insert(text).second);
        return text;
    }

    std::size_t paragraph_length() { return 3 + random_.below(5); }

private:
    std::string expand(std::string_view pattern) {
        std::string text;
        while (!pattern.empty()) {
            const std::size_t open = pattern.find('{');
            text += pattern.substr(0, open);
            if (open == std::string_view::npos) break;
            const std::size_t close = pattern.find('}', open);
            text += word(pattern.substr(open + 1, close - open - 1));
            pattern.remove_prefix(close + 1);
        }
        text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
        return text;
    }

    std::string_view word(std::string_view name) {
        for (std::size_t i = 0; i < grammar_.lists.size(); ++i) {
            const WordList& list = grammar_.lists[i];
            if (list.name == name) return list.words[decks_[i].draw(random_)];
        }
        return {};
    }

    const Grammar& grammar_;
    Random random_;
    Deck sentences_;
    std::vector<Deck> decks_;
    std::unordered_set<std::string> seen_;
};

}  // namespace

const Grammar& village_grammar() {
    static const Grammar grammar{kSentences, kLists};
    return grammar;
}

std::string filler_text(std::uint64_t seed, std::size_t min_bytes, Prose prose) {
    Writer writer(prose == Prose::village ? village_grammar() : city_grammar(), seed);
    std::string text;
    while (text.size() < min_bytes) {
        if (!text.empty()) text += "\n\n";
        const std::size_t sentences = writer.paragraph_length();
        for (std::size_t i = 0; i < sentences && text.size() < min_bytes; ++i) {
            if (i > 0) text += ' ';
            text += writer.sentence();
        }
    }
    return text;
}

}  // namespace headkv
