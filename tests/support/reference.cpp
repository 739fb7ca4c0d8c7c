#include "support/reference.h"

#include <fmt/format.h>
#include <ggml.h>
#include <gguf.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numbers>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>

#include "support/gemm.h"

namespace headkv::test {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

struct GgufDelete {
    void operator()(gguf_context* context) const { gguf_free(context); }
};
struct GgmlDelete {
    void operator()(ggml_context* context) const { ggml_free(context); }
};

// The file in memory, every tensor by name as float32.
class File {
public:
    explicit File(const std::filesystem::path& path) {
        ggml_context* tensors = nullptr;
        gguf_.reset(gguf_init_from_file(path.c_str(), {.no_alloc = false, .ctx = &tensors}));
        tensors_.reset(tensors);
        if (!gguf_) throw std::runtime_error(fmt::format("{}: not readable", path.string()));
    }

    std::string text(const std::string& key, const std::string& absent) const {
        const std::int64_t id = gguf_find_key(gguf_.get(), key.c_str());
        return id < 0 ? absent : gguf_get_val_str(gguf_.get(), id);
    }

    double number(const std::string& key, std::optional<double> absent = {}) const {
        const std::int64_t id = gguf_find_key(gguf_.get(), key.c_str());
        if (id < 0 && absent) return *absent;
        if (id < 0) throw std::runtime_error(key + " is missing");
        switch (gguf_get_kv_type(gguf_.get(), id)) {
            case GGUF_TYPE_UINT32:
                return gguf_get_val_u32(gguf_.get(), id);
            case GGUF_TYPE_INT32:
                return gguf_get_val_i32(gguf_.get(), id);
            case GGUF_TYPE_UINT64:
                return static_cast<double>(gguf_get_val_u64(gguf_.get(), id));
            case GGUF_TYPE_FLOAT32:
                return gguf_get_val_f32(gguf_.get(), id);
            default:
                throw std::runtime_error(key + " is no number");
        }
    }
    std::int64_t count(const std::string& key, std::optional<double> absent = {}) const {
        return static_cast<std::int64_t>(number(key, absent));
    }

    const ggml_tensor* find(const std::string& name) const {
        return ggml_get_tensor(tensors_.get(), name.c_str());
    }
    const ggml_tensor& tensor(const std::string& name) const {
        if (const ggml_tensor* found = find(name)) return *found;
        throw std::runtime_error(name + " is missing");
    }

    // [ne1][ne0]; empty if absent and `optional`.
    std::vector<float> floats(const std::string& name, bool optional = false) const {
        if (optional && find(name) == nullptr) return {};
        const ggml_tensor& t = tensor(name);
        std::vector<float> values(at(ggml_nelements(&t)));
        if (t.type == GGML_TYPE_F32) {
            std::memcpy(values.data(), t.data, values.size() * sizeof(float));
        } else {
            ggml_get_type_traits(t.type)->to_float(t.data, values.data(), ggml_nelements(&t));
        }
        return values;
    }

    Packed packed(const std::string& name, bool optional = false) const {
        if (optional && find(name) == nullptr) return {};
        const ggml_tensor& t = tensor(name);
        return Packed::from_rows(floats(name), t.ne[1], t.ne[0]);
    }

private:
    std::unique_ptr<gguf_context, GgufDelete> gguf_;
    std::unique_ptr<ggml_context, GgmlDelete> tensors_;
};

// Rotary embedding: angles per position of the pairs, and how pairs lie in a head.
struct Rotary {
    bool halves = false;            // pair (i, i + n/2), else (2i, 2i + 1)
    std::vector<double> frequency;  // [pairs] radians a position
    double magnitude = 1;           // YaRN lengthens q and k

