#include "model/random_model.h"

#include <fcntl.h>
#include <ggml-cpp.h>
#include <gguf.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <system_error>
#include <thread>
#include <utility>

#include "headkv/tokenizer.h"
#include "model/architecture.h"
#include "model/cores.h"
#include "text/unicode.h"

namespace headkv {

namespace {

constexpr std::array kTypes = {
    GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q8_0,   GGML_TYPE_Q6_K,
    GGML_TYPE_Q5_K, GGML_TYPE_Q5_1, GGML_TYPE_Q5_0, GGML_TYPE_Q4_K,   GGML_TYPE_Q4_1,
    GGML_TYPE_Q4_0, GGML_TYPE_Q3_K, GGML_TYPE_Q2_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS,
};

// --- random numbers

constexpr std::uint64_t kStep = 0x9E3779B97F4A7C15ULL;

// splitmix64: any 64 bits to 64 that look random, so a counter is all the state there is.
constexpr std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
}

// The sum of eight bytes, less its mean: close to a normal distribution (up to 4.9 deviations),
// without a logarithm that another machine's library rounds otherwise.
constexpr std::int32_t deviate(std::uint64_t bits) {
    constexpr std::uint64_t even = 0x00FF00FF00FF00FFULL, ones = 0x0001000100010001ULL;
    const std::uint64_t pairs = (bits & even) + ((bits >> 8) & even);
    return static_cast<std::int32_t>((pairs * ones) >> 48) - 8 * 255 / 2;
}
const double kDeviation = std::sqrt(8 * (256.0 * 256.0 - 1) / 12);  // of deviate(): 209

// Elements `first`, `first` + 1, ... of a tensor.
void draw(const RandomModel::Tensor& tensor, std::int64_t first, std::span<float> values) {
    std::uint64_t counter = tensor.key + static_cast<std::uint64_t>(first) * kStep;
    const std::int32_t mean = tensor.mean;
    const float scale = tensor.scale;
    for (float& value : values) {
        counter += kStep;
        value = static_cast<float>(mean + deviate(mix(counter))) * scale;
    }
}

// --- vocabulary

constexpr std::array kControl = {"<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>",
                                 "<|im_end|>"};
constexpr std::int64_t kBytes = 256;

// a, b, ..., z, aa, ab, ...: number 1 on. Every word but the letters is a lower number's word and a
// letter, so that one merge a word reaches it.
std::string word(std::int64_t number) {
    std::string text;
    for (; number > 0; number = (number - 1) / 26) {
        text.insert(text.begin(), static_cast<char>('a' + (number - 1) % 26));
    }
    return text;
}

struct Words {
    std::vector<std::string> tokens, merges;
    std::vector<std::int32_t> types;
};

// The bytes, words with a space before them, control tokens. Lower-case text becomes about one
// token a short word, as with a trained vocabulary.
Words make_words(std::int64_t size) {
    const auto& bytes = byte_alphabet();
    const std::string& space = bytes[' '];
    Words words;
    words.tokens.assign(bytes.begin(), bytes.end());
    const std::int64_t count = size - kBytes - std::ssize(kControl);
    for (std::int64_t number = 1; number <= count; ++number) {
        const std::string text = word(number);
        words.tokens.push_back(space + text);
        words.merges.push_back(space + text.substr(0, text.size() - 1) + " " + text.back());
    }
    words.types.assign(words.tokens.size(), static_cast<std::int32_t>(TokenType::normal));
    for (const char* text : kControl) {
        words.tokens.emplace_back(text);
        words.types.push_back(static_cast<std::int32_t>(TokenType::control));
    }
    return words;
}

std::vector<const char*> pointers(const std::vector<std::string>& texts) {
    std::vector<const char*> result;
    result.reserve(texts.size());
    for (const auto& text : texts) result.push_back(text.c_str());
    return result;
}

}  // namespace

// --- the plan

class RandomModelPlanner {
public:
    RandomModelPlanner(const ModelShape& shape, const Traits& traits, ggml_type type,
                       std::uint64_t seed)
        : shape_(shape), traits_(traits), type_(type), seed_(seed), gguf_(gguf_init_empty()) {}

