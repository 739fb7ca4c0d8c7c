#include "headkv/model.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <deque>
#include <map>
#include <new>
#include <span>

#include "model/cores.h"
#include "model/model_impl.h"
#include "model/vocabulary.h"

namespace headkv {

namespace {

// Independent of the quantisation: RMS-norm vectors stay f32 in every file of a model and differ
// between models and fine-tunes. So head scores measured on one quantisation serve the others.
std::string fingerprint(const GgufFile& file, const Hyper& hyper) {
    std::string bytes(hyper.traits->name);
    for (const std::int64_t count :
         {hyper.shape.layers, hyper.shape.query_heads, hyper.shape.kv_heads, hyper.embedding,
          hyper.feed_forward, hyper.vocabulary}) {
        bytes += fmt::format(",{}", count);
    }
    for (std::int64_t layer = 0; layer < hyper.shape.layers; ++layer) {
        for (const char* part : {"attn_norm", "ffn_norm"}) {
            const auto* tensor = file.tensor(fmt::format("blk.{}.{}.weight", layer, part));
            if (tensor == nullptr) continue;
            const auto data = file.tensor_bytes(tensor);
            bytes.append(reinterpret_cast<const char*>(data.data()), data.size());
        }
    }
    return fmt::format("{:016x}", XXH64(bytes.data(), bytes.size(), 0));
}

// Whether the device multiplies a matrix of this type when it lies in a buffer of this type.
bool supports_product(ggml_backend_dev_t device, ggml_backend_buffer_type_t buffer_type,
                      ggml_type type, std::int64_t in, std::int64_t out) {
    ggml_init_params params{4 * ggml_tensor_overhead(), nullptr, true};
    const ggml_context_ptr context(ggml_init(params));
    const ggml_backend_buffer_ptr buffer(ggml_backend_buft_alloc_buffer(buffer_type, 0));
    if (!context || !buffer) return false;
    ggml_tensor* weight = ggml_new_tensor_2d(context.get(), type, in, out);
    ggml_tensor* input = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, in, 512);
    ggml_tensor* product = ggml_mul_mat(context.get(), weight, input);
    weight->buffer = buffer.get();
    return ggml_backend_dev_supports_op(device, product);
}

// Whether the device takes single rows of a matrix of this type.
bool supports_rows(ggml_backend_dev_t device, ggml_type type, std::int64_t in, std::int64_t out) {
    ggml_init_params params{4 * ggml_tensor_overhead(), nullptr, true};
    const ggml_context_ptr context(ggml_init(params));
    if (!context) return false;
    ggml_tensor* matrix = ggml_new_tensor_2d(context.get(), type, in, out);
    ggml_tensor* rows = ggml_new_tensor_1d(context.get(), GGML_TYPE_I32, 1);
    return ggml_backend_dev_supports_op(device, ggml_get_rows(context.get(), matrix, rows));
}

// Places the weights of one stage: matrices in the first extra buffer type of the device that
// supports their product, everything else as it lies in the mapped file (CPU) or in the device's
// own memory.
class Loader {
public:
    Loader(const GgufFile& file, StageWeights& stage, const LoadOptions& options)
        : stage_(stage), file_(file) {
        default_type_ = ggml_backend_dev_buffer_type(stage.device);
        join_ = options.join.value_or(!ggml_backend_buft_is_host(default_type_));
        if (!options.extra_buffers) return;
        const auto registry = ggml_backend_dev_backend_reg(stage.device);
        const auto get_extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
            ggml_backend_reg_get_proc_address(registry, "ggml_backend_dev_get_extra_bufts"));
        if (get_extra == nullptr) return;
        for (auto* type = get_extra(stage.device); type != nullptr && *type != nullptr; ++type) {
            extra_types_.push_back(*type);
        }
    }

