#include "model/gguf_file.h"

#include <fcntl.h>
#include <ggml.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

namespace headkv {

Result<MappedFile> MappedFile::open(const std::filesystem::path& file) {
    const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        return bad_input("cannot open {}: {}", file.string(), std::strerror(errno));
    }
    struct stat status {};
    if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
        ::close(descriptor);
        return bad_input("{} is not a regular file", file.string());
    }
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size == 0) {
        ::close(descriptor);
        return bad_input("{} is empty", file.string());
    }
    void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
    const int reason = errno;
    ::close(descriptor);
    if (data == MAP_FAILED) {
        return failure("cannot map {} into memory: {}", file.string(), std::strerror(reason));
    }
    return MappedFile(static_cast<std::byte*>(data), size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) ::munmap(data_, size_);
}

void MappedFile::drop_pages() const { ::madvise(data_, size_, MADV_DONTNEED); }

namespace {

// Reads little-endian fields and remembers the first one that does not fit.
class Cursor {
public:
    explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}

    bool ok() const { return ok_; }
    std::size_t offset() const { return offset_; }
    std::size_t left() const { return bytes_.size() - offset_; }

    template <class T>
    T read() {
        T value{};
        if (!skip(sizeof(T))) return value;
        std::memcpy(&value, bytes_.data() + offset_ - sizeof(T), sizeof(T));
        return value;
    }

    bool skip(std::uint64_t count) {
        if (!ok_ || count > left()) return ok_ = false;
        offset_ += static_cast<std::size_t>(count);
        return true;
    }

    // A length-prefixed string.
    std::string_view string() {
        const auto length = read<std::uint64_t>();
        if (!skip(length)) return {};
        return {reinterpret_cast<const char*>(bytes_.data() + offset_ - length),
                static_cast<std::size_t>(length)};
    }

private:
    std::span<const std::byte> bytes_;
    std::size_t offset_ = 0;
    bool ok_ = true;
};

// Bytes of a scalar metadata type; 0 for strings, arrays and unknown types.
std::uint64_t scalar_size(std::int32_t type) {
    switch (type) {
        case GGUF_TYPE_UINT8:
        case GGUF_TYPE_INT8:
        case GGUF_TYPE_BOOL:
            return 1;
        case GGUF_TYPE_UINT16:
        case GGUF_TYPE_INT16:
            return 2;
        case GGUF_TYPE_UINT32:
        case GGUF_TYPE_INT32:
        case GGUF_TYPE_FLOAT32:
            return 4;
        case GGUF_TYPE_UINT64:
        case GGUF_TYPE_INT64:
        case GGUF_TYPE_FLOAT64:
            return 8;
        default:
            return 0;
    }
}

bool skip_value(Cursor& cursor, std::int32_t type) {
    if (type == GGUF_TYPE_STRING) {
        cursor.string();
        return cursor.ok();
    }
    if (type != GGUF_TYPE_ARRAY) {
        const auto size = scalar_size(type);
        return size != 0 && cursor.skip(size);
    }
    const auto element = cursor.read<std::int32_t>();
    const auto count = cursor.read<std::uint64_t>();
    if (!cursor.ok()) return false;
    if (element == GGUF_TYPE_STRING) {
        // A string takes at least its length field: an absurd count fails here, before the loop.
        if (count > cursor.left() / sizeof(std::uint64_t)) return false;
        for (std::uint64_t i = 0; i < count && cursor.ok(); ++i) cursor.string();
        return cursor.ok();
    }
    const auto size = scalar_size(element);
    return size != 0 && count <= cursor.left() / size && cursor.skip(count * size);
}

struct TensorEntry {
    std::uint64_t offset = 0, bytes = 0;
    std::string_view name;
};

