// One probe of the needle test on the real engine.
#include <chrono>
#include <utility>

#include "eval/answering.h"
#include "eval/niah.h"

namespace headkv {
namespace {

// The reference answer as the model would write it after the prompt.
struct Reference {
    std::vector<Token> tokens;
    TokenSpan key;  // where the key stands in it; everything if it has none
};

Reference make_reference(const Tokenizer& tokenizer, const Needle& needle, bool chat) {
    Reference reference;
    reference.tokens = answer_tokens(tokenizer, needle.answer, chat);
    const auto key = find_span(tokenizer, reference.tokens, needle.answer, needle.key);
    reference.key = key ? *key : TokenSpan{0, static_cast<std::int64_t>(reference.tokens.size())};
    return reference;
}

struct ReferenceScore {
    double all = 0, key = 0;  // log-probability per token
};

ReferenceScore average(const Reference& reference, std::span<const double> each) {
    ReferenceScore score;
    for (std::size_t i = 0; i < each.size(); ++i) {
        score.all += each[i] / static_cast<double>(each.size());
        if (reference.key.contains(static_cast<std::int64_t>(i))) {
            score.key += each[i] / static_cast<double>(reference.key.size());
        }
    }
    return score;
}

}  // namespace

Result<NiahProbe> run_niah_probe(Engine& engine, const Haystack& haystack, const Needle& needle,
                                 const ProbeSpec& spec, std::span<const ConfigUnderTest> configs,
                                 const NiahSettings& settings, const Progress& progress) {
    const auto start = std::chrono::steady_clock::now();
    auto prepared = prepare_probe(engine.model(), haystack, needle, spec, settings.chat,
                                  settings.system, settings.keep_system);
    if (!prepared) return tl::unexpected(prepared.error());
    const Reference reference =
        make_reference(engine.model().tokenizer(), needle, settings.chat.has_value());
    const Asked asked{.prompt = prepared->prompt,
                      .compressed = prepared->prompt.size(),
                      .reference = reference.tokens,
                      .max_tokens = settings.max_tokens,
                      .first_line = true,
                      .keep = prepared->keep};
    auto answered = answer_with_all(engine, asked, configs, progress);
    if (!answered) return tl::unexpected(answered.error());

    NiahProbe probe;
    probe.spec = spec;
    probe.prompt_tokens = static_cast<std::int64_t>(prepared->prompt.size());
    for (Answered& one : *answered) {
        const ReferenceScore score = average(reference, one.log_probability);
        NiahAnswer answer;
        answer.method = std::move(one.method);
        answer.rows = one.rows;
        answer.log_probability = score.all;
        answer.log_probability_key = score.key;
        answer.kv_bytes = one.kv_bytes;
        answer.kv_bytes_full = one.kv_bytes_full;
        answer.rows_kept = one.rows_kept;
        answer.hit = is_hit(one.text, needle);
        answer.text = std::move(one.text);
        probe.answers.push_back(std::move(answer));
    }
    probe.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return probe;
}

}  // namespace headkv
