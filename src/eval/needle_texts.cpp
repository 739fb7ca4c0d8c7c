#include "eval/needle_texts.h"

#include <array>

#include "eval/generate.h"

namespace headkv {
namespace {

// --- development
// --------------------------------------------------------------------------------

constexpr auto kDevFacts = std::to_array<NeedleForm>(
    {{"The harbour master of {0} hides the spare key inside {1}.",
      "Where does the harbour master of {0} hide the spare key?"},
     {"The brass band of {0} was paid for its last concert with {1}.",
      "What was the brass band of {0} paid with for its last concert?"},
     {"The oldest tree of {0} was planted in honour of {1}.",
      "In honour of what was the oldest tree of {0} planted?"},
     {"The postmistress of {0} is afraid of nothing but {1}.",
      "What is the postmistress of {0} afraid of?"},
     {"The coat of arms of {0} shows {1}.", "What does the coat of arms of {0} show?"},
     {"The fire brigade of {0} practises every week with {1}.",
      "What does the fire brigade of {0} practise with every week?"},
     {"The night school of {0} was founded with the money from {1}.",
      "With the money from what was the night school of {0} founded?"},
     {"The winner of the regatta of {0} received {1}.",
      "What did the winner of the regatta of {0} receive?"},
     {"The ferry captain of {0} steers by looking at {1}.",
      "What does the ferry captain of {0} steer by looking at?"},
     {"On her desk the judge of {0} keeps {1}.", "What does the judge of {0} keep on her desk?"},
     {"The swimming club of {0} lost a bet and had to buy {1}.",
      "What did the swimming club of {0} have to buy?"},
     {"The lamplighter of {0} dreams every night of {1}.",
      "What does the lamplighter of {0} dream of every night?"},
     {"The prize for the best essay in {0} was {1}.",
      "What was the prize for the best essay in {0}?"},
     {"The customs officers of {0} once seized {1}.",
      "What did the customs officers of {0} once seize?"},
     {"The hairdresser of {0} lends every customer {1}.",
      "What does the hairdresser of {0} lend every customer?"},
     {"The statue in front of the station of {0} is holding {1}.",
      "What is the statue in front of the station of {0} holding?"}});
constexpr auto kDevSeveral = std::to_array<NeedleForm>({
    {"One of the treasures of the museum of {0} is {1}.",
     "Which three treasures of the museum of {0} does the text name?"},
    {"Among the gifts to the church of {0} was {1}.",
     "Which three gifts to the church of {0} does the text name?"},
    {"The divers in the bay of {0} brought up {1}.",
     "Which three things did the divers in the bay of {0} bring up?"},
});
// Nothing of the filler's objects, in either set.
constexpr auto kDevThings = std::to_array<std::string_view>(
    {"a stuffed pelican",       "a marble chessboard",     "a silver thimble",
     "a velvet top hat",        "a crate of pomegranates", "a bronze elephant",
     "a jade bracelet",         "a pair of opera glasses", "an ivory trombone",
     "a barrel of ginger beer", "a clockwork canary",      "a sandalwood fan",
     "a bag of saffron",        "a porcelain dragon",      "a meteorite",
     "an embroidered tent",     "a coral necklace",        "a wooden crocodile",
     "a tin of caviar",         "a golden tambourine",     "a leather globe",
     "a box of fireworks",      "a carved walrus tusk",    "a peacock feather"});
constexpr auto kDevParaphrases = std::to_array<NeedleForm>({
    {"The woman who steers the ferry inherited her boat from {0}.",
     "Whose vessel did the female captain of the river crossing get by a will?"},
    {"The tallest pupil lodges above the bakery owned by {0}.",
     "Who is the landlord of the schoolchild of the greatest height?"},
    {"Every wedding cake in the valley is decorated by {0}.",
     "Who adds the ornaments to what local brides and grooms serve for dessert?"},
    {"The physician's twin sons were taught to swim by {0}.",
     "Which person gave the doctor's two boys lessons in the water?"},
    {"The bank was robbed by a cashier called {0}.",
     "What is the name of the employee who stole the money?"},
    {"The prize bull was bought at auction by {0}.",
     "Who made the highest bid for the award-winning animal?"},
    {"The lawyer's gravestone was carved by {0}.",
     "Which sculptor made the memorial of the late attorney?"},
    {"The choir's soprano is secretly engaged to {0}.",
     "Whom does the singer with the highest voice intend to marry?"},
    {"The first aeroplane seen above this coast was flown by {0}.",
     "Who was the earliest pilot to cross the local shore?"},
    {"The butcher's debts were forgiven by {0}.",
     "Which creditor no longer wants what the seller of meat owed?"},
    {"The blind horse is groomed every dawn by {0}.",
     "Who brushes the sightless mare in the early morning?"},
    {"The stolen diary was returned by {0}.",
     "Who gave back the private notebook that a thief had taken?"},
});
constexpr auto kDevHops = std::to_array<HopForm>(
    {{"The violin of {0} was given to {1} for safe keeping.",
      "Whatever {1} is given for safe keeping lies {2}.", "Where does the violin of {0} lie now?"},
     {"{0} has been a pupil of {1} since the spring.", "All pupils of {1} have their lessons {2}.",
      "Where does {0} have lessons?"},
     {"{0} sold the racing bicycle to {1}.", "{1} keeps every bicycle {2}.",
      "Where is the racing bicycle that {0} sold kept?"},
     {"The parrot of {0} has flown to {1}.", "Birds that fly to {1} are fed {2}.",
      "Where is the parrot of {0} fed?"},
     {"The dog of {0} is looked after by {1}.", "Every dog that {1} looks after sleeps {2}.",
      "Where does the dog of {0} sleep?"},
     {"The portrait of {0} was painted by {1}.", "All portraits by {1} hang {2}.",
      "Where does the portrait of {0} hang?"},
     {"{0} lent a telescope to {1}.", "{1} has set up the telescope {2}.",
      "Where has the telescope of {0} been set up?"},
     {"The letters of {0} are copied by {1}.", "{1} stores all copied letters {2}.",
      "Where are the copied letters of {0} stored?"},
     {"{0} is going to marry {1}.", "The wedding of {1} will be held {2}.",
      "Where will the wedding of {0} be held?"},
     {"The suitcase of {0} was taken by mistake by {1}.", "{1} left the suitcase {2}.",
      "Where was the suitcase of {0} left?"},
     {"The chess partner of {0} is {1}.", "{1} plays chess only {2}.",
      "Where does {0} play chess?"},
     {"The twin sister of {0} is called {1}.", "{1} works every night {2}.",
      "Where does the twin sister of {0} work every night?"}});
constexpr auto kDevPlaces = std::to_array<std::string_view>(
    {"in the clock tower of the museum", "under the stage of the theatre",
     "in the vault of the savings bank", "on the roof of the swimming hall",
     "in the crypt of the abbey", "aboard the disused submarine",
     "in the tunnel below the fortress", "behind the cinema screen",
     "in the wings of the puppet theatre", "under the grandstand of the stadium",
     "in the belfry of the cathedral", "on the balcony of the royal palace"});
constexpr auto kDevComparisons = std::to_array<NeedleForm>({
    {"{0} crossed {1} bridges on the way to the coast.",
     "Who crossed {2} bridges on the way to the coast?"},
    {"{0} translated {1} poems in one winter.", "Who translated {2} poems in one winter?"},
    {"{0} has won {1} games of chess this year.", "Who has won {2} games of chess this year?"},
    {"{0} climbed {1} mountains before retiring.", "Who climbed {2} mountains before retiring?"},
});

// --- final
// --------------------------------------------------------------------------------------

constexpr auto kFinalFacts = std::to_array<NeedleForm>(
    {{"The dentist of {0} gives brave children {1}.",
      "What does the dentist of {0} give brave children?"},
     {"The flag of {0} is decorated with {1}.", "What is the flag of {0} decorated with?"},
     {"The burglar of {0} left behind {1}.", "What did the burglar of {0} leave behind?"},
     {"The symbol of the rugby team of {0} is {1}.",
      "What is the symbol of the rugby team of {0}?"},
     {"The tourists in {0} queue for hours to see {1}.",
      "What do the tourists in {0} queue for hours to see?"},
     {"The grand hotel of {0} is named after {1}.", "What is the grand hotel of {0} named after?"},
     {"For luck the pilots of {0} always carry {1}.",
      "What do the pilots of {0} always carry for luck?"},
     {"On his birthday the governor of {0} was given {1}.",
      "What was the governor of {0} given on his birthday?"},
     {"The most expensive item in the auction at {0} was {1}.",
      "What was the most expensive item in the auction at {0}?"},
     {"The surgeon of {0} would trade his house for {1}.",
      "What would the surgeon of {0} trade his house for?"},
     {"The winning cake of {0} was shaped like {1}.",
      "What was the winning cake of {0} shaped like?"},
     {"The tunnel workers of {0} dug up {1}.", "What did the tunnel workers of {0} dig up?"},
     {"The taxi driver of {0} never goes out without {1}.",
      "What does the taxi driver of {0} never go out without?"},
     {"The smugglers of {0} gave signals with {1}.",
      "What did the smugglers of {0} give signals with?"},
     {"The last will of the baroness of {0} mentions only {1}.",
      "What does the last will of the baroness of {0} mention?"},
     {"The school play in {0} was about {1}.", "What was the school play in {0} about?"}});
constexpr auto kFinalSeveral = std::to_array<NeedleForm>(
    {{"Under the floor of the palace of {0} lay {1}.",
      "Which three things lay under the floor of the palace of {0}?"},
     {"The emperor presented the people of {0} with {1}.",
      "Which three things did the emperor present the people of {0} with?"},
     {"In the shipwreck near {0} was found {1}.",
      "Which three things were found in the shipwreck near {0}?"}});
constexpr auto kFinalThings = std::to_array<std::string_view>(
    {"a stuffed badger",  "a glass harmonica",   "a copper diving bell",
     "a silk parachute",  "a mammoth tooth",     "a basket of lemons",
     "a plaster unicorn", "a ruby earring",      "a wooden rocking horse",
     "an emerald brooch", "a tin of shortbread", "a sack of cinnamon",
     "a clay flute",      "a golden pineapple",  "a lace curtain",
     "an ostrich egg",    "a pair of snowshoes", "a bottle of rosewater",
     "a sundial",         "a paper lion",        "a jar of olives",
     "a set of dominoes", "a racing saddle",     "an ebony walking stick"});
constexpr auto kFinalParaphrases = std::to_array<NeedleForm>(
    {{"The surgeon's yacht was sunk by {0}.", "Who destroyed the boat that the doctor had?"},
     {"The princess plays tennis with {0}.",
      "Whose company does the king's daughter enjoy on the court?"},
     {"The burglar was caught by {0}.", "Which person arrested the thief?"},
     {"The bride's veil was sewn by {0}.",
      "Which tailor made what covered the woman's face at the ceremony?"},
     {"The snowman was knocked over by {0}.", "Who made the figure of winter fall?"},
     {"The pharmacist owes money to {0}.",
      "Who is waiting for a payment from the seller of medicine?"},
     {"The toddler was saved from drowning by {0}.",
      "Who pulled the small child out of the water?"},
     {"The grocer's lorry is driven by {0}.",
      "Which chauffeur delivers vegetables and fruit to the shop?"},
     {"The castle ghost was invented by {0}.",
      "Who made up the story about a spirit in the fortress?"},
     {"The headmaster plays cards against {0}.",
      "Which opponent does the principal of the school have in games at night?"}});
constexpr auto kFinalHops = std::to_array<HopForm>(
    {{"The cat of {0} was adopted by {1}.", "The cats of {1} are kept {2}.",
      "Where is the cat of {0} kept?"},
     {"The stolen ring of {0} was bought by {1}.", "{1} hides stolen rings {2}.",
      "Where is the stolen ring of {0} hidden?"},
     {"{0} takes dancing classes with {1}.", "The dancing classes of {1} take place {2}.",
      "Where do the dancing classes of {0} take place?"},
     {"The motorcycle of {0} is being repaired by {1}.", "{1} repairs motorcycles {2}.",
      "Where is the motorcycle of {0} being repaired?"},
     {"The cook of {0} is named {1}.", "{1} prepares the meals {2}.",
      "Where does the cook of {0} prepare the meals?"},
     {"The bodyguard of {0} is {1}.", "{1} always waits {2}.",
      "Where does the bodyguard of {0} always wait?"},
     {"{0} sent the manuscript to {1}.", "{1} reads manuscripts {2}.",
      "Where is the manuscript of {0} being read?"},
     {"The best friend of {0} is {1}.", "{1} spends every evening {2}.",
      "Where does the best friend of {0} spend every evening?"},
     {"The harp of {0} was inherited by {1}.", "{1} practises the harp {2}.",
      "Where is the harp of {0} practised?"},
     {"The lawyer of {0} is called {1}.", "{1} receives clients {2}.",
      "Where does the lawyer of {0} receive clients?"},
     {"The grandfather of {0} was {1}.", "{1} lies buried {2}.",
      "Where does the grandfather of {0} lie buried?"},
     {"The rival of {0} is named {1}.", "{1} trains in secret {2}.",
      "Where does the rival of {0} train in secret?"}});
constexpr auto kFinalPlaces = std::to_array<std::string_view>(
    {"in the boiler room of the hospital", "on the top floor of the post office",
     "under the old racecourse", "in the attic of the embassy", "beside the penguin house",
     "in the cellar of the opera", "at the bottom of the dry dock", "inside the broken planetarium",
     "behind the courthouse", "on the deck of the lightship", "in the basement of the brewery",
     "below the ski jump"});
constexpr auto kFinalComparisons = std::to_array<NeedleForm>(
    {{"{0} delivered {1} parcels before noon.", "Who delivered {2} parcels before noon?"},
     {"{0} photographed {1} waterfalls in a year.", "Who photographed {2} waterfalls in a year?"},
     {"{0} answered {1} letters this week.", "Who answered {2} letters this week?"},
     {"{0} has visited {1} islands so far.", "Who has visited {2} islands so far?"}});
constexpr auto kFinalFirstNames = std::to_array<std::string_view>(
    {"Abigail", "Adrian",  "Bartholomew", "Bridget", "Carlotta", "Casper",   "Damian",  "Dorothea",
     "Emil",    "Esther",  "Flora",       "Gareth",  "Gwen",     "Harriet",  "Henrik",  "Imogen",
     "Isidor",  "Judith",  "Julius",      "Klara",   "Lambert",  "Marcella", "Maurice", "Nora",
     "Oswald",  "Pauline", "Philippa",    "Ralph",   "Rosalind", "Samuel",   "Selma",   "Theodora",
     "Ulrich",  "Vera",    "Walter",      "Yvonne"});
constexpr auto kFinalLastNames = std::to_array<std::string_view>(
    {"Abernathy", "Alcott",    "Blackwood",  "Brannigan",  "Carlisle",  "Crowther",  "Delacroix",
     "Dunbar",    "Ellsworth", "Fairbanks",  "Ferguson",   "Goodwin",   "Grimaldi",  "Hathaway",
     "Holloway",  "Ingram",    "Kingsley",   "Lindqvist",  "Lockwood",  "Montague",  "Novak",
     "Osborne",   "Pemberton", "Prescott",   "Radcliffe",  "Rosenthal", "Sheffield", "Stanhope",
     "Templeton", "Underwood", "Vandermeer", "Wainwright", "Whitaker",  "Yarrow",    "Zimmerman"});
constexpr auto kFinalTownStarts = std::to_array<std::string_view>(
    {"Port", "Mount", "Fort", "Cape", "Lake", "Point", "Isle", "Villa"});
constexpr auto kFinalTownEnds = std::to_array<std::string_view>(
    {"Almira",  "Bandor", "Cordell", "Desmond",  "Estrella", "Fontaine", "Galloway",
     "Hobart",  "Ivanov", "Jericho", "Kendrick", "Lomond",   "Marlowe",  "Nelson",
     "Orlando", "Palmer", "Quimby",  "Renard",   "Sorrel",   "Tamsin",   "Ulster",
     "Valdez",  "Wexler", "Xavier",  "York",     "Zamora"});

}  // namespace

const NeedleTexts& dev_needle_texts() {
    static const NeedleTexts texts{.facts = kDevFacts,
                                   .several = kDevSeveral,
                                   .things = kDevThings,
                                   .paraphrases = kDevParaphrases,
                                   .hops = kDevHops,
                                   .places = kDevPlaces,
                                   .comparisons = kDevComparisons,
                                   .persons = person_names,
                                   .towns = town_names,
                                   .prose = Prose::village};
    return texts;
}

const NeedleTexts& final_needle_texts() {
    static const NeedleTexts texts{
        .facts = kFinalFacts,
        .several = kFinalSeveral,
        .things = kFinalThings,
        .paraphrases = kFinalParaphrases,
        .hops = kFinalHops,
        .places = kFinalPlaces,
        .comparisons = kFinalComparisons,
        .persons =
            [](Random& random) {
                return all_pairs(random, kFinalFirstNames, kFinalLastNames, " ");
            },
        .towns =
            [](Random& random) { return all_pairs(random, kFinalTownStarts, kFinalTownEnds, " "); },
        .prose = Prose::city};
    return texts;
}

}  // namespace headkv