    void apply(float* head, std::int64_t position) const {
        const std::size_t pairs = frequency.size();
        for (std::size_t i = 0; i < pairs; ++i) {
            const double angle = static_cast<double>(position) * frequency[i];
            const auto cosine = static_cast<float>(std::cos(angle) * magnitude);
            const auto sine = static_cast<float>(std::sin(angle) * magnitude);
            float& a = head[halves ? i : 2 * i];
            float& b = head[halves ? i + pairs : 2 * i + 1];
            const float old = a;
            a = old * cosine - b * sine;
            b = old * sine + b * cosine;
        }
    }
};

// YaRN (arXiv 2309.00071): dimensions that turn more than 32 times over the original context keep
// their frequency, those that turn less than once are slowed by the factor, a ramp between.
double yarn_frequency(double plain, std::size_t pair, double pairs, double base, double factor,
                      double original_context) {
    const auto pair_of_turns = [&](double turns) {
        return pairs * std::log(original_context / (turns * 2 * std::numbers::pi)) / std::log(base);
    };
    const double low = std::max(0.0, std::floor(pair_of_turns(32)));
    const double high = std::min(2 * pairs - 1, std::ceil(pair_of_turns(1)));
    const double ramp =
        std::clamp((static_cast<double>(pair) - low) / std::max(0.001, high - low), 0.0, 1.0);
    return plain * (1 - ramp) + plain / factor * ramp;
}

Rotary read_rotary(const File& file, const std::string& family, std::int64_t head_dim) {
    Rotary rotary;
    rotary.halves = family != "llama" && family != "clla";
    const std::int64_t dimensions =
        file.count(family + ".rope.dimension_count", static_cast<double>(head_dim));
    const double base = file.number(family + ".rope.freq_base", 10000.0);
    const std::string scaling = file.text(family + ".rope.scaling.type", "none");
    const double factor = file.number(family + ".rope.scaling.factor", 1.0);
    const std::vector<float> factors = file.floats("rope_freqs.weight", true);
    for (std::int64_t i = 0; i < dimensions / 2; ++i) {
        double frequency =
            std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(dimensions));
        if (!factors.empty()) frequency /= static_cast<double>(factors[at(i)]);
        if (scaling == "linear") frequency /= factor;
        if (scaling == "yarn") {
            frequency =
                yarn_frequency(frequency, at(i), static_cast<double>(dimensions) / 2, base, factor,
                               file.number(family + ".rope.scaling.original_context_length",
                                           file.number(family + ".context_length")));
        }
        rotary.frequency.push_back(frequency);
    }
    if (scaling == "yarn") rotary.magnitude = 1 + 0.1 * std::log(factor);
    return rotary;
}

void softmax(std::span<float> values) {
    const float largest = *std::max_element(values.begin(), values.end());
    float sum = 0;
    for (float& value : values) sum += (value = std::exp(value - largest));
    for (float& value : values) value /= sum;
}

float dot(const float* a, const float* b, std::int64_t n) {
    float sum = 0;
    for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

void add(std::span<float> rows, std::span<const float> bias) {
    if (bias.empty()) return;
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] += bias[i % bias.size()];
}

}  // namespace

struct Reference::Impl {
    struct Layer {
        std::vector<float> attention_norm, ffn_norm;  // [embedding]
        Packed wq, wk, wv, wo, gate, up, down;
        std::vector<float> bq, bk, bv;      // empty: none
        std::vector<float> q_norm, k_norm;  // [head_dim_k], empty: none
    };

    ReferenceShape shape;
    Rotary rotary;
    float epsilon = 1e-5F;
    std::vector<float> embedding;  // [vocabulary][embedding]
    std::vector<float> output_norm;
    Packed output;
    std::vector<Layer> layers;

    explicit Impl(const std::filesystem::path& path) {
        const File file(path);
        const std::string family = file.text("general.architecture", "");
        read_shape(file, family);
        rotary = read_rotary(file, family, shape.head_dim_k);
        epsilon = static_cast<float>(file.number(family + ".attention.layer_norm_rms_epsilon"));
        embedding = file.floats("token_embd.weight");
        output_norm = file.floats("output_norm.weight");
        output = file.packed(file.find("output.weight") ? "output.weight" : "token_embd.weight");
        for (std::int64_t l = 0; l < shape.heads.layers; ++l) layers.push_back(layer(file, l));
    }