Result<TensorEntry> read_tensor(Cursor& cursor, std::string_view file) {
    TensorEntry entry;
    entry.name = cursor.string();
    const auto dimensions = cursor.read<std::uint32_t>();
    if (!cursor.ok()) return bad_input("{}: the file ends inside its tensor table", file);
    if (entry.name.empty() || entry.name.size() >= GGML_MAX_NAME) {
        return bad_input("{}: a tensor has a name of {} bytes (1 to {} allowed)", file,
                         entry.name.size(), GGML_MAX_NAME - 1);
    }
    if (dimensions < 1 || dimensions > GGML_MAX_DIMS) {
        return bad_input("{}: tensor {} has {} dimensions (1 to {} allowed)", file, entry.name,
                         dimensions, GGML_MAX_DIMS);
    }
    std::uint64_t elements = 1, row = 0;
    for (std::uint32_t i = 0; i < dimensions; ++i) {
        const auto extent = cursor.read<std::uint64_t>();
        // 2^56 elements are beyond any file; the bound keeps every later product inside 64 bits.
        if (extent == 0 || extent > (std::uint64_t{1} << 56) / elements) {
            return bad_input("{}: tensor {} has an impossible extent {}", file, entry.name, extent);
        }
        if (i == 0) row = extent;
        elements *= extent;
    }
    const auto type = cursor.read<std::int32_t>();
    entry.offset = cursor.read<std::uint64_t>();
    if (!cursor.ok()) return bad_input("{}: the file ends inside its tensor table", file);
    if (type < 0 || type >= GGML_TYPE_COUNT || ggml_blck_size(static_cast<ggml_type>(type)) <= 0 ||
        ggml_type_size(static_cast<ggml_type>(type)) == 0) {
        return bad_input("{}: tensor {} has the unknown type {}", file, entry.name, type);
    }
    const auto block = static_cast<std::uint64_t>(ggml_blck_size(static_cast<ggml_type>(type)));
    if (row % block != 0) {
        return bad_input("{}: rows of tensor {} have {} elements, not a multiple of {}", file,
                         entry.name, row, block);
    }
    entry.bytes = elements / block * ggml_type_size(static_cast<ggml_type>(type));
    return entry;
}

}  // namespace

Result<void> check_gguf(std::span<const std::byte> file, std::string_view name) {
    Cursor cursor(file);
    const auto magic = cursor.read<std::uint32_t>();
    if (!cursor.ok() || magic != 0x46554747U) {
        return bad_input("{} is not a GGUF file (it does not begin with \"GGUF\")", name);
    }
    const auto version = cursor.read<std::uint32_t>();
    const auto tensors = cursor.read<std::uint64_t>();
    const auto pairs = cursor.read<std::uint64_t>();
    if (!cursor.ok()) return bad_input("{}: the file ends inside its header", name);
    if (version != 2 && version != 3) {
        return bad_input("{}: GGUF version {} is not supported (2 and 3 are)", name, version);
    }
    // The smallest pair takes 13 bytes, the smallest tensor entry 33.
    if (pairs > cursor.left() / 13 || tensors > cursor.left() / 33) {
        return bad_input(
            "{}: header claims {} metadata pairs and {} tensors, more than the file holds", name,
            pairs, tensors);
    }
    std::uint64_t alignment = GGUF_DEFAULT_ALIGNMENT;
    for (std::uint64_t i = 0; i < pairs; ++i) {
        const auto key = cursor.string();
        const auto type = cursor.read<std::int32_t>();
        if (cursor.ok() && key == GGUF_KEY_GENERAL_ALIGNMENT) {
            auto peek = cursor;
            if (type == GGUF_TYPE_UINT32) alignment = peek.read<std::uint32_t>();
            if (type != GGUF_TYPE_UINT32 || alignment == 0 || (alignment & (alignment - 1)) != 0) {
                return bad_input("{}: {} must be a power of two", name, key);
            }
        }
        if (!cursor.ok() || key.empty() || !skip_value(cursor, type)) {
            return bad_input("{}: metadata pair {} of {} is damaged or cut off", name, i + 1,
                             pairs);
        }
    }
    std::uint64_t end = 0, data_end = 0;  // with and without the padding of the last tensor
    for (std::uint64_t i = 0; i < tensors; ++i) {
        const auto entry = read_tensor(cursor, name);
        if (!entry) return tl::unexpected(entry.error());
        // GGUF lays tensors one after the other, each padded to the alignment.
        if (entry->offset != end) {
            return bad_input("{}: tensor {} lies at offset {}, expected {}", name, entry->name,
                             entry->offset, end);
        }
        if (entry->bytes > std::numeric_limits<std::uint64_t>::max() / 2 - end - alignment) {
            return bad_input("{}: tensor {} is impossibly large", name, entry->name);
        }
        data_end = end + entry->bytes;
        end += (entry->bytes + alignment - 1) / alignment * alignment;
    }
    const auto start = (cursor.offset() + alignment - 1) / alignment * alignment;
    if (tensors > 0 && start + data_end > file.size()) {
        return bad_input("{} is truncated: {} bytes are missing, fetch the file again", name,
                         start + data_end - file.size());
    }
    return {};
}

void GgufFile::FreeTensors::operator()(ggml_context* context) const { ggml_free(context); }

