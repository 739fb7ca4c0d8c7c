// Types of stored rows: names both ways, bytes of a row, and the dims that they refuse.
#include <gtest/gtest.h>

#include "headkv/method.h"

namespace headkv {
namespace {

TEST(StoreTypes, NamesGoBothWays) {
    for (const auto keys : {StoreStep::f16, StoreStep::q8_0, StoreStep::q4_0}) {
        for (const auto values : {StoreStep::f16, StoreStep::q8_0, StoreStep::q4_0}) {
            const StoreTypes types{keys, values};
            const auto again = parse_store_types(name_of(types));
            ASSERT_TRUE(again) << name_of(types);
            EXPECT_EQ(*again, types);
        }
    }
    EXPECT_EQ(name_of(StoreTypes()), "f16");
    EXPECT_EQ(name_of(StoreTypes{StoreStep::q8_0, StoreStep::q4_0}), "q8_0:q4_0");
    EXPECT_EQ(*parse_store_types("q8_0:q8_0"), *parse_store_types("q8_0"));
}

TEST(StoreTypes, OtherNamesAreRefused) {
    for (const char* text : {"", "q8", "Q8_0", "q8_0:", ":q8_0", "q8_0:q4_0:f16", "q8_0,q4_0"}) {
        const auto types = parse_store_types(text);
        ASSERT_FALSE(types) << text;
        EXPECT_EQ(types.error().kind, ErrorKind::bad_input);
        EXPECT_NE(types.error().message.find("q8_0:q4_0"), std::string::npos);
    }
}

TEST(StoreTypes, BytesOfARow) {
    using S = StoreStep;
    EXPECT_EQ(row_bytes({S::f16, S::f16}, 33, 7), (33 + 7) * 2);
    EXPECT_EQ(row_bytes({S::q8_0, S::q8_0}, 128, 128), 2 * 4 * 34);
    EXPECT_EQ(row_bytes({S::q4_0, S::q4_0}, 128, 128), 2 * 4 * 18);
    EXPECT_EQ(row_bytes({S::q8_0, S::q4_0}, 64, 96), 2 * 34 + 3 * 18);
    EXPECT_EQ(row_bytes({S::f16, S::q4_0}, 33, 32), 33 * 2 + 18);
    for (const auto& [types, dim_k, dim_v] : {std::tuple(StoreTypes{S::q8_0, S::f16}, 80, 64),
                                              std::tuple(StoreTypes{S::f16, S::q4_0}, 64, 80)}) {
        const auto bytes = row_bytes(types, dim_k, dim_v);
        ASSERT_FALSE(bytes);
        EXPECT_EQ(bytes.error().kind, ErrorKind::bad_input);
        EXPECT_NE(bytes.error().message.find("32"), std::string::npos);
        EXPECT_NE(bytes.error().message.find("80"), std::string::npos);
    }
}

}  // namespace
}  // namespace headkv