    void read_shape(const File& file, const std::string& family) {
        shape.heads.layers = file.count(family + ".block_count");
        shape.heads.query_heads = file.count(family + ".attention.head_count");
        shape.heads.kv_heads = file.count(family + ".attention.head_count_kv",
                                          static_cast<double>(shape.heads.query_heads));
        shape.embedding = file.count(family + ".embedding_length");
        shape.feed_forward = file.count(family + ".feed_forward_length");
        const auto usual =
            static_cast<double>(shape.embedding) / static_cast<double>(shape.heads.query_heads);
        shape.head_dim_k = file.count(family + ".attention.key_length", usual);
        shape.head_dim_v = file.count(family + ".attention.value_length", usual);
        shape.vocabulary = file.tensor("token_embd.weight").ne[1];
    }

    static Layer layer(const File& file, std::int64_t index) {
        const auto name = [&](const char* part) { return fmt::format("blk.{}.{}", index, part); };
        Layer layer;
        layer.attention_norm = file.floats(name("attn_norm.weight"));
        layer.wq = file.packed(name("attn_q.weight"));
        layer.wk = file.packed(name("attn_k.weight"), true);
        layer.wv = file.packed(name("attn_v.weight"), true);
        layer.wo = file.packed(name("attn_output.weight"));
        layer.bq = file.floats(name("attn_q.bias"), true);
        layer.bk = file.floats(name("attn_k.bias"), true);
        layer.bv = file.floats(name("attn_v.bias"), true);
        layer.q_norm = file.floats(name("attn_q_norm.weight"), true);
        layer.k_norm = file.floats(name("attn_k_norm.weight"), true);
        layer.ffn_norm = file.floats(name("ffn_norm.weight"));
        layer.gate = file.packed(name("ffn_gate.weight"));
        layer.up = file.packed(name("ffn_up.weight"));
        layer.down = file.packed(name("ffn_down.weight"));
        return layer;
    }

    std::int64_t group() const { return shape.heads.group(); }
    float scale() const { return 1.0F / std::sqrt(static_cast<float>(shape.head_dim_k)); }

    // RMS norm of rows of weight.size() values.
    std::vector<float> normed(std::span<const float> rows, std::span<const float> weight) const {
        std::vector<float> result(rows.begin(), rows.end());
        norm_in_place(result, weight);
        return result;
    }
    void norm_in_place(std::span<float> rows, std::span<const float> weight) const {
        const std::size_t n = weight.size();
        for (std::size_t row = 0; row < rows.size(); row += n) {
            double squares = 0;
            for (std::size_t i = 0; i < n; ++i) squares += double{rows[row + i]} * rows[row + i];
            const auto factor =
                static_cast<float>(1 / std::sqrt(squares / static_cast<double>(n) + epsilon));
            for (std::size_t i = 0; i < n; ++i) rows[row + i] *= factor * weight[i];
        }
    }

    static std::vector<float> product(const Packed& w, std::span<const float> x) {
        const std::int64_t rows = static_cast<std::int64_t>(x.size()) / w.in();
        std::vector<float> y(at(rows * w.out()));
        multiply_parallel(w, x, y, rows);
        return y;
    }