Result<GgufFile> GgufFile::open(const std::filesystem::path& file) {
    auto map = MappedFile::open(file);
    if (!map) return tl::unexpected(map.error());
    if (auto checked = check_gguf(map->bytes(), file.string()); !checked) {
        return tl::unexpected(checked.error());
    }
    GgufFile result(std::move(*map), file.string());
    ggml_context* tensors = nullptr;
    gguf_init_params params{};
    params.no_alloc = true;
    params.ctx = &tensors;
    result.meta_.reset(gguf_init_from_file(file.c_str(), params));
    result.tensors_.reset(tensors);
    if (!result.meta_ || !tensors) {
        return bad_input("{}: ggml refuses the header (a key or tensor name twice?)",
                         file.string());
    }
    return result;
}

std::optional<std::int64_t> GgufFile::integer(const std::string& key) const {
    const auto id = gguf_find_key(meta_.get(), key.c_str());
    if (id < 0) return std::nullopt;
    switch (gguf_get_kv_type(meta_.get(), id)) {
        case GGUF_TYPE_UINT8:
            return gguf_get_val_u8(meta_.get(), id);
        case GGUF_TYPE_INT8:
            return gguf_get_val_i8(meta_.get(), id);
        case GGUF_TYPE_UINT16:
            return gguf_get_val_u16(meta_.get(), id);
        case GGUF_TYPE_INT16:
            return gguf_get_val_i16(meta_.get(), id);
        case GGUF_TYPE_UINT32:
            return gguf_get_val_u32(meta_.get(), id);
        case GGUF_TYPE_INT32:
            return gguf_get_val_i32(meta_.get(), id);
        case GGUF_TYPE_INT64:
            return gguf_get_val_i64(meta_.get(), id);
        case GGUF_TYPE_UINT64: {
            const auto value = gguf_get_val_u64(meta_.get(), id);
            if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
                return std::nullopt;
            }
            return static_cast<std::int64_t>(value);
        }
        case GGUF_TYPE_BOOL:
            return gguf_get_val_bool(meta_.get(), id) ? 1 : 0;
        default:
            return std::nullopt;
    }
}

std::optional<std::vector<std::int64_t>> GgufFile::integers(const std::string& key) const {
    const auto id = gguf_find_key(meta_.get(), key.c_str());
    if (id < 0 || gguf_get_kv_type(meta_.get(), id) != GGUF_TYPE_ARRAY) return std::nullopt;
    const auto type = gguf_get_arr_type(meta_.get(), id);
    const auto count = gguf_get_arr_n(meta_.get(), id);
    if (type == GGUF_TYPE_INT32) {
        const auto* from = static_cast<const std::int32_t*>(gguf_get_arr_data(meta_.get(), id));
        return std::vector<std::int64_t>(from, from + count);
    }
    if (type == GGUF_TYPE_UINT32) {
        const auto* from = static_cast<const std::uint32_t*>(gguf_get_arr_data(meta_.get(), id));
        return std::vector<std::int64_t>(from, from + count);
    }
    return std::nullopt;
}

std::optional<double> GgufFile::number(const std::string& key) const {
    const auto id = gguf_find_key(meta_.get(), key.c_str());
    if (id < 0) return std::nullopt;
    switch (gguf_get_kv_type(meta_.get(), id)) {
        case GGUF_TYPE_FLOAT32:
            return static_cast<double>(gguf_get_val_f32(meta_.get(), id));
        case GGUF_TYPE_FLOAT64:
            return gguf_get_val_f64(meta_.get(), id);
        default:
            if (const auto whole = integer(key)) return static_cast<double>(*whole);
            return std::nullopt;
    }
}

std::optional<std::string> GgufFile::text(const std::string& key) const {
    const auto id = gguf_find_key(meta_.get(), key.c_str());
    if (id < 0 || gguf_get_kv_type(meta_.get(), id) != GGUF_TYPE_STRING) return std::nullopt;
    return std::string(gguf_get_val_str(meta_.get(), id));
}

const ggml_tensor* GgufFile::tensor(const std::string& tensor_name) const {
    return ggml_get_tensor(tensors_.get(), tensor_name.c_str());
}

std::span<const std::byte> GgufFile::tensor_bytes(const ggml_tensor* tensor) const {
    const auto id = gguf_find_tensor(meta_.get(), ggml_get_name(tensor));
    const auto offset = gguf_get_data_offset(meta_.get()) + gguf_get_tensor_offset(meta_.get(), id);
    return map_.bytes().subspan(offset, ggml_nbytes(tensor));
}

}  // namespace headkv