    // [in, out]; `gathered` matrices are read by rows as well and stay in the plain layout. With
    // `whole` it is these rows of that matrix, from `above` on.
    Matrix matrix(const std::string& name, std::int64_t in, std::int64_t out, Presence presence,
                  bool gathered = false, ggml_tensor* whole = nullptr, std::int64_t above = 0) {
        const auto* found = find(name, presence, {in, out, 1, 1});
        if (found == nullptr) return {};
        if (!supports_product(stage_.device, default_type_, found->type, in, out)) {
            complain(fmt::format("{}: tensor {} has type {}, which {} cannot multiply",
                                 file_.name(), name, ggml_type_name(found->type),
                                 ggml_backend_dev_name(stage_.device)));
            return {};
        }
        Matrix result;
        result.tensor = whole != nullptr
                            ? place_in(found, whole, above)
                            : place(found, gathered ? default_type_ : best_type(found));
        result.file = file_.tensor_bytes(found);
        result.file_type = found->type;
        result.in = in;
        result.out = out;
        return result;
    }

    struct Part {
        std::string name;
        std::int64_t out;
        Matrix& to;
    };

    // Matrices [in, out] of the same columns. Returns all as one, [in, sum of out], if they are to
    // be joined, have one type and no better layout than the plain one.
    Matrix matrices(std::initializer_list<Part> parts, std::int64_t in) {
        Matrix whole;
        whole.in = in;
        const auto* first = file_.tensor(parts.begin()->name);
        bool join = join_ && first != nullptr && best_type(first) == default_type_;
        for (const Part& part : parts) {
            const auto* found = file_.tensor(part.name);
            join = join && found != nullptr && found->type == first->type;
            whole.out += part.out;
        }
        if (join) {
            whole.file_type = first->type;
            whole.tensor = ggml_new_tensor_2d(context_for(joined_), first->type, in, whole.out);
        }
        std::int64_t above = 0;
        for (const Part& part : parts) {
            part.to = matrix(part.name, in, part.out, Presence::required, false,
                             join ? whole.tensor : nullptr, above);
            above += part.out;
        }
        return join ? whole : Matrix{};
    }

    // The same matrix for products alone: a second copy where there is a better layout for them, as
    // the rows that are read of the mapped file are few.
    Matrix for_products(const Matrix& gathered) {
        const auto* found = file_.tensor(ggml_get_name(gathered.tensor));
        auto* type = best_type(found);
        if (type == default_type_) return gathered;
        Matrix result = gathered;
        result.tensor = place(found, type);
        return result;
    }

    ggml_tensor* vector(const std::string& name, std::int64_t size, Presence presence) {
        const auto* found = find(name, presence, {size, 1, 1, 1});
        if (found == nullptr) return nullptr;
        if (found->type != GGML_TYPE_F32) {
            complain(fmt::format("{}: tensor {} has type {}, expected f32", file_.name(), name,
                                 ggml_type_name(found->type)));
            return nullptr;
        }
        return place(found, default_type_);
    }

    // Allocates the buffers and fills them.
    Result<void> finish() {
        if (!complaint_.empty()) return bad_input("{}", complaint_);
        for (auto& [type, pending] : pending_) {
            const bool mapped = type == default_type_ && ggml_backend_buft_is_host(type) &&
                                std::all_of(pending.tensors.begin(), pending.tensors.end(),
                                            [&](const auto& pair) { return aligned(pair.second); });
            if (mapped) {
                use_mapping(pending);
            } else if (auto copied = copy(type, pending); !copied) {
                return copied;
            }
        }
        if (joined_.context == nullptr) return {};
        return copy(default_type_, joined_);
    }

private:
    struct Pending {
        ggml_context* context = nullptr;
        std::vector<std::pair<ggml_tensor*, const ggml_tensor*>> tensors;  // ours, the file's
    };

    const ggml_tensor* find(const std::string& name, Presence presence,
                            const std::array<std::int64_t, 4>& shape) {
        const auto* found = file_.tensor(name);
        if (found == nullptr) {
            if (presence == Presence::required) {
                complain(fmt::format("{}: tensor {} is missing", file_.name(), name));
            }
            return nullptr;
        }
        if (!std::equal(shape.begin(), shape.end(), found->ne)) {
            complain(fmt::format("{}: tensor {} has shape {}x{}x{}x{}, expected {}x{}",
                                 file_.name(), name, found->ne[0], found->ne[1], found->ne[2],
                                 found->ne[3], shape[0], shape[1]));
            return nullptr;
        }
        return found;
    }

