// Probes that are nothing but text: what attention does to values while it is read (kind baklava).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "calibrate/calibration.h"
#include "calibrate/haystack.h"
#include "headkv/engine.h"
#include "headkv/error.h"

namespace headkv {

struct TextProbe {
    CalibrationProbe probe;
    std::vector<Token> text;
};

// `count` texts of the haystack, another part for each, the lengths (tokens) taking turns. Families
// are the lengths. Error (bad_input): a length below 2, or beyond the model's context.
Result<std::vector<TextProbe>> text_probes(const Model& model, const Haystack& haystack,
                                           std::span<const std::int64_t> lengths,
                                           std::int64_t count);

// Reads a text without an answer. A head's score is 1 - the mean cosine of Engine::value_cosines
// (BaKlaVa-style, 2502.13176); every text counts. Quality: the mean over all heads.
ProbeRunner engine_text_runner(Engine& engine, std::span<const TextProbe> probes,
                               const Progress& progress);

}  // namespace headkv
