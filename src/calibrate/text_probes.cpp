#include "calibrate/text_probes.h"

#include <algorithm>
#include <numeric>

namespace headkv {
namespace {

constexpr std::int64_t kMostBytes = 8;  // a token of prose: enough text for any vocabulary

}  // namespace

Result<std::vector<TextProbe>> text_probes(const Model& model, const Haystack& haystack,
                                           std::span<const std::int64_t> lengths,
                                           std::int64_t count) {
    const auto context = model.info().context;
    for (const std::int64_t length : lengths) {
        if (length < 2) return bad_input("--lengths {}: a text has at least 2 tokens", length);
        if (length > context) {
            return bad_input("--lengths {}: the model's context is {} tokens", length, context);
        }
    }
    std::vector<TextProbe> probes;
    for (std::int64_t i = 0; i < count; ++i) {
        const auto length = lengths[static_cast<std::size_t>(i % std::ssize(lengths))];
        TextProbe probe;
        probe.probe = {fmt::format("text {} length {}", i + 1, length),
                       fmt::format("{} tokens", length), i};
        const auto text = haystack.text(i, static_cast<std::size_t>(length * kMostBytes));
        probe.text = model.tokenizer().encode(text);
        if (std::ssize(probe.text) > length) probe.text.resize(static_cast<std::size_t>(length));
        probes.push_back(std::move(probe));
    }
    return probes;
}

ProbeRunner engine_text_runner(Engine& engine, std::span<const TextProbe> probes,
                               const Progress& progress) {
    return [&engine, probes, progress](std::size_t which) -> Result<ProbeOutcome> {
        const auto cosines = engine.value_cosines(probes[which].text, progress);
        if (!cosines) return tl::unexpected(cosines.error());
        ProbeOutcome outcome;
        for (const double cosine : *cosines) outcome.scores.push_back(1 - cosine);
        outcome.quality = std::accumulate(outcome.scores.begin(), outcome.scores.end(), 0.0) /
                          static_cast<double>(outcome.scores.size());
        outcome.answer = fmt::format("{} tokens read", probes[which].text.size());
        return outcome;
    };
}

}  // namespace headkv