    // The first extra buffer type that supports products with the file's matrix.
    ggml_backend_buffer_type_t best_type(const ggml_tensor* found) const {
        const auto best = std::find_if(extra_types_.begin(), extra_types_.end(), [&](auto* extra) {
            return supports_product(stage_.device, extra, found->type, found->ne[0], found->ne[1]);
        });
        return best == extra_types_.end() ? default_type_ : *best;
    }

    ggml_context* context_for(Pending& pending) {
        if (pending.context == nullptr) {
            // A joined matrix stands beside at least two of the file.
            const auto most = 2 * static_cast<std::size_t>(gguf_get_n_tensors(file_.meta()));
            ggml_init_params params{(most + 1) * ggml_tensor_overhead(), nullptr, true};
            stage_.contexts.emplace_back(ggml_init(params));
            pending.context = stage_.contexts.back().get();
        }
        return pending.context;
    }

    static ggml_tensor* add(Pending& pending, ggml_tensor* tensor, const ggml_tensor* found) {
        ggml_set_name(tensor, ggml_get_name(found));
        pending.tensors.emplace_back(tensor, found);
        return tensor;
    }

    ggml_tensor* place(const ggml_tensor* found, ggml_backend_buffer_type_t type) {
        auto& pending = pending_[type];
        return add(pending, ggml_dup_tensor(context_for(pending), found), found);
    }

    ggml_tensor* place_in(const ggml_tensor* found, ggml_tensor* whole, std::int64_t above) {
        const auto row = whole->nb[1];
        return add(joined_,
                   ggml_view_2d(context_for(joined_), whole, found->ne[0], found->ne[1], row,
                                static_cast<std::size_t>(above) * row),
                   found);
    }

    bool aligned(const ggml_tensor* found) const {
        const auto address = reinterpret_cast<std::uintptr_t>(file_.tensor_bytes(found).data());
        return address % ggml_backend_buft_get_alignment(default_type_) == 0;
    }

    void use_mapping(Pending& pending) {
        const auto bytes = file_.map().bytes();
        // ggml takes a plain pointer; the mapping is read-only and weights are never written.
        auto* base = const_cast<std::byte*>(bytes.data());  // NOLINT
        stage_.buffers.emplace_back(ggml_backend_cpu_buffer_from_ptr(base, bytes.size()));
        for (auto& [tensor, found] : pending.tensors) {
            auto* data = const_cast<std::byte*>(file_.tensor_bytes(found).data());  // NOLINT
            ggml_backend_tensor_alloc(stage_.buffers.back().get(), tensor, data);
            stage_.bytes += static_cast<std::int64_t>(ggml_nbytes(found));
        }
    }

    Result<void> copy(ggml_backend_buffer_type_t type, Pending& pending) {
        stage_.buffers.emplace_back(
            ggml_backend_alloc_ctx_tensors_from_buft(pending.context, type));
        auto* buffer = stage_.buffers.back().get();
        if (buffer == nullptr) {
            return failure("{}: not enough memory for the weights ({})", file_.name(),
                           ggml_backend_buft_name(type));
        }
        ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        stage_.bytes += static_cast<std::int64_t>(ggml_backend_buffer_get_size(buffer));
        for (auto& [tensor, found] : pending.tensors) {
            ggml_backend_tensor_set(tensor, file_.tensor_bytes(found).data(), 0,
                                    ggml_nbytes(found));
        }
        return {};
    }

    void complain(std::string message) {
        if (complaint_.empty()) complaint_ = std::move(message);
    }

    StageWeights& stage_;
    const GgufFile& file_;
    ggml_backend_buffer_type_t default_type_ = nullptr;
    std::vector<ggml_backend_buffer_type_t> extra_types_;
    std::map<ggml_backend_buffer_type_t, Pending> pending_;
    Pending joined_;  // views of joined matrices, in the default buffer type
    bool join_ = false;
    std::string complaint_;
};

