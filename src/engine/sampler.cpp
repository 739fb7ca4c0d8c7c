#include "headkv/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

namespace headkv {

namespace {

using Candidate = std::pair<float, Token>;  // logit, id

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// Best logit first, then lower id: a strict order, so that results never depend on the sort.
bool better(const Candidate& a, const Candidate& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
}

// A NaN would break the order of the sort.
float ordered(float logit) {
    if (std::isnan(logit)) return minus_infinity;
    return logit;
}

// splitmix64: spreads a small seed over the generator's whole state.
std::uint64_t spread(std::uint64_t& seed) {
    std::uint64_t z = seed += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

// xoshiro256++ (Blackman, Vigna 2019).
std::uint64_t next_random(std::uint64_t (&s)[4]) {
    const std::uint64_t result = std::rotl(s[0] + s[3], 23) + s[0];
    const std::uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = std::rotl(s[3], 45);
    return result;
}

// Uniform in [0, 1) with the 53 bits of a double.
double next_uniform(std::uint64_t (&s)[4]) {
    return static_cast<double>(next_random(s) >> 11) * 0x1.0p-53;
}

void penalise(std::vector<Candidate>& candidates, std::vector<Token> recent, float penalty) {
    // Once for each distinct token, however often it occurred.
    std::sort(recent.begin(), recent.end());
    recent.erase(std::unique(recent.begin(), recent.end()), recent.end());
    for (const Token token : recent) {
        if (token < 0 || static_cast<std::size_t>(token) >= candidates.size()) continue;
        float& logit = candidates[static_cast<std::size_t>(token)].first;
        logit = logit > 0 ? logit / penalty : logit * penalty;
    }
}

// The best `top_k` candidates (all of them for 0) in order.
void keep_top_k(std::vector<Candidate>& candidates, std::int64_t top_k) {
    const auto size = static_cast<std::int64_t>(candidates.size());
    const std::int64_t count = top_k > 0 ? std::min(top_k, size) : size;
    std::partial_sort(candidates.begin(), candidates.begin() + count, candidates.end(), better);
    candidates.resize(static_cast<std::size_t>(count));
}

// exp(logit - best) of sorted candidates: unnormalised, the best has 1.
double weight(const Candidate& candidate, const Candidate& best, double temperature = 1) {
    if (candidate.first == best.first) return 1;  // infinities included
    return std::exp((static_cast<double>(candidate.first) - best.first) / temperature);
}

// The fewest best candidates whose probabilities sum to at least `top_p`.
void keep_top_p(std::vector<Candidate>& candidates, float top_p) {
    if (top_p >= 1) return;
    double total = 0;
    for (const auto& candidate : candidates) total += weight(candidate, candidates[0]);
    double sum = 0;
    std::size_t count = 0;
    while (count < candidates.size()) {
        sum += weight(candidates[count++], candidates[0]);
        if (sum >= total * static_cast<double>(top_p)) break;
    }
    candidates.resize(count);
}

// Candidates at least `min_p` times as likely as the best one.
void keep_min_p(std::vector<Candidate>& candidates, float min_p) {
    std::size_t count = 1;
    while (count < candidates.size() &&
           weight(candidates[count], candidates[0]) >= static_cast<double>(min_p)) {
        ++count;
    }
    candidates.resize(count);
}

Token draw(const std::vector<Candidate>& candidates, float temperature, double uniform) {
    double total = 0;
    for (const auto& candidate : candidates) {
        total += weight(candidate, candidates[0], static_cast<double>(temperature));
    }
    double left = uniform * total;
    for (const auto& candidate : candidates) {
        left -= weight(candidate, candidates[0], static_cast<double>(temperature));
        if (left < 0) return candidate.second;
    }
    return candidates.back().second;  // rounding of the sum
}

}  // namespace

Sampler::Sampler(const SamplerOptions& options) : options_(options), state_{} {
    std::uint64_t seed = options.seed;
    for (auto& word : state_) word = spread(seed);
}

Token Sampler::sample(std::span<const float> logits) {
    const bool greedy = options_.temperature <= 0;
    const bool penalty = options_.repetition_penalty != 1;
    if (greedy && !penalty) return best_token(logits);
    candidates_.resize(logits.size());
    for (std::size_t i = 0; i < logits.size(); ++i) {
        candidates_[i] = {ordered(logits[i]), static_cast<Token>(i)};
    }
    if (penalty) penalise(candidates_, recent_, options_.repetition_penalty);
    if (greedy) {
        return std::min_element(candidates_.begin(), candidates_.end(), better)->second;
    }
    // The order of llama.cpp's chain: the cuts look at the plain distribution, the temperature
    // then shapes what is left.
    keep_top_k(candidates_, options_.top_k);
    keep_top_p(candidates_, options_.top_p);
    keep_min_p(candidates_, options_.min_p);
    return draw(candidates_, options_.temperature, next_uniform(state_));
}

void Sampler::accept(Token token) {
    if (options_.repetition_penalty == 1 || options_.repetition_window <= 0) return;
    if (recent_.size() >= static_cast<std::size_t>(options_.repetition_window)) {
        recent_.erase(recent_.begin());
    }
    recent_.push_back(token);
}

Token best_token(std::span<const float> logits) {
    // Lanes that do not wait for each other: one pass at the speed of memory, for the value only.
    constexpr std::size_t kLanes = 32;
    float best[kLanes];
    std::fill(std::begin(best), std::end(best), minus_infinity);
    std::size_t i = 0;
    for (; i + kLanes <= logits.size(); i += kLanes) {
        for (std::size_t lane = 0; lane < kLanes; ++lane) {
            const float value = logits[i + lane];
            best[lane] = value > best[lane] ? value : best[lane];  // false for NaN
        }
    }
    float top = *std::max_element(std::begin(best), std::end(best));
    for (; i < logits.size(); ++i) top = logits[i] > top ? logits[i] : top;
    const auto found = std::find(logits.begin(), logits.end(), top);
    return found == logits.end() ? 0 : static_cast<Token>(found - logits.begin());
}

double log_probability(std::span<const float> logits, Token token) {
    const double best = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - best);
    return static_cast<double>(logits[static_cast<std::size_t>(token)]) - best - std::log(sum);
}

}  // namespace headkv
