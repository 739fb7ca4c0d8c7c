// The selection of one prompt; rows of all layers compete where the recipe allocates globally.
#include <algorithm>
#include <limits>
#include <tuple>

#include "headkv/method.h"
#include "method/top_k.h"

namespace headkv {

PromptSelection::PromptSelection(Method method)
    : method_(std::move(method)),
      recent_(std::min(method_.prompt_, method_.recent_rows(0))),
      protect_(std::min(method_.prompt_ - recent_, method_.protected_rows())) {}

std::vector<std::vector<std::int32_t>> PromptSelection::next(std::int64_t layer,
                                                             const LayerView& view) {
    cuts_.clear();
    merged_.clear();
    if (method_.full_ || method_.recipe_.allocate != AllocateStep::global || !method_.owns(layer)) {
        auto choice = method_.choose_layer(layer, view);
        merged_ = std::move(choice.merged);
        return std::move(choice.kept);
    }
    const auto heads = static_cast<std::size_t>(method_.shape_.kv_heads);
    const std::int64_t n = method_.prompt_;
    const auto values = method_.values_of(layer, view);
    const auto seconds = method_.second_values_of(view);
    const auto& options = method_.config_.options;
    std::vector<std::uint8_t> classes;
    if (method_.rows_have_classes()) {
        classes = token_classes(view, method_.shape_, n, method_.protected_rows(),
                                method_.class_rows(options.frequent),
                                method_.class_rows(options.local), options.group_reduce);
    }
    const std::size_t positions = values.size() / heads;
    const double recovery = options.recovery;
    const bool enough = method_.recipe_.score == ScoreStep::token_classes && recovery < 1;
    const auto newest = static_cast<std::size_t>(layer);
    layers_.resize(static_cast<std::size_t>(method_.shape_.layers));
    layers_[newest].resize(heads);
    for (std::size_t head = 0; head < heads; ++head) {
        auto& rivals = layers_[newest][head];
        rivals.reserve(static_cast<std::size_t>(n - recent_ - protect_));
        for (std::int64_t position = protect_; position < n - recent_; ++position) {
            const auto at = head * positions + static_cast<std::size_t>(position);
            Rival rival{lowest_if_nan(values[at]), seconds.empty() ? 0 : lowest_if_nan(seconds[at]),
                        static_cast<std::int32_t>(position),
                        classes.empty() ? kAnyRow : classes[at]};
            if (method_.marked(position)) {
                rival.value = std::numeric_limits<float>::infinity();  // no other value is
            } else if (enough && !(static_cast<double>(rival.value) > 1 - recovery)) {
                continue;  // the cheaper classes hold enough
            }
            rivals.push_back(rival);
        }
    }
    recent_seconds_.resize(layers_.size());
    for (std::size_t head = 0; head < heads && !seconds.empty(); ++head) {
        const auto end = seconds.begin() + static_cast<std::ptrdiff_t>((head + 1) * positions);
        recent_seconds_[newest].insert(recent_seconds_[newest].end(), end - recent_, end);
    }
    const Plan& plan = method_.plan_;
    const std::int64_t owners =
        method_.config_.share ? method_.config_.share->owners() : plan.layers;
    keep_best(plan.total() - owners * plan.heads * (recent_ + protect_), newest);

    std::vector<std::vector<std::int32_t>> kept(heads);
    for (std::size_t head = 0; head < heads; ++head) {
        for (std::int64_t i = 0; i < protect_; ++i) {
            kept[head].push_back(static_cast<std::int32_t>(i));
        }
        for (const Rival& rival : layers_[newest][head]) kept[head].push_back(rival.position);
        for (std::int64_t i = n - recent_; i < n; ++i) {
            kept[head].push_back(static_cast<std::int32_t>(i));
        }
    }
    return kept;
}

std::vector<HeadClasses> PromptSelection::classes() const {
    std::vector<HeadClasses> result;
    if (!method_.rows_have_classes()) return result;
    const auto heads = static_cast<std::size_t>(method_.shape_.kv_heads);
    const auto queries = static_cast<float>(method_.prompt_);
    result.resize(static_cast<std::size_t>(method_.shape_.layers) * heads);
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
        for (std::size_t head = 0; head < layers_[layer].size(); ++head) {
            HeadClasses& own = result[layer * heads + head];
            own.last = 0;
            own.attention.resize(static_cast<std::size_t>(protect_));  // stay whatever they have
            for (const Rival& rival : layers_[layer][head]) {
                own.attention.push_back(rival.second * queries);
                if (!method_.marked(rival.position)) {
                    own.last = std::max(own.last, rival.token_class);
                }
            }
            for (std::int64_t i = 0; i < recent_; ++i) {
                const auto at =
                    head * static_cast<std::size_t>(recent_) + static_cast<std::size_t>(i);
                own.attention.push_back(lowest_if_nan(recent_seconds_[layer][at]) * queries);
            }
        }
    }
    return result;
}

