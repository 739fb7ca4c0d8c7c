// A GGUF file, mapped and checked: after open() every count, string, shape and offset is known to
// lie inside the file, so that ggml's reader cannot be led astray.
#pragma once

#include <gguf.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "headkv/error.h"

struct ggml_context;

namespace headkv {

// Read-only mapping of a whole file.
class MappedFile {
public:
    static Result<MappedFile> open(const std::filesystem::path& file);
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    ~MappedFile();
    std::span<const std::byte> bytes() const { return {data_, size_}; }
    // The kernel may take the pages back (they are read again when touched).
    void drop_pages() const;

private:
    MappedFile(std::byte* data, std::size_t size) : data_(data), size_(size) {}
    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

// Structure check of a GGUF header (format: ggml's docs/gguf.md, versions 2 and 3).
Result<void> check_gguf(std::span<const std::byte> file, std::string_view name);

class GgufFile {
public:
    static Result<GgufFile> open(const std::filesystem::path& file);

    const std::string& name() const { return name_; }
    const gguf_context* meta() const { return meta_.get(); }
    const MappedFile& map() const { return map_; }

    // Metadata by key; empty if absent or of another kind. Integers of any width are taken.
    std::optional<std::int64_t> integer(const std::string& key) const;
    std::optional<double> number(const std::string& key) const;
    std::optional<std::string> text(const std::string& key) const;
    // An array of i32 or u32.
    std::optional<std::vector<std::int64_t>> integers(const std::string& key) const;

    // A tensor's description (type, ne, name); null if absent. Owned by this object.
    const ggml_tensor* tensor(const std::string& tensor_name) const;
    std::span<const std::byte> tensor_bytes(const ggml_tensor* tensor) const;

private:
    struct FreeMeta {
        void operator()(gguf_context* context) const { gguf_free(context); }
    };
    struct FreeTensors {
        void operator()(ggml_context* context) const;
    };
    GgufFile(MappedFile map, std::string name) : map_(std::move(map)), name_(std::move(name)) {}
    MappedFile map_;
    std::string name_;
    std::unique_ptr<gguf_context, FreeMeta> meta_;
    std::unique_ptr<ggml_context, FreeTensors> tensors_;
};

}  // namespace headkv
