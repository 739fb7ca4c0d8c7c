// Plans for caches that store a layer's heads in few groups of equal capacity (DESIGN: devices
// whose kernels want rows in blocks and few calls a layer).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "headkv/method.h"

namespace headkv {

// The plan nearest to `plan` that a layout can hold without padding: every head gets a multiple of
// layout.multiple rows, no layer has more than layout.groups different capacities, and the total is
// the largest such one that is not above plan's. "Nearest": fewest rows that heads were given and
// do not get; what a head gets beyond is used, not wasted. Where the total is below three blocks
// a head, or a block is above `limit` rows (the prompt), the plan stays as it is and its groups are
// padded.
Plan fit_to_layout(const Plan& plan, const RowLayout& layout, std::int64_t limit);

// A layer's heads by capacity.
struct HeadGroup {
    std::int64_t rows = 0;            // the most that one of its heads holds of the prompt
    std::vector<std::int32_t> heads;  // sorted
};
// At most layout.groups groups (0: as many as there are capacities) over heads of these rows, so
// that the padding is least. Largest first.
std::vector<HeadGroup> group_heads(std::span<const std::int64_t> rows, const RowLayout& layout);

}  // namespace headkv