    Result<RandomModel> plan() {
        if (auto checked = check(); !checked) return tl::unexpected(checked.error());
        metadata();
        tokenizer();
        weights();
        if (auto added = describe_weights(); !added) return tl::unexpected(added.error());
        return std::move(model_);
    }

private:
    Result<void> check() const {
        const auto least = kBytes + std::ssize(kControl) + 1;
        if (shape_.vocabulary < least) {
            return bad_input("a vocabulary of {}: give at least {}, bytes and special tokens",
                             shape_.vocabulary, least);
        }
        const std::int64_t block = ggml_blck_size(type_);
        const std::pair<const char*, std::int64_t> rows[] = {
            {"the embedding", shape_.embedding},
            {"query heads times their dimension", shape_.query_heads * shape_.head_dim},
            {"the feed-forward size", shape_.feed_forward},
        };
        for (const auto& [what, size] : rows) {
            if (size % block != 0) {
                return bad_input(
                    "{} is {}, which blocks of {} values ({}) do not divide; take another type",
                    what, size, block, ggml_type_name(type_));
            }
        }
        return {};
    }

    void text(const std::string& key, const std::string& value) {
        gguf_set_val_str(gguf_.get(), key.c_str(), value.c_str());
    }
    void number(const char* name, std::int64_t value) {
        gguf_set_val_u32(gguf_.get(), fmt::format("{}.{}", shape_.architecture, name).c_str(),
                         static_cast<std::uint32_t>(value));
    }
    void real(const char* name, float value) {
        gguf_set_val_f32(gguf_.get(), fmt::format("{}.{}", shape_.architecture, name).c_str(),
                         value);
    }

    void metadata() {
        text("general.architecture", std::string(shape_.architecture));
        text("general.name", fmt::format("random {}", shape_.name));
        text("general.description", fmt::format("random weights, seed {}", seed_));
        number("block_count", shape_.layers);
        number("context_length", shape_.context);
        number("embedding_length", shape_.embedding);
        number("feed_forward_length", shape_.feed_forward);
        number("attention.head_count", shape_.query_heads);
        number("attention.head_count_kv", shape_.kv_heads);
        number("attention.key_length", shape_.head_dim);
        number("attention.value_length", shape_.head_dim);
        number("rope.dimension_count", shape_.head_dim);
        real("attention.layer_norm_rms_epsilon", shape_.norm_epsilon);
        real("rope.freq_base", shape_.rope_base);
    }

    void tokenizer() {
        const Words words = make_words(shape_.vocabulary);
        const bool qwen = shape_.architecture.starts_with("qwen");
        auto tokens = pointers(words.tokens), merges = pointers(words.merges);
        gguf_context* gguf = gguf_.get();
        text("tokenizer.ggml.model", "gpt2");
        text("tokenizer.ggml.pre", qwen ? "qwen2" : "llama-bpe");
        gguf_set_arr_str(gguf, "tokenizer.ggml.tokens", tokens.data(), tokens.size());
        gguf_set_arr_data(gguf, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, words.types.data(),
                          words.types.size());
        gguf_set_arr_str(gguf, "tokenizer.ggml.merges", merges.data(), merges.size());
        const auto first = static_cast<std::uint32_t>(words.tokens.size() - kControl.size());
        gguf_set_val_u32(gguf, "tokenizer.ggml.bos_token_id", first);
        gguf_set_val_u32(gguf, "tokenizer.ggml.eos_token_id", first + 1);
        gguf_set_val_u32(gguf, "tokenizer.ggml.padding_token_id", first + 1);
        gguf_set_val_u32(gguf, "tokenizer.ggml.eot_token_id", first + 3);
        gguf_set_val_bool(gguf, "tokenizer.ggml.add_bos_token", !qwen);
        text("tokenizer.chat_template",
             "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
             "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
             "{% if add_generation_prompt %}{{'<|im_start|>assistant\\n'}}{% endif %}");
    }

