#include "eval/needle_tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "eval/generate.h"

namespace headkv {
namespace {

constexpr std::array<std::string_view, 5> kKinds = {"single", "multi_key", "multi_value",
                                                    "paraphrase", "reason"};

// {0}: a town, {1}: what is asked for.
struct Form {
    std::string_view fact, question;
};
constexpr auto kForms = std::to_array<Form>({
    {"The harbour master of {0} hides the spare key inside {1}.",
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
});
constexpr auto kSeveralForms = std::to_array<Form>({
    {"One of the treasures of the museum of {0} is {1}.",
     "Which three treasures of the museum of {0} does the text name?"},
    {"Among the gifts to the church of {0} was {1}.",
     "Which three gifts to the church of {0} does the text name?"},
    {"The divers in the bay of {0} brought up {1}.",
     "Which three things did the divers in the bay of {0} bring up?"},
});
// Nothing of the filler's objects.
constexpr auto kThings = std::to_array<std::string_view>(
    {"a stuffed pelican",       "a marble chessboard",     "a silver thimble",
     "a velvet top hat",        "a crate of pomegranates", "a bronze elephant",
     "a jade bracelet",         "a pair of opera glasses", "an ivory trombone",
     "a barrel of ginger beer", "a clockwork canary",      "a sandalwood fan",
     "a bag of saffron",        "a porcelain dragon",      "a meteorite",
     "an embroidered tent",     "a coral necklace",        "a wooden crocodile",
     "a tin of caviar",         "a golden tambourine",     "a leather globe",
     "a box of fireworks",      "a carved walrus tusk",    "a peacock feather"});

// {0}: a person. The question has none of the fact's content words, and nothing but the meaning
// leads from one to the other.
constexpr auto kParaphrases = std::to_array<Form>({
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

// {0}: the giver, {1}: the keeper, {2}: a place.
struct Hop {
    std::string_view first, second, question;
};
constexpr auto kHops = std::to_array<Hop>({
    {"The violin of {0} was given to {1} for safe keeping.",
     "Whatever {1} is given for safe keeping lies {2}.", "Where does the violin of {0} lie now?"},
    {"{0} has been a pupil of {1} since the spring.", "All pupils of {1} have their lessons {2}.",
     "Where does {0} have lessons?"},
    {"{0} sold the racing bicycle to {1}.", "{1} keeps every bicycle {2}.",
     "Where is the racing bicycle that {0} sold kept?"},
    {"The parrot of {0} has flown to {1}.", "Birds that fly to {1} are fed {2}.",
     "Where is the parrot of {0} fed?"},
});
constexpr auto kPlaces = std::to_array<std::string_view>(
    {"in the clock tower of the museum", "under the stage of the theatre",
     "in the vault of the savings bank", "on the roof of the swimming hall",
     "in the crypt of the abbey", "aboard the disused submarine",
     "in the tunnel below the fortress", "behind the cinema screen"});
// {0}: a person, {1}: a number. {2} in the question: more or fewer.
constexpr auto kComparisons = std::to_array<Form>({
    {"{0} crossed {1} bridges on the way to the coast.",
     "Who crossed {2} bridges on the way to the coast?"},
    {"{0} translated {1} poems in one winter.", "Who translated {2} poems in one winter?"},
    {"{0} has won {1} games of chess this year.", "Who has won {2} games of chess this year?"},
    {"{0} climbed {1} mountains before retiring.", "Who climbed {2} mountains before retiring?"},
});

struct Draft {
    std::vector<std::string> needles;  // the first stands at the depth, the others elsewhere
    std::string question;
    std::vector<std::string> answers;
    std::vector<std::string> labels;
    Metric metric = Metric::contains;
    std::optional<StringMatch> match = {};
    std::int64_t max_tokens = 24;
    bool first_line = true;
};

template <class T, std::size_t n>
const T& any(Random& random, const std::array<T, n>& list) {
    return list[random.below(n)];
}

std::vector<std::string> shuffled(Random& random, std::span<const std::string_view> texts) {
    std::vector<std::string> copy(texts.begin(), texts.end());
    random.shuffle(copy);
    return copy;
}

Draft draft_reason(Random& random, bool hop) {
    Draft draft;
    const auto persons = person_names(random);
    if (hop) {
        const Hop& form = any(random, kHops);
        const std::string place(any(random, kPlaces));
        // The place is what a method must not lose: its sentence stands at the depth.
        draft.needles = {fmt::format(fmt::runtime(form.second), persons[0], persons[1], place),
                         fmt::format(fmt::runtime(form.first), persons[0], persons[1], place)};
        draft.question = fmt::format(fmt::runtime(form.question), persons[0]);
        draft.answers = {place};
        return draft;
    }
    const Form& form = any(random, kComparisons);
    const std::size_t less = 11 + random.below(40);
    const std::size_t more = less + 5 + random.below(40);
    const bool ask_more = random.below(2) == 0;
    const auto fact = [&](const std::string& who, std::size_t number) {
        return fmt::format(fmt::runtime(form.fact), who, number);
    };
    draft.needles = {fact(persons[0], ask_more ? more : less),
                     fact(persons[1], ask_more ? less : more)};
    draft.question = fmt::format(fmt::runtime(form.question), "", "", ask_more ? "more" : "fewer") +
                     " Write the name of one person and nothing else.";
    draft.answers = {persons[0]};
    // Naming both is no answer.
    draft.metric = Metric::labels;
    draft.labels = {persons[0], persons[1]};
    return draft;
}

Draft draft_of(std::string_view kind, Random& random, std::int64_t sample) {
    if (kind == "reason") return draft_reason(random, sample % 2 == 0);
    Draft draft;
    if (kind == "paraphrase") {
        const Form& form = any(random, kParaphrases);
        const std::string person = person_names(random)[0];
        draft.needles = {fmt::format(fmt::runtime(form.fact), person)};
        draft.question = form.question;
        draft.answers = {person};
        return draft;
    }
    const auto towns = town_names(random);
    const auto things = shuffled(random, kThings);
    const bool several = kind == "multi_value";
    const Form& form = several ? any(random, kSeveralForms) : any(random, kForms);
    draft.question = fmt::format(fmt::runtime(form.question), towns[0]);
    const std::size_t facts = kind == "single" ? 1 : several ? 3 : 4;
    for (std::size_t i = 0; i < facts; ++i) {
        draft.needles.push_back(
            fmt::format(fmt::runtime(form.fact), several ? towns[0] : towns[i], things[i]));
        // Without its article: "the stuffed pelican" is right.
        if (i == 0 || several) draft.answers.push_back(things[i].substr(things[i].find(' ') + 1));
    }
    if (several) {
        draft.match = StringMatch::all;
        draft.max_tokens = 64;
        draft.first_line = false;
    }
    return draft;
}

}  // namespace

std::span<const std::string_view> needle_task_kinds() { return kKinds; }

Result<TaskData> make_needle_tasks(const NeedleTaskOptions& options, const Tokenizer& tokenizer) {
    const auto kinds = chosen_names(options.kinds, kKinds, "needles");
    if (!kinds) return tl::unexpected(kinds.error());
    if (auto sizes = check_sizes(options.lengths, options.samples, "samples"); !sizes) {
        return tl::unexpected(sizes.error());
    }
    if (options.depths.empty()) return bad_input("no depth is given");
    for (const double depth : options.depths) {
        if (!(depth >= 0 && depth <= 100)) return bad_input("a depth of {}: give 0 to 100", depth);
        if (std::count(options.depths.begin(), options.depths.end(), depth) > 1) {
            return bad_input("the depth {} is given twice", depth);
        }
    }
    TaskData data;
    for (const std::string& kind : *kinds) {
        for (const std::int64_t length : options.lengths) {
            for (const double depth : options.depths) {
                for (std::int64_t sample = 0; sample < options.samples; ++sample) {
                    TaskExample example;
                    example.group = fmt::format("{}/{}/{:g}", kind, length, depth);
                    example.id = fmt::format("{}/{}", example.group, sample + 1);
                    // The same needles and text at every depth, so that depths can be compared.
                    Random random = example_random(
                        options.seed, fmt::format("{}/{}/{}", kind, length, sample + 1));
                    Draft draft = draft_of(kind, random, sample);
                    std::vector<Insertion> needles;
                    for (std::size_t i = 0; i < draft.needles.size(); ++i) {
                        const double step =
                            static_cast<double>(i) / static_cast<double>(draft.needles.size());
                        const double at = depth / 100 + step;
                        needles.push_back({i == 0 ? at : at - std::floor(at), draft.needles[i]});
                    }
                    Filler filler(random.next());
                    const auto context = [&](std::int64_t units) {
                        return with_insertions(filler.sentences(static_cast<std::size_t>(units)),
                                               needles);
                    };
                    const auto tokens = [&](std::int64_t units) {
                        return prompt_tokens(tokenizer, context(units), draft.question);
                    };
                    std::int64_t needed = 0;
                    const auto units = largest_fit(length, 1'000'000'000, tokens, needed);
                    if (!units) {
                        return bad_input("{} does not fit a length of {}: it needs {} tokens", kind,
                                         length, needed);
                    }
                    example.context = context(*units);
                    example.question = std::move(draft.question);
                    example.answers = std::move(draft.answers);
                    example.labels = std::move(draft.labels);
                    example.metric = draft.metric;
                    example.match = draft.match;
                    example.max_tokens = draft.max_tokens;
                    example.first_line = draft.first_line;
                    example.depth = depth;
                    example.length = length;
                    data.examples.push_back(std::move(example));
                }
            }
        }
    }
    return data;
}

}  // namespace headkv
