// Reads the vocabulary out of a GGUF file's metadata.
#pragma once

#include "gguf.h"
#include "headkv/error.h"
#include "headkv/tokenizer.h"

namespace headkv {

// Every type is checked before use. Errors (bad_input): missing keys, keys of another type, ids
// that do not fit an id. Lengths and ranges are left to Tokenizer::create.
Result<Vocabulary> read_vocabulary(const gguf_context* file);

}  // namespace headkv