    // Gains as trained models have them: a product is about as large as its input, softmax inputs
    // have a deviation of about 2 so that heads prefer some rows, logits as well; what the layers
    // add to the hidden states sums up to about 1, however many there are.
    void weights() {
        const std::int64_t query = shape_.query_heads * shape_.head_dim;
        const std::int64_t rows = shape_.kv_heads * shape_.head_dim;
        const std::int64_t wide = shape_.embedding, inner = shape_.feed_forward;
        const double back = std::sqrt(1.0 / static_cast<double>(2 * shape_.layers));
        matrix("token_embd.weight", wide, shape_.vocabulary, 2);
        norm("output_norm.weight", wide, 1);
        if (!shape_.tied) matrix("output.weight", wide, shape_.vocabulary, 2);
        for (std::int64_t layer = 0; layer < shape_.layers; ++layer) {
            const auto name = [&](const char* part) {
                return fmt::format("blk.{}.{}", layer, part);
            };
            const bool normed = traits_.qk_norm == Presence::required;
            norm(name("attn_norm.weight"), wide, 1);
            matrix(name("attn_q.weight"), wide, query, 1.4);
            matrix(name("attn_k.weight"), wide, rows, 1.4);
            matrix(name("attn_v.weight"), wide, rows, 1);
            matrix(name("attn_output.weight"), query, wide, back);
            if (traits_.qkv_bias == Presence::required) {
                vector(name("attn_q.bias"), query, 0, 0.1);
                vector(name("attn_k.bias"), rows, 0, 0.1);
                vector(name("attn_v.bias"), rows, 0, 0.1);
            }
            if (normed) norm(name("attn_q_norm.weight"), shape_.head_dim, 1.5);
            if (normed) norm(name("attn_k_norm.weight"), shape_.head_dim, 1.5);
            norm(name("ffn_norm.weight"), wide, 1);
            matrix(name("ffn_gate.weight"), wide, inner, 1);
            matrix(name("ffn_up.weight"), wide, inner, 1);
            matrix(name("ffn_down.weight"), inner, wide, 1.5 * back);
        }
    }

    void matrix(std::string name, std::int64_t in, std::int64_t rows, double gain) {
        const double deviation = gain / std::sqrt(static_cast<double>(in));
        add({.name = std::move(name), .type = type_, .in = in, .rows = rows}, 0, deviation);
    }
    void vector(std::string name, std::int64_t size, double mean, double deviation) {
        add({.name = std::move(name), .in = size, .rows = 1}, mean, deviation);
    }
    void norm(std::string name, std::int64_t size, double mean) {
        vector(std::move(name), size, mean, kDeviation / 2048);  // 0.1, and exact in binary
    }

    void add(RandomModel::Tensor tensor, double mean, double deviation) {
        const double scale = deviation / kDeviation;
        tensor.scale = static_cast<float>(scale);
        tensor.mean = static_cast<std::int32_t>(std::lround(mean / scale));
        tensor.key = mix(mix(seed_ + kStep) + model_.tensors_.size());
        model_.parameters_ += tensor.in * tensor.rows;
        model_.tensors_.push_back(std::move(tensor));
    }

    Result<void> describe_weights() {
        const std::size_t count = model_.tensors_.size();
        ggml_init_params params{(count + 1) * ggml_tensor_overhead(), nullptr, true};
        const ggml_context_ptr context(ggml_init(params));
        if (!context) return failure("not enough memory for the model's header");
        for (const auto& tensor : model_.tensors_) {
            ggml_tensor* described =
                tensor.rows == 1
                    ? ggml_new_tensor_1d(context.get(), tensor.type, tensor.in)
                    : ggml_new_tensor_2d(context.get(), tensor.type, tensor.in, tensor.rows);
            ggml_set_name(described, tensor.name.c_str());
            gguf_add_tensor(gguf_.get(), described);
        }
        model_.header_.resize(gguf_get_meta_size(gguf_.get()));
        gguf_get_meta_data(gguf_.get(), model_.header_.data());
        const auto alignment = static_cast<std::int64_t>(gguf_get_alignment(gguf_.get()));
        const std::int64_t start = std::ssize(model_.header_);
        for (std::size_t i = 0; i < count; ++i) {
            const auto id = static_cast<std::int64_t>(i);
            auto& tensor = model_.tensors_[i];
            tensor.offset =
                start + static_cast<std::int64_t>(gguf_get_tensor_offset(gguf_.get(), id));
            const auto size = static_cast<std::int64_t>(gguf_get_tensor_size(gguf_.get(), id));
            model_.bytes_ = tensor.offset + (size + alignment - 1) / alignment * alignment;
        }
        return {};
    }

    const ModelShape& shape_;
    const Traits& traits_;
    ggml_type type_;
    std::uint64_t seed_;
    gguf_context_ptr gguf_;
    RandomModel model_;
};

Result<RandomModel> RandomModel::plan(const ModelShape& shape, ggml_type type, std::uint64_t seed) {
    if (std::find(kTypes.begin(), kTypes.end(), type) == kTypes.end()) {
        return bad_input("matrices of type {} cannot be written", ggml_type_name(type));
    }
    if (auto checked = check_shape(shape); !checked) return tl::unexpected(checked.error());
    const auto traits = find_architecture(shape.architecture);
    if (!traits) return tl::unexpected(traits.error());
    return RandomModelPlanner(shape, **traits, type, seed).plan();
}

