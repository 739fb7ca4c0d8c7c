#include "engine/reconstruction.h"

#include <algorithm>
#include <array>
#include <cassert>

#include "headkv/method.h"

namespace headkv {

namespace {

constexpr std::int64_t kPiece = 2000, kLeastPiece = 64;  // tokens
constexpr std::int64_t kReminder = 8;  // tokens in front of a piece that name its place
constexpr std::int64_t kBlock = 32;    // queries whose weights are held at once
constexpr const char* kFirst = "\n\nWrite the text above once more, word for word.";
constexpr const char* kNext =
    "\n\nWrite the next part of the text above once more, word for word. It goes on after";
constexpr const char* kEnd = "\n";

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

std::int64_t tokens_of_block(const AttentionShape& shape) {
    return std::max<std::int64_t>(1, kBlock / shape.heads.group());
}

}  // namespace

Result<std::vector<RepeatPiece>> repeat_pieces(const Tokenizer& tokenizer,
                                               std::span<const Token> prompt,
                                               std::int64_t context) {
    const auto first = tokenizer.encode(kFirst, false, false);
    const auto next = tokenizer.encode(kNext, false, false);
    const auto end = tokenizer.encode(kEnd, false, false);
    const auto tokens = static_cast<std::int64_t>(prompt.size());
    const auto instruction =
        std::max(std::ssize(first), std::ssize(next) + kReminder) + std::ssize(end);
    const auto most = std::min(kPiece, context - tokens - instruction);
    const auto skip = std::min(tokens, kSinkQueries);
    if (most < std::min(kLeastPiece, tokens - skip)) {
        return bad_input(
            "a method that has the model write the prompt again reads it a second time, in pieces "
            "behind itself: a prompt of {} tokens leaves no room for that in the model's context "
            "of {}; shorten it to {}",
            tokens, context, std::max<std::int64_t>(0, context - instruction - kLeastPiece));
    }
    std::vector<RepeatPiece> pieces;
    for (auto begin = skip; begin < tokens; begin += most) {
        RepeatPiece piece{begin, std::min(most, tokens - begin), pieces.empty() ? first : next};
        const auto add = [&](std::span<const Token> more) {
            piece.tokens.insert(piece.tokens.end(), more.begin(), more.end());
        };
        if (!pieces.empty()) {
            const auto before = std::min(kReminder, begin);
            add(prompt.subspan(size(begin - before), size(before)));
        }
        add(end);
        add(prompt.subspan(size(begin), size(piece.count)));
        pieces.push_back(std::move(piece));
    }
    return pieces;
}

ggml_tensor* Reconstruction::score(ggml_context* context, ggml_tensor* q,
                                   std::span<ggml_tensor*> after, const LayerRows& rows,
                                   std::int64_t own, const RepeatPiece& piece,
                                   std::int64_t offset) {
    rows_ = rows;
    own_ = own;
    offset_ = offset;
    begin_ = piece.begin;
    count_ = piece.count;
    next_.store(0);
    std::array<ggml_tensor*, 4> sources{q};
    assert(after.size() < sources.size());
    std::copy(after.begin(), after.end(), sources.begin() + 1);
    const auto block = tokens_of_block(shape_);
    node_ = ggml_custom_4d(context, GGML_TYPE_F32, count_, shape_.heads.kv_heads,
                           (q->ne[2] + block - 1) / block, 1, sources.data(),
                           static_cast<int>(1 + after.size()), compute, GGML_N_TASKS_MAX, this);
    ggml_set_output(node_);  // read once all has been computed
    return node_;
}

// A unit is a block of tokens and a KV head.
void Reconstruction::compute(ggml_tensor* out, int /*thread*/, int /*threads*/, void* data) {
    auto& self = *static_cast<Reconstruction*>(data);
    const auto* q = out->src[0];
    const auto heads = out->ne[1], blocks = out->ne[2];
    const auto block = tokens_of_block(self.shape_);
    for (auto unit = self.next_.fetch_add(1); unit < heads * blocks;
         unit = self.next_.fetch_add(1)) {
        const auto first = unit / heads * block;
        self.run_unit(unit % heads, first, std::min(block, q->ne[2] - first),
                      static_cast<const float*>(q->data),
                      static_cast<float*>(out->data) + unit * out->ne[0]);
    }
}

void Reconstruction::run_unit(std::int64_t head, std::int64_t first, std::int64_t count,
                              const float* q, float* out) const {
    const auto& kernel = kernels::best();
    const auto dim = shape_.dim_k, group = shape_.heads.group();
    const auto sinks = std::min(kSinkQueries, begin_);
    const auto own = offset_ + first + count;  // rows of the piece's own that the last token sees
    const auto stride = sinks + count_ + own;
    thread_local std::vector<float> memory;
    memory.resize(size(count * group * (dim + stride)));
    float* queries = memory.data();
    float* weights = queries + count * group * dim;
    for (std::int64_t i = 0; i < count; ++i) {
        const float* from = q + ((first + i) * shape_.heads.query_heads + head * group) * dim;
        for (std::int64_t d = 0; d < group * dim; ++d) {
            queries[i * group * dim + d] = from[d] * shape_.scale;
        }
    }
    const auto* keys = rows_.keys.data() + head * rows_.head_rows() * dim;
    const auto dot = [&](std::int64_t row, std::int64_t some, std::int64_t column) {
        kernel.dot_rows(queries, count * group, keys + row * dim, some, dim, weights + column,
                        stride);
    };
    dot(0, sinks, 0);
    dot(begin_, count_, sinks);
    dot(own_, own, sinks + count_);
    std::fill_n(out, count_, 0.0F);
    for (std::int64_t i = 0; i < count * group; ++i) {
        float* row = weights + i * stride;
        kernel.softmax(row, stride - count + i / group + 1);
        for (std::int64_t j = 0; j < count_; ++j) out[j] = std::max(out[j], row[sinks + j]);
    }
}

void Reconstruction::take() {
    const auto* from = static_cast<const float*>(node_->data);
    const auto heads = node_->ne[1];
    for (std::int64_t unit = 0; unit < heads * node_->ne[2]; ++unit, from += count_) {
        float* to = best_.data() + unit % heads * tokens_ + begin_;
        for (std::int64_t j = 0; j < count_; ++j) to[j] = std::max(to[j], from[j]);
    }
}

void Reconstruction::clear() { std::fill(best_.begin(), best_.end(), 0.0F); }

}  // namespace headkv