LayerWeights load_layer(Loader& loader, const Hyper& hyper, std::int64_t layer) {
    const auto name = [layer](const char* part) { return fmt::format("blk.{}.{}", layer, part); };
    const auto need = Presence::required;
    const auto q_size = hyper.shape.query_heads * hyper.head_dim_k;
    const auto k_size = hyper.shape.kv_heads * hyper.head_dim_k;
    const auto v_size = hyper.shape.kv_heads * hyper.head_dim_v;
    const auto o_size = hyper.shape.query_heads * hyper.head_dim_v;
    LayerWeights weights;
    weights.attention_norm = loader.vector(name("attn_norm.weight"), hyper.embedding, need);
    if (hyper.traits->latent) {
        weights.wq = loader.matrix(name("attn_q.weight"), hyper.embedding, q_size, need);
        if (!hyper.share || hyper.share->owns(layer)) {
            weights.wk = loader.matrix(name("attn_k.weight"), hyper.embedding, k_size, need);
        }
    } else {
        weights.qkv = loader.matrices({{name("attn_q.weight"), q_size, weights.wq},
                                       {name("attn_k.weight"), k_size, weights.wk},
                                       {name("attn_v.weight"), v_size, weights.wv}},
                                      hyper.embedding);
    }
    weights.wo = loader.matrix(name("attn_output.weight"), o_size, hyper.embedding, need);
    if (const auto bias = hyper.traits->qkv_bias; bias != Presence::never) {
        weights.bq = loader.vector(name("attn_q.bias"), q_size, bias);
        weights.bk = loader.vector(name("attn_k.bias"), k_size, bias);
        weights.bv = loader.vector(name("attn_v.bias"), v_size, bias);
    }
    if (const auto norm = hyper.traits->qk_norm; norm != Presence::never) {
        weights.q_norm = loader.vector(name("attn_q_norm.weight"), hyper.head_dim_k, norm);
        weights.k_norm = loader.vector(name("attn_k_norm.weight"), hyper.head_dim_k, norm);
    }
    weights.ffn_norm = loader.vector(name("ffn_norm.weight"), hyper.embedding, need);
    weights.gate_up = loader.matrices({{name("ffn_gate.weight"), hyper.feed_forward, weights.gate},
                                       {name("ffn_up.weight"), hyper.feed_forward, weights.up}},
                                      hyper.embedding);
    weights.down =
        loader.matrix(name("ffn_down.weight"), hyper.feed_forward, hyper.embedding, need);
    return weights;
}

Result<void> load_weights(Model::Impl& model, const LoadOptions& options) {
    const auto& hyper = model.hyper;
    auto& weights = model.weights;
    std::deque<Loader> loaders;
    for (StageWeights& stage : model.stages) {
        auto& loader = loaders.emplace_back(*model.file, stage, options);
        if (&stage == &model.stages.front()) {
            weights.token_embedding = loader.matrix("token_embd.weight", hyper.embedding,
                                                    hyper.vocabulary, Presence::required, true);
        }
        if (&stage == &model.stages.back()) {
            weights.output_norm =
                loader.vector("output_norm.weight", hyper.embedding, Presence::required);
            weights.output = loader.matrix("output.weight", hyper.embedding, hyper.vocabulary,
                                           Presence::optional);
            if (!weights.output && model.stages.size() > 1) {  // the embedding lies elsewhere
                weights.output = loader.matrix("token_embd.weight", hyper.embedding,
                                               hyper.vocabulary, Presence::required);
            } else if (!weights.output && weights.token_embedding) {
                weights.output = loader.for_products(weights.token_embedding);
            }
        }
        if (stage.layers == 0) continue;
        auto* factors =
            loader.vector("rope_freqs.weight", hyper.rope.dimensions / 2, Presence::optional);
        for (auto layer = stage.first; layer < stage.first + stage.layers; ++layer) {
            weights.layers.push_back(load_layer(loader, hyper, layer));
            weights.layers.back().rope_factors = factors;
        }
    }
    for (Loader& loader : loaders) {
        if (auto done = loader.finish(); !done) return done;
    }
    return {};
}

std::string name_of(ggml_backend_dev_t device) {
    std::string name = ggml_backend_dev_name(device);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
    return name;
}

DeviceMemory memory_of(ggml_backend_dev_t device) {
    std::size_t free = 0, total = 0;
    ggml_backend_dev_memory(device, &free, &total);
    return {name_of(device), ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_GPU,
            static_cast<std::int64_t>(free), static_cast<std::int64_t>(total)};
}

