// Recall: the full rows of a sequence stay in host memory beside its cache (the archive), so that a
// further turn selects anew from all of them. The cache that decoding reads stays within the
// method's budget.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/compute.h"
#include "engine/prefill.h"
#include "headkv/error.h"
#include "headkv/method.h"

namespace headkv {

// Whether a method has a use for an archive: it looks at attention, or at clusters of keys. Others
// select by position and would bring back nothing.
bool recalls(const Method& method);

// The method of a sequence bound to `tokens` tokens: same recipe, options and mean rows a head.
Result<Method> method_of_turn(const Method& method, const HeadShape& shape, std::int64_t tokens,
                              std::int64_t row_bytes);

// Puts the newest `count` rows of every head of the cache into the archive. Rows of a quantised
// cache go there as they were rounded. Error (failure): out of memory.
Result<void> archive_newest(PrefillTarget& state, std::int64_t count);

// Reads a turn behind the `past` tokens of a sequence with an archive. Its tokens attend to all
// rows of the archive, as a prompt's do to the whole prompt. In each layer the turn's last
// method.needs().queries are scored against all rows, the turn's included, and `method`
// (method_of_turn's) selects. Once the turn has been read, the cache's rows are rebuilt from the
// archive: those of the plan, exactly. Returns the logits after the turn's last token,
// [vocabulary]. Error (failure): out of memory; the sequence can then only be released.
Result<std::vector<float>> recall_turn(const Compute& compute, const Model& model,
                                       const Method& method, PrefillTarget& state,
                                       std::int64_t past, std::span<const Token> turn);

}  // namespace headkv
