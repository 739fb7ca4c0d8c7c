#include "engine/head_places.h"

#include <algorithm>
#include <numeric>

#include "engine/fixture.h"
#include "support/random.h"

namespace headkv::test {
namespace {

std::int64_t sum(const std::vector<std::int64_t>& values) {
    return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

// Every head's rows lie in its window, no two heads share one, and all within the memory.
void expect_sound(const HeadPlaces& places, std::int64_t slots) {
    EXPECT_EQ(places.window % kRowBlock, 0);
    std::int64_t end = 0;
    const auto heads = std::ssize(places.heads);
    for (std::int64_t at = 0; at < heads * slots; ++at) {
        const auto head = static_cast<std::size_t>(at % heads);
        const auto begin = at * places.stride + places.first[head];
        EXPECT_GE(places.first[head], 0);
        EXPECT_GE(begin, end) << "head " << at;
        end = begin + places.capacity[head];
        EXPECT_LE(end, at * places.stride + places.window);
        EXPECT_GE(places.capacity[head], places.kept[head]);
    }
    EXPECT_LE(end, places.rows(slots));
}

// Of one to nine heads, now and then one that is much larger.
std::vector<std::int64_t> rows_of_heads(Random& random) {
    std::vector<std::int64_t> rows(static_cast<std::size_t>(1 + random.below(9)));
    for (auto& own : rows) own = 1 + random.below(random.below(4) == 0 ? 9000 : 900);
    return rows;
}

TEST(HeadPlaces, OneCallHasEveryHeadInLittleMoreThanItsRows) {
    Random random(3);
    for (int repeat = 0; repeat < 200; ++repeat) {
        const auto rows = rows_of_heads(random);
        const auto placed = place_heads(rows, {}, 17);
        ASSERT_EQ(placed.size(), 1);
        const auto& places = placed[0];
        expect_sound(places, 1);
        EXPECT_EQ(places.kept, rows);
        const auto total = sum(rows) + 17 * std::ssize(rows);
        EXPECT_EQ(sum(places.capacity), total);
        EXPECT_LE(places.rows(1), (total + kRowBlock + std::ssize(rows)) * 33 / 32 + 1);
    }
}

TEST(HeadPlaces, EqualHeadsLieAsTheyAlwaysDid) {
    const auto places = place_heads(std::vector<std::int64_t>(8, 1024), {}, 128).at(0);
    EXPECT_EQ(places.stride, 1152);
    EXPECT_EQ(places.window, 1280);
    EXPECT_EQ(places.first, std::vector<std::int64_t>(8, 0));
    EXPECT_EQ(places.rows(1), 8 * 1152 + 128);
}

// As place_heads() says it: of all strides tried those that take little memory, of these the one
// with the smallest windows, and of these the one with the least memory.
TEST(HeadPlaces, NoOtherStrideIsBetter) {
    struct Candidate {
        std::int64_t stride, window, memory;
    };
    Random random(5);
    for (int repeat = 0; repeat < 100; ++repeat) {
        const auto rows = rows_of_heads(random);
        const auto heads = std::ssize(rows);
        const auto places = place_heads(rows, {}, 17).at(0);
        const auto most = *std::max_element(rows.begin(), rows.end()) + 17;
        std::vector<Candidate> all;
        for (std::int64_t stride = 1; stride <= most; ++stride) {
            if (stride % std::max<std::int64_t>(1, most / 256) != 0 && stride != most) continue;
            std::int64_t window = 0, end = 0;
            for (std::int64_t i = 0; i < heads; ++i) {
                end = std::max(end, i * stride) + rows[static_cast<std::size_t>(i)] + 17;
                window = std::max(window, end - i * stride);
            }
            window = whole_blocks(window);
            all.push_back({stride, window, (heads - 1) * stride + window});
        }
        const auto least = std::ranges::min_element(all, {}, &Candidate::memory)->memory;
        const auto memory = places.rows(1);
        EXPECT_LE(memory, least / 32 * 33);
        for (const auto& other : all) {
            if (other.memory > least / 32 * 33) continue;
            EXPECT_GE(std::pair(other.window, other.memory), std::pair(places.window, memory))
                << "stride " << other.stride << " instead of " << places.stride;
        }
    }
}

// A large head among small ones: windows as large as it, not as all of them.
TEST(HeadPlaces, AWindowIsLittleLargerThanTheLargestHead) {
    for (std::size_t large = 0; large < 8; ++large) {
        std::vector<std::int64_t> rows(8, 384);
        rows[large] = 3200;
        const auto places = place_heads(rows, {}, 128).at(0);
        expect_sound(places, 1);
        EXPECT_LE(places.window, 3328 + kRowBlock) << large;
    }
}

TEST(HeadPlaces, GroupsFollowEachOtherSlotBySlot) {
    const std::vector<std::int64_t> rows{100, 700, 90, 600, 100};
    const auto placed = place_heads(rows, {kRowBlock, 2}, 100);
    ASSERT_EQ(placed.size(), 2);
    for (const auto& places : placed) {
        expect_sound(places, 3);
        EXPECT_EQ(places.rows(3), 3 * std::ssize(places.heads) * places.window);
    }
    EXPECT_EQ(placed[0].heads, (std::vector<std::int32_t>{1, 3}));
    EXPECT_EQ(placed[0].kept, (std::vector<std::int64_t>{700, 600}));
    EXPECT_EQ(placed[0].window, 1024);
    EXPECT_EQ(placed[1].window, kRowBlock);
}

TEST(HeadPlaces, ADeviceTakesExactPlansWhereOneCallIsCheap) {
    const HeadShape shape{.layers = 4, .query_heads = 32, .kv_heads = 8};
    constexpr std::int64_t row = 512, prompt = 131072;
    const auto layout = [&](const std::string& name, double rows, std::int64_t slots) {
        const auto method = Method::create(method_config(name, rows, shape), shape, prompt, row);
        EXPECT_TRUE(method) << (method ? "" : method.error().message);
        return method ? device_layout(*method, row, slots) : RowLayout{};
    };
    const RowLayout exact, grouped{kRowBlock, 2};
    for (const char* name : {"snapkv", "headkv-r2", "ada-kv"}) {
        EXPECT_EQ(layout(name, 1024, 1), exact) << name;
    }
    EXPECT_EQ(layout("snapkv", 1024, 2), grouped);
    EXPECT_EQ(layout("ada-kv", 1024, 2), exact) << "each sequence has a cache of its own";
    EXPECT_EQ(layout("ada-kv", 32768, 1), grouped) << "much would be read in vain";
    EXPECT_EQ(layout("duo-attention", 32768, 1), grouped);
    EXPECT_EQ(layout("full", 0, 1), exact);
}

}  // namespace
}  // namespace headkv::test