// Drops all rivals but the `count` best, and says in cuts_ which layers but `newest` lost some.
// Ties: higher second value, lower position, then lower layer and head. That is one order of all
// rows, so a row that was dropped would never have come back.
void PromptSelection::keep_best(std::int64_t count, std::size_t newest) {
    std::vector<float> all, scratch;
    for (const auto& layer : layers_) {
        for (const auto& head : layer) {
            for (const Rival& rival : head) all.push_back(rival.value);
        }
    }
    if (static_cast<std::int64_t>(all.size()) <= count) return;
    const Threshold threshold = top_k_threshold(all, count, scratch);

    // Of the rows that are as good as the last one that stays, those up to this one stay.
    // -second, position, layer, head
    using Place = std::tuple<float, std::int32_t, std::size_t, std::size_t>;
    const auto place = [](const Rival& rival, std::size_t layer, std::size_t head) {
        return Place(-rival.second, rival.position, layer, head);
    };
    std::vector<Place> tied;
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
        for (std::size_t head = 0; head < layers_[layer].size(); ++head) {
            for (const Rival& rival : layers_[layer][head]) {
                if (rival.value == threshold.value) tied.push_back(place(rival, layer, head));
            }
        }
    }
    const auto ties = static_cast<std::ptrdiff_t>(threshold.ties);
    if (ties > 0) std::nth_element(tied.begin(), tied.begin() + (ties - 1), tied.end());
    const auto stays = [&](const Rival& rival, std::size_t layer, std::size_t head) {
        if (rival.value != threshold.value) return rival.value > threshold.value;
        return ties > 0 && place(rival, layer, head) <= tied[static_cast<std::size_t>(ties - 1)];
    };

    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
        const bool earlier = layer != newest;
        bool lost = false;
        Cut cut{static_cast<std::int64_t>(layer), {}};
        for (std::size_t head = 0; head < layers_[layer].size(); ++head) {
            auto& rivals = layers_[layer][head];
            const std::int64_t before = std::ssize(rivals);
            std::vector<std::int32_t> stay;
            for (std::int64_t i = 0; earlier && i < protect_; ++i) {
                stay.push_back(static_cast<std::int32_t>(i));
            }
            std::size_t left = 0;
            for (std::size_t i = 0; i < rivals.size(); ++i) {
                if (!stays(rivals[i], layer, head)) continue;
                rivals[left++] = rivals[i];
                if (!earlier) continue;
                stay.push_back(static_cast<std::int32_t>(protect_ + static_cast<std::int64_t>(i)));
            }
            rivals.resize(left);
            for (std::int64_t i = 0; earlier && i < recent_; ++i) {
                stay.push_back(static_cast<std::int32_t>(protect_ + before + i));
            }
            lost = lost || std::ssize(rivals) < before;
            cut.stay.push_back(std::move(stay));
        }
        if (earlier && lost) cuts_.push_back(std::move(cut));
    }
}

}  // namespace headkv
