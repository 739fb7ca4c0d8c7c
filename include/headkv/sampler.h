// From logits to the next token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "headkv/tokenizer.h"

namespace headkv {

struct SamplerOptions {
    float temperature = 0;                // 0: greedy
    std::int64_t top_k = 40;              // 0: off
    float top_p = 0.95f;                  // 1: off
    float min_p = 0.05f;                  // 0: off
    float repetition_penalty = 1;         // 1: off; divides positive, multiplies negative logits
    std::int64_t repetition_window = 64;  // last tokens that the penalty looks at
    std::uint64_t seed = 0;
};

// Deterministic for a seed. Greedy ties go to the lower id.
class Sampler {
public:
    explicit Sampler(const SamplerOptions& options);
    Token sample(std::span<const float> logits);  // [vocabulary]; not empty
    void accept(Token token);                     // remembers it for the repetition penalty

private:
    SamplerOptions options_;
    std::vector<Token> recent_;
    std::vector<std::pair<float, Token>> candidates_;  // reused between calls
    std::uint64_t state_[4];                           // xoshiro256++
};

// The greedy choice: the first of the best logits. A NaN never wins.
Token best_token(std::span<const float> logits);

// log softmax(logits)[token] in f64 accumulation.
double log_probability(std::span<const float> logits, Token token);

}  // namespace headkv