std::span<const ggml_type> random_model_types() { return kTypes; }

Result<ggml_type> find_random_model_type(std::string_view name) {
    const auto same = [](char a, char b) {
        return std::tolower(static_cast<unsigned char>(a)) ==
               std::tolower(static_cast<unsigned char>(b));
    };
    std::string known;
    for (const ggml_type type : kTypes) {
        const std::string_view text = ggml_type_name(type);
        if (std::equal(text.begin(), text.end(), name.begin(), name.end(), same)) return type;
        known += (known.empty() ? "" : ", ") + std::string(text);
    }
    return bad_input("unknown type '{}'; these can be written: {}", name.substr(0, 64), known);
}

// --- the file

namespace {

// A part of one tensor that a thread draws, quantises and writes in one go.
struct Part {
    const RandomModel::Tensor* tensor = nullptr;
    std::int64_t row = 0, rows = 0;
    std::int64_t row_bytes() const {
        return static_cast<std::int64_t>(ggml_row_size(tensor->type, tensor->in));
    }
};

std::vector<Part> cut(const RandomModel& model) {
    constexpr std::int64_t values = 1 << 18;  // 1 MiB of floats: the second cache holds it
    std::vector<Part> parts;
    for (const auto& tensor : model.tensors()) {
        const std::int64_t step = std::max<std::int64_t>(1, values / tensor.in);
        for (std::int64_t row = 0; row < tensor.rows; row += step) {
            parts.push_back({&tensor, row, std::min(step, tensor.rows - row)});
        }
    }
    return parts;
}

// The temporary file: gone with this object unless it was kept.
class Draft {
public:
    explicit Draft(const std::filesystem::path& target) : name_(target.string() + ".XXXXXX") {
        descriptor_ = ::mkostemp(name_.data(), O_CLOEXEC);
    }
    ~Draft() {
        if (descriptor_ < 0) return;
        ::close(descriptor_);
        if (!kept_) ::unlink(name_.c_str());
    }
    Draft(const Draft&) = delete;
    Draft& operator=(const Draft&) = delete;

    bool open() const { return descriptor_ >= 0; }
    // The functions below return 0 or an errno.
    int resize(std::int64_t bytes) const {
        return ::ftruncate(descriptor_, bytes) == 0 ? 0 : errno;
    }
    int write(std::span<const std::byte> bytes, std::int64_t offset) const {
        while (!bytes.empty()) {
            const ssize_t count = ::pwrite(descriptor_, bytes.data(), bytes.size(), offset);
            if (count < 0 && errno == EINTR) continue;
            if (count < 0) return errno;
            if (count == 0) return EIO;
            bytes = bytes.subspan(static_cast<std::size_t>(count));
            offset += count;
        }
        return 0;
    }
    int flush() const { return ::fdatasync(descriptor_) == 0 ? 0 : errno; }
    int keep(const std::filesystem::path& target) {
        const mode_t mask = ::umask(0);
        ::umask(mask);
        // A file system without permissions refuses this; the content is what counts.
        if (::fchmod(descriptor_, 0666 & ~mask) != 0) errno = 0;
        if (::rename(name_.c_str(), target.c_str()) != 0) return errno;
        kept_ = true;
        return 0;
    }

private:
    std::string name_;
    int descriptor_ = -1;
    bool kept_ = false;
};

// Threads take parts in turn until all are written or one has to stop.
class PartsWriter {
public:
    PartsWriter(const RandomModel& model, const Draft& draft)
        : draft_(draft), parts_(cut(model)), total_(model.bytes()) {}

    // 0 or an errno; ECANCELED: the caller wants no more.
    int write(int threads, const std::function<bool(std::int64_t, std::int64_t)>& progress) {
        std::vector<std::jthread> helpers;
        const auto most = std::min<std::int64_t>(threads, std::ssize(parts_));
        try {
            for (std::int64_t i = 1; i < most; ++i) helpers.emplace_back([this] { work({}); });
        } catch (const std::system_error&) {
            // No more threads to be had: those that started, and this one, do it all.
        }
        work(progress);
        helpers.clear();  // this thread ran out of parts; the others finish theirs
        return error_;
    }

private:
    void work(const std::function<bool(std::int64_t, std::int64_t)>& progress) {
        try {
            std::vector<float> values;
            std::vector<std::byte> bytes;
            for (std::size_t i = next_++; i < parts_.size() && error_ == 0; i = next_++) {
                if (const int failed = write_part(parts_[i], values, bytes)) stop(failed);
                if (progress && !progress(done_, total_)) stop(ECANCELED);
            }
        } catch (const std::bad_alloc&) {
            stop(ENOMEM);
        }
    }