    struct Qkv {
        std::vector<float> q, k, v;  // [tokens][heads * head_dim], q and k rotated
        std::vector<float> plain_q;  // not rotated
    };
    Qkv qkv(const Layer& layer, std::span<const float> hidden, std::int64_t position) const {
        const std::vector<float> x = normed(hidden, layer.attention_norm);
        Qkv result{product(layer.wq, x), {}, {}, {}};
        if (layer.wk.out() > 0) result.k = product(layer.wk, x);
        // Latent rows: the end of a key is its value. A layer without wk reads another's.
        const auto latent = at(shape.head_dim_k - shape.head_dim_v);
        for (std::size_t row = 0; latent > 0 && row < result.k.size();
             row += at(shape.head_dim_k)) {
            const auto from = result.k.begin() + static_cast<std::ptrdiff_t>(row);
            result.v.insert(result.v.end(), from + static_cast<std::ptrdiff_t>(latent),
                            from + shape.head_dim_k);
        }
        if (layer.wv.out() > 0) result.v = product(layer.wv, x);
        add(result.q, layer.bq);
        add(result.k, layer.bk);
        add(result.v, layer.bv);
        if (!layer.q_norm.empty()) norm_in_place(result.q, layer.q_norm);
        if (!layer.k_norm.empty()) norm_in_place(result.k, layer.k_norm);
        result.plain_q = result.q;
        rotate(result.q, shape.heads.query_heads, position);
        rotate(result.k, shape.heads.kv_heads, position);
        return result;
    }
    void rotate(std::span<float> rows, std::int64_t heads, std::int64_t position) const {
        for (std::size_t head = 0; head * at(shape.head_dim_k) < rows.size(); ++head) {
            rotary.apply(rows.data() + head * at(shape.head_dim_k),
                         position + static_cast<std::int64_t>(head) / heads);
        }
    }

    void feed_forward(const Layer& layer, std::vector<float>& hidden) const {
        const std::vector<float> x = normed(hidden, layer.ffn_norm);
        std::vector<float> gate = product(layer.gate, x);
        const std::vector<float> up = product(layer.up, x);
        for (std::size_t i = 0; i < gate.size(); ++i) {
            gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
        }
        add(hidden, product(layer.down, gate));
    }

    std::vector<float> embed(std::span<const Token> tokens) const {
        std::vector<float> hidden;
        for (const Token token : tokens) {
            const float* row = embedding.data() + token * shape.embedding;
            hidden.insert(hidden.end(), row, row + shape.embedding);
        }
        return hidden;
    }

    // [tokens][heads * dim] -> [heads][rows from `first`][dim]
    static std::vector<float> by_head(std::span<const float> rows, std::int64_t heads,
                                      std::int64_t dim, std::int64_t first) {
        const std::int64_t n = static_cast<std::int64_t>(rows.size()) / (heads * dim);
        std::vector<float> result;
        result.reserve(at(heads * (n - first) * dim));
        for (std::int64_t h = 0; h < heads; ++h) {
            for (std::int64_t t = first; t < n; ++t) {
                const float* row = rows.data() + (t * heads + h) * dim;
                result.insert(result.end(), row, row + dim);
            }
        }
        return result;
    }

    // Causal attention of all tokens: [tokens][query_heads * head_dim_v].
    std::vector<float> attend(std::span<const float> q, const ReferenceRun::Layer& kv,
                              std::int64_t n) const {
        constexpr std::int64_t block = 48;
        const std::int64_t dk = shape.head_dim_k, dv = shape.head_dim_v;
        const std::int64_t heads = shape.heads.query_heads, blocks = (n + block - 1) / block;
        std::vector<Packed> keys, values;
        for (std::int64_t h = 0; h < shape.heads.kv_heads; ++h) {
            keys.push_back(Packed::from_rows({kv.keys.data() + h * n * dk, at(n * dk)}, n, dk));
            values.push_back(
                Packed::from_columns({kv.values.data() + h * n * dv, at(n * dv)}, dv, n));
        }
        std::vector<float> result(at(n * heads * dv));
        parallel_for(heads * blocks, [&](std::int64_t job) {
            const std::int64_t head = job / blocks, first = job % blocks * block;
            const std::int64_t rows = std::min(block, n - first), seen = first + rows;
            std::vector<float> weights(at(rows * seen));
            multiply(keys[at(head / group())], {q.data() + (first * heads + head) * dk, heads * dk,
                                                weights.data(), seen, rows, dk, seen});
            for (std::int64_t r = 0; r < rows; ++r) {
                const std::span<float> row{weights.data() + r * seen, at(seen)};
                for (float& value : row) value *= scale();
                softmax(row.first(at(first + r + 1)));
                std::fill(row.begin() + first + r + 1, row.end(), 0.0F);
            }
            multiply(values[at(head / group())],
                     {weights.data(), seen, result.data() + (first * heads + head) * dv, heads * dv,
                      rows, seen, dv});
        });
        return result;
    }

