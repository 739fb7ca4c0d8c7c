#include "engine/answer.h"

#include <algorithm>
#include <utility>

namespace headkv {

StopFilter::StopFilter(const std::vector<std::string>& stops) {
    for (const auto& stop : stops) {
        if (!stop.empty()) stops_.push_back(stop);
    }
}

std::string StopFilter::push(std::string_view piece) {
    waiting_ += piece;
    const std::size_t found = first_stop();
    stopped_ = found != std::string::npos;
    return take(stopped_ ? found : waiting_.size() - possible_stop());
}

std::string StopFilter::flush() { return stopped_ ? std::string() : take(waiting_.size()); }

std::string StopFilter::take(std::size_t count) {
    std::string text = waiting_.substr(0, count);
    waiting_.erase(0, count);
    return text;
}

std::size_t StopFilter::first_stop() const {
    std::size_t first = std::string::npos;
    for (const auto& stop : stops_) first = std::min(first, waiting_.find(stop));
    return first;
}

// Length of the longest end of the waiting text that begins a stop text.
std::size_t StopFilter::possible_stop() const {
    std::size_t longest = 0;
    for (const auto& stop : stops_) {
        for (std::size_t n = std::min(stop.size() - 1, waiting_.size()); n > longest; --n) {
            if (waiting_.ends_with(std::string_view(stop).substr(0, n))) longest = n;
        }
    }
    return longest;
}

Answer::Answer(const Tokenizer& tokenizer, const GenerateOptions& options, const TextSink& sink)
    : tokenizer_(tokenizer),
      left_(options.max_tokens),
      sampler_(options.sampler),
      decoder_(tokenizer),
      filter_(options.stop),
      sink_(sink) {
    if (left_ <= 0) reason_ = "length";
}

std::optional<Token> Answer::next(std::span<const float> logits) {
    if (ended()) return std::nullopt;
    const Token token = sampler_.sample(logits);
    if (tokenizer_.is_end(token)) {
        reason_ = "end";
        return std::nullopt;
    }
    sampler_.accept(token);
    push(token);
    if (!ended() && --left_ == 0) reason_ = "length";
    return ended() ? std::nullopt : std::optional(token);
}

void Answer::push(Token token) {
    result_.tokens.push_back(token);
    // The sink is asked even when there is nothing to show: it may want to stop.
    const bool go_on = emit(filter_.push(decoder_.push(token)));
    if (!go_on) reason_ = "interrupted";
    if (filter_.stopped()) reason_ = "stop";
}

void Answer::stop(std::string reason) {
    if (!ended()) reason_ = std::move(reason);
}

Generation Answer::take() {
    // The last bytes may complete a stop text as well as a character.
    std::string rest = filter_.stopped() ? std::string() : filter_.push(decoder_.flush());
    if (filter_.stopped() && reason_ != "interrupted") reason_ = "stop";
    rest += filter_.flush();
    if (!rest.empty()) emit(rest);
    result_.stop_reason = std::move(reason_);
    return std::move(result_);
}

bool Answer::emit(const std::string& piece) {
    result_.text += piece;
    return !sink_ || sink_(piece);
}

}  // namespace headkv