    int write_part(const Part& part, std::vector<float>& values, std::vector<std::byte>& bytes) {
        const auto& tensor = *part.tensor;
        const std::int64_t size = part.rows * part.row_bytes();
        values.resize(static_cast<std::size_t>(part.rows * tensor.in));
        bytes.resize(static_cast<std::size_t>(size));
        draw(tensor, part.row * tensor.in, values);
        ggml_quantize_chunk(tensor.type, values.data(), bytes.data(), 0, part.rows, tensor.in,
                            nullptr);
        if (const int failed = draft_.write(bytes, tensor.offset + part.row * part.row_bytes())) {
            return failed;
        }
        // To the disk as it goes: one flush of everything at the end would take as long as all
        // before it, with no progress to see and deaf to ctrl-C.
        constexpr std::int64_t step = 256 << 20;
        const std::int64_t before = done_.fetch_add(size);
        return before / step != (before + size) / step ? draft_.flush() : 0;
    }

    void stop(int reason) {
        int none = 0;
        error_.compare_exchange_strong(none, reason);
    }

    const Draft& draft_;
    const std::vector<Part> parts_;
    const std::int64_t total_;
    std::atomic<std::size_t> next_{0};
    std::atomic<std::int64_t> done_{0};
    std::atomic<int> error_{0};
};

tl::unexpected<Error> cannot_write(const std::filesystem::path& file, int code) {
    return bad_input("cannot write {}: {}; choose another place for the output", file.string(),
                     std::generic_category().message(code));
}

Result<void> check_target(const std::filesystem::path& file, bool overwrite) {
    std::error_code error;
    const auto status = std::filesystem::status(file, error);
    if (std::filesystem::is_directory(status)) {
        return bad_input("cannot write {}: it is a folder", file.string());
    }
    if (!std::filesystem::exists(status)) return {};
    // A rename would put a file in a device's or pipe's place.
    if (!std::filesystem::is_regular_file(status)) {
        return bad_input("cannot write {}: it is no regular file", file.string());
    }
    if (!overwrite) return bad_input("{} exists already; --force overwrites it", file.string());
    return {};
}

Result<void> check_space(const std::filesystem::path& file, std::int64_t bytes) {
    const auto folder = file.has_parent_path() ? file.parent_path() : std::filesystem::path(".");
    struct statvfs status = {};
    if (::statvfs(folder.c_str(), &status) != 0) return cannot_write(file, errno);
    const double free = static_cast<double>(status.f_bavail) * static_cast<double>(status.f_frsize);
    if (static_cast<double>(bytes) > free) {
        constexpr double gib = 1 << 30;
        return bad_input("cannot write {}: it takes {:.1f} GiB, {:.1f} GiB are free there",
                         file.string(), static_cast<double>(bytes) / gib, free / gib);
    }
    return {};
}

}  // namespace

Result<void> write_random_model(const RandomModel& model, const std::filesystem::path& file,
                                const WriteOptions& options) {
    if (auto checked = check_target(file, options.overwrite); !checked) return checked;
    std::error_code error;
    // The file itself where the path is a link to it, so that the link stays one.
    auto target = std::filesystem::canonical(file, error);
    if (error) target = file;
    if (auto checked = check_space(target, model.bytes()); !checked) return checked;

    Draft draft(target);
    if (!draft.open()) return cannot_write(file, errno);
    int failed = draft.resize(model.bytes());
    if (failed == 0) failed = draft.write(model.header(), 0);
    PartsWriter writer(model, draft);
    if (failed == 0) {
        failed =
            writer.write(options.threads > 0 ? options.threads : usable_cores(), options.progress);
    }
    if (failed == 0) failed = draft.flush();
    // Whoever said stop during the last flush still gets nothing.
    if (failed == 0 && options.progress && !options.progress(model.bytes(), model.bytes())) {
        failed = ECANCELED;
    }
    if (failed == 0) failed = draft.keep(target);
    if (failed == ECANCELED) {
        return tl::unexpected(Error{ErrorKind::interrupted,
                                    fmt::format("interrupted; {} was not written", file.string())});
    }
    if (failed != 0) return cannot_write(file, failed);
    return {};
}

}  // namespace headkv