    ReferenceRun run(std::span<const Token> tokens, const ReferenceOptions& options) const {
        ReferenceRun run;
        run.tokens = static_cast<std::int64_t>(tokens.size());
        run.queries = std::min(options.queries, run.tokens);
        std::vector<float> hidden = embed(tokens);
        for (const Layer& layer : layers) {
            const Qkv x = qkv(layer, hidden, 0);
            ReferenceRun::Layer& out = run.layers.emplace_back();
            out.queries =
                by_head(x.q, shape.heads.query_heads, shape.head_dim_k, run.tokens - run.queries);
            out.plain_queries = by_head(x.plain_q, shape.heads.query_heads, shape.head_dim_k,
                                        run.tokens - run.queries);
            const auto index = run.layers.size() - 1;
            if (!options.owner.empty() && at(options.owner[index]) != index) {
                out.keys = run.layers[at(options.owner[index])].keys;
                out.values = run.layers[at(options.owner[index])].values;
            } else {
                out.keys = by_head(x.k, shape.heads.kv_heads, shape.head_dim_k, 0);
                out.values = by_head(x.v, shape.heads.kv_heads, shape.head_dim_v, 0);
            }
            add(hidden, product(layer.wo, attend(x.q, out, run.tokens)));
            feed_forward(layer, hidden);
        }
        const std::size_t first = options.all_logits ? 0 : hidden.size() - at(shape.embedding);
        run.logits = product(output, normed(std::span(hidden).subspan(first), output_norm));
        return run;
    }

    std::vector<float> attend_cached(std::span<const float> q,
                                     const std::vector<ReferenceCache::Head>& heads) const {
        const std::int64_t dk = shape.head_dim_k, dv = shape.head_dim_v;
        std::vector<float> result(at(shape.heads.query_heads * dv));
        for (std::int64_t h = 0; h < shape.heads.query_heads; ++h) {
            const ReferenceCache::Head& head = heads[at(h / group())];
            const std::vector<float> weights = weights_of(q.data() + h * dk, head.keys);
            for (std::size_t row = 0; row < weights.size(); ++row) {
                for (std::int64_t d = 0; d < dv; ++d) {
                    result[at(h * dv + d)] += weights[row] * head.values[row * at(dv) + at(d)];
                }
            }
        }
        return result;
    }

    std::vector<float> weights_of(const float* query, std::span<const float> keys) const {
        const std::int64_t dk = shape.head_dim_k;
        std::vector<float> weights(keys.size() / at(dk));
        for (std::size_t row = 0; row < weights.size(); ++row) {
            weights[row] = dot(query, keys.data() + row * at(dk), dk) * scale();
        }
        softmax(weights);
        return weights;
    }

    void append(std::vector<ReferenceCache::Head>& heads, const Qkv& x,
                std::int64_t position) const {
        for (std::size_t h = 0; h < heads.size(); ++h) {
            const float* k = x.k.data() + h * at(shape.head_dim_k);
            const float* v = x.v.data() + h * at(shape.head_dim_v);
            heads[h].positions.push_back(static_cast<std::int32_t>(position));
            heads[h].keys.insert(heads[h].keys.end(), k, k + shape.head_dim_k);
            heads[h].values.insert(heads[h].values.end(), v, v + shape.head_dim_v);
        }
    }
};

Reference::Reference(const std::filesystem::path& file) : impl_(std::make_unique<Impl>(file)) {}
Reference::~Reference() = default;
const ReferenceShape& Reference::shape() const { return impl_->shape; }

ReferenceRun Reference::run(std::span<const Token> tokens, const ReferenceOptions& options) const {
    return impl_->run(tokens, options);
}