Result<ggml_backend_dev_t> find_device(const std::string& name) {
    if (name == "auto" || name == "cpu") {
        auto* device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        if (device == nullptr) return failure("this ggml has no CPU backend");
        return device;
    }
    if (name == "cuda") {
        auto* device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU);
        if (device != nullptr) return device;
        if (ggml_backend_reg_by_name("CUDA") != nullptr) {
            return bad_input(
                "--device cuda: no GPU was found, or its driver is too old for this ggml's CUDA "
                "(nvidia-smi tells both); use --device cpu");
        }
        return bad_input("--device cuda: this ggml was built without CUDA; use --device cpu");
    }
    std::string known = "auto, cpu, cuda";
    for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        auto* device = ggml_backend_dev_get(i);
        if (name_of(device) == name) return device;
        if (name_of(device) != "cpu") known += ", " + name_of(device);
    }
    return bad_input("--device {}: unknown (here are {})", name, known);
}

// The stages that are asked for, or one of all layers.
Result<std::vector<StageWeights>> find_stages(const LoadOptions& options, std::int64_t layers) {
    auto asked = options.stages;
    if (asked.empty()) asked.push_back({options.device, layers});
    std::vector<StageWeights> stages;
    std::int64_t first = 0;
    for (const Stage& stage : asked) {
        auto device = find_device(stage.device);
        if (!device) return tl::unexpected(device.error());
        const bool inner = &stage != &asked.front() && &stage != &asked.back();
        if (stage.layers < (inner ? 1 : 0)) {
            return bad_input("{} layers on {}: give 1 or more", stage.layers, stage.device);
        }
        stages.push_back({*device, first, stage.layers, 0, {}, {}});
        first += stage.layers;
    }
    if (first == layers) return stages;
    return bad_input("the stages have {} layers, the model {}", first, layers);
}

// What a device cannot do for the embedding, the CPU does, in a stage of its own.
void embed_where_supported(std::vector<StageWeights>& stages, const GgufFile& file) {
    const auto* found = file.tensor("token_embd.weight");
    auto* cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (found == nullptr || cpu == nullptr ||
        supports_rows(stages[0].device, found->type, found->ne[0], found->ne[1])) {
        return;
    }
    StageWeights front;
    front.device = cpu;
    stages.insert(stages.begin(), std::move(front));
}

// The N of "blk.N.", or -1.
std::int64_t layer_of(std::string_view name) {
    constexpr std::string_view prefix = "blk.";
    if (!name.starts_with(prefix)) return -1;
    name.remove_prefix(prefix.size());
    std::int64_t layer = -1;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
    return error == std::errc() && end != name.data() + name.size() && *end == '.' ? layer : -1;
}

// All that a header says.
ModelInfo info_of(const GgufFile& file, const Hyper& hyper, const std::filesystem::path& path) {
    ModelInfo info;
    info.path = path.string();
    info.name = file.text("general.name").value_or(path.stem().string());
    info.architecture = hyper.traits->name;
    info.shape = hyper.shape;
    info.embedding = hyper.embedding;
    info.head_dim_k = hyper.head_dim_k;
    info.head_dim_v = hyper.head_dim_v;
    info.feed_forward = hyper.feed_forward;
    info.vocabulary = hyper.vocabulary;
    info.context = hyper.context;
    info.share = hyper.share;
    info.row_bytes = (hyper.head_dim_k + hyper.head_dim_v) * 2;
    info.fingerprint = fingerprint(file, hyper);
    const bool tied = file.tensor("output.weight") == nullptr;
    info.layer_bytes.assign(static_cast<std::size_t>(hyper.shape.layers), 0);
    for (std::int64_t i = 0; i < gguf_get_n_tensors(file.meta()); ++i) {
        const std::string_view name = gguf_get_tensor_name(file.meta(), i);
        const auto* tensor = file.tensor(std::string(name));
        if (tensor == nullptr) continue;
        const auto bytes = static_cast<std::int64_t>(ggml_nbytes(tensor));
        info.weight_bytes += bytes;
        if (name == "token_embd.weight") info.embedding_bytes = bytes;
        if (name == "output.weight" || name == "output_norm.weight") info.output_bytes += bytes;
        // Elsewhere the name is checked: here another number is no layer's.
        if (const auto layer = layer_of(name); layer >= 0 && layer < hyper.shape.layers) {
            info.layer_bytes[static_cast<std::size_t>(layer)] += bytes;
        }
        if (name == "token_embd.weight" && !tied) continue;
        info.step_bytes += bytes;
        if (tensor->ne[1] > 1) info.step_weights += ggml_nelements(tensor);
    }
    if (tied) info.output_bytes += info.embedding_bytes;
    return info;
}