std::vector<float> Reference::attention(const ReferenceRun& run, std::int64_t layer,
                                        std::int64_t query_head, std::int64_t position,
                                        std::int64_t to) const {
    const std::int64_t dk = impl_->shape.head_dim_k;
    const std::int64_t first = run.tokens - run.queries;
    if (position < first) throw std::runtime_error("this query was not remembered");
    const ReferenceRun::Layer& rows = run.layers[at(layer)];
    const float* query = rows.queries.data() + (query_head * run.queries + position - first) * dk;
    const std::int64_t end = to < 0 ? position + 1 : std::min(to, position + 1);
    const float* keys = rows.keys.data() + query_head / impl_->group() * run.tokens * dk;
    return impl_->weights_of(query, {keys, at(end * dk)});
}

std::vector<float> Reference::turned(std::span<const float> head, std::int64_t position) const {
    std::vector<float> result(head.begin(), head.end());
    impl_->rotary.apply(result.data(), position);
    return result;
}

std::vector<float> Reference::projected(std::int64_t layer, std::int64_t query_head,
                                        std::span<const float> value) const {
    std::vector<float> all(at(impl_->shape.heads.query_heads) * value.size());
    std::copy(value.begin(), value.end(),
              all.begin() + query_head * static_cast<std::int64_t>(value.size()));
    return Impl::product(impl_->layers[at(layer)].wo, all);
}

ReferenceCache Reference::cache(const ReferenceRun& run, const KeepLists& keep) const {
    const ReferenceShape& shape = impl_->shape;
    ReferenceCache cache;
    cache.tokens = run.tokens;
    for (std::size_t l = 0; l < run.layers.size(); ++l) {
        std::vector<ReferenceCache::Head>& heads = cache.heads.emplace_back();
        for (std::int64_t h = 0; h < shape.heads.kv_heads; ++h) {
            ReferenceCache::Head& head = heads.emplace_back();
            for (const std::int32_t position : keep[l][at(h)]) {
                const std::int64_t row = h * run.tokens + position;
                const float* k = run.layers[l].keys.data() + row * shape.head_dim_k;
                const float* v = run.layers[l].values.data() + row * shape.head_dim_v;
                head.positions.push_back(position);
                head.keys.insert(head.keys.end(), k, k + shape.head_dim_k);
                head.values.insert(head.values.end(), v, v + shape.head_dim_v);
            }
        }
    }
    return cache;
}

ReferenceCache Reference::full_cache(const ReferenceRun& run) const {
    std::vector<std::int32_t> all(at(run.tokens));
    std::iota(all.begin(), all.end(), 0);
    const HeadShape& heads = impl_->shape.heads;
    return cache(run, KeepLists(at(heads.layers), {at(heads.kv_heads), all}));
}

std::vector<float> Reference::decode(ReferenceCache& cache, Token token) const {
    std::vector<float> hidden = impl_->embed({&token, 1});
    cache.queries.clear();
    for (std::size_t l = 0; l < impl_->layers.size(); ++l) {
        const Impl::Layer& layer = impl_->layers[l];
        const Impl::Qkv x = impl_->qkv(layer, hidden, cache.tokens);
        const std::size_t owner = cache.owner.empty() ? l : at(cache.owner[l]);
        if (owner == l) impl_->append(cache.heads[l], x, cache.tokens);
        add(hidden, Impl::product(layer.wo, impl_->attend_cached(x.q, cache.heads[owner])));
        impl_->feed_forward(layer, hidden);
        cache.queries.push_back(x.q);
    }
    ++cache.tokens;
    return Impl::product(impl_->output, impl_->normed(hidden, impl_->output_norm));
}

std::vector<float> Reference::attention(const ReferenceCache& cache, std::int64_t layer,
                                        std::int64_t query_head) const {
    const float* query = cache.queries[at(layer)].data() + query_head * impl_->shape.head_dim_k;
    return impl_->weights_of(query, cache.heads[at(layer)][at(query_head / impl_->group())].keys);
}

}  // namespace headkv::test