void describe_stages(ModelInfo& info, std::span<const StageWeights> stages) {
    for (const StageWeights& stage : stages) {
        const auto name = name_of(stage.device);
        const bool known =
            std::ranges::find(info.stages, name, &Stage::device) != info.stages.end();
        if (!known) info.device += (info.device.empty() ? "" : "+") + name;
        info.stages.push_back({name, stage.layers, stage.bytes});
    }
}

Result<std::shared_ptr<const Model>> load_checked(
    const std::filesystem::path& path, const LoadOptions& options,
    std::unique_ptr<Model::Impl> model,
    std::shared_ptr<const Model> (*wrap)(std::unique_ptr<Model::Impl>)) {
    if (auto device = find_device(options.device); !device) return tl::unexpected(device.error());
    if (options.threads < 0 || options.threads > 4096) {
        return bad_input("{} threads: give 1 to 4096, or 0 for one per core", options.threads);
    }
    auto file = GgufFile::open(path);
    if (!file) return tl::unexpected(file.error());
    model->file = std::make_unique<GgufFile>(std::move(*file));
    const auto hyper = read_hyper(*model->file);
    if (!hyper) return tl::unexpected(hyper.error());
    model->hyper = *hyper;

    auto vocabulary = read_vocabulary(model->file->meta());
    if (!vocabulary) return bad_input("{}: {}", path.string(), vocabulary.error().message);
    auto tokenizer = Tokenizer::create(std::move(*vocabulary));
    if (!tokenizer) return bad_input("{}: {}", path.string(), tokenizer.error().message);
    if (tokenizer->size() > hyper->vocabulary) {
        return bad_input("{}: {} tokens but only {} embedding rows", path.string(),
                         tokenizer->size(), hyper->vocabulary);
    }
    model->tokenizer = std::make_unique<Tokenizer>(std::move(*tokenizer));

    auto& info = model->info;
    info = info_of(*model->file, *hyper, path);
    info.threads = options.threads > 0 ? options.threads : usable_cores();
    auto stages = find_stages(options, hyper->shape.layers);
    if (!stages) return tl::unexpected(stages.error());
    model->stages = std::move(*stages);
    embed_where_supported(model->stages, *model->file);
    if (auto loaded = load_weights(*model, options); !loaded) {
        return tl::unexpected(loaded.error());
    }
    describe_stages(info, model->stages);
    return wrap(std::move(model));
}

}  // namespace

Model::Model(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Model::~Model() = default;

const ModelInfo& Model::info() const { return impl_->info; }
const Tokenizer& Model::tokenizer() const { return *impl_->tokenizer; }

Result<ModelInfo> read_model_info(const std::filesystem::path& path) {
    const auto file = GgufFile::open(path);
    if (!file) return tl::unexpected(file.error());
    const auto hyper = read_hyper(*file);
    if (!hyper) return tl::unexpected(hyper.error());
    return info_of(*file, *hyper, path);
}

Result<DeviceMemory> device_memory(const std::string& name) {
    const auto device = find_device(name);
    if (!device) return tl::unexpected(device.error());
    return memory_of(*device);
}

std::vector<DeviceMemory> gpus() {
    std::vector<DeviceMemory> result;
    for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        auto memory = memory_of(ggml_backend_dev_get(i));
        if (memory.own) result.push_back(std::move(memory));
    }
    return result;
}

Result<std::shared_ptr<const Model>> Model::load(const std::filesystem::path& file,
                                                 const LoadOptions& options) {
    try {
        return load_checked(file, options, std::make_unique<Impl>(),
                            [](std::unique_ptr<Impl> impl) -> std::shared_ptr<const Model> {
                                return std::shared_ptr<const Model>(new Model(std::move(impl)));
                            });
    } catch (const std::bad_alloc&) {
        return failure("{}: not enough memory to load the model", file.string());
    }
}

}  // namespace headkv
